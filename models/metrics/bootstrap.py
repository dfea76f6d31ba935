"""The bootstrap over groups: whole patients are drawn, never single pictures."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from models.metrics.sample import Floats, Ints, Sample

__all__ = ["resamples", "strata"]

CELLS = 60_000  # weights worked on at a time: few enough to stay in a processor's cache


def strata(sample: Sample) -> list[Ints]:
    """Return the groups (by number) that are drawn together.

    Where every group is of one class, each class is a stratum: the mix of classes in a test set was chosen by whoever
    collected it, no replicate lacks a class, and the intervals hold for that mix, as DeLong's do. Where some group is
    of several classes, or some class has a single group (a stratum of one never varies), all groups are one stratum:
    strata of label patterns would often have one member and hide the variance between groups.
    """
    by_class = sample.groups_by_class
    pure = by_class.sum() == sample.n_groups
    if not pure or (by_class == 1).any():
        return [np.arange(sample.n_groups)]
    label = np.empty(sample.n_groups, dtype=np.int64)
    label[sample.groups] = sample.y
    return [np.flatnonzero(label == k) for k in np.flatnonzero(by_class)]


def resamples(sample: Sample, n_bootstrap: int, seed: int) -> Iterator[Floats]:
    """Yield blocks (b, G) of group weights, `n_bootstrap` rows in all: how often each group is drawn.

    Groups are drawn with replacement within `strata`, as many as there are (the cluster bootstrap; Davison & Hinkley
    1997, section 3.8). The blocks are the same for the same labels, groups and seed, whatever the probabilities.
    """
    random = np.random.default_rng(seed)
    members = strata(sample)
    rows = max(1, CELLS // len(sample.y))
    for start in range(0, n_bootstrap, rows):
        block = np.empty((min(rows, n_bootstrap - start), sample.n_groups))
        for stratum in members:
            block[:, stratum] = _counts(random, len(block), len(stratum))
        yield block


def _counts(random: np.random.Generator, rows: int, size: int) -> NDArray[np.int64]:
    drawn = random.integers(0, size, (rows, size)) + size * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size)
