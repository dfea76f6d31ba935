"""Intervals and tests against R's pROC, statsmodels, the formulas spelled out, and their own promises."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import norm, t

from benchmarks.coverage import DESIGNS, against, coverage, draw, false_lower
from benchmarks.coverage_folds import intervals, noise, orthogonal_labels
from models.metrics import (
    METRICS,
    bootstrap_test,
    compare_pairs,
    compare_with,
    delong,
    delong_test,
    holm,
    score,
    score_of_the_chosen,
)
from models.metrics.bootstrap import Interval, on_logit_scale, perfect_auc_bound, quantile, standard_error
from models.metrics.delong import auc_interval
from models.metrics.registry import values
from models.metrics.sample import make_sample

Floats = NDArray[np.float64]

# Printed by benchmarks/proc_reference.R: R 4.2.2, pROC 1.18.0.
AREAS = {  # area, variance, 95 % interval plain, and on the logit scale
    "a": (0.78451178451178449, 0.00165322445011368, 0.70481991763393825, 0.86420365138963096),
    "b": (0.64983164983164987, 0.00248134210080719, 0.55219982356426167, 0.74746347609903807),
    "c": (0.48021885521885527, 0.00264118942689237, 0.37949139907575719, 0.58094631136195329),
}
ON_LOGITS = {
    "a": (0.694396332182344, 0.853654579653263),
    "b": (0.547170208365223, 0.740266658872864),
    "c": (0.381613031229520, 0.580390232660477),
}
PAIRS = {  # covariance, z, p, 95 % interval of the difference
    "ab": (3.22482759272036e-04, 2.27989923918019, 2.26136652041604e-02, 1.88994857506734e-02, 2.50460783609596e-01),
    "ac": (-1.14101850279137e-04, 4.52477437040465, 6.04599719466766e-06, 0.172484548732508, 0.436101309853350),
    "bc": (-3.14042544523454e-05, 2.35542884522766, 1.85013399872569e-02, 2.84771498524727e-02, 3.10748439373117e-01),
}


def made_by_formula() -> tuple[NDArray[np.int64], dict[str, Floats]]:
    """Return the labels and scores, with ties, of benchmarks/proc_reference.R."""
    i = np.arange(120)
    y = ((7 * i * i + 3 * i) % 11 < 4).astype(np.int64)
    columns = {
        "a": (37 * i) % 101 + 25 * y,
        "b": ((53 * i) % 97) // 10 + 3 * y,
        "c": (29 * i * i + 5 * i) % 7,
    }
    return y, {name: column.astype(np.float64) for name, column in columns.items()}


def as_proba(column: Floats) -> Floats:
    """Return probabilities (n, 2) in the order of the scores."""
    positive = (column + 1) / (column.max() + 2)
    return np.stack([1 - positive, positive], axis=1)


@pytest.mark.parametrize("name", AREAS)
def test_delong_is_that_of_proc(name: str) -> None:
    y, scores = made_by_formula()
    estimate = delong(y, scores[name])
    area, variance, low, high = AREAS[name]
    assert (estimate.auc[0], estimate.covariance[0, 0]) == pytest.approx((area, variance), rel=1e-12)
    half = 1.959963984540054 * np.sqrt(estimate.covariance[0, 0])
    assert (estimate.auc[0] - half, estimate.auc[0] + half) == pytest.approx((low, high), rel=1e-12)
    error = float(np.sqrt(estimate.covariance[0, 0]))
    assert on_logit_scale(area, quantile(0.95) * error)[1:] == pytest.approx(ON_LOGITS[name], rel=1e-12)
    ours = score(y, as_proba(scores[name]), n_bootstrap=0)["roc_auc"]
    assert ours == pytest.approx(on_logit_scale(area, float(t.isf(0.025, estimate.evidence - 1)) * error), rel=1e-9)


@pytest.mark.parametrize("pair", PAIRS)
def test_delong_test_is_that_of_proc(pair: str) -> None:
    y, scores = made_by_formula()
    covariance, z, p_value, low, high = PAIRS[pair]
    estimate = delong(y, np.stack([scores[name] for name in pair]))
    assert estimate.covariance[[0, 1], [1, 0]] == pytest.approx([covariance] * 2, rel=1e-12)
    area_a, area_b = (AREAS[name][0] for name in pair)
    error = (high - low) / 2 / 1.959963984540054
    assert (area_a - area_b) / error == pytest.approx(z, rel=1e-10)
    assert 2 * norm.sf(z) == pytest.approx(p_value, rel=1e-10)
    test, freedom = delong_test(y, scores[pair[0]], scores[pair[1]]), estimate.evidence - 1
    half = error * float(t.isf(0.025, freedom))
    assert test.difference == pytest.approx((area_a - area_b, area_a - area_b - half, area_a - area_b + half), rel=1e-9)
    assert test.p_value == pytest.approx(2 * t.sf(z, freedom), rel=1e-9)


def test_delong_on_the_counts_of_asah_is_that_of_proc() -> None:
    good, poor = [37, 20, 3, 8, 4], [2, 12, 1, 8, 18]  # WFNS grade 1 to 5 by outcome, Turck et al. 2010
    grade = np.concatenate([np.repeat(np.arange(1, 6), good), np.repeat(np.arange(1, 6), poor)])
    estimate = delong(np.repeat([0, 1], [72, 41]), grade)
    assert estimate.auc[0] == pytest.approx(0.82367886178861793, rel=1e-12)
    assert estimate.covariance[0, 0] == pytest.approx(0.00146991470882363, rel=1e-12)


def clustered_by_loops(y: NDArray[np.int64], scores: Floats, groups: NDArray[np.int64]) -> Floats:
    """Return the covariance (k, k) by the sums of Obuchowski 1997, equations 3 to 6, one pair at a time."""
    k, m, n = len(scores), int((y == 1).sum()), int((y == 0).sum())
    names = np.unique(groups)
    off_1, off_0 = np.zeros((k, len(names))), np.zeros((k, len(names)))
    for r, column in enumerate(scores):
        wins = {
            (i, j): float(column[i] > column[j]) + (column[i] == column[j]) / 2
            for i in np.flatnonzero(y == 1)
            for j in np.flatnonzero(y == 0)
        }
        area = sum(wins.values()) / (m * n)
        for c, name in enumerate(names):
            for p in np.flatnonzero(groups == name):
                if y[p] == 1:
                    off_1[r, c] += sum(v for (i, _), v in wins.items() if i == p) / n - area
                else:
                    off_0[r, c] += sum(v for (_, j), v in wins.items() if j == p) / m - area
    n_1, n_0 = len(np.unique(groups[y == 1])), len(np.unique(groups[y == 0]))
    s_10, s_01 = off_1 @ off_1.T * n_1 / ((n_1 - 1) * m), off_0 @ off_0.T * n_0 / ((n_0 - 1) * n)
    s_11 = off_1 @ off_0.T * len(names) / (len(names) - 1)
    return s_10 / m + s_01 / n + (s_11 + s_11.T) / (m * n)


def test_clustered_variance_is_that_of_obuchowski() -> None:
    random = np.random.default_rng(0)
    y, groups = random.integers(0, 2, 40), random.integers(0, 12, 40)
    scores = np.round(random.normal(size=(2, 40)) + y, 1)
    estimate = delong(y, scores, groups.astype(str))
    assert estimate.covariance == pytest.approx(clustered_by_loops(y, scores, groups), rel=1e-10)
    alone = delong(y, scores, np.arange(40))
    assert alone.covariance == pytest.approx(delong(y, scores).covariance, rel=1e-12)
    assert not np.allclose(alone.covariance, estimate.covariance)


def test_copies_in_their_groups_leave_the_variance_as_it_was() -> None:
    y, scores = made_by_formula()
    names = np.tile(np.arange(120), 3)
    twice = delong(np.tile(y, 3), np.tile(scores["a"], 3), names)
    assert twice.covariance[0, 0] == pytest.approx(AREAS["a"][1], rel=1e-10)


def test_degenerate_areas_have_no_variance_and_no_warning() -> None:
    assert np.isnan(delong([1, 1], [0.1, 0.2]).auc).all()
    assert np.isnan(delong([0, 1, 1], [0.1, 0.2, 0.3]).covariance).all()
    assert np.isnan(delong([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4], ["a", "b", "c", "c"]).covariance).all()
    y, scores = made_by_formula()
    for same in (scores["a"], scores["a"] * 3):
        test = delong_test(y, scores["a"], same)
        assert test.difference.value == 0 and np.isnan(test.difference[1:]).all() and test.p_value == 1
    untestable = delong_test([0, 0, 1, 1], [1, 2, 3, 4], [1, 1, 1, 1], ["a", "b", "c", "c"])
    assert untestable.difference.value == 0.5 and np.isnan(untestable.p_value)


def test_where_every_group_decides_alike_the_sign_flip_test_is_exact() -> None:
    y, half = np.repeat([0, 1], 4), np.full(8, 0.5)
    groups = np.array([0, 0, 1, 2, 3, 4, 4, 5])
    test = delong_test(y, np.where(y, 0.9, 0.1), half, groups)
    signs = np.array(list(product([1, -1], repeat=6)))
    assert test.p_value == (np.abs(signs.sum(axis=1)) >= 6).mean() == 2**-5
    share = 0.025 ** (1 / 6)  # of groups on this side, binom.sf(5, 6, share) = 0.025
    assert test.difference == pytest.approx((0.5, 0.5 * (2 * share - 1), 0.5))
    back = delong_test(y, half, np.where(y, 0.9, 0.1), groups)
    assert back.difference == pytest.approx((-0.5, -0.5, -0.5 * (2 * share - 1)))
    few = delong_test([0, 0, 1, 1], [1, 2, 3, 4], [1, 1, 1, 1])
    assert few.p_value == 1 / 8 and few.difference.low < 0, "p and interval agree"
    three = np.repeat([0, 1, 2], 6)
    many = bootstrap_test("accuracy", three, np.eye(3)[three], np.eye(3)[(three + 1) % 3], n_bootstrap=40)
    assert many.p_value == 2.0**-17 and 0.5 < many.difference.low < 1


def mann_whitney_by_loops(y: NDArray[np.int64], column: Floats, folds: NDArray[np.int64]) -> float:
    """Return the share of pairs within folds that are ranked rightly."""
    pairs = [
        (column[i] > column[j]) + (column[i] == column[j]) / 2
        for i in np.flatnonzero(y == 1)
        for j in np.flatnonzero((y == 0) & (folds == folds[i]))
    ]
    return float(np.mean(pairs))


def test_out_of_fold_areas_count_pairs_within_folds() -> None:
    random = np.random.default_rng(0)
    y, folds, groups = random.integers(0, 2, 90), random.integers(0, 5, 90), random.integers(0, 40, 90)
    column = np.round(random.random(90) * 0.5 + 0.3 * y, 1)
    expected = mann_whitney_by_loops(y, column, folds)
    assert delong(y, column, groups, folds).auc[0] == pytest.approx(expected, rel=1e-12)
    assert METRICS["roc_auc"](y, as_proba(column), folds=folds) == pytest.approx(expected, rel=1e-12)
    moved = as_proba(column + folds)  # each fold's model has a scale of its own
    assert METRICS["roc_auc"](y, moved, folds=folds) == pytest.approx(expected, rel=1e-12)
    assert abs(METRICS["roc_auc"](y, moved) - expected) > 0.02
    three = random.integers(0, 3, 90)
    proba = random.dirichlet(np.ones(3), 90).round(2)
    proba[:, 0] = 1 - proba[:, 1:].sum(axis=1)
    areas = [mann_whitney_by_loops((three == k).astype(int), proba[:, k], folds) for k in range(3)]
    assert score(three, proba, groups, folds=folds, n_bootstrap=20)["roc_auc"].value == pytest.approx(np.mean(areas))


def test_variance_within_folds_is_the_jackknifes_and_of_one_repeat() -> None:
    """The infinitesimal jackknife by finite differences: how the area moves with the weight of each group."""
    random = np.random.default_rng(1)
    groups = np.repeat(np.arange(30), 4)
    y, folds = (groups % 2).astype(np.int64), groups // 2 % 3
    column = random.normal(size=120) + y + random.normal(size=30)[groups]
    sample, step = make_sample(y, as_proba(column - column.min()), groups, folds=folds), 1e-4
    moves = values({"roc_auc": METRICS["roc_auc"]}, sample, 1 + step * np.eye(30))["roc_auc"]
    influence = (moves - METRICS["roc_auc"](y, sample.proba, folds=folds)) / step
    once = delong(y, column, groups, folds)
    few = 1 + 4 / 15  # 15 groups of a class
    assert once.covariance[0, 0] == pytest.approx(few * 3 / 2 * 15 / 14 * (influence**2).sum(), rel=2e-3), "of 3 folds"
    thrice = delong(*(np.tile(c, 3) for c in (y, column, groups)), np.concatenate([folds, folds + 3, folds + 6]))
    assert thrice.covariance == pytest.approx(once.covariance, rel=1e-12)
    assert (thrice.evidence, thrice.groups) == pytest.approx((once.evidence, once.groups))
    again = [np.tile(column, 3) for column in (y, groups)]
    other = delong(again[0], np.tile(column, 3), again[1], np.concatenate([folds, 3 + (folds + 1) % 3, folds + 6]))
    assert other.covariance == pytest.approx(once.covariance, rel=1e-12)
    whole = score(y, sample.proba, groups, folds=folds, n_bootstrap=4000)
    repeated = score(
        again[0],
        np.tile(sample.proba, (3, 1)),
        again[1],
        folds=np.concatenate([folds, folds + 3, folds + 6]),
        n_bootstrap=4000,
    )
    for name in ("roc_auc", "accuracy", "pr_auc", "brier"):
        width, other = (bounds[name].high - bounds[name].low for bounds in (whole, repeated))
        assert other == pytest.approx(width, rel=0.06), name


def test_perfect_area_is_bounded_where_its_variance_is() -> None:
    """The bound is where the true area would be a normal quantile of Hanley & McNeil's error away from 1."""
    low = perfect_auc_bound(30, 30, 0.95)
    error = low * (1 - low) * (1 + 29 * ((1 - low) / (2 - low) + low / (1 + low))) / 900
    assert (1 - low) / np.sqrt(error) == pytest.approx(1.959963984540054, rel=1e-9)
    assert perfect_auc_bound(10, 10, 0.95) < low < perfect_auc_bound(300, 300, 0.95) < 1
    random = np.random.default_rng(0)
    y = np.repeat([0, 1], 10)
    held = 0
    for _ in range(300):  # the truth is 0.961
        interval = auc_interval(make_sample(y, as_proba(random.normal(size=20) + 2.5 * y + 9)), 0.95)
        assert interval is not None
        held += interval.low <= 0.9615 <= interval.high
    assert held > 270


def test_bootstrap_standard_error_is_the_known_one() -> None:
    random = np.random.default_rng(0)
    y = random.integers(0, 2, 80)
    proba = as_proba(random.random(80) + 0.5 * y)
    sample = make_sample(y, proba)
    right = (proba.argmax(axis=1) == y).astype(float)
    within = [right[y == k].var(ddof=1) * (y == k).sum() for k in (0, 1)]  # classes are strata
    value, _, high = score(y, proba, n_bootstrap=8000)["accuracy"]
    error = (np.log(high / (1 - high)) - np.log(value / (1 - value))) * value * (1 - value) / 1.99045  # t, 79 degrees
    assert error == pytest.approx(np.sqrt(sum(within)) / 80, rel=0.04)
    assert METRICS["accuracy"].evidence(sample) == 80
    assert np.isnan(standard_error(np.array([0.1, np.nan]), 80)) and np.isnan(standard_error(np.ones(9), 1))


def test_evidence_for_a_mean_over_classes_is_satterthwaites() -> None:
    y = np.repeat([0, 1, 2], [5, 5, 5])
    assert METRICS["sensitivity"].evidence(make_sample(y, np.eye(3)[y])) == pytest.approx(1 + 3 * 4)
    y = np.repeat([0, 1, 2], [2, 50, 50])
    assert 2 < METRICS["sensitivity"].evidence(make_sample(y, np.eye(3)[y])) < 3


def test_bootstrap_test_agrees_with_delong() -> None:
    y, scores = made_by_formula()
    ours = bootstrap_test("roc_auc", y, as_proba(scores["a"]), as_proba(scores["b"]), n_bootstrap=4000)
    exact = delong_test(y, scores["a"], scores["b"])
    assert ours.difference.value == pytest.approx(exact.difference.value, abs=1e-12)
    assert ours.difference[1:] == pytest.approx(exact.difference[1:], abs=0.012)
    assert ours.p_value == pytest.approx(exact.p_value, abs=0.012)
    back = bootstrap_test("roc_auc", y, as_proba(scores["b"]), as_proba(scores["a"]), n_bootstrap=4000)
    assert back.difference.low == pytest.approx(-ours.difference.high)


def test_bootstrap_test_of_one_model_against_itself() -> None:
    y, scores = made_by_formula()
    proba = as_proba(scores["a"])
    same = bootstrap_test("f1", y, proba, proba, n_bootstrap=50)
    assert same.difference.value == 0 and same.p_value == 1
    moved = bootstrap_test("sensitivity", y, proba, proba, thresholds=(0.2, 0.6), n_bootstrap=200)
    found = (proba[y == 1, 1] >= 0.2).mean() - (proba[y == 1, 1] >= 0.6).mean()
    assert moved.difference.value == pytest.approx(found) and found > 0 and moved.p_value < 0.05


def equals(models: int, n: int, seed: int, shift: float = 1.5) -> tuple[NDArray[np.int64], list[Floats]]:
    """Return labels and probabilities of equally good models with errors partly in common."""
    random = np.random.default_rng(seed)
    y = np.arange(n) % 2
    logits = random.normal(size=n) + random.normal(size=(models, n)) + shift * y
    return y, [np.stack([1 - p, p], axis=1) for p in 1 / (1 + np.exp(-logits))]


@pytest.mark.parametrize("chosen_here", [False, True])
def test_simultaneous_intervals_and_adjusted_p_never_contradict(chosen_here: bool) -> None:
    y, probas = equals(12, 60, 0)
    better = np.clip(probas[0][:, 1] + 0.35 * (2 * y - 1), 0.01, 0.99)
    probas.append(np.stack([1 - better, better], axis=1))
    for reference in (0, 12):
        tests = compare_with(y, probas, reference=reference, chosen_here=chosen_here)
        others = [proba for j, proba in enumerate(probas) if j != reference]
        for test, other in zip(tests, others, strict=True):
            alone = delong_test(y, other[:, 1], probas[reference][:, 1])
            assert (test.difference.value, test.p_value) == pytest.approx((alone.difference.value, alone.p_value))
            assert test.p_value <= test.p_adjusted <= min(1, (78 if chosen_here else 12) * test.p_value)
            assert (test.p_adjusted < 0.05) == (not test.difference.low <= 0 <= test.difference.high)
            assert test.difference.high - test.difference.low > alone.difference.high - alone.difference.low
    assert any(test.p_adjusted < 0.05 for test in tests)


def test_adjusted_p_is_that_of_dunnett() -> None:
    """Independent models with equal variances: scipy's own multivariate t has the same largest |t|."""
    from scipy.stats import multivariate_t

    y, probas = equals(4, 80, 3)
    tests = compare_with(y, probas, chosen_here=False)
    estimate = delong(y, np.stack([proba[:, 1] for proba in probas]))
    contrasts = np.hstack([-np.ones((3, 1)), np.eye(3)])
    spread = contrasts @ estimate.covariance @ contrasts.T
    error = np.sqrt(np.diag(spread))
    random = multivariate_t(shape=spread / np.outer(error, error), df=estimate.evidence - 1, seed=0)
    largest = np.abs(random.rvs(100_000)).max(axis=1)
    for test, statistic in zip(tests, np.abs(contrasts @ estimate.auc / error), strict=True):
        assert test.p_adjusted == pytest.approx((largest >= statistic).mean(), abs=0.012)


def test_equal_models_are_rarely_called_lower_even_when_the_best_was_chosen_here() -> None:
    alarms = false_lower(DESIGNS["single, AUC 0.86"], 10, 120)
    assert all(share <= 0.1 for share in alarms.values()), alarms
    naive = 0
    for seed in range(60):
        y, probas = equals(10, 120, seed)
        areas = [METRICS["roc_auc"](y, proba) for proba in probas]
        tests = compare_with(y, probas, reference=int(np.argmax(areas)), chosen_here=False)
        naive += any(test.difference.high < 0 for test in tests)
    assert naive >= 6, "the reason for all pairs"


def test_several_classes_are_compared_by_the_bootstrap() -> None:
    random = np.random.default_rng(0)
    y = np.arange(120) % 3
    logits = random.normal(size=(3, 120, 3)) + np.array([1.0, 1.0, 4.0])[:, None, None] * np.eye(3)[y]
    probas = list(np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True))
    equal, higher = compare_with(y, probas, chosen_here=False, n_bootstrap=800)
    assert higher.p_adjusted < 0.05 < equal.p_adjusted
    alone = bootstrap_test("roc_auc", y, probas[2], probas[0], n_bootstrap=800)
    assert (higher.difference.value, higher.p_value) == pytest.approx((alone.difference.value, alone.p_value))


@pytest.mark.parametrize("k", [2, 3])
def test_models_of_other_folds_are_compared_each_within_its_own(k: int) -> None:
    random = np.random.default_rng(0)
    y = np.repeat(np.arange(40) % k, 3)
    groups = np.repeat(np.arange(40), 3)
    folds = np.stack([groups // k % 4, groups // k % 5])
    logits = random.normal(size=(2, 120, k)) + np.eye(k)[y]
    probas = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    areas = [METRICS["roc_auc"](y, proba, folds=own) for proba, own in zip(probas, folds, strict=True)]
    (test,) = compare_with(y, list(probas), groups, folds=folds, chosen_here=True, n_bootstrap=200)
    assert test.difference.value == pytest.approx(areas[1] - areas[0]) and test.difference.value != 0
    together = compare_with(y, list(probas), groups, folds=folds[0], chosen_here=True, n_bootstrap=200)[0]
    assert test.difference.high - test.difference.low == pytest.approx(
        together.difference.high - together.difference.low, rel=0.3
    )


def test_what_cannot_be_tested_is_no_tie() -> None:
    y, probas = equals(3, 40, 0)
    for test in compare_with(np.zeros(40, int), probas, chosen_here=True):
        assert np.isnan(test.p_adjusted) and np.isnan(test.difference).all()
    perfect, constant = np.eye(2)[y], np.full((40, 2), 0.5)
    (found,) = compare_with(y, [perfect, constant], chosen_here=True)
    assert found.p_adjusted == 2.0**-39 and -0.5 <= found.difference.high < -0.3


def test_holm_is_that_of_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests

    given = np.array([0.01, 0.04, 0.03, 0.005, 0.5, 0.04])
    assert holm(given) == pytest.approx(multipletests(given, method="holm")[1], rel=1e-12)
    gaps = holm([0.01, np.nan, 0.04])
    assert gaps[[0, 2]] == pytest.approx([0.02, 0.04]) and np.isnan(gaps[1])
    assert holm([]).shape == (0,)


def of_scores(
    y: NDArray[np.int64], proba: Floats, groups: NDArray[np.int64], _: float, **draws: int
) -> dict[str, Interval]:
    """Return the intervals of the scores, for `coverage`."""
    return intervals(y, proba, groups, **draws)


def of_area(
    y: NDArray[np.int64], proba: Floats, groups: NDArray[np.int64], _: float, **draws: int
) -> dict[str, Interval]:
    """Return the interval of the ROC AUC, for `coverage`."""
    return score(y, proba, groups, only=("roc_auc",), **draws)


def test_intervals_hold_the_truth_95_times_in_100() -> None:
    """A wrong variance shows: ignoring the patients holds it fewer than 85 times."""
    held = coverage(DESIGNS["patients, 50 + 50"], 250, 100, of_scores, size=200_000)
    for name in ("roc_auc", "pr_auc", "accuracy", "sensitivity", "mcc", "brier", "log_loss", "slope"):
        assert 0.91 <= held[name] <= 0.99, (name, held[name])
    assert held["intercept"] >= 0.91, "wider than here is needed, where as many of each class are drawn every time"
    assert held["auc unclustered"] < 0.85


def test_intervals_hold_where_few_images_cost_most_and_shares_are_near_1() -> None:
    """What the log scale (84 %), percentiles (16 %) and a bootstrap of net benefit (84 %) did not."""
    held = coverage(DESIGNS["single, AUC 0.998"], 100, 40, size=30_000)
    for name in ("log_loss", "ROC band at 0.2", "PR band at 0.8", "net benefit at 0.2", "rates: sensitivity"):
        assert held[name] >= 0.87, (name, held[name])


def test_delong_holds_the_truth_95_times_in_100_for_single_images() -> None:
    held = coverage(DESIGNS["single, AUC 0.98"], 300, 0, of_area, size=50_000)
    assert 0.91 <= held["roc_auc"] <= 0.98
    assert held["auc plain"] < 0.90, "the reason for the logit scale"


def test_pairs_are_tested_simultaneously() -> None:
    """A single pair is DeLong's test; of several, bounds and adjusted p agree and are wider, never narrower."""
    rng = np.random.default_rng(3)
    y = np.repeat([0, 1], 60)
    scores = [expit(y * strength + rng.normal(size=120)) for strength in (1.0, 1.8, 1.0, 1.2, 0.4, 1.5)]
    probas = [np.stack([1 - p, p], axis=1) for p in scores]
    pairs = list(zip(probas[::2], probas[1::2], strict=True))
    alone = [delong_test(y, b[:, 1], a[:, 1]) for a, b in pairs]
    (single,) = compare_pairs(y, pairs[:1])
    assert single.difference.value == alone[0].difference.value
    assert single.difference[1:] == pytest.approx(alone[0].difference[1:], abs=0.003)
    assert single.p_adjusted == pytest.approx(alone[0].p_value, abs=0.01)
    for test, plain in zip(compare_pairs(y, pairs), alone, strict=True):
        assert test.p_value == pytest.approx(plain.p_value)
        assert test.p_adjusted > test.p_value
        assert test.difference.low < plain.difference.low < plain.difference.high < test.difference.high
        assert (test.p_adjusted < 0.05) == (test.difference.low > 0 or test.difference.high < 0)


@pytest.mark.parametrize("equal", [True, False])
def test_intervals_of_differences_hold_the_truth(equal: bool) -> None:
    held = against(DESIGNS["patients, 50 + 50"], 80, 60, equal=equal)
    assert all(share >= 0.87 for share in held.values()) and min(held.values()) < 1, held


def test_labellings_are_halves_and_orthogonal() -> None:
    signs = 2 * orthogonal_labels() - 1
    assert (signs.sum(axis=1) == 0).all() and (signs @ signs.T == 24 * np.eye(23)).all()


def test_cross_validated_area_of_noise_is_a_half() -> None:
    areas = noise("knn", 2)
    assert abs(np.mean(areas) - 0.5) < 0.02 and 0 < np.std(areas) < 0.03


def test_paired_tests_see_a_difference() -> None:
    y, proba, groups = draw(DESIGNS["patients, 50 + 50"], np.random.default_rng(0))
    noise = np.random.default_rng(1).normal(size=len(y))
    worse = as_proba(np.log(proba[:, 1] / proba[:, 0]) + 6 * noise + 40)
    assert delong_test(y, proba[:, 1], worse[:, 1], groups).p_value < 0.001
    assert bootstrap_test("pr_auc", y, proba, worse, groups, n_bootstrap=200).p_value < 0.001


def test_choosing_flatters_and_the_correction_takes_it_back() -> None:
    """Of twenty heads that know nothing the best seems to know something; corrected, it does not."""
    rng = np.random.default_rng(0)
    y = np.arange(120) % 2
    probas = [np.stack([1 - p, p], axis=1) for p in rng.uniform(size=(20, 120))]
    best = max(METRICS["roc_auc"](y, proba) for proba in probas)
    corrected = score_of_the_chosen(y, probas)
    assert best > 0.57
    assert abs(corrected.value - 0.5) < 0.04
    assert corrected.low < corrected.value < corrected.high
    good = np.stack([1 - y * 0.6 - 0.2, y * 0.6 + 0.2], axis=1)
    assert score_of_the_chosen(y, [*probas, good]).value == 1.0
    one = score_of_the_chosen(y, probas[:1], n_bootstrap=400)
    assert one.value == pytest.approx(METRICS["roc_auc"](y, probas[0]), abs=0.02), "nothing to choose, nothing to pay"
    assert np.isnan(score_of_the_chosen(y, probas[:1], groups=np.zeros(120)).value)


def test_the_correction_does_not_depend_on_the_order_of_the_models() -> None:
    """On few, well separated images several models are often equally good on the drawn groups."""
    y, probas = equals(8, 40, 0, shift=4.0)
    probas.sort(key=lambda proba: METRICS["roc_auc"](y, proba))
    rising, falling = (score_of_the_chosen(y, row) for row in (probas, probas[::-1]))
    assert rising == pytest.approx(falling, rel=1e-12)
    losses = score_of_the_chosen(y, probas, metric="brier")
    assert 0 < losses.low < losses.value < losses.high
