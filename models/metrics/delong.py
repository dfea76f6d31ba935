"""ROC AUC with the variance of DeLong, and of Obuchowski for several images a group (patient)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.metrics.bootstrap import Interval, on_logit_scale, perfect_auc_bound, quantile
from models.metrics.sample import Floats, Ints, Sample, effective_groups, inflation

NO_VARIANCE = 1e-24  # rounding leaves no more than this of a variance of 0


class DeLong(NamedTuple):
    """The ROC AUCs of k models on the same images, and the covariance of these estimates."""

    auc: Floats  # (k,)
    covariance: Floats  # (k, k); NaN with fewer than two groups of either class
    evidence: float  # effective number of groups that these rest on
    groups: int


def delong(y: ArrayLike, scores: ArrayLike, groups: ArrayLike | None = None, folds: ArrayLike | None = None) -> DeLong:
    """Estimate the ROC AUCs of k scores on the same images, and their covariance.

    y (n,) of 0 and 1, scores (k, n) or (n,), groups (n,), folds (n,) or (k, n). DeLong, DeLong & Clarke-Pearson 1988
    (Biometrics 44:837), by sorting in O(n log n) as Sun & Xu 2014 (IEEE Signal Processing Letters 21:1389). With
    several images a group, the variance of Obuchowski 1997 (Biometrics 53:567), which is DeLong's where every group has
    one image. With folds, only pairs within a fold count: the scores of different models have no common scale, and
    pooling them biases the area, of each kind of model differently; the variance is inflated as
    `models.metrics.sample.inflation` says.
    """
    positive = np.asarray(y) == 1
    columns = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    places = np.broadcast_to(0 if folds is None else np.asarray(folds), columns.shape)
    of = np.arange(len(positive)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    codes = np.unique(np.stack([of, places[0]]), axis=1, return_inverse=True)[1].ravel()
    n_groups = len(np.unique(of))
    repeats = (int(codes.max()) + 1) / n_groups
    by_class = [len(np.unique(codes[own])) / repeats for own in (positive, ~positive)]
    evidence = effective_groups(*by_class)
    wins, opponents = np.stack([_wins(positive, *pair) for pair in zip(columns, places, strict=True)], axis=1)
    pairs = opponents[:, positive].sum(axis=1, keepdims=True)
    if not pairs.all():
        return DeLong(np.full(len(columns), np.nan), np.full((len(columns),) * 2, np.nan), evidence, n_groups)
    auc = wins[:, positive].sum(axis=1) / pairs[:, 0]
    influence = (wins - auc[:, None] * opponents) / pairs
    inflated = inflation(len(np.unique(places[0])), repeats, by_class)
    return DeLong(auc, inflated * _covariance(positive, influence, codes, repeats), evidence, n_groups)


def auc_interval(sample: Sample, level: float) -> Interval | None:
    """Return the ROC AUC of class 1 with its interval by Student's t on the logit scale; None for K > 2.

    The logit keeps the bounds inside 0 to 1 and covers better near 1 than the plain interval (Pepe 2003, section 5.2);
    the degrees of freedom are those of the groups of both classes, as few patients of a class tell little of their
    variance (`benchmarks/coverage.py`). Bounds are NaN where no image tells the variance: a constant prediction, fewer
    than two groups of a class.
    """
    if not sample.binary:
        return None
    estimate = delong(sample.y, sample.proba[:, 1], sample.groups, sample.folds)
    auc, variance = float(estimate.auc[0]), float(estimate.covariance[0, 0])
    if auc in (0.0, 1.0) and not np.isnan(variance):
        negatives, positives, _ = sample.independent
        bound = perfect_auc_bound(positives, negatives, level)
        return Interval(auc, bound, 1.0) if auc else Interval(auc, 0.0, 1 - bound)
    if not variance > NO_VARIANCE:
        return Interval(auc, np.nan, np.nan)
    return on_logit_scale(auc, quantile(level, estimate.evidence - 1) * float(np.sqrt(variance)))


def _wins(positive: NDArray[np.bool_], score: Floats, folds: Ints) -> Floats:
    """Return the images of the other class that each is ranked rightly against, and all in its fold, (2, n).

    Ties count one half.
    """
    found = np.zeros((2, len(score)))
    for fold in np.unique(folds):
        at = folds == fold
        for own, other, sign in ((at & positive, at & ~positive, 1), (at & ~positive, at & positive, -1)):
            found[0, own] = _below(np.sort(sign * score[other]), sign * score[own])
            found[1, own] = other.sum()
    return found


def _below(reference: Floats, score: Floats) -> Floats:
    """Return how much of a sorted reference lies below each score, ties one half."""
    left, right = (np.searchsorted(reference, score, side=side) for side in ("left", "right"))
    return np.asarray((left + right) / 2)


def _covariance(positive: NDArray[np.bool_], influence: Floats, codes: Ints, repeats: float) -> Floats:
    """Return the covariance (k, k) from the influence of each image on each area (k, n), summed within groups."""
    size = int(codes.max()) + 1
    sums = []
    for own in (positive, ~positive):
        n_groups = len(np.unique(codes[own])) / repeats
        if n_groups < 2:
            return np.full((len(influence), len(influence)), np.nan)
        within = np.stack([np.bincount(codes, row * own, minlength=size) for row in influence])
        sums.append((within, n_groups / (n_groups - 1)))
    (first, scale), (second, other_scale) = sums
    cross = size / (size - repeats) * first @ second.T
    total: Floats = scale * first @ first.T + other_scale * second @ second.T + cross + cross.T
    return total
