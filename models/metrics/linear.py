"""Confidence intervals from how far each group (patient) moves a score: the infinitesimal jackknife, no replicates."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.metrics.bootstrap import Interval, effective_count, on_logit_scale, quantile, strata, wilson
from models.metrics.sample import Floats, Sample, ratio

_NO_SKEWNESS = 1e-9


class Spread(NamedTuple):
    """How a score that is nearly a sum over groups varies."""

    error: float  # standard error
    skewness: float  # of the sum: third cumulant over the error cubed
    freedom: float  # degrees of freedom of the error, were the groups' influences normal (Satterthwaite 1946)
    tailed: float  # the same by their fourth moments: few where few groups make the variance


def spread(sample: Sample, influence: Floats) -> Spread:
    """Return the spread of a score from the influence of each image on it, (n,), summed within groups.

    Jaeckel 1972, Efron 1982 (The Jackknife, the Bootstrap and Other Resampling Plans, chapter 6). Groups are drawn
    within the strata of the bootstrap, and out of fold the variance is that of `Sample.inflation`; the sample is by
    fold. NaN with fewer than two groups in a stratum.
    """
    by_group = sample.tally(np.zeros_like(sample.y), 1, influence)[:, 0]
    second, third, fourth, shares = 0.0, 0.0, 0.0, []
    for members in strata(sample):
        independent = len(members) / sample.repeats
        if not independent > 1:
            return Spread(np.nan, np.nan, np.nan, np.nan)
        away = by_group[members] - by_group[members].mean()
        variance = float(away @ away) * independent / (independent - 1)
        second, third = second + variance, third + float((away**3).sum())
        fourth += float((away**4).sum()) - float(away @ away) ** 2 / len(away)
        shares.append(variance**2 / (independent - 1))
    if not sum(shares) > 0:  # also of numbers so small that their squares are 0
        return Spread(0.0, 0.0, np.inf, np.inf)
    widened, normal = float(np.sqrt(sample.inflation)), second**2 / sum(shares)
    tailed = min(normal, 2 * second**2 / (fourth * sample.repeats)) if fourth > 0 else normal
    return Spread(float(np.sqrt(second)) * widened, third / second**1.5 * widened, normal, tailed)


def skewed_interval(value: float, of: Spread, level: float) -> Interval:
    """Return the interval of a mean of skewed values, such as a loss, with Student's t; none without a spread.

    Hall 1992 (J. R. Statist. Soc. B 54:221): the cubic, monotone transformation that takes the skewness out of the
    t-statistic. Bootstrap intervals on the log scale held the truth 90 to 92 times in 100 where few images cost most.
    """
    if not of.error > 0:
        return Interval(value, np.nan, np.nan)
    k, at = of.skewness, quantile(level, of.freedom) * np.array([1.0, -1.0])
    if abs(k) > _NO_SKEWNESS:
        at = 3 / k * (np.cbrt(1 + k * (at - k / 6)) - 1)
    low, high = value - of.error * at
    return Interval(value, float(low), float(high))


def mean_interval(sample: Sample, losses: Floats, level: float) -> Interval:
    """Return the mean of losses >= 0 of the images, (n,), with its interval."""
    sample, value = sample.by_fold(), float(losses.mean())
    found = skewed_interval(value, spread(sample, (losses - value) / len(losses)), level)
    return found._replace(low=max(found.low, 0.0))


def precision_interval(sample: Sample, level: float) -> Interval:
    """Return the area under the PR curve, of K > 2 classes their mean, with its interval on the logit scale.

    Boyd, Eng & Page 2013 (ECML PKDD 8190:451) for the logit; the error is the infinitesimal jackknife's, as resampling
    repeats images, which tie with themselves.
    """
    held = sample.independent[:-1]
    classes = [k for k in ([1] if sample.binary else range(sample.n_classes)) if held[k]]
    if not classes:
        return Interval(np.nan, np.nan, np.nan)
    found = [_precision(sample.y == k, sample.proba[:, k]) for k in classes]
    value, influence = float(np.mean([area for area, _ in found])), np.mean([moved for _, moved in found], axis=0)
    if (held[held > 0] < 2).any():
        return Interval(value, np.nan, np.nan)
    return area_interval(value, spread(sample.by_fold(), influence), float(held[classes].min()), level)


def area_interval(value: float, of: Spread, evidence: float, level: float) -> Interval:
    """Return the interval of an area with its spread on the logit scale; of 1, Clopper and Pearson's for `evidence`."""
    if value == 1:
        return Interval(value, float(((1 - level) / 2) ** (1 / evidence)), 1.0)
    if not of.error > 0:
        return Interval(value, np.nan, np.nan)
    return on_logit_scale(value, quantile(level, of.tailed) * of.error)


def _precision(positive: NDArray[np.bool_], score: Floats) -> tuple[float, Floats]:
    """Return the average precision, and the influence on it of each image's weight, (n,)."""
    order = np.argsort(-score, kind="stable")
    mine, falling = positive[order].astype(np.float64), score[order]
    starts = np.append(True, falling[1:] != falling[:-1])
    run, ends = np.cumsum(starts) - 1, np.append(np.flatnonzero(starts)[1:], len(order)) - 1
    seen, hits = ends + 1.0, np.cumsum(mine)[ends]
    found, precision = np.diff(hits, prepend=0.0), hits / seen
    area = float(found @ precision / hits[-1])
    below = np.stack([found / seen, found * precision / seen])[:, ::-1].cumsum(axis=1)[:, ::-1]
    influence = np.empty(len(order))
    influence[order] = (mine * (precision[run] - area + below[0, run]) - below[1, run]) / hits[-1]
    return area, influence


class Shares(NamedTuple):
    """Shares of images, with Wilson's intervals by group."""

    value: Floats  # (b,)
    low: Floats  # (b,)
    high: Floats  # (b,)
    effective: Floats  # (b,) number of images
    influence: Floats  # (G, b) of each group of the sample by fold


def shares(sample: Sample, right: NDArray[np.bool_], at: NDArray[np.bool_], level: float) -> Shares:
    """Return the shares of images that are `right` (n, b) among those `at` (n,), at least one; see `effective_count`.

    Bounds are NaN with a single group.
    """
    by_fold, one = sample.by_fold(), np.zeros_like(sample.y)
    value = right[at].mean(axis=0)
    held = by_fold.tally(one, 1, at.astype(np.float64))
    gaps = np.hstack([by_fold.tally(one, 1, column) for column in (at[:, None] * (right - value)).T])
    count = effective_count(np.repeat(held, len(value), axis=1), gaps, value * (1 - value), level, by_fold)
    alone = (held > 0).sum() / by_fold.repeats < 2
    low, high = np.full((2, len(value)), np.nan) if alone else wilson(value * count, count, level)
    return Shares(value, low, high, count, gaps / at.sum())


def share_interval(sample: Sample, right: NDArray[np.bool_], at: NDArray[np.bool_], level: float) -> Interval:
    """Return the share of images that are `right` (n,) among those `at` (n,), with its interval; NaN without images."""
    if not at.any():
        return Interval(np.nan, np.nan, np.nan)
    return Interval(*(float(side[0]) for side in shares(sample, right[:, None], at, level)[:3]))


def difference(first: Shares, second: Shares, weights: tuple[float, Floats]) -> tuple[Floats, Floats]:
    """Return the bounds (b,) of the difference of two shares, each times its weight, from the bounds of either.

    The method of variance estimates recovery (MOVER; Zou & Donner 2008, Statistics in Medicine 27:1693; with the
    correlation of shares of the same groups, Zou 2007, Psychological Methods 12:399).
    """
    a, b = weights[0] * np.stack(first[:3]), weights[1] * np.stack(second[:3])
    size = np.sqrt(np.square(first.influence).sum(axis=0) * np.square(second.influence).sum(axis=0))
    together = 2 * ratio((first.influence * second.influence).sum(axis=0), size)
    together[~(size > 0)] = 0
    below, above = (a[0] - a[1], b[2] - b[0]), (a[2] - a[0], b[0] - b[1])
    low, high = (np.sqrt(np.maximum(x * x - together * x * z + z * z, 0)) for x, z in (below, above))
    return a[0] - b[0] - low, a[0] - b[0] + high


def rates_interval(
    sample: Sample, of: Callable[[float, float, float], float], level: float, bounds: tuple[float, float]
) -> Interval | None:
    """Return a function of sensitivity, false positive rate and share of positives, with its interval within `bounds`.

    `of` rises with the first and falls with the second; the share is held, as in `strata`. Square and add (Newcombe
    2001, American Statistician 55:200) from Wilson's intervals of the two. None for K > 2, a class without images, or
    where groups have images of both.
    """
    if not sample.binary or sample.groups_by_class.sum() != sample.n_groups or (sample.groups_by_class == 0).any():
        return None
    (hit, fewest, most), (alarm, least, worst) = (
        share_interval(sample, sample.decision == 1, sample.y == k, level) for k in (1, 0)
    )
    share = float(sample.y.mean())
    value = of(hit, alarm, share)
    below = np.hypot(value - of(fewest, alarm, share), value - of(hit, worst, share))
    above = np.hypot(of(most, alarm, share) - value, of(hit, least, share) - value)
    return Interval(value, float(np.maximum(value - below, bounds[0])), float(np.minimum(value + above, bounds[1])))
