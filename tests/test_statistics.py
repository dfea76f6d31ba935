"""Intervals and tests against R's pROC, statsmodels, the formulas spelled out, and their own promises."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.coverage import DESIGNS, coverage, draw, false_alarms
from models.metrics import METRICS, bootstrap_test, delong, delong_test, holm, score, score_of_the_chosen
from models.metrics.bootstrap import perfect_auc_bound, standard_error
from models.metrics.delong import auc_interval
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
    ours = score(y, as_proba(scores[name]), n_bootstrap=0)["roc_auc"]
    assert ours == pytest.approx((area, *ON_LOGITS[name]), rel=1e-12)


@pytest.mark.parametrize("pair", PAIRS)
def test_delong_test_is_that_of_proc(pair: str) -> None:
    y, scores = made_by_formula()
    covariance, z, p_value, low, high = PAIRS[pair]
    estimate = delong(y, np.stack([scores[name] for name in pair]))
    assert estimate.covariance[[0, 1], [1, 0]] == pytest.approx([covariance] * 2, rel=1e-12)
    test = delong_test(y, scores[pair[0]], scores[pair[1]])
    area_a, area_b = (AREAS[name][0] for name in pair)
    assert test.difference == pytest.approx((area_a - area_b, low, high), rel=1e-10)
    assert test.p_value == pytest.approx(p_value, rel=1e-10)
    assert test.difference.value / (high - low) * 2 * 1.959963984540054 == pytest.approx(z, rel=1e-10)


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
    assert delong_test(y, scores["a"], scores["a"]) == ((0.0, 0.0, 0.0), 1.0)
    unequal = delong_test([0, 0, 1, 1], [1, 2, 3, 4], [1, 1, 1, 1])
    assert unequal.difference.value == 0.5 and np.isnan(unequal.p_value)


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
    loss = (proba[:, 1] - y) ** 2
    within = [loss[y == k].var(ddof=1) * (y == k).sum() for k in (0, 1)]  # classes are strata
    interval = score(y, proba, n_bootstrap=8000)["brier"]
    error = np.log(interval.high / interval.value) * interval.value / 1.99045  # Student's t, 79 degrees
    assert error == pytest.approx(np.sqrt(sum(within)) / 80, rel=0.04)
    assert METRICS["brier"].evidence(sample) == 80
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
    assert bootstrap_test("f1", y, proba, proba, n_bootstrap=50) == ((0.0, 0.0, 0.0), 1.0)
    moved = bootstrap_test("sensitivity", y, proba, proba, thresholds=(0.2, 0.6), n_bootstrap=200)
    found = (proba[y == 1, 1] >= 0.2).mean() - (proba[y == 1, 1] >= 0.6).mean()
    assert moved.difference.value == pytest.approx(found) and found > 0 and moved.p_value < 0.05


def test_holm_is_that_of_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests

    given = np.array([0.01, 0.04, 0.03, 0.005, 0.5, 0.04])
    assert holm(given) == pytest.approx(multipletests(given, method="holm")[1], rel=1e-12)
    gaps = holm([0.01, np.nan, 0.04])
    assert gaps[[0, 2]] == pytest.approx([0.02, 0.04]) and np.isnan(gaps[1])
    assert holm([]).shape == (0,)


def test_intervals_hold_the_truth_95_times_in_100() -> None:
    """A wrong variance shows: ignoring the patients holds it fewer than 85 times."""
    held = coverage(DESIGNS["patients"], 250, 120, size=200_000)
    for name in ("roc_auc", "pr_auc", "accuracy", "sensitivity", "brier"):
        assert 0.91 <= held[name] <= 0.99, (name, held[name])
    assert held["auc unclustered"] < 0.85


def test_delong_holds_the_truth_95_times_in_100_for_single_images() -> None:
    held = coverage(DESIGNS["single, AUC 0.98"], 300, 0, size=200_000)
    assert 0.91 <= held["roc_auc"] <= 0.98
    assert held["auc plain"] < 0.90, "the reason for the logit scale"


def test_paired_tests_rarely_call_equals_different() -> None:
    alarms = false_alarms(DESIGNS["patients"], 150, 100)
    assert 0 < alarms["DeLong test"] <= 0.1 and 0 < alarms["bootstrap test"] <= 0.1


def test_paired_tests_see_a_difference() -> None:
    y, proba, groups = draw(DESIGNS["patients"], np.random.default_rng(0))
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
