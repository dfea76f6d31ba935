"""Paired tests of models on the same images, alone and simultaneous, and the corrected score of the best (BBC-CV)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from features.errors import unknown
from models.metrics.bootstrap import Interval, quantile, resamples, standard_error
from models.metrics.delong import NO_VARIANCE, delong
from models.metrics.registry import METRICS, replicated, values
from models.metrics.sample import Floats, Sample, make_sample, ratio

_ROUNDING = 1e-13  # share of a variance that rounding may leave of a difference's
_TIED = 1e-12  # difference of equal scores, by rounding
_DRAWS = 20_000  # of the largest statistic; p-values to 0.0015 at 0.05
_CELLS = 2**22  # statistics drawn at a time, 32 MB


class PairedTest(NamedTuple):
    """The difference a - b with its confidence interval, and the two-sided p-value of no difference."""

    difference: Interval
    p_value: float  # NaN: cannot be tested


class SimultaneousTest(NamedTuple):
    """One of several paired tests: all intervals hold at once, and exclude 0 where the adjusted p-value is small."""

    difference: Interval
    p_value: float  # of this test alone
    p_adjusted: float  # for all of them; NaN: cannot be tested


def delong_test(
    y: ArrayLike,
    score_a: ArrayLike,
    score_b: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    folds: ArrayLike | None = None,
    level: float = 0.95,
) -> PairedTest:
    """DeLong's test of two ROC AUCs on the same images; y (n,) of 0 and 1, scores (n,), groups (n,).

    folds (n,), or (2, n) where the two were cross-validated on other folds.
    DeLong et al. 1988; with several images a group, Obuchowski 1997; Student's t with the groups' degrees of freedom.
    Where every group decides alike the variance is 0, and the sign-flip test by group is exact: see `_sign_flip`.
    Bounds and p are NaN, the difference cannot be tested, with fewer than two groups of either class.
    """
    estimate = delong(y, np.stack([np.asarray(score_a), np.asarray(score_b)]), groups, folds)
    contrast = np.array([[1.0, -1.0]])
    variance = float(_variances(contrast, estimate.covariance)[0])
    return _test(float(contrast[0] @ estimate.auc), variance, estimate.evidence, estimate.groups, level)


def bootstrap_test(
    metric: str,
    y: ArrayLike,
    proba_a: ArrayLike,
    proba_b: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    folds: ArrayLike | None = None,
    thresholds: tuple[ArrayLike | None, ArrayLike | None] = (None, None),
    n_bootstrap: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> PairedTest:
    """Paired bootstrap test of two models by any metric: both are scored on the same resampled groups.

    y (n,), proba_a and proba_b (n, K), groups (n,), folds (n,) or (2, n); `thresholds` of a and b, one or one an image
    (n,). The difference over its bootstrap standard error is held against Student's t (Efron & Tibshirani 1993, chapter
    12): a p-value counted out of 2,000 replicates could not be small enough to survive the correction for many
    comparisons. Degenerate cases as in `delong_test`. Raises UnknownName, BadPredictions.
    """
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    own = [None, None] if folds is None else np.broadcast_to(folds, (2, len(np.asarray(y))))
    pair = [
        make_sample(y, proba, groups, folds=fold, threshold=at)
        for proba, fold, at in zip((proba_a, proba_b), own, thresholds, strict=True)
    ]
    (first, second), drawn = _scores(metric, pair, n_bootstrap, seed)
    evidence = METRICS[metric].evidence(pair[0])
    error = standard_error(drawn[0] - drawn[1], evidence)
    return _test(float(first - second), error**2, evidence, int(evidence), level)


def _scores(metric: str, samples: Sequence[Sample], n_bootstrap: int, seed: int) -> tuple[Floats, Floats]:
    """Return the metric of M samples of the same images, (M,), and of their replicates on the same draws, (M, b)."""
    row, by_fold = {metric: METRICS[metric]}, [sample.by_fold() for sample in samples]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = list(threads.map(lambda s: replicated(row, s, resamples(s, n_bootstrap, seed)), by_fold))
    return np.array([value[metric] for value, _ in found]), np.stack([drawn[metric] for _, drawn in found])


def _variances(contrasts: Floats, covariance: Floats) -> Floats:
    """Return the variance of each contrast (m, M), (m,); 0 where rounding alone is left of it."""
    variance = ((contrasts @ covariance) * contrasts).sum(axis=1)
    rounding = _ROUNDING * (np.square(contrasts) @ np.diag(covariance)) + NO_VARIANCE
    return np.where(variance <= rounding, 0.0, variance)


def _test(difference: float, variance: float, evidence: float, groups: int, level: float) -> PairedTest:
    """Test a difference by Student's t with evidence - 1 degrees of freedom, by `_sign_flip` without a variance."""
    from scipy.special import stdtr

    if np.isnan(variance) or evidence < 2:
        return PairedTest(Interval(difference, np.nan, np.nan), np.nan)
    if variance <= NO_VARIANCE:
        return _sign_flip(difference, groups, level)
    error = float(np.sqrt(variance))
    half = quantile(level, evidence - 1) * error
    p_value = 2 * float(stdtr(evidence - 1, -abs(difference) / error))
    return PairedTest(Interval(difference, difference - half, difference + half), p_value)


def _sign_flip(difference: float, groups: int, level: float) -> PairedTest:
    """Return the exact sign-flip (permutation) test of a difference to which every group contributes alike.

    Without a difference of the models, each group's would have either sign with equal chance: p = 2^(1 - groups)
    (Fisher 1935, section 21). The bound inverts it: the share of groups of this sign is at least Clopper & Pearson's
    (1934). Without any difference nothing bounds it, and p = 1.
    """
    if abs(difference) < np.sqrt(NO_VARIANCE):
        return PairedTest(Interval(0.0, np.nan, np.nan), 1.0)
    nearest = difference * (2 * ((1 - level) / 2) ** (1 / groups) - 1)
    return PairedTest(Interval(difference, *sorted((nearest, difference))), 2.0 ** (1 - groups))


def compare_with(
    y: ArrayLike,
    probas: Sequence[ArrayLike],
    groups: ArrayLike | None = None,
    *,
    reference: int = 0,
    chosen_here: bool,
    folds: ArrayLike | None = None,
    n_bootstrap: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> list[SimultaneousTest]:
    """Test the ROC AUC of each other model against a reference model, with simultaneous confidence intervals.

    y (n,), probas M times (n, K), groups (n,), folds (n,) or (M, n); the differences are other - reference, without the
    reference in the order given. Adjusted p-values and bounds come from the largest |t| of a family of differences, by
    the multivariate t of the estimated covariance: DeLong's for two classes, the bootstrap's for more (Hothorn, Bretz &
    Westfall 2008, Biometrical J. 50:346). The family are these differences (Dunnett 1955), or those of all pairs (Tukey
    1953) where the reference was `chosen_here`, as the best on the same images: whichever had come out best, the
    intervals would hold. An adjusted p is below 1 - level exactly where the interval excludes 0. Degenerate cases as in
    `delong_test`, corrected by Bonferroni. Raises BadPredictions.
    """
    samples = _samples(y, probas, groups, folds)
    others = [(j, reference) for j in range(len(samples)) if j != reference]
    family = list(combinations(range(len(samples)), 2)) if chosen_here else others
    return _compared(samples, others, family, n_bootstrap, level, seed)


def compare_pairs(
    y: ArrayLike,
    pairs: Sequence[tuple[ArrayLike, ArrayLike]],
    groups: ArrayLike | None = None,
    *,
    folds: ArrayLike | None = None,
    n_bootstrap: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> list[SimultaneousTest]:
    """Test the differences b - a in ROC AUC of several pairs (a, b) of models, with simultaneous confidence intervals.

    y (n,), each of a pair (n, K), groups (n,), folds (n,) the same for all. As `compare_with`; the family are the
    differences of the pairs. Raises BadPredictions.
    """
    samples = _samples(y, [proba for pair in pairs for proba in pair], groups, folds)
    family = [(2 * i + 1, 2 * i) for i in range(len(pairs))]
    return _compared(samples, family, family, n_bootstrap, level, seed)


def _compared(
    samples: Sequence[Sample],
    asked: Sequence[tuple[int, int]],
    family: Sequence[tuple[int, int]],
    n_bootstrap: int,
    level: float,
    seed: int,
) -> list[SimultaneousTest]:
    """Test the differences a - b that are asked for (a, b), so that all of a family of them hold at once."""
    areas, covariance = _areas(samples, n_bootstrap, seed)
    evidence, n_groups = METRICS["roc_auc"].evidence(samples[0]), int(samples[0].independent[-1])
    return compare_areas(Areas(areas, covariance, evidence, n_groups), asked, family, level, seed)


class Areas(NamedTuple):
    """Scores of M models on the same images, and what they rest on."""

    values: Floats  # (M,)
    covariance: Floats  # (M, M)
    evidence: float  # effective number of groups
    groups: int  # all of them


def compare_areas(
    areas: Areas, asked: Sequence[tuple[int, int]], family: Sequence[tuple[int, int]], level: float, seed: int
) -> list[SimultaneousTest]:
    """Test the differences a - b that are asked for (a, b), so that all of a family of them hold at once."""
    covariance, evidence = areas.covariance, areas.evidence
    largest = _largest(covariance, _contrasts(family, len(areas.values)), evidence - 1, seed)
    contrasts, corrected = _contrasts(asked, len(areas.values)), 1 - (1 - level) / max(1, len(family))
    tests = []
    for difference, variance in zip(contrasts @ areas.values, _variances(contrasts, covariance), strict=True):
        alone = _test(float(difference), float(variance), evidence, areas.groups, corrected)
        tests.append(_simultaneous(alone, float(variance), largest, len(family), level))
    return tests


def _samples(
    y: ArrayLike, probas: Sequence[ArrayLike], groups: ArrayLike | None, folds: ArrayLike | None
) -> list[Sample]:
    """Return the samples of M models of the same images; folds (n,) or (M, n)."""
    own = [None] * len(probas) if folds is None else np.broadcast_to(folds, (len(probas), len(np.asarray(y))))
    return [make_sample(y, proba, groups, folds=fold) for proba, fold in zip(probas, own, strict=True)]


def _areas(samples: Sequence[Sample], n_bootstrap: int, seed: int) -> tuple[Floats, Floats]:
    """Return the ROC AUC of M samples of the same images, (M,), and their covariance (M, M)."""
    first = samples[0]
    if first.binary:
        scores, folds = np.stack([s.proba[:, 1] for s in samples]), np.stack([s.folds for s in samples])
        estimate = delong(first.y, scores, first.groups, folds)
        return estimate.auc, estimate.covariance
    areas, drawn = _scores("roc_auc", samples, n_bootstrap, seed)
    defined = drawn[:, ~np.isnan(drawn).any(axis=0)]
    evidence = METRICS["roc_auc"].evidence(first)
    if defined.shape[1] < 2 or evidence < 2:
        return areas, np.full((len(samples), len(samples)), np.nan)
    return areas, np.atleast_2d(np.cov(defined)) * evidence / (evidence - 1)


def _contrasts(pairs: Sequence[tuple[int, int]], size: int) -> Floats:
    """Return the contrasts a - b of pairs (a, b), (m, size)."""
    unit = np.eye(size)
    return np.array([unit[a] - unit[b] for a, b in pairs]).reshape(-1, size)


def _largest(covariance: Floats, contrasts: Floats, freedom: float, seed: int) -> Floats:
    """Return draws of the largest |t| of the contrasts (m, M) under no difference, falling; none where no t exists."""
    variance = _variances(contrasts, covariance)
    contrasts, variance = contrasts[variance > 0], variance[variance > 0]
    if not len(variance) or not freedom > 0:
        return np.empty(0)
    random = np.random.default_rng(seed)
    spread, axes = np.linalg.eigh(covariance)
    root = (contrasts / np.sqrt(variance)[:, None]) @ (axes * np.sqrt(np.maximum(spread, 0)))
    scale = np.sqrt(random.chisquare(freedom, _DRAWS) / freedom)
    step = max(1, _CELLS // len(root))
    blocks = [root @ random.normal(size=(root.shape[1], min(step, _DRAWS - i))) for i in range(0, _DRAWS, step)]
    return -np.sort(-np.concatenate([np.abs(block).max(axis=0) for block in blocks]) / scale)


def _simultaneous(
    alone: PairedTest, variance: float, largest: Floats, comparisons: int, level: float
) -> SimultaneousTest:
    """Adjust a test, whose interval is Bonferroni's, by the draws of the largest |t| where they tell more."""
    (value, low, high), p_value = alone
    adjusted = float(np.minimum(comparisons * p_value, 1.0))
    if np.isnan(p_value) or variance == 0:
        return SimultaneousTest(alone.difference, p_value, adjusted)
    error = float(np.sqrt(variance))
    beyond = int((largest >= abs(value) / error).sum())
    at_most = int(np.ceil((1 - level) * (_DRAWS + 1))) - 2  # draws beyond, for an adjusted p below 1 - level
    half = min((high - low) / 2, float(largest[at_most + 1]) * error)
    adjusted = min(adjusted, (1 + beyond) / (_DRAWS + 1))
    return SimultaneousTest(Interval(value, value - half, value + half), p_value, adjusted)


def claim(difference: Interval, margin: float) -> str:
    """Return what an interval claims of a score against a margin > 0 stated beforehand; empty for nothing.

    Equivalence where it lies within the margin on both sides, else non-inferiority where it lies above -margin: the
    interval-inclusion principle (Westlake 1972; Piaggio et al. 2012, JAMA 308:2594). Two-sided intervals of 95 % make
    both claims at 2.5 %, and simultaneous ones for all comparisons at once.
    """
    if not difference.low > -margin:
        return ""
    return f"equivalent within {margin:g}" if difference.high < margin else f"not worse by more than {margin:g}"


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
    folds: ArrayLike | None = None,
    metric: str = "roc_auc",
    n_bootstrap: int = 300,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return the score of the best of several models, corrected for the choice by bootstrap bias correction (BBC-CV).

    y (n,), probas M times (n, K) out-of-fold predictions, groups (n,), folds (n,) or (M, n). Tsamardinos, Greasidou &
    Borboudakis 2018 (Machine Learning 107:1895): in each bootstrap over groups the model that is best on the drawn
    groups is scored on those not drawn; of tied models, the mean. No model is trained again. Bounds are percentiles,
    wide because a third of the groups are scored at a time; NaN where no draw leaves every class on both sides. Raises
    BadPredictions.
    """
    row = {metric: METRICS[metric]}
    samples = _samples(y, probas, groups, folds)
    drawn = []
    for weights in resamples(samples[0], n_bootstrap, seed):
        inside = np.stack([values(row, sample, weights)[metric] for sample in samples]) * row[metric].direction
        outside = np.stack([values(row, sample, (weights == 0).astype(np.float64))[metric] for sample in samples])
        best = inside >= inside.max(axis=0) - _TIED
        drawn.append(ratio((outside * best).sum(axis=0), best.sum(axis=0)))
    scores = np.concatenate(drawn)
    scores = scores[~np.isnan(scores)]
    if not len(scores):
        return Interval(np.nan, np.nan, np.nan)
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(scores.mean()), float(low), float(high))
