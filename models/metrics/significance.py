"""Paired tests of models on the same images, Holm's correction, and the bias-corrected score of the best (BBC-CV)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from features.errors import unknown
from models.metrics.bootstrap import Interval, quantile, resamples, standard_error
from models.metrics.delong import delong
from models.metrics.registry import METRICS, values
from models.metrics.sample import Floats, make_sample


class PairedTest(NamedTuple):
    """The difference a - b with its confidence interval, and the two-sided p-value of no difference."""

    difference: Interval
    p_value: float


def delong_test(
    y: ArrayLike, score_a: ArrayLike, score_b: ArrayLike, groups: ArrayLike | None = None, *, level: float = 0.95
) -> PairedTest:
    """DeLong's test of two ROC AUCs on the same images; y (n,) of 0 and 1, scores (n,), groups (n,).

    DeLong et al. 1988; with several images a group, Obuchowski 1997. Equal areas without variance have p = 1; bounds
    and p are NaN with fewer than two groups of either class, or where unequal areas have no variance.
    """
    estimate = delong(y, np.stack([np.asarray(score_a), np.asarray(score_b)]), groups)
    contrast = np.array([1.0, -1.0])
    error = float(np.sqrt(np.maximum(contrast @ estimate.covariance @ contrast, 0.0)))
    return _student(float(contrast @ estimate.auc), error, np.inf, level)


def bootstrap_test(
    metric: str,
    y: ArrayLike,
    proba_a: ArrayLike,
    proba_b: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    thresholds: tuple[float | None, float | None] = (None, None),
    n_bootstrap: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> PairedTest:
    """Paired bootstrap test of two models by any metric: both are scored on the same resampled groups.

    y (n,), proba_a and proba_b (n, K), groups (n,); `thresholds` of a and b. The difference over its bootstrap standard
    error is held against Student's t (Efron & Tibshirani 1993, chapter 12): a p-value counted out of 2,000 replicates
    could not be small enough to survive the correction for many comparisons. Degenerate cases as in `delong_test`.
    Raises UnknownName, BadPredictions.
    """
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    row = {metric: METRICS[metric]}
    pair = [make_sample(y, p, groups, threshold=t) for p, t in zip((proba_a, proba_b), thresholds, strict=True)]

    def difference(weights: Floats) -> Floats:
        first, second = (values(row, sample, weights)[metric] for sample in pair)
        return first - second

    value = float(difference(np.ones((1, pair[0].n_groups)))[0])
    blocks = [difference(weights) for weights in resamples(pair[0], n_bootstrap, seed)]
    drawn = np.concatenate(blocks or [np.empty(0)])
    evidence = METRICS[metric].evidence(pair[0])
    return _student(value, standard_error(drawn, evidence), evidence - 1, level)


def _student(difference: float, error: float, freedom: float, level: float) -> PairedTest:
    from scipy.special import stdtr

    if difference == 0 and error == 0:
        return PairedTest(Interval(0.0, 0.0, 0.0), 1.0)
    if not error > 0:
        return PairedTest(Interval(difference, np.nan, np.nan), np.nan)
    far = -abs(difference) / error
    half = quantile(level, freedom) * error
    return PairedTest(Interval(difference, difference - half, difference + half), 2 * float(stdtr(freedom, far)))


def holm(p_values: ArrayLike) -> Floats:
    """Return Holm-adjusted p-values (m,) in the order given (Holm 1979); NaN stays NaN, uncounted."""
    given = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full_like(given, np.nan)
    tested = np.flatnonzero(~np.isnan(given))
    rising = tested[np.argsort(given[tested], kind="stable")]
    factors = np.arange(len(rising), 0, -1)
    adjusted[rising] = np.minimum(np.maximum.accumulate(factors * given[rising]), 1.0)
    return adjusted


def score_of_the_chosen(
    y: ArrayLike,
    probas: Sequence[ArrayLike],
    groups: ArrayLike | None = None,
    *,
    metric: str = "roc_auc",
    n_bootstrap: int = 300,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return the score of the best of several models, corrected for the choice by bootstrap bias correction (BBC-CV).

    y (n,), probas M times (n, K) out-of-fold predictions, groups (n,). Tsamardinos, Greasidou & Borboudakis 2018
    (Machine Learning 107:1895, BBC-CV): in each bootstrap over groups the model that is best on the drawn groups is
    scored on those not drawn. No model is trained again. Bounds are percentiles, wide because a third of the groups
    are scored at a time; NaN where no draw leaves every class on both sides. Raises BadPredictions.
    """
    row = {metric: METRICS[metric]}
    samples = [make_sample(y, proba, groups) for proba in probas]
    drawn = []
    for weights in resamples(samples[0], n_bootstrap, seed):
        inside = np.stack([values(row, sample, weights)[metric] for sample in samples])
        outside = np.stack([values(row, sample, (weights == 0).astype(np.float64))[metric] for sample in samples])
        usable = ~(np.isnan(inside).any(axis=0) | np.isnan(outside).any(axis=0))
        inside, outside = inside[:, usable] * row[metric].direction, outside[:, usable]
        drawn.append(outside[inside.argmax(axis=0), np.arange(outside.shape[1])])
    scores = np.concatenate(drawn)
    if not len(scores):
        return Interval(np.nan, np.nan, np.nan)
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(scores.mean()), float(low), float(high))
