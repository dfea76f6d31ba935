"""The metrics (table METRICS, one row each), and `score`, all of them with confidence intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike

from models.metrics.bootstrap import (
    Bootstrap,
    Interval,
    correlation_interval,
    logit_interval,
    resamples,
)
from models.metrics.delong import auc_interval
from models.metrics.linear import mean_interval, precision_interval, rates_interval, share_interval
from models.metrics.sample import Floats, Ints, Replicates, Sample, effective_groups, make_sample, ratio

BINS = 15  # as Guo et al. 2017
SMALLEST = 1e-15  # a probability of 0 costs 34.5 in the log loss, not infinity


def bin_of(score: Floats, bins: int) -> Ints:
    """Return which of `bins` equal parts of 0 to 1 each score (n,) lies in; 1 belongs to the last."""
    return np.minimum((score * bins).astype(np.int64), bins - 1)


def _one_number(by_class: Floats) -> Floats:
    """Reduce (b, K) to (b,): class 1 of two, the mean of the only column or of all classes where it is defined."""
    if by_class.shape[1] == 2:
        return by_class[:, 1]
    return _mean_defined(by_class)


def _mean_defined(by_class: Floats) -> Floats:
    return ratio(np.nansum(by_class, axis=1), (~np.isnan(by_class)).sum(axis=1))


def _recall(replicates: Replicates) -> Floats:
    counts = replicates.confusion
    return ratio(np.einsum("bkk->bk", counts), counts.sum(axis=2))


def _specificity(replicates: Replicates) -> Floats:
    counts = replicates.confusion
    others = counts.sum(axis=(1, 2))[:, None] - counts.sum(axis=2)
    false_alarms = counts.sum(axis=1) - np.einsum("bkk->bk", counts)
    return ratio(others - false_alarms, others)


def _f1(replicates: Replicates) -> Floats:
    counts = replicates.confusion
    return ratio(2 * np.einsum("bkk->bk", counts), counts.sum(axis=1) + counts.sum(axis=2))


def _mcc(replicates: Replicates) -> Floats:
    counts = replicates.confusion
    true, decided, n = counts.sum(axis=2), counts.sum(axis=1), replicates.total
    covariance = np.einsum("bkk->b", counts) * n - (true * decided).sum(axis=1)
    spread = [n**2 - np.square(side).sum(axis=1) for side in (true, decided)]
    return ratio(covariance, np.sqrt(spread[0] * spread[1]))


def _distances(sample: Sample) -> Floats:
    distance = np.square(sample.proba - np.eye(sample.n_classes)[sample.y])
    return distance[:, 1] if sample.binary else distance.sum(axis=1)


def _surprises(sample: Sample) -> Floats:
    given = sample.proba[np.arange(len(sample.y)), sample.y]
    return -np.log(np.clip(given, SMALLEST, 1))


def _ece(replicates: Replicates) -> Floats:
    sample = replicates.sample
    sure = sample.proba[:, 1] if sample.binary else sample.proba.max(axis=1)
    happened = sample.y == (1 if sample.binary else sample.proba.argmax(axis=1))
    gaps = sample.tally(bin_of(sure, BINS), BINS, happened - sure)
    total: Floats = np.abs(replicates.weights @ gaps).sum(axis=1)
    return total / replicates.total


def _recall_interval(k: int, sample: Sample, level: float) -> Interval | None:
    """Return the share of the images of class k that are decided as k, with its interval; None for K > 2."""
    return share_interval(sample, sample.decision == k, sample.y == k, level) if sample.binary else None


def _balanced(sample: Sample, level: float) -> Interval | None:
    return rates_interval(sample, lambda hits, alarms, share: (hits + 1 - alarms) / 2, level, (0.0, 1.0))


def _correlation(sample: Sample, level: float) -> Interval | None:
    """Return the MCC of two classes with its interval; None where it is undefined, or `rates_interval` is."""

    def of(hits: float, alarms: float, share: float) -> float:
        called = share * hits + (1 - share) * alarms
        spread = called * (1 - called)
        return (hits - alarms) * float(np.sqrt(share * (1 - share) / spread)) if spread > 0 else 0.0

    decided = len(np.unique(sample.decision)) > 1
    return rates_interval(sample, of, level, (-1.0, 1.0)) if decided else None


def _without_bounds(sample: Sample, level: float) -> Interval:
    """Return the calibration error; no bounds of it hold."""
    return Interval(float(_ece(Replicates(sample, np.ones((1, sample.n_groups))))[0]), np.nan, np.nan)


def all_groups(sample: Sample) -> float:
    """Return how many groups there are."""
    return float(sample.independent[-1])


def _each_class(sample: Sample) -> float:
    return effective_groups(*sample.independent[:-1])


def _positives(sample: Sample) -> float:
    return float(sample.independent[1]) if sample.binary else _each_class(sample)


def _negatives(sample: Sample) -> float:
    return float(sample.independent[0]) if sample.binary else _each_class(sample)


@dataclass(frozen=True)
class Metric:
    """One row of METRICS; call it for the metric's value, `score` for the confidence interval."""

    label: str
    direction: int  # +1: more is better, -1: less is better
    function: Callable[[Replicates], Floats]  # the value of each replicate, (b,); NaN where undefined
    evidence: Callable[[Sample], float]  # how many independent groups the value rests on
    interval: Bootstrap = logit_interval  # from the replicates
    analytic: Callable[[Sample, float], Interval | None] | None = None  # the one to prefer, where it gives one

    def __call__(
        self, y: ArrayLike, proba: ArrayLike, *, folds: ArrayLike | None = None, threshold: float | None = None
    ) -> float:
        """Return the value for y (n,), proba (n, K) and folds (n,), NaN where undefined; raises BadPredictions."""
        sample = make_sample(y, proba, folds=folds, threshold=threshold)
        return float(self.function(Replicates(sample, np.ones((1, sample.n_groups))))[0])


def mean_loss(label: str, losses: Callable[[Sample], Floats]) -> Metric:
    """Return the metric that is the mean over the images of `losses` of a sample, (n,); less is better."""
    return Metric(
        label,
        -1,
        lambda replicates: replicates.mean(losses(replicates.sample)),
        all_groups,
        analytic=lambda sample, level: mean_interval(sample, losses(sample), level),
    )


# Two classes: class 1 is the positive one. More: the mean over the classes (macro), one against the rest, of those
# where it is defined. MCC: the correlation of true and decided classes (Matthews 1975; of several Gorodkin 2004).
# Brier: (proba[:, 1] - y)^2, or the squared distance to the one-hot label (Brier 1950). ECE: |share - mean probability|
# over 15 bins of proba[:, 1] or of the highest probability (Naeini 2015, Guo 2017); it is biased upwards, the more the
# fewer the images: bootstrap bounds hold 12 to 54 % of 95, so that it has none; `calibration_line` has some that hold.
METRICS: dict[str, Metric] = {
    "roc_auc": Metric("ROC AUC", +1, lambda r: _one_number(r.areas[0]), _each_class, analytic=auc_interval),
    "pr_auc": Metric("PR AUC", +1, lambda r: _one_number(r.areas[1]), _each_class, analytic=precision_interval),
    "accuracy": Metric("Accuracy", +1, lambda r: np.einsum("bkk->b", r.confusion) / r.total, all_groups),
    "balanced_accuracy": Metric(
        "Balanced accuracy", +1, lambda r: _mean_defined(_recall(r)), _each_class, analytic=_balanced
    ),
    "sensitivity": Metric(
        "Sensitivity", +1, lambda r: _one_number(_recall(r)), _positives, analytic=partial(_recall_interval, 1)
    ),
    "specificity": Metric(
        "Specificity", +1, lambda r: _one_number(_specificity(r)), _negatives, analytic=partial(_recall_interval, 0)
    ),
    "f1": Metric("F1", +1, lambda r: _one_number(_f1(r)), _each_class),
    "mcc": Metric("MCC", +1, _mcc, _each_class, correlation_interval, _correlation),
    "brier": mean_loss("Brier score", _distances),
    "ece": Metric("Calibration error", -1, _ece, all_groups, analytic=_without_bounds),
    "log_loss": mean_loss("Log loss", _surprises),
}


def score(
    y: ArrayLike,
    proba: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    folds: ArrayLike | None = None,
    threshold: ArrayLike | None = None,
    only: Iterable[str] = (),
    also: Mapping[str, Metric] = MappingProxyType({}),
    n_bootstrap: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return each metric, or `only` some by name, and those that are given `also`, with its confidence interval.

    y (n,) class numbers; proba (n, K); groups (n,) patients, slides: what is independent of each other, None where each
    image is; folds (n,) of out-of-fold predictions. The binary ROC AUC has DeLong's interval (Obuchowski's for
    groups), sensitivity and specificity Wilson's by group, and what is made of them; losses and the PR AUC have one by
    each group's influence (module `linear`), everything else one from `n_bootstrap` replicates over groups (module
    `bootstrap`). Values are NaN where y lacks the class they need, bounds also where a metric rests on a single group
    or there are no replicates.

    Out of fold, areas count pairs within folds, and the intervals are those of the mean over the models of the folds
    on new groups (Bayle et al. 2020, arXiv:2007.12671): conditional on these models, not of what training on other
    images would give (Bates, Hastie & Tibshirani 2021, arXiv:2104.00673). Raises BadPredictions.
    """
    whole = make_sample(y, proba, groups, folds=folds, threshold=threshold)
    sample = whole.by_fold()
    asked = {name: METRICS[name] for name in only or METRICS} | dict(also)
    analytic = {name: metric.analytic and metric.analytic(whole, level) for name, metric in asked.items()}
    draws = resamples(sample, n_bootstrap, seed)
    value, drawn = replicated({name: asked[name] for name in asked if not analytic[name]}, sample, draws)
    return {
        name: analytic[name] or metric.interval(value[name], drawn[name], level, metric.evidence(sample))
        for name, metric in asked.items()
    }


def replicated(
    metrics: Mapping[str, Metric], sample: Sample, draws: Iterable[Floats]
) -> tuple[dict[str, float], dict[str, Floats]]:
    """Return each metric of a sample, and its replicates (n,), spread by the sample's inflation.

    `draws` are blocks (b, G) of how often each group is drawn, n rows in all; see `resamples`.
    """
    blocks = [values(metrics, sample, weights) for weights in draws]
    value = {name: float(row[0]) for name, row in values(metrics, sample, np.ones((1, sample.n_groups))).items()}
    drawn = {name: np.concatenate([np.empty(0), *(block[name] for block in blocks)]) for name in metrics}
    spread = float(np.sqrt(sample.inflation))
    return value, {name: value[name] + spread * (row - value[name]) for name, row in drawn.items()}


def values(metrics: Mapping[str, Metric], sample: Sample, weights: Floats) -> dict[str, Floats]:
    """Return each metric of each replicate, (b,), for group weights (b, G)."""
    replicates = Replicates(sample, weights)
    return {name: metric.function(replicates) for name, metric in metrics.items()}
