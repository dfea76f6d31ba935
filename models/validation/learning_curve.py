"""The learning curve: out-of-fold score of a head against the number of training groups (patients)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.views import View
from models.folds import TooFewGroups, grouped_folds
from models.heads.head import Head
from models.validation.cross_validation import FOLDS
from models.validation.predictions import Predictions

REPEATS, POINTS, FEWEST = 3, 7, 5  # draws of each size; sizes; groups of the rarest class in the smallest
Ints = NDArray[np.int64]


class Point(NamedTuple):
    """One point of the learning curve: out-of-fold predictions of heads fitted on so many groups."""

    groups: int
    images: float  # mean over the fits
    predictions: Predictions  # every image once a draw, rows of the draws one after the other


def learning_curve(
    make: Callable[[], Head],
    view: View,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Point]:
    """Return the learning curve of a head: growing parts of the training groups, five held-out folds, three draws.

    `view` has the training images only; test images have no part in it. Parts are nested, drawn by whole groups
    with the classes in proportion, of log-spaced sizes. Raises TooFewGroups for too few groups.
    """
    folds = grouped_folds(view.y, view.groups, FOLDS, seed=seed)
    k, counts = int(folds.max()) + 1, sizes(view, folds)
    held = np.zeros((len(counts), REPEATS, len(view.y), int(view.y.max()) + 1))
    images = np.zeros(len(counts))
    for draw in range(REPEATS):
        for fold in range(k):
            own = folds == fold
            rank = draw_order(view.y[~own], view.groups[~own], seed=seed + 1000 * draw + fold)
            rest = np.flatnonzero(~own)
            for i, count in enumerate(counts):
                at = rest[rank < count]
                head = make().fit(view.X[at], view.y[at], view.groups[at])
                held[i, draw, own] = head.predict_proba(view.X[own])
                images[i] += len(at) / (k * REPEATS)
                progress(1 + i + len(counts) * (fold + k * draw), len(counts) * k * REPEATS)
    fold_ids = np.concatenate([folds + k * draw for draw in range(REPEATS)])
    ids, groups, y = (np.concatenate([getattr(view, name)] * REPEATS) for name in ("ids", "groups", "y"))
    return [
        Point(count, float(n), Predictions(ids, groups, y, np.concatenate(list(proba)), fold_ids))
        for count, n, proba in zip(counts, images, held, strict=True)
    ]


def sizes(view: View, folds: Ints) -> list[int]:
    """Return log-spaced numbers of groups, up to what every fold leaves to learn from; ascending, at most POINTS."""
    classes = int(view.y.max()) + 1
    left = [len(np.unique(view.groups[folds != fold])) for fold in np.unique(folds)]
    rarest, label = min(
        (len(np.unique(view.groups[(folds != fold) & (view.y == c)])), c)
        for fold in np.unique(folds)
        for c in range(classes)
    )
    most = min(left)
    least = int(np.ceil(FEWEST * most / max(rarest, 1)))
    if rarest < FEWEST:
        raise TooFewGroups(label, rarest, FEWEST)
    counts: list[int] = np.unique(np.geomspace(least, most, POINTS).round().astype(np.int64)).tolist()
    return counts


def draw_order(y: Ints, groups: NDArray[np.str_], *, seed: int) -> Ints:
    """Return the place of each row's group in a random order in which classes come in proportion, (n,).

    A group of several classes counts for its rarest one.
    """
    names, place = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng(seed)
    classes = int(y.max()) + 1
    has = np.zeros((len(names), classes), dtype=bool)
    has[place, y] = True
    own = np.where(has, has.sum(0), len(names) + 1).argmin(axis=1)
    share = np.empty(len(names))
    for c in range(classes):
        members = rng.permutation(np.flatnonzero(own == c))
        share[members] = (np.arange(len(members)) + rng.uniform()) / max(len(members), 1)
    order = np.empty(len(names), dtype=np.int64)
    order[np.argsort(share, kind="stable")] = np.arange(len(names))
    return np.asarray(order[place])
