"""From probabilities to decisions: operating points, net benefit, and probabilities at another prevalence."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from models.metrics.bootstrap import Interval, logit_interval, quantile, resamples, standard_error
from models.metrics.roc import rates_by_threshold
from models.metrics.sample import BadPredictions, Floats, effective_groups, make_sample

_ROUNDING = 1e-12


class NetBenefit(NamedTuple):
    """A decision curve: net benefit of treating by the model, and of treating all, at each threshold."""

    thresholds: Floats  # (t,)
    model: Floats  # (t,)
    treat_all: Floats  # (t,); treating none has 0
    low: Floats  # (t,) of the model's pointwise band; NaN without a bootstrap
    high: Floats  # (t,)


def operating_points(y: ArrayLike, score: ArrayLike, *, sensitivity: float = 0.95) -> dict[str, float]:
    """Choose operating points, thresholds for `score >= threshold`, on out-of-fold predictions, never on test images.

    y (n,) of 0 and 1, score (n,). "youden" has the highest sensitivity + specificity - 1 (Youden 1950), the higher
    threshold of equals; "sensitivity>=0.95" the highest specificity with at least that sensitivity. A threshold lies
    halfway to the next lower score, for new images' sake. NaN where y has one class only.
    """
    names = ("youden", f"sensitivity>={sensitivity:g}")
    positive, scores = np.asarray(y) == 1, np.asarray(score, dtype=np.float64)
    if positive.all() or not positive.any():
        return dict.fromkeys(names, np.nan)
    levels, place = np.unique(scores, return_inverse=True)
    hits = np.bincount(place, positive)[::-1].cumsum() / positive.sum()
    alarms = np.bincount(place, ~positive)[::-1].cumsum() / (~positive).sum()
    lower = np.concatenate([levels[:1], levels[:-1]])
    halfway = (levels + lower) / 2
    thresholds = np.where(halfway > lower, halfway, levels)[::-1]
    reached = int(np.argmax(hits >= sensitivity - 1e-12))
    return {names[0]: float(thresholds[np.argmax(hits - alarms)]), names[1]: float(thresholds[reached])}


def net_benefit(
    y: ArrayLike,
    score: ArrayLike,
    thresholds: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    n_bootstrap: int = 0,
    level: float = 0.95,
    seed: int = 0,
) -> NetBenefit:
    """Return the decision curve of Vickers & Elkin 2006: TP/n - FP/n * t/(1 - t) at each threshold t.

    y (n,) of 0 and 1, score (n,) calibrated probabilities, thresholds (t,) in 0 <= t < 1, groups (n,). The band is
    Student's t with the standard error of the bootstrap over groups. Raises BadPredictions.
    """
    at, column = np.asarray(thresholds, dtype=np.float64), np.asarray(score, dtype=np.float64)
    if not column.size or not ((at >= 0) & (at < 1)).all():
        raise BadPredictions(f"expected images and thresholds 0 <= t < 1, got {column.size} and {at[:9].tolist()}")
    sample = make_sample(y, np.stack([1 - column, column], axis=1), groups)
    odds = at / (1 - at)
    gains = (column[:, None] >= at) * np.where(sample.y[:, None] == 1, 1.0, -odds)
    by_group = np.zeros((sample.n_groups, len(at)))
    np.add.at(by_group, sample.groups, gains)
    images = np.bincount(sample.groups)
    drawn = [w @ by_group / (w @ images)[:, None] for w in resamples(sample, n_bootstrap, seed)]
    replicates = np.concatenate([np.empty((0, len(at))), *drawn]).T
    evidence = effective_groups(*sample.independent[:-1])
    half = np.array([standard_error(row, evidence) for row in replicates]) * quantile(level, max(evidence - 1, 1))
    model, share = gains.mean(axis=0), sample.y.mean()
    return NetBenefit(at, model, share - (1 - share) * odds, model - half, model + half)


class RateAtRate(NamedTuple):
    """What a threshold can reach at best on these images, with intervals by group."""

    sensitivity: Interval  # the highest with at least the specificity asked for
    specificity: Interval  # the highest with at least the sensitivity asked for
    partial_auc: Interval  # over at least that specificity, 0.5 for chance and 1 for perfect


def rates(
    y: ArrayLike,
    score: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    specificity: float = 0.9,
    sensitivity: float = 0.95,
    n_bootstrap: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> RateAtRate:
    """Return sensitivity at a fixed specificity, specificity at a fixed sensitivity, and the partial ROC AUC.

    y (n,) of 0 and 1, score (n,) in 0 to 1, groups (n,). The threshold is chosen on these images, in each replicate
    anew: what an operating point fixed beforehand reaches is for `score` to say. Partial area: McClish 1989 (Med.
    Decis. Making 9:190). NaN where y has one class. Raises BadPredictions.
    """
    column = np.asarray(score, dtype=np.float64)
    sample = make_sample(y, np.stack([1 - column, column], axis=1), groups)
    least = 1 - specificity

    def reached(weights: Floats) -> Floats:
        return np.array([_reached(*pair, least, sensitivity) for pair in rates_by_threshold(sample, weights)])

    whole = np.ones((1, sample.n_groups))
    found = np.concatenate([reached(weights) for weights in (whole, *resamples(sample, n_bootstrap, seed))])
    evidence = effective_groups(*sample.independent[:-1])
    return RateAtRate(*(logit_interval(float(row[0]), row[1:], level, evidence) for row in found.T))


def _reached(alarms: Floats, hits: Floats, least: float, sensitivity: float) -> tuple[float, float, float]:
    """Return the three of `RateAtRate` from the false and true positive rates of falling thresholds, from 0 to 1."""
    if np.isnan(hits[-1] + alarms[-1]):
        return np.nan, np.nan, np.nan
    most = float(hits[alarms <= least + _ROUNDING].max())
    fewest = float(alarms[hits >= sensitivity - _ROUNDING].min())
    inside = alarms < least
    x, height = np.append(alarms[inside], least), np.append(hits[inside], np.interp(least, alarms, hits))
    area, chance = float(np.diff(x) @ (height[1:] + height[:-1]) / 2), least**2 / 2
    return most, 1 - fewest, (1 + (area - chance) / (least - chance)) / 2


_STEPS, _CONVERGED = 10_000, 1e-10


def at_prevalence(proba: ArrayLike, trained: ArrayLike, target: ArrayLike) -> Floats:
    """Return probabilities (n, K) as they are where classes have other shares than in training.

    proba (n, K) calibrated for the class shares `trained` (K,), all above 0; `target` (K,) the shares to go by. Bayes'
    rule with the same images within each class (Saerens, Latinne & Decaestecker 2002, Neural Computation 14:21,
    equation 2.4). Raises BadPredictions.
    """
    given = np.asarray(proba, dtype=np.float64)
    before, after = (_shares(shares, given.shape[1]) for shares in (trained, target))
    if not (before > 0).all():
        raise BadPredictions(f"expected training shares above 0 of every class, got {before.tolist()}")
    weighted = given * (after / before)
    total = weighted.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(weighted, total, out=given.copy(), where=total > 0))


def estimated_prevalence(proba: ArrayLike, trained: ArrayLike) -> Floats:
    """Return the maximum likelihood estimate of the class shares (K,) among unlabelled images.

    proba (n, K) calibrated for the class shares `trained` (K,). The expectation maximisation of Saerens, Latinne &
    Decaestecker 2002, equation 2.9. It is as good as the calibration is, and as the classes are told apart. Raises
    BadPredictions.
    """
    given = np.asarray(proba, dtype=np.float64)
    shares = _shares(trained, given.shape[1])
    for _ in range(_STEPS):
        better: Floats = at_prevalence(given, trained, shares).mean(axis=0)
        if np.abs(better - shares).max() < _CONVERGED:
            return better
        shares = better
    return shares


def _shares(shares: ArrayLike, classes: int) -> Floats:
    given = np.asarray(shares, dtype=np.float64)
    if given.shape != (classes,) or not (given >= 0).all() or abs(given.sum() - 1) > 1e-6:
        raise BadPredictions(f"expected {classes} class shares that sum to 1, got {given.tolist()}")
    return np.asarray(given / given.sum())
