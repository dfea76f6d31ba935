"""Predictions by group (patient): the probabilities of a group's images put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from features.errors import unknown
from models.metrics.sample import BadPredictions, Floats, Ints, make_sample


class GroupPredictions(NamedTuple):
    """One row a group, sorted by its name."""

    groups: NDArray[Any]  # (G,)
    y: Ints  # (G,)
    proba: Floats  # (G, K)
    images: Ints  # (G,)


def _mean(place: Ints, positive: Floats, size: int) -> Floats:
    return np.bincount(place, positive, minlength=size) / np.bincount(place, minlength=size)


def _maximum(place: Ints, positive: Floats, size: int) -> Floats:
    highest = np.zeros(size)
    np.maximum.at(highest, place, positive)
    return highest


def _noisy_or(place: Ints, positive: Floats, size: int) -> Floats:
    with np.errstate(divide="ignore"):  # log 0: one certain image is enough
        return np.asarray(-np.expm1(np.bincount(place, np.log1p(-positive), minlength=size)))


# how the probabilities of the positive class of a group's images become the group's: mean; the most suspicious image;
# one that at least one image is positive, were they independent (Pearl 1988)
AGGREGATES: dict[str, Callable[[Ints, Floats, int], Floats]] = {
    "mean": _mean,
    "max": _maximum,
    "noisy-or": _noisy_or,
}


def predictions_by_group(y: ArrayLike, proba: ArrayLike, groups: ArrayLike, how: str = "mean") -> GroupPredictions:
    """Return the predictions of groups (patients) from those of their images.

    y (n,), proba (n, K), groups (n,). Of two classes a group is positive where any image of it is; of more, all its
    images must be of one class, and `how` must be "mean". Raises UnknownName, BadPredictions.
    """
    if how not in AGGREGATES:
        raise unknown("aggregate", how, AGGREGATES)
    sample, names = make_sample(y, proba, groups), np.unique(np.asarray(groups))
    size, place = sample.n_groups, sample.groups
    label = np.zeros(size, np.int64)
    np.maximum.at(label, place, sample.y)
    if sample.binary:
        positive = AGGREGATES[how](place, sample.proba[:, 1], size)
        return GroupPredictions(names, label, np.stack([1 - positive, positive], axis=1), np.bincount(place))
    if how != "mean" or (label[place] != sample.y).any():
        raise BadPredictions(f"more than two classes have 'mean' of groups of one class only, got {how!r}")
    means = np.stack([_mean(place, column, size) for column in sample.proba.T], axis=1)
    return GroupPredictions(names, label, means, np.bincount(place))
