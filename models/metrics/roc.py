"""ROC and precision-recall curves on a fixed grid, with a pointwise confidence band."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.metrics.bootstrap import logit_interval, resamples
from models.metrics.sample import Floats, Sample, effective_groups, make_sample, ratio, two_classes

Curve = Callable[[Floats, Floats, Floats], Floats]  # true and false positives at falling thresholds, grid -> curve


class Band(NamedTuple):
    """A curve on a grid with the bounds of its pointwise confidence band; NaN where y lacks a class."""

    x: Floats  # (grid,)
    value: Floats  # (grid,)
    low: Floats  # (grid,)
    high: Floats  # (grid,)


def roc_curve_band(
    y: ArrayLike,
    score: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    folds: ArrayLike | None = None,
    grid: int = 101,
    n_bootstrap: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Band:
    """Return the ROC curve: sensitivity (value) at `grid` even steps of 1 - specificity (x), with a band.

    y (n,) of 0 and 1, score (n,) in 0 to 1, groups (n,), folds (n,). Ties make slanted segments. Out of fold, the curve
    is the mean of the folds' at each x, each fold with the weight of its pairs, so that its area is the metric
    `roc_auc`. The band holds point by point, not for the curve as a whole: vertical averaging (Fawcett 2006) with the
    standard error of the bootstrap over groups on the logit scale; percentiles hold nothing where the curve is 1. With
    few images of either class read it with care (Hanczar et al. 2010, Bioinformatics 26:822).
    """
    sample = make_sample(y, two_classes(score), groups, folds=folds).by_fold()
    return _band(_sensitivity, sample, sample, grid, n_bootstrap, level, seed)


def pr_curve_band(
    y: ArrayLike,
    score: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    folds: ArrayLike | None = None,
    grid: int = 101,
    n_bootstrap: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Band:
    """Return the precision-recall curve: precision at `grid` even steps of recall; the rest as `roc_curve_band`.

    Precision is a step function of recall, not interpolated (Davis & Goadrich 2006): the one at the highest threshold
    that reaches the recall. Its area is the average precision, the metric `pr_auc`: of all folds together, as precision
    is no matter of pairs within one; only the band is that of models of several folds.
    """
    sample = make_sample(y, two_classes(score), groups, folds=folds).by_fold()
    return _band(_precision, sample, sample.pooled, grid, n_bootstrap, level, seed)


def _band(curve: Curve, sample: Sample, ranked: Sample, grid: int, n_bootstrap: int, level: float, seed: int) -> Band:
    """Return the curve of a sample, whose images are ranked as in `ranked`, with its band."""
    x = np.linspace(0, 1, grid).round(12)

    def curves(weights: Floats) -> Floats:
        return over_folds(lambda hits, alarms: curve(hits, alarms, x), grid, ranked, weights)

    value = curves(np.ones((1, sample.n_groups)))[0]
    drawn = np.concatenate([np.full((1, grid), np.nan), *map(curves, resamples(sample, n_bootstrap, seed))])
    drawn = drawn[~np.isnan(drawn[:, -1])]
    if not len(drawn) or (sample.independent[:-1] < 2).any():
        return Band(x, value, np.full(grid, np.nan), np.full(grid, np.nan))
    drawn, evidence = value + np.sqrt(sample.inflation) * (drawn - value), effective_groups(*sample.independent[:-1])
    rows = [logit_interval(float(v), column, level, evidence) for v, column in zip(value, drawn.T, strict=True)]
    return Band(x, value, np.array([row.low for row in rows]), np.array([row.high for row in rows]))


def over_folds(of: Callable[[Floats, Floats], Any], size: int, sample: Sample, weights: Floats) -> Floats:
    """Return the mean over folds, by their pairs of a positive and a negative, of what a threshold gives in each.

    `of` makes `size` numbers of the true and the false positives (m,) at falling thresholds. Returns a row for each
    replicate of `weights` (b, G), (b, size); NaN where no fold has both classes.
    """
    counts = [_counts(sample, weights, sample.folds == fold) for fold in np.unique(sample.folds)]
    pairs = np.stack([hits[:, -1] * alarms[:, -1] for hits, alarms in counts])
    shares = ratio(pairs, np.broadcast_to(pairs.sum(axis=0), pairs.shape))
    total = np.where(np.isnan(shares[0])[:, None], np.nan, np.zeros((1, size)))
    for (hits, alarms), share in zip(counts, shares, strict=True):
        for row in np.flatnonzero(share > 0):
            total[row] += share[row] * np.asarray(of(hits[row], alarms[row]))
    return total


def _counts(sample: Sample, weights: Floats, at: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Return the true and false positives among some images, of each replicate at m falling thresholds, (b, m) each."""
    order = np.flatnonzero(at)[np.argsort(-sample.proba[at, 1], kind="stable")]
    falling = sample.proba[order, 1]
    ends = np.append(np.flatnonzero(falling[1:] != falling[:-1]), len(falling) - 1)  # the last of each run of ties
    weight = weights[:, sample.groups[order]]
    hits = np.cumsum(weight * sample.y[order], axis=1)[:, ends]
    return hits, np.cumsum(weight, axis=1)[:, ends] - hits


def _sensitivity(hits: Floats, alarms: Floats, x: Floats) -> Floats:
    # Rounded like the grid: 3/10 must meet 0.3. Of points above each other np.interp takes the last, the highest.
    rate = np.append(0.0, (alarms / alarms[-1]).round(12))
    return np.asarray(np.interp(x, rate, np.append(0.0, hits / hits[-1])))


def _precision(hits: Floats, alarms: Floats, x: Floats) -> Floats:
    found = hits > 0
    recall = (hits[found] / hits[-1]).round(12)
    precision: Floats = hits[found] / (hits[found] + alarms[found])
    return precision[np.searchsorted(recall, x, side="left")]
