"""Checked predictions of one model on one set of images, and their bootstrap replicates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from features.errors import FirnError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_FEW = 4.0  # groups of a class for which the variance of a cross-validation is doubled


class Ranking(NamedTuple):
    """Images sorted by fold and falling score, with the places in that order that areas are counted from."""

    order: Ints  # (n,)
    folds: Ints  # (F + 1,) place where each fold starts, then n
    hits: Ints  # (n + 1,) positives before each place
    positives: Ints  # (m,) place of each positive ...
    first: Ints  # (m,) ... where its fold starts, ...
    before: Ints  # (m,) ... where its run of tied scores starts ...
    through: Ints  # (m,) ... and where that ends


def ranking(positive: NDArray[np.bool_], score: Floats, folds: Ints) -> Ranking:
    """Sort images by fold and falling `score` (n,), which holds no NaN; `positive` (n,), `folds` (n,)."""
    order = np.lexsort((-score, folds))
    new_fold = np.append(True, np.diff(folds[order]) != 0)
    new_score = new_fold | np.append(True, np.diff(score[order]) != 0)
    positives = np.flatnonzero(positive[order])
    fold_starts, run_starts = (np.append(np.flatnonzero(new), len(order)) for new in (new_fold, new_score))
    fold, run = (np.cumsum(new)[positives] - 1 for new in (new_fold, new_score))
    hits = np.concatenate([[0], np.cumsum(positive[order])])
    return Ranking(order, fold_starts, hits, positives, fold_starts[fold], run_starts[run], run_starts[run + 1])


def areas(weights: Floats, groups: Ints, ranks: Ranking) -> tuple[Floats, Floats]:
    """Return the ROC AUC within folds, and the average precision of each replicate, (b,) each.

    weights (b, G) whole numbers, groups (n,). Only images of the same fold are ranked against each other: the ROC area
    is the share of pairs within folds (the stratified Mann-Whitney statistic), ties count one half (Bamber 1975) and
    share one step of the PR curve. NaN where a replicate lacks a class it needs.
    """
    weight = weights[:, groups[ranks.order]]
    mine = weight[:, ranks.positives]
    seen, hits = _running(weight), _running(mine)

    def counted(at: Ints) -> tuple[Floats, Floats]:
        positive = hits[:, ranks.hits[at]]
        return positive, seen[:, at] - positive

    hits_first, alarms_first = counted(ranks.first)
    hits_through, alarms_through = counted(ranks.through)
    lost = np.einsum("bm,bm->b", mine, counted(ranks.before)[1] + alarms_through - 2 * alarms_first) / 2
    found = hits_through - hits_first
    precision = found / np.maximum(found + alarms_through - alarms_first, 1)  # no weight so far: counted with weight 0
    gained = np.einsum("bm,bm->b", mine, precision)
    positive, negative = (np.diff(column, axis=1) for column in counted(ranks.folds))
    return 1 - ratio(lost, (positive * negative).sum(axis=1)), ratio(gained, hits[:, -1])


def _running(weight: Floats) -> Floats:
    total = np.zeros((weight.shape[0], weight.shape[1] + 1))
    np.cumsum(weight, axis=1, out=total[:, 1:])
    return total


def ratio(part: Floats, whole: Floats) -> Floats:
    """Return part / whole, NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def inflation(folds: int, repeats: float, by_class: Iterable[float]) -> float:
    """Return the factor from the variance over groups by fold to that of a cross-validated score.

    Folds of other repeats hold the same patients: repeating makes them no more, and the variance is that of one repeat.
    Folds also have training images in common, which no resampling shows: K / (K - 1) for K folds a repeat, by the ratio
    of test to training images of Nadeau & Bengio 2003 (Machine Learning 52:239). And patients who are easy to tell
    apart make models too sure of themselves, so that estimate and truth part, the more the fewer they are: 1 + 4 / m
    for a harmonic mean of m groups a class (`by_class`), a number found by trial in `benchmarks/coverage.py`.
    """
    k = folds / repeats
    if not k > 1:
        return repeats
    return repeats * k / (k - 1) * (1 + _FEW * float(np.mean([1 / n for n in by_class if n > 0])))


def effective_groups(*by_class: float) -> float:
    """Return the effective number of groups of a mean over classes (Satterthwaite 1946); 1 where a class has one.

    `by_class` are the groups of each class; classes without any do not count.
    """
    groups = np.array([n for n in by_class if n > 0], dtype=np.float64)
    if not len(groups) or (groups == 1).any():
        return 1.0
    return float(1 + np.sum(1 / groups) ** 2 / np.sum(1 / (groups**2 * (groups - 1))))


class BadPredictions(FirnError):
    """Predictions that are no probabilities, or columns that do not belong together."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Checked predictions of n images in G groups for K classes; made by `make_sample`."""

    y: Ints  # (n,) true class
    proba: Floats  # (n, K)
    decision: Ints  # (n,) decided class
    groups: Ints  # (n,) number of the group, 0 to G - 1
    folds: Ints  # (n,) only images of the same fold are ranked against each other
    repeats: float = 1.0  # how many of these groups stand for one group in the world

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
    def independent(self) -> Floats:
        """Return the number of independent groups of each class, (K,), and of all, as the last: (K + 1,)."""
        return np.append(self.groups_by_class, self.n_groups) / self.repeats

    @property
    def inflation(self) -> float:
        """Return how much larger the variance is than that over these groups; see `inflation`."""
        return inflation(int(self.folds.max()) + 1, self.repeats, self.independent[:-1])

    def by_fold(self) -> Sample:
        """Return the sample with a group of its own for each fold that a group is in, as `inflation` expects."""
        codes = np.unique(self.groups * (self.folds.max() + 1) + self.folds, return_inverse=True)[1]
        return replace(self, groups=codes, repeats=(int(codes.max()) + 1) / self.n_groups)

    @cached_property
    def pooled(self) -> Sample:
        """Return the sample as one fold."""
        return replace(self, folds=np.zeros_like(self.folds)) if self.folds.any() else self

    @cached_property
    def rankings(self) -> tuple[Ranking, ...]:
        """Return the images ranked for class 1, or with K > 2 for each class against the rest."""
        classes = [1] if self.binary else range(self.n_classes)
        return tuple(ranking(self.y == k, self.proba[:, k], self.folds) for k in classes)

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
        sample, pooled = self.sample, self.sample.pooled
        columns = [areas(self.weights, sample.groups, ranks) for ranks in sample.rankings]
        over = columns if pooled is sample else [areas(self.weights, sample.groups, r) for r in pooled.rankings]
        return np.stack([roc for roc, _ in columns], axis=1), np.stack([pr for _, pr in over], axis=1)

    def mean(self, values: Floats) -> Floats:
        """Return the mean over the images of `values` (n,), (b,)."""
        sums = self.sample.tally(np.zeros_like(self.sample.y), 1, values)
        return (self.weights @ sums)[:, 0] / self.total


def two_classes(positive: ArrayLike) -> Floats:
    """Return the probabilities of both classes, (n, 2), from those of class 1, (n,)."""
    column = np.asarray(positive, dtype=np.float64)
    return np.stack([1 - column, column], axis=1)


def make_sample(
    y: ArrayLike,
    proba: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    folds: ArrayLike | None = None,
    threshold: ArrayLike | None = None,
) -> Sample:
    """Check predictions and decide each image.

    y (n,) whole numbers 0 to K - 1; proba (n, K) rows summing to 1; groups (n,) any labels, None where each image
    stands for itself; folds (n,) of out-of-fold predictions: scores of different models are not ranked against each
    other. The decision is the class of highest probability, or with two classes and a `threshold`, one for all or one
    an image (n,), class 1 where proba[:, 1] >= threshold. Raises BadPredictions.
    """
    labels, probabilities = np.asarray(y), np.asarray(proba, dtype=np.float64)
    _check(labels, probabilities)
    alone, together = np.arange(len(labels)), np.zeros(len(labels))
    codes = (
        _codes(alone if groups is None else groups, len(labels), "group"),
        _codes(together if folds is None else folds, len(labels), "fold"),
    )
    return Sample(labels.astype(np.int64), probabilities, _decide(probabilities, threshold), *codes)


def _codes(column: ArrayLike, n: int, noun: str) -> Ints:
    names = np.asarray(column)
    if names.shape != (n,):
        raise BadPredictions(f"expected one {noun} an image, got {len(names)} {noun}s for {n} images")
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


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
