"""Folds of a label matrix: whole groups, with each finding present and absent in every fold alike."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.errors import BadDataset


def label_folds(matrix: NDArray[np.int64], groups: NDArray[Any] | None, k: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Return the fold 0..k-1 of each row (n,) of a label matrix (n, L) of 0, 1 and -1 (missing), by whole groups.

    Iterative stratification (Sechidis, Tsoumakas & Vlahavas 2011, ECML PKDD, algorithm 1) over the images in which each
    finding is present and those in which it is absent, with groups for examples: the rarest of these first, its groups,
    largest first, to the fold that lacks most of it. `k` is lowered to the groups that the rarest has; BadDataset where
    these are fewer than two.
    """
    names = np.arange(len(matrix)) if groups is None else np.unique(groups, return_inverse=True)[1]
    sides = np.concatenate([matrix == 1, matrix == 0], axis=1)
    counts = np.zeros((int(names.max()) + 1, sides.shape[1]))
    np.add.at(counts, names, sides)
    fewest = int((counts > 0).sum(axis=0).min())
    if fewest < 2:
        raise BadDataset("a finding is present, or absent, in one group only, and two at least are needed; add more")
    order = np.random.default_rng(seed).permutation(len(counts))
    return _dealt(counts, np.bincount(names), min(k, fewest), order)[names]


def _dealt(counts: NDArray[np.float64], size: NDArray[np.int64], k: int, order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the fold of each group, from what it has of each side of each finding (G, 2 L) and its images (G,)."""
    wanted, room = np.tile(counts.sum(axis=0) / k, (k, 1)), np.full(k, size.sum() / k)
    fold = np.full(len(counts), -1, np.int64)
    while (left := order[fold[order] < 0]).size:
        remaining = (counts[left] > 0).sum(axis=0)
        side = int(np.where(remaining > 0, remaining, len(counts) + 1).argmin())
        mine = left[counts[left, side] > 0] if remaining.any() else left
        for group in mine[np.argsort(-counts[mine, side], kind="stable")].tolist():
            lack = wanted[:, side] if remaining.any() else room
            best = int(np.lexsort((-room, -lack))[0])
            fold[group] = best
            wanted[best] -= counts[group]
            room[best] -= size[group]
    return fold
