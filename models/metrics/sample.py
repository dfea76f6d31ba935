"""Checked predictions of one model on one set of images, and their bootstrap replicates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from features.errors import FirnError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Ranking(NamedTuple):
    """Images sorted by falling score, with the rank of each of the m positives before and after its ties."""

    order: Ints  # (n,)
    positives: Ints  # (m,) places in `order`
    before: Ints  # (m,) images of higher score
    through: Ints  # (m,) images of higher or equal score
    positives_before: Ints  # (m,)
    positives_through: Ints  # (m,)


def ranking(positive: NDArray[np.bool_], score: Floats) -> Ranking:
    """Rank images by falling `score` (n,), which holds no NaN; `positive` (n,)."""
    order = np.argsort(-score, kind="stable")
    falling = -score[order]
    positives = np.flatnonzero(positive[order])
    before = np.searchsorted(falling, falling[positives], side="left")
    through = np.searchsorted(falling, falling[positives], side="right")
    counted = np.concatenate([[0], np.cumsum(positive[order])])
    return Ranking(order, positives, before, through, counted[before], counted[through])


def areas(weights: Floats, groups: Ints, ranks: Ranking) -> tuple[Floats, Floats]:
    """Return the area under the ROC curve and the average precision of each replicate, (b,) each.

    weights (b, G) whole numbers, groups (n,). Ties count one half in the ROC area (the Mann-Whitney statistic; Bamber
    1975) and share one step of the PR curve. NaN where a replicate lacks a class it needs.
    """
    weight = weights[:, groups[ranks.order]]
    mine = weight[:, ranks.positives]
    seen, hits = _running(weight), _running(mine)
    positive, negative = hits[:, -1], seen[:, -1] - hits[:, -1]
    hits_through, seen_through = hits[:, ranks.positives_through], seen[:, ranks.through]
    above = seen[:, ranks.before] - hits[:, ranks.positives_before] + seen_through - hits_through
    lost = np.einsum("bm,bm->b", mine, above) / 2
    precision = hits_through / np.maximum(seen_through, 1)  # no weight so far: counted with weight 0
    gained = np.einsum("bm,bm->b", mine, precision)
    return 1 - ratio(lost, positive * negative), ratio(gained, positive)


def _running(weight: Floats) -> Floats:
    total = np.zeros((weight.shape[0], weight.shape[1] + 1))
    np.cumsum(weight, axis=1, out=total[:, 1:])
    return total


def ratio(part: Floats, whole: Floats) -> Floats:
    """Return part / whole, NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


class BadPredictions(FirnError):
    """Predictions that are no probabilities, or columns that do not belong together."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Checked predictions of n images in G groups for K classes; made by `make_sample`."""

    y: Ints  # (n,) true class
    proba: Floats  # (n, K)
    decision: Ints  # (n,) decided class
    groups: Ints  # (n,) number of the group, 0 to G - 1

    @property
    def n_classes(self) -> int:
        """Return K."""
        return int(self.proba.shape[1])

    @property
    def binary(self) -> bool:
        """Return whether there are two classes, of which class 1 is the positive one."""
        return self.n_classes == 2

    @cached_property
    def n_groups(self) -> int:
        """Return G."""
        return int(self.groups.max()) + 1

    @cached_property
    def groups_by_class(self) -> Ints:
        """Return how many groups hold an image of each class, (K,)."""
        seen = np.unique(self.groups * self.n_classes + self.y)
        return np.bincount(seen % self.n_classes, minlength=self.n_classes)

    @cached_property
    def rankings(self) -> tuple[Ranking, ...]:
        """Return the images ranked for class 1, or with K > 2 for each class against the rest."""
        classes = [1] if self.binary else range(self.n_classes)
        return tuple(ranking(self.y == k, self.proba[:, k]) for k in classes)

    @cached_property
    def confusion(self) -> Floats:
        """Return how many images of each group are of each true class and decided as each class, (G, K * K)."""
        return self.tally(self.y * self.n_classes + self.decision, self.n_classes**2)

    def tally(self, cells: Ints, n_cells: int, values: Floats | None = None) -> Floats:
        """Return what each group puts into each cell, (G, n_cells): the images, or the sum of their `values`."""
        size = self.n_groups * n_cells
        total = np.bincount(self.groups * n_cells + cells, values, minlength=size)
        return total.reshape(self.n_groups, n_cells).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Replicates:
    """Bootstrap replicates of a sample, b of them: weight 2 stands for a group drawn twice."""

    sample: Sample
    weights: Floats  # (b, G) whole numbers

    @cached_property
    def total(self) -> Floats:
        """Return the number of images in each replicate, (b,)."""
        return self.weights @ np.bincount(self.sample.groups).astype(np.float64)

    @cached_property
    def confusion(self) -> Floats:
        """Return the images of each true class (rows) decided as each class (columns), (b, K, K)."""
        k = self.sample.n_classes
        return (self.weights @ self.sample.confusion).reshape(-1, k, k)

    @cached_property
    def areas(self) -> tuple[Floats, Floats]:
        """Return the areas under the ROC and the PR curve, (b, number of rankings) each."""
        columns = [areas(self.weights, self.sample.groups, ranks) for ranks in self.sample.rankings]
        roc, pr = zip(*columns, strict=True)
        return np.stack(roc, axis=1), np.stack(pr, axis=1)

    def mean(self, values: Floats) -> Floats:
        """Return the mean over the images of `values` (n,), (b,)."""
        sums = self.sample.tally(np.zeros_like(self.sample.y), 1, values)
        return (self.weights @ sums)[:, 0] / self.total


def make_sample(
    y: ArrayLike, proba: ArrayLike, groups: ArrayLike | None = None, *, threshold: ArrayLike | None = None
) -> Sample:
    """Check predictions and decide each image.

    y (n,) whole numbers 0 to K - 1; proba (n, K) rows summing to 1; groups (n,) any labels, None where each image
    stands for itself. The decision is the class of highest probability, or with two classes and a `threshold`, one for
    all or one an image (n,), class 1 where proba[:, 1] >= threshold. Raises BadPredictions.
    """
    labels, probabilities = np.asarray(y), np.asarray(proba, dtype=np.float64)
    _check(labels, probabilities)
    names = np.arange(len(labels)) if groups is None else np.asarray(groups)
    if names.shape != labels.shape:
        raise BadPredictions(f"expected one group an image, got {len(names)} groups for {len(labels)} images")
    codes = np.unique(names, return_inverse=True)[1]
    return Sample(labels.astype(np.int64), probabilities, _decide(probabilities, threshold), codes.astype(np.int64))


def _check(y: NDArray[Any], proba: Floats) -> None:
    if proba.ndim != 2 or y.shape != proba.shape[:1] or not len(y) or proba.shape[1] < 2:
        raise BadPredictions(f"expected y (n,) and proba (n, K >= 2) with n > 0, got {y.shape} and {proba.shape}")
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= proba.shape[1]:
        given = f"{y.dtype} {np.unique(y)[:9].tolist()}"
        raise BadPredictions(f"expected y in whole numbers 0 to {proba.shape[1] - 1}, got {given}")
    wrong = ~((proba >= 0).all(axis=1) & (np.abs(proba.sum(axis=1) - 1) < 1e-3))
    if wrong.any():
        row = int(wrong.argmax())
        given = f"{proba[row][:9].round(4).tolist()} in row {row}"
        raise BadPredictions(f"expected rows of probabilities that sum to 1, got {given}")


def _decide(proba: Floats, threshold: ArrayLike | None) -> Ints:
    if threshold is None:
        return np.asarray(proba.argmax(axis=1), dtype=np.int64)
    at = np.asarray(threshold, dtype=np.float64)
    if proba.shape[1] != 2 or np.isnan(at).any() or at.shape not in ((), proba.shape[:1]):
        raise BadPredictions(f"a threshold needs two classes, got threshold {threshold} and {proba.shape[1]} classes")
    return np.where(proba[:, 1] >= at, 1, 0)
