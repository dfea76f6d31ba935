"""From probabilities to decisions: operating points, net benefit, and probabilities at another prevalence."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.metrics.bootstrap import Interval, quantile
from models.metrics.linear import area_interval, difference, shares, spread
from models.metrics.roc import over_folds
from models.metrics.sample import BadPredictions, Floats, Ints, Sample, make_sample, two_classes

_ROUNDING = 1e-12
_ENOUGH = 5  # groups of class 0 in a part of the ROC curve, below which nothing tells how its area varies


class NetBenefit(NamedTuple):
    """A decision curve: net benefit of treating by the model, and of treating all, at each threshold."""

    thresholds: Floats  # (t,)
    model: Floats  # (t,)
    treat_all: Floats  # (t,); treating none has 0
    low: Floats  # (t,) of the model's pointwise band; NaN where y has one class
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
    level: float = 0.95,
) -> NetBenefit:
    """Return the decision curve of Vickers & Elkin 2006: TP/n - FP/n * t/(1 - t) at each threshold t.

    y (n,) of 0 and 1, score (n,) calibrated probabilities, thresholds (t,) in 0 <= t < 1, groups (n,), folds (n,).
    With a `prevalence`, the classes count as if this were the share of class 1, for which the probabilities hold. The
    band is that of a weighted difference of sensitivity and false positive rate (`linear.difference`), for this share
    of positives where every group is of one class, as all intervals. Raises BadPredictions.
    """
    at = np.asarray(thresholds, dtype=np.float64)
    if not np.size(score) or not ((at >= 0) & (at < 1)).all():
        raise BadPredictions(f"expected images and thresholds 0 <= t < 1, got {np.size(score)} and {at[:9].tolist()}")
    sample = make_sample(y, two_classes(score), groups, folds=folds)
    share = float((sample.y == 1).mean()) if prevalence is None else prevalence
    model, low, high = _benefit(sample, at, share, prevalence is None, level)
    return NetBenefit(at, model, share - (1 - share) * (at / (1 - at)), low, high)


def _benefit(sample: Sample, at: Floats, share: float, own_share: bool, level: float) -> tuple[Floats, Floats, Floats]:
    """Return the net benefit of the model at thresholds (t,) for a share of positives, with its bounds, (t,) each.

    `own_share` tells that it is the share of these images, which would be another in another sample of groups.
    """
    treated, positive, odds = sample.proba[:, 1:] >= at, sample.y == 1, at / (1 - at)
    none = np.full(len(at), np.nan)
    if positive.all() or not positive.any():
        gains = treated * np.where(positive[:, None], 1.0, -odds)
        return gains.mean(axis=0) if own_share else none, none, none
    free = own_share and sample.groups_by_class.sum() > sample.n_groups  # the share varies with the groups
    among = (np.ones_like(positive),) * 2 if free else (positive, ~positive)
    hits, alarms = (
        shares(sample, treated & own[:, None], of, level) for own, of in zip((positive, ~positive), among, strict=True)
    )
    weights = (1.0, odds) if free else (share, (1 - share) * odds)
    model = weights[0] * hits.value - weights[1] * alarms.value
    low, high = difference(hits, alarms, weights)
    if own_share and not free:  # groups of unequal size move the share of positive images too
        of = spread(sample.by_fold(), (positive - share) / len(positive))
        moved = quantile(level, of.freedom) * of.error * (hits.value + odds * alarms.value)
        low, high = model - np.hypot(model - low, moved), model + np.hypot(high - model, moved)
    return model, low, high


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
    level: float = 0.95,
) -> RateAtRate:
    """Return sensitivity at a fixed specificity, specificity at a fixed sensitivity, and the partial ROC AUC.

    y (n,) of 0 and 1, score (n,) in 0 to 1, groups (n,), folds (n,): out of fold the mean over the folds by their
    pairs, as of the ROC curve. The threshold is chosen on these images, which the intervals allow for: what an
    operating point fixed beforehand reaches is for `score` to say. Partial area: McClish 1989 (Med. Decis. Making
    9:190). NaN where y has one class. Raises BadPredictions.
    """
    sample, least = make_sample(y, two_classes(score), groups, folds=folds), 1 - specificity
    column, positive = sample.proba[:, 1], sample.y == 1
    whole = np.ones((1, sample.n_groups))
    found = over_folds(lambda hits, alarms: _reached(hits, alarms, least, sensitivity), 3, sample, whole)[0].tolist()
    if (sample.groups_by_class == 0).any() or np.isnan(found[0]):
        return RateAtRate(*(Interval(value, np.nan, np.nan) for value in found))
    return RateAtRate(
        _beyond(found[0], sample, _placed(sample, column, positive), positive, least, level),
        _beyond(found[1], sample, _placed(sample, -column, ~positive), ~positive, 1 - sensitivity, level),
        _partial_area(found[2], sample, column, least, level),
    )


def _reached(true: Floats, false: Floats, least: float, sensitivity: float) -> tuple[float, float, float]:
    """Return the three of `RateAtRate` from the true and false positives at falling thresholds."""
    hits, alarms = (np.append(0.0, counts / counts[-1]) for counts in (true, false))
    most = float(hits[alarms <= least + _ROUNDING].max())
    fewest = float(alarms[hits >= sensitivity - _ROUNDING].min())
    inside = alarms < least
    x, height = np.append(alarms[inside], least), np.append(hits[inside], np.interp(least, alarms, hits))
    area, chance = float(np.diff(x) @ (height[1:] + height[:-1]) / 2), least**2 / 2
    return most, 1 - fewest, (1 + (area - chance) / (least - chance)) / 2


def _curve(score: Floats, of: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats, Ints]:
    """Return falling thresholds (m + 1,) from none, the shares of others and of images `of` (n,) at or above each.

    The last are the places of the images' own scores among the thresholds, (n,).
    """
    levels, place = np.unique(-score, return_inverse=True)
    others, mine = (np.append(0.0, np.bincount(place, at).cumsum() / at.sum()) for at in (~of, of))
    return np.append(np.inf, -levels), others, mine, place + 1


def _placed(sample: Sample, score: Floats, of: NDArray[np.bool_]) -> Floats:
    """Return scores (n,) that images of several folds have in common: where each is among the others of its fold."""
    if not sample.folds.any():
        return score
    placed = np.zeros(len(score))
    for fold in np.unique(sample.folds):
        at = sample.folds == fold
        if of[at].any() and not of[at].all():
            _, others, _, place = _curve(score[at], of[at])
            placed[at] = -(others[place] + others[place - 1]) / 2
    return placed


def _beyond(value: float, sample: Sample, score: Floats, of: NDArray[np.bool_], share: float, level: float) -> Interval:
    """Return the share of the images `of` (n,) beyond the threshold that at most `share` of the others are beyond.

    Two errors add up as in `linear.difference`: that of the share at this threshold, and that of the threshold, a
    quantile of the others, by inverting the exact interval of their share (Woodruff 1952, J. Am. Statist. Assoc.
    47:635). Too few others to tell the quantile leave a bound of 0. The `value` may be that of several folds; it has no
    bounds where less than one independent other may be beyond, for then in no fold one is (of 12 they held 49 to 69 %).
    """
    from scipy.special import betaincinv

    if sample.folds.any() and share * sample.independent[sample.y[~of][0]] < 1 - _ROUNDING:
        return Interval(value, np.nan, np.nan)
    tail = (1 - level) / 2
    thresholds, others, mine, _ = _curve(score, of)
    at = int(np.flatnonzero(others <= share + _ROUNDING)[-1])
    reached, beyond = float(mine[at]), (score >= thresholds[at])[:, None]
    found, fixed = (shares(sample, beyond, part, level) for part in (of, ~of))
    count = float(fixed.effective[0])
    ends = betaincinv(
        [share * count, share * count + 1], [count - share * count + 1, count - share * count], [tail, 1 - tail]
    )
    half = np.array([-1, 1]) / (2 * count)  # an image at a threshold is half beyond it
    moved = np.interp(ends + half, others, mine, left=0.0, right=1.0)
    low = value - float(np.hypot(reached - found.low[0], reached - moved[0]))
    high = value + float(np.hypot(found.high[0] - reached, max(moved[1] - reached, 0)))
    return Interval(value, *np.clip([low, high], 0.0, 1.0).tolist())


def _partial_area(value: float, sample: Sample, score: Floats, most: float, level: float) -> Interval:
    """Return a partial ROC AUC with its interval, the error by the influence of each image.

    He & Escobar 2008 (Statistics in Medicine 27:5291), within folds.
    """
    moved, pairs = np.zeros(len(score)), 0
    for fold in np.unique(sample.folds):
        at = sample.folds == fold
        positive = sample.y[at] == 1
        own = int(positive.sum() * (~positive).sum())
        if own:
            moved[at], pairs = own * _influence(score[at], positive, most), pairs + own
    if most * sample.independent[0] < _ENOUGH - _ROUNDING:
        return Interval(value, np.nan, np.nan)
    found = spread(sample.by_fold(), moved / pairs / (2 * (most - most**2 / 2)))
    return area_interval(value, found, float(sample.independent[:2].min()), level)


def _influence(score: Floats, positive: NDArray[np.bool_], most: float) -> Floats:
    """Return how each image (n,) moves the area under the ROC curve up to a false positive rate of `most`."""
    _, alarms, hits, place = _curve(score, positive)
    alarmed, hit = ((side[place] + side[place - 1]) / 2 for side in (alarms, hits))
    moved = np.where(positive, np.maximum(most - alarmed, 0), np.minimum(hit - np.interp(most, alarms, hits), 0))
    for of in (positive, ~positive):
        moved[of] = (moved[of] - moved[of].mean()) / of.sum()
    return np.asarray(moved)


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
