"""ROC and precision-recall curves on a fixed grid, with a pointwise confidence band."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from models.metrics.bootstrap import resamples
from models.metrics.sample import Floats, Sample, make_sample, ratio


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
    grid: int = 101,
    n_bootstrap: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Band:
    """Return the ROC curve: sensitivity (value) at `grid` even steps of 1 - specificity (x), with a band.

    y (n,) of 0 and 1, score (n,) in 0 to 1, groups (n,). Ties make slanted segments. The band holds point by point,
    not for the curve as a whole, by the percentile bootstrap over groups (Fawcett 2006: vertical averaging); with few
    images of either class read it with care (Hanczar et al. 2010, Bioinformatics 26:822).
    """
    return _band(_sensitivity, y, score, groups, grid, n_bootstrap, level, seed)


def pr_curve_band(
    y: ArrayLike,
    score: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    grid: int = 101,
    n_bootstrap: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Band:
    """Return the precision-recall curve: precision at `grid` even steps of recall; the rest as `roc_curve_band`.

    Precision is a step function of recall, not interpolated (Davis & Goadrich 2006): the one at the highest threshold
    that reaches the recall. Its area is the average precision, the metric `pr_auc`.
    """
    return _band(_precision, y, score, groups, grid, n_bootstrap, level, seed)


def _band(
    curve: Callable[[Floats, Floats, Floats], Floats],
    y: ArrayLike,
    score: ArrayLike,
    groups: ArrayLike | None,
    grid: int,
    n_bootstrap: int,
    level: float,
    seed: int,
) -> Band:
    column = np.asarray(score, dtype=np.float64)
    sample = make_sample(y, np.stack([1 - column, column], axis=1), groups)
    x = np.linspace(0, 1, grid).round(12)
    value = _curves(curve, sample, np.ones((1, sample.n_groups)), x)[0]
    blocks = [_curves(curve, sample, weights, x) for weights in resamples(sample, n_bootstrap, seed)]
    drawn = np.concatenate([np.full((1, grid), np.nan), *blocks])
    drawn = drawn[~np.isnan(drawn[:, -1])]
    if not len(drawn) or (sample.groups_by_class < 2).any():
        return Band(x, value, np.full(grid, np.nan), np.full(grid, np.nan))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Band(x, value, low, high)


def _curves(curve: Callable[[Floats, Floats, Floats], Floats], sample: Sample, weights: Floats, x: Floats) -> Floats:
    """Return the curve of each replicate at x, (b, grid)."""
    hits, alarms = counts_by_threshold(sample, weights)
    usable = (hits[:, -1] > 0) & (alarms[:, -1] > 0)
    rows = np.full((len(weights), len(x)), np.nan)
    for row in np.flatnonzero(usable):
        rows[row] = curve(hits[row], alarms[row], x)
    return rows


def counts_by_threshold(sample: Sample, weights: Floats) -> tuple[Floats, Floats]:
    """Return the true and false positives of each replicate at each of m falling thresholds, (b, m) each."""
    order = np.argsort(-sample.proba[:, 1], kind="stable")
    falling = sample.proba[order, 1]
    ends = np.append(np.flatnonzero(falling[1:] != falling[:-1]), len(falling) - 1)  # the last of each run of ties
    weight = weights[:, sample.groups[order]]
    hits = np.cumsum(weight * sample.y[order], axis=1)[:, ends]
    return hits, np.cumsum(weight, axis=1)[:, ends] - hits


def rates_by_threshold(sample: Sample, weights: Floats) -> Iterator[tuple[Floats, Floats]]:
    """Yield the false and true positive rates of each replicate, (m + 1,) from 0 to 1; NaN where it lacks a class."""
    hits, alarms = counts_by_threshold(sample, weights)
    of_all = (ratio(column, np.repeat(column[:, -1:], column.shape[1], axis=1)) for column in (alarms, hits))
    none = np.zeros((len(weights), 1))
    yield from zip(*(np.hstack([none, rate]) for rate in of_all), strict=True)


def _sensitivity(hits: Floats, alarms: Floats, x: Floats) -> Floats:
    # Rounded like the grid: 3/10 must meet 0.3. Of points above each other np.interp takes the last, the highest.
    rate = np.append(0.0, (alarms / alarms[-1]).round(12))
    return np.asarray(np.interp(x, rate, np.append(0.0, hits / hits[-1])))


def _precision(hits: Floats, alarms: Floats, x: Floats) -> Floats:
    found = hits > 0
    recall = (hits[found] / hits[-1]).round(12)
    precision: Floats = hits[found] / (hits[found] + alarms[found])
    return precision[np.searchsorted(recall, x, side="left")]
