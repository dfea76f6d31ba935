"""From probabilities to decisions: operating points, net benefit, and probabilities at another prevalence."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from models.metrics.bootstrap import Interval, logit_interval, quantile, resamples, standard_error
from models.metrics.roc import over_folds
from models.metrics.sample import BadPredictions, Floats, Sample, effective_groups, make_sample, ratio

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
    folds: ArrayLike | None = None,
    prevalence: float | None = None,
    n_bootstrap: int = 0,
    level: float = 0.95,
    seed: int = 0,
) -> NetBenefit:
    """Return the decision curve of Vickers & Elkin 2006: TP/n - FP/n * t/(1 - t) at each threshold t.

    y (n,) of 0 and 1, score (n,) calibrated probabilities, thresholds (t,) in 0 <= t < 1, groups (n,), folds (n,).
    With a `prevalence`, the classes count as if this were the share of class 1, for which the probabilities hold. The
    band is Student's t with the standard error of the bootstrap over groups. Raises BadPredictions.
    """
    at, column = np.asarray(thresholds, dtype=np.float64), np.asarray(score, dtype=np.float64)
    if not column.size or not ((at >= 0) & (at < 1)).all():
        raise BadPredictions(f"expected images and thresholds 0 <= t < 1, got {column.size} and {at[:9].tolist()}")
    sample = make_sample(y, np.stack([1 - column, column], axis=1), groups, folds=folds).by_fold()
    odds, share = at / (1 - at), float(sample.y.mean()) if prevalence is None else prevalence
    treated = (column[:, None] >= at).astype(np.float64)
    parts = [_summed(sample, treated * (sample.y == k)[:, None]) for k in (0, 1)]
    images = [_summed(sample, (sample.y == k)[:, None].astype(np.float64)) for k in (0, 1)]

    def benefit(weights: Floats) -> Floats:
        alarms, hits, negatives, positives = (weights @ column for column in (*parts, *images))
        if prevalence is None:
            return np.asarray((hits - odds * alarms) / (negatives + positives))
        alarms, hits = (ratio(n, np.broadcast_to(of, n.shape)) for n, of in ((alarms, negatives), (hits, positives)))
        return np.asarray(share * hits - (1 - share) * odds * alarms)

    model = benefit(np.ones((1, sample.n_groups)))[0]
    replicates = np.concatenate([np.empty((0, len(at))), *map(benefit, resamples(sample, n_bootstrap, seed))]).T
    evidence = effective_groups(*sample.independent[:-1])
    error = np.array([standard_error(row, evidence) for row in replicates]) * np.sqrt(sample.inflation)
    half = error * quantile(level, max(evidence - 1, 1))
    return NetBenefit(at, model, share - (1 - share) * odds, model - half, model + half)


def _summed(sample: Sample, columns: Floats) -> Floats:
    """Return the sums of columns (n, t) over the images of each group, (G, t)."""
    total = np.zeros((sample.n_groups, columns.shape[1]))
    np.add.at(total, sample.groups, columns)
    return total


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
    folds: ArrayLike | None = None,
    specificity: float = 0.9,
    sensitivity: float = 0.95,
    n_bootstrap: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> RateAtRate:
    """Return sensitivity at a fixed specificity, specificity at a fixed sensitivity, and the partial ROC AUC.

    y (n,) of 0 and 1, score (n,) in 0 to 1, groups (n,), folds (n,): out of fold the mean over the folds by their
    pairs, as of the ROC curve. The threshold is chosen on these images, in each replicate anew: what an operating point
    fixed beforehand reaches is for `score` to say. Partial area: McClish 1989 (Med. Decis. Making 9:190). NaN where y
    has one class. Raises BadPredictions.
    """
    column = np.asarray(score, dtype=np.float64)
    sample = make_sample(y, np.stack([1 - column, column], axis=1), groups, folds=folds).by_fold()

    def reached(weights: Floats) -> Floats:
        return over_folds(lambda hits, alarms: _reached(hits, alarms, 1 - specificity, sensitivity), 3, sample, weights)

    value = reached(np.ones((1, sample.n_groups)))[0]
    drawn = np.concatenate([np.empty((0, 3)), *map(reached, resamples(sample, n_bootstrap, seed))])
    drawn = value + np.sqrt(sample.inflation) * (drawn - value)
    evidence = effective_groups(*sample.independent[:-1])
    rows = zip(value.tolist(), drawn.T, strict=True)
    return RateAtRate(*(logit_interval(found, replicates, level, evidence) for found, replicates in rows))


def _reached(true: Floats, false: Floats, least: float, sensitivity: float) -> tuple[float, float, float]:
    """Return the three of `RateAtRate` from the true and false positives at falling thresholds."""
    hits, alarms = (np.append(0.0, counts / counts[-1]) for counts in (true, false))
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
