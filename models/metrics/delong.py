"""ROC AUC with the variance of DeLong, and of Obuchowski for several images a group (patient)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from models.metrics.bootstrap import Interval, on_logit_scale, perfect_auc_bound, quantile
from models.metrics.sample import Floats, Ints, Sample


class DeLong(NamedTuple):
    """The ROC AUCs of k models on the same images, and the covariance of these estimates."""

    auc: Floats  # (k,)
    covariance: Floats  # (k, k); NaN with fewer than two groups of either class


def delong(y: ArrayLike, scores: ArrayLike, groups: ArrayLike | None = None) -> DeLong:
    """Estimate the areas under the ROC curves of k scores on the same images, and their covariance.

    y (n,) of 0 and 1, scores (k, n) or (n,), groups (n,). DeLong, DeLong & Clarke-Pearson 1988 (Biometrics 44:837),
    by sorting in O(n log n) as Sun & Xu 2014 (IEEE Signal Processing Letters 21:1389). With several images a group,
    the variance of Obuchowski 1997 (Biometrics 53:567), which is DeLong's where every group has one image.
    """
    positive = np.asarray(y) == 1
    columns = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    names = np.arange(len(positive)) if groups is None else np.asarray(groups)
    codes = np.unique(names, return_inverse=True)[1]
    if positive.all() or not positive.any():
        return DeLong(np.full(len(columns), np.nan), np.full((len(columns), len(columns)), np.nan))
    placed = np.stack([_placements(positive, column) for column in columns])
    auc = placed[:, positive].mean(axis=1)
    return DeLong(auc, _covariance(positive, placed - auc[:, None], codes))


def auc_interval(sample: Sample, level: float) -> Interval | None:
    """Return the area under the ROC curve of class 1 with its interval on the logit scale; None for K > 2.

    The logit keeps the bounds inside 0 to 1 and covers better near 1 than the plain interval (Pepe 2003, section 5.2):
    an area of 0.983 from 60 + 60 images 94 instead of 85 times in 100, one of 0.998 from 100 + 100 images 91
    instead of 77 times (`benchmarks/coverage.py`).
    """
    if not sample.binary:
        return None
    estimate = delong(sample.y, sample.proba[:, 1], sample.groups)
    auc, variance = float(estimate.auc[0]), float(estimate.covariance[0, 0])
    if np.isnan(variance):
        return Interval(auc, np.nan, np.nan)
    if auc in (0.0, 1.0):
        negatives, positives = sample.groups_by_class
        bound = perfect_auc_bound(int(positives), int(negatives), level)
        return Interval(auc, bound, 1.0) if auc else Interval(auc, 0.0, 1 - bound)
    return on_logit_scale(auc, quantile(level) * float(np.sqrt(variance)))


def _placements(positive: Ints, score: Floats) -> Floats:
    """Return the placement values: the share of the other class ranked on the right side of each image, ties half."""
    ours, others = np.sort(score[positive]), np.sort(score[~positive])
    placed = np.empty(len(score))
    placed[positive] = _below(others, score[positive])
    placed[~positive] = 1 - _below(ours, score[~positive])
    return placed


def _below(reference: Floats, score: Floats) -> Floats:
    left, right = (np.searchsorted(reference, score, side=side) for side in ("left", "right"))
    return (left + right) / (2 * len(reference))


def _covariance(positive: Ints, centred: Floats, codes: Ints) -> Floats:
    """Return the covariance (k, k) from centred placements (k, n), summed within groups."""
    size = int(codes.max()) + 1
    sums = []
    for own in (positive, ~positive):
        n_groups = len(np.unique(codes[own]))
        if n_groups < 2:
            return np.full((len(centred), len(centred)), np.nan)
        within = np.stack([np.bincount(codes, row * own, minlength=size) for row in centred]) / own.sum()
        sums.append((within, n_groups / (n_groups - 1)))
    (first, scale), (second, other_scale) = sums
    cross = size / (size - 1) * first @ second.T
    total: Floats = scale * first @ first.T + other_scale * second @ second.T + cross + cross.T
    return total
