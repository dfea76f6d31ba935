"""Intervals from the influence of each group: against finite differences, statsmodels and the formulas spelled out."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import skew, t

from models.metrics import METRICS, rates, score
from models.metrics.linear import Spread, _precision, share_interval, skewed_interval, spread
from models.metrics.registry import values
from models.metrics.sample import Sample, make_sample

Floats = NDArray[np.float64]


def sample_of(n: int, images: int, seed: int = 0, *, mixed: bool = False, ties: bool = False) -> Sample:
    """Return predictions of n groups with so many images each, of one class or of both."""
    random = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n), images)
    y = random.integers(0, 2, n * images) if mixed else groups % 2
    score = 1 / (1 + np.exp(-(random.normal(size=n * images) + random.normal(size=n)[groups] + 1.5 * y - 0.7)))
    score = score.round(1) * 0.9 + 0.05 if ties else score
    return make_sample(y, np.stack([1 - score, score], axis=1), groups)


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("mixed", [False, True], ids=["pure", "mixed"])
def test_influence_on_the_average_precision_is_its_derivative(mixed: bool, ties: bool) -> None:
    sample, step = sample_of(40, 3, mixed=mixed, ties=ties), 1e-5
    area, influence = _precision(sample.y == 1, sample.proba[:, 1])
    row = {"pr_auc": METRICS["pr_auc"]}
    each = make_sample(sample.y, sample.proba)
    # weights below 1 are not whole numbers: only copies of the whole set keep every count above 1
    moves = values(row, each, 2 + step * np.eye(len(sample.y)))["pr_auc"]
    assert area == pytest.approx(METRICS["pr_auc"](sample.y, sample.proba), rel=1e-12)
    assert influence == pytest.approx(2 * (moves - area) / step, abs=1e-4)
    assert influence.sum() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("mixed", [False, True], ids=["pure", "mixed"])
def test_spread_of_a_mean_is_that_of_its_groups(mixed: bool) -> None:
    sample = sample_of(60, 2, mixed=mixed)
    loss = np.square(sample.proba[:, 1] - sample.y)
    found = spread(sample, (loss - loss.mean()) / len(loss))
    sums = np.bincount(sample.groups, loss - loss.mean()) / len(loss)
    parts = [sums] if mixed else [sums[0::2], sums[1::2]]
    variances = [part.var(ddof=1) * len(part) for part in parts]
    assert found.error == pytest.approx(np.sqrt(sum(variances)), rel=1e-12)
    welch = sum(variances) ** 2 / sum(v**2 / (len(p) - 1) for v, p in zip(variances, parts, strict=True))
    assert found.freedom == pytest.approx(welch, rel=1e-12)
    if mixed:
        assert found.skewness == pytest.approx(skew(sums) / np.sqrt(60) * (59 / 60) ** 1.5, rel=1e-9)


def test_skewed_interval_is_halls() -> None:
    symmetric = skewed_interval(1.0, Spread(0.1, 0.0, 9, 9), 0.95)
    half = 0.1 * t.isf(0.025, 9)
    assert symmetric == pytest.approx((1.0, 1 - half, 1 + half))
    right = skewed_interval(1.0, Spread(0.1, 0.3, 9, 9), 0.95)
    assert right.high - 1 > half > 1 - right.low, "the tail is where the truth may be"
    for bound, sign in ((right.low, 1), (right.high, -1)):  # Hall's transformation of the t-statistic is Student's
        statistic = (1.0 - bound) / 0.1
        transformed = statistic + 0.3 * statistic**2 / 3 + 0.09 * statistic**3 / 27 + 0.3 / 6
        assert transformed == pytest.approx(sign * t.isf(0.025, 9))
    assert skewed_interval(1.0, Spread(0.1, 1e-8, 9, 9), 0.95) == pytest.approx(symmetric, rel=1e-6)


def test_losses_near_nothing_have_no_interval() -> None:
    """Of a perfect model even the squares of their differences are 0."""
    proba = np.array([[1, 1e-120], [1, 3e-120], [2e-113, 1], [1e-113, 1]])
    found = score([0, 0, 1, 1], proba / proba.sum(axis=1, keepdims=True))["brier"]
    assert found.value < 1e-200 and np.isnan(found.low) and np.isnan(found.high)


def test_shares_of_single_images_have_wilsons_interval() -> None:
    from statsmodels.stats.proportion import proportion_confint

    sample = sample_of(90, 1)
    for name, of in (("sensitivity", 1), ("specificity", 0)):
        at = sample.y == of
        low, high = proportion_confint((sample.decision[at] == of).sum(), at.sum(), method="wilson")
        assert score(sample.y, sample.proba, n_bootstrap=0)[name][1:] == pytest.approx((low, high), rel=1e-9)


def test_shares_count_groups() -> None:
    """Images that decide as their patient does tell nothing new; such that do not tell more."""
    random = np.random.default_rng(0)
    groups, right = np.repeat(np.arange(30), 8), random.random(240) < 0.8
    proba = np.full((240, 2), 0.5)
    at = np.ones(240, bool)
    alike = share_interval(make_sample(np.ones(240, int), proba, groups), right[groups], at, 0.95)
    apart = share_interval(make_sample(np.ones(240, int), proba, groups), right, at, 0.95)
    alone = share_interval(make_sample(np.ones(30, int), proba[:30]), right[:30], at[:30], 0.95)
    assert alike[1:] == pytest.approx(alone[1:], abs=0.01)
    assert apart.high - apart.low < 0.6 * (alike.high - alike.low)
    lonely = share_interval(make_sample(np.ones(8, int), proba[:8], np.zeros(8)), right[:8], at[:8], 0.95)
    assert not np.isnan(lonely.value) and np.isnan(lonely[1:]).all()


def test_too_few_positives_tell_no_quantile_of_theirs() -> None:
    y = np.repeat([0, 1], [200, 12])
    score = np.random.default_rng(1).normal(size=212) + 2 * y
    column = 1 / (1 + np.exp(-score))
    found = rates(y, column)
    assert found.specificity.low == 0 < found.specificity.value < found.specificity.high
    assert 0 < found.sensitivity.low < found.sensitivity.value < found.sensitivity.high <= 1
    many = rates(np.tile(y, 20), np.tile(column, 20))
    assert many.specificity.low > 0.2 and many.specificity.value == pytest.approx(found.specificity.value)
    perfect = rates(np.repeat([0, 1], 80), np.repeat([0.1, 0.9], 80))
    assert perfect.sensitivity.value == perfect.partial_auc.value == 1 and 0.9 < perfect.sensitivity.low < 1


def test_influence_on_the_partial_area_is_the_jackknifes() -> None:
    sample = sample_of(400, 1)
    found = rates(sample.y, sample.proba[:, 1], specificity=0.8).partial_auc
    left = np.array(
        [
            rates(np.delete(sample.y, i), np.delete(sample.proba[:, 1], i), specificity=0.8).partial_auc.value
            for i in range(400)
        ]
    )
    variance = sum(left[sample.y == k].var() * ((sample.y == k).sum() - 1) for k in (0, 1))
    logits = np.log([found.low / (1 - found.low), found.high / (1 - found.high)])
    error = (logits[1] - logits[0]) / 2 / 1.966 * found.value * (1 - found.value)
    assert error == pytest.approx(np.sqrt(variance), rel=0.08)
