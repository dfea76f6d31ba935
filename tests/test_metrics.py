"""Metrics, curves, operating points and calibration against scikit-learn, brute force and known answers."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as reference

from features.errors import FirnError, UnknownName
from models.metrics import (
    CALIBRATIONS,
    METRICS,
    bootstrap_test,
    calibration_from_json,
    calibration_line,
    fit_isotonic,
    fit_platt,
    fit_temperature,
    net_benefit,
    operating_points,
    pr_curve_band,
    rates,
    reliability_curve,
    roc_curve_band,
    score,
)
from models.metrics.bootstrap import resamples, strata
from models.metrics.registry import values
from models.metrics.sample import effective_groups, make_sample

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def predictions(n: int, k: int, *, ties: bool = False, seed: int = 0) -> tuple[Ints, Floats, NDArray[np.str_]]:
    """Return y, proba and groups of about three images; with `ties`, probabilities in steps of a tenth."""
    random = np.random.default_rng(seed)
    y = random.integers(0, k, n)
    y[:k] = np.arange(k)
    logits = random.normal(size=(n, k)) + 1.5 * np.eye(k)[y]
    proba = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    if ties:
        proba = np.round(proba, 1)
        proba[np.arange(n), proba.argmax(axis=1)] += 1 - proba.sum(axis=1)
    return y, proba, np.char.add("patient", random.integers(0, n // 3, n).astype(str))


def as_scikit_learn(y: Ints, proba: Floats) -> dict[str, float]:
    """Return each metric by scikit-learn, or as defined where it has none."""
    k, decision = proba.shape[1], proba.argmax(axis=1)
    one_hot = np.eye(k)[y]
    average = "binary" if k == 2 else "macro"
    ranked = proba[:, 1] if k == 2 else proba
    flagged = y if k == 2 else one_hot
    counts = reference.multilabel_confusion_matrix(y, decision, labels=range(k))
    specificity = counts[:, 0, 0] / counts[:, 0].sum(axis=1)
    return {
        "roc_auc": reference.roc_auc_score(y, ranked, multi_class="ovr"),
        "pr_auc": reference.average_precision_score(flagged, ranked, average="macro"),
        "accuracy": reference.accuracy_score(y, decision),
        "balanced_accuracy": reference.balanced_accuracy_score(y, decision),
        "sensitivity": reference.recall_score(y, decision, average=average),
        "specificity": float(specificity[1] if k == 2 else specificity.mean()),
        "f1": reference.f1_score(y, decision, average=average),
        "mcc": reference.matthews_corrcoef(y, decision),
        "brier": reference.brier_score_loss(y, proba[:, 1])
        if k == 2
        else float(((proba - one_hot) ** 2).sum(1).mean()),
        "ece": calibration_error(y, proba),
        "log_loss": reference.log_loss(y, np.clip(proba, 1e-15, 1), labels=range(k)) if (proba > 0).all() else np.nan,
    }


def calibration_error(y: Ints, proba: Floats) -> float:
    """Return the definition, image by image."""
    sure = proba[:, 1] if proba.shape[1] == 2 else proba.max(axis=1)
    happened = y == 1 if proba.shape[1] == 2 else y == proba.argmax(axis=1)
    error = 0.0
    for part in range(15):
        inside = (sure >= part / 15) & ((sure < (part + 1) / 15) | (part == 14))
        if inside.any():
            error += inside.mean() * abs(happened[inside].mean() - sure[inside].mean())
    return error


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("k", [2, 7])
def test_every_metric_has_the_value_of_scikit_learn(k: int, ties: bool) -> None:
    y, proba, groups = predictions(240, k, ties=ties)
    expected = as_scikit_learn(y, proba)
    assert list(expected) == list(METRICS)
    intervals = score(y, proba, groups, n_bootstrap=50)
    for name, value in expected.items():
        if not np.isnan(value):
            assert METRICS[name](y, proba) == pytest.approx(value, abs=1e-12), name
            assert intervals[name].value == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("k", [2, 7])
def test_a_replicate_equals_the_images_repeated(k: int, ties: bool) -> None:
    y, proba, groups = predictions(150, k, ties=ties)
    sample = make_sample(y, proba, groups)
    weights = np.concatenate(list(resamples(sample, 12, 3)))
    replicates = values(METRICS, sample, weights)
    for row, weight in enumerate(weights.astype(int)):
        rows = np.repeat(np.arange(len(y)), weight[sample.groups])
        for name, value in as_scikit_learn(y[rows], proba[rows]).items():
            if not np.isnan(value):
                assert replicates[name][row] == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("name", METRICS)
def test_direction_says_which_way_is_better(name: str) -> None:
    y, proba, _ = predictions(200, 2)
    perfect = np.eye(2)[y] * 0.998 + 0.001
    assert METRICS[name].direction * (METRICS[name](y, perfect) - METRICS[name](y, proba)) > 0


def test_threshold_decides_in_the_binary_case() -> None:
    y, proba, _ = predictions(200, 2)
    intervals = score(y, proba, threshold=0.2, n_bootstrap=0)
    decision = proba[:, 1] >= 0.2
    assert intervals["sensitivity"].value == reference.recall_score(y, decision)
    assert intervals["specificity"].value == reference.recall_score(y, decision, pos_label=0)
    assert METRICS["f1"](y, proba, threshold=0.2) == reference.f1_score(y, decision)
    assert np.isnan(intervals["accuracy"].low), "no replicates, no bounds"


def test_groups_are_drawn_whole_and_by_class_where_each_is_of_one_class() -> None:
    y = np.array([0, 0, 0, 1, 1, 1, 1])
    pure = make_sample(y, np.eye(2)[y], ["a", "a", "b", "c", "c", "d", "e"])
    assert [part.tolist() for part in strata(pure)] == [[0, 1], [2, 3, 4]]
    weights = np.concatenate(list(resamples(pure, 500, 0)))
    assert (weights[:, :2].sum(axis=1) == 2).all() and (weights[:, 2:].sum(axis=1) == 3).all()
    assert weights.mean(axis=0) == pytest.approx(1, abs=0.15)
    mixed = make_sample(y, np.eye(2)[y], ["a", "a", "b", "a", "c", "d", "e"])
    assert len(strata(mixed)) == 1
    lonely = make_sample(y, np.eye(2)[y], ["a", "a", "a", "c", "c", "d", "e"])
    assert len(strata(lonely)) == 1


def test_copies_of_a_image_in_its_group_tell_nothing_new() -> None:
    y, proba, _ = predictions(60, 2)
    names = np.arange(60).astype(str)
    once = score(y, proba, names, n_bootstrap=300)
    twice = score(np.tile(y, 2), np.tile(proba, (2, 1)), np.tile(names, 2), n_bootstrap=300)
    alone = score(np.tile(y, 2), np.tile(proba, (2, 1)), n_bootstrap=300)
    shares = ("sensitivity", "specificity", "balanced_accuracy", "mcc")  # whose quantile counts images too
    for name in METRICS:
        assert twice[name] == pytest.approx(once[name], abs=0.01 if name in shares else 1e-9, nan_ok=True), name
        if name == "ece":
            assert np.isnan(once[name][1:]).all(), "no bounds of it hold"
            continue
        assert alone[name].high - alone[name].low < once[name].high - once[name].low, name


def test_seed_fixes_the_bounds() -> None:
    y, proba, groups = predictions(90, 3)
    first, second = (score(y, proba, groups, n_bootstrap=80, seed=4) for _ in range(2))
    other = score(y, proba, groups, n_bootstrap=80, seed=5)
    assert first == second
    assert first["f1"].low != other["f1"].low and first["pr_auc"] == other["pr_auc"]
    wide = score(y, proba, groups, n_bootstrap=80, seed=4, level=0.99)
    for name in ("f1", "pr_auc", "log_loss"):
        assert wide[name].low < first[name].low < first[name].value < first[name].high < wide[name].high


def test_degenerate_predictions_give_nan_or_defined_values_and_no_warning() -> None:
    proba = np.array([[0.4, 0.6], [0.7, 0.3], [0.2, 0.8]])
    one_class = score([1, 1, 1], proba, n_bootstrap=50)
    assert np.isnan(one_class["roc_auc"]).all() and np.isnan(one_class["specificity"]).all()
    assert one_class["sensitivity"].value == one_class["accuracy"].value == pytest.approx(2 / 3)
    single = score([1], proba[:1], n_bootstrap=50)
    assert single["accuracy"].value == 1 and np.isnan(single["accuracy"].low)
    constant = score([0, 1, 0, 1], np.full((4, 2), 0.5), n_bootstrap=50)
    assert constant["roc_auc"].value == 0.5 and np.isnan(constant["roc_auc"][1:]).all(), "no variance, no interval"
    assert constant["brier"].value == 0.25 and np.isnan(constant["brier"][1:]).all()
    slip = np.array([[1 - 1e-9, 1e-9]] * 400 + [[1e-9, 1 - 1e-9]] * 400)
    nearly = score([0] * 399 + [1] * 401, slip, ["x", *map(str, range(798)), "y"], n_bootstrap=50)
    assert nearly["accuracy"].high < 1 and nearly["log_loss"].high > nearly["log_loss"].value
    assert np.isnan(roc_curve_band([1, 1, 1], proba[:, 1], n_bootstrap=20).value).all()
    assert np.isnan(list(operating_points([1, 1], [0.2, 0.3]).values())).all()


def test_a_class_missing_in_the_test_set_does_not_count() -> None:
    y, proba, _ = predictions(120, 4)
    kept = y != 2
    intervals = score(y[kept], proba[kept], n_bootstrap=50)
    areas = [reference.roc_auc_score(y[kept] == k, proba[kept, k]) for k in (0, 1, 3)]
    assert intervals["roc_auc"].value == pytest.approx(np.mean(areas), abs=1e-12)
    recalls = reference.recall_score(y[kept], proba[kept].argmax(axis=1), labels=[0, 1, 3], average="macro")
    assert intervals["sensitivity"].value == pytest.approx(recalls, abs=1e-12)
    assert [name for name, interval in intervals.items() if np.isnan(interval.low)] == ["ece"]


def test_a_class_of_one_group_leaves_class_means_without_bounds() -> None:
    y, proba = np.array([0, 0, 0, 1, 1, 1]), np.linspace([0.9, 0.1], [0.2, 0.8], 6)
    intervals = score(y, proba, ["a", "b", "c", "d", "d", "d"], n_bootstrap=50)
    assert np.isnan([intervals[name].low for name in ("roc_auc", "pr_auc", "sensitivity", "f1")]).all()
    assert not np.isnan([intervals[name].low for name in ("accuracy", "specificity", "brier")]).any()


def test_faultless_predictions_are_not_called_certain() -> None:
    y = np.repeat([0, 1], 20)
    intervals = score(y, np.eye(2)[y] * 0.8 + 0.1, n_bootstrap=50)
    assert intervals["accuracy"] == pytest.approx((1.0, 0.025 ** (1 / 40), 1.0))
    assert intervals["sensitivity"] == pytest.approx((1.0, 20 / (20 + 1.959964**2), 1.0)), "Wilson's"
    assert intervals["pr_auc"] == pytest.approx((1.0, 0.025 ** (1 / 20), 1.0))
    assert intervals["roc_auc"][::2] == (1.0, 1.0) and 0.85 < intervals["roc_auc"].low < 0.95
    reverse = score(1 - y, np.eye(2)[y] * 0.8 + 0.1, n_bootstrap=50)
    assert reverse["roc_auc"] == pytest.approx((0.0, 0.0, 1 - intervals["roc_auc"].low))
    assert reverse["accuracy"] == pytest.approx((0.0, 0.0, 1 - 0.025 ** (1 / 40)))


@pytest.mark.parametrize(
    ("y", "proba", "groups", "threshold", "words"),
    [
        ([0, 1], [[0.5, 0.5]], None, None, "expected y"),
        ([], np.empty((0, 2)), None, None, "n > 0"),
        ([0, 2], [[0.5, 0.5], [0.5, 0.5]], None, None, "whole numbers 0 to 1"),
        ([0.0, 1.0], [[0.5, 0.5], [0.5, 0.5]], None, None, "whole numbers"),
        ([0, 1], [[0.5, 0.5], [0.5, 0.9]], None, None, "row 1"),
        ([0, 1], [[0.5, 0.5], [np.nan, 0.9]], None, None, "row 1"),
        ([0, 1], [[0.5, 0.5], [0.5, 0.5]], ["a"], None, "1 groups for 2 images"),
        ([0, 1], [[0.2, 0.5, 0.3], [0.5, 0.5, 0.0]], None, 0.3, "two classes"),
    ],
)
def test_bad_predictions_are_said_in_one_line(
    y: object, proba: object, groups: object, threshold: float | None, words: str
) -> None:
    with pytest.raises(FirnError, match=words) as caught:
        score(y, proba, groups, threshold=threshold)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_an_unknown_metric_is_named() -> None:
    y, proba, _ = predictions(20, 2)
    with pytest.raises(UnknownName, match="did you mean roc_auc"):
        bootstrap_test("roc_acu", y, proba, proba)


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_roc_curve_is_that_of_scikit_learn(ties: bool) -> None:
    y, proba, groups = predictions(150, 2, ties=ties)
    band = roc_curve_band(y, proba[:, 1], groups, n_bootstrap=200)
    false, true, _ = reference.roc_curve(y, proba[:, 1], drop_intermediate=False)
    between = (band.x > 0) & (np.abs(band.x[:, None] - false).min(axis=1) > 1e-9)
    assert between.any()
    assert band.value[between] == pytest.approx(np.interp(band.x[between], false, true), abs=1e-9)
    assert (band.low <= band.high).all() and (np.diff(band.value) >= 0).all()
    inner = slice(5, 30)
    assert ((band.low <= band.value) & (band.value <= band.high))[inner].all() and (band.low < band.high)[inner].all()
    assert band.x[[0, -1]].tolist() == [0, 1] and band.value[-1] == 1


def test_curves_by_hand() -> None:
    y, column = np.array([1, 0, 1, 1, 0]), np.array([0.9, 0.8, 0.7, 0.7, 0.1])
    roc = roc_curve_band(y, column, grid=5, n_bootstrap=0)
    assert roc.x.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert roc.value == pytest.approx([1 / 3, 1 / 3, 1, 1, 1])
    assert np.isnan(roc.low).all()
    pr = pr_curve_band(y, column, grid=7, n_bootstrap=0)
    assert pr.value == pytest.approx([1, 1, 1, 0.75, 0.75, 0.75, 0.75])


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_area_below_the_pr_curve_is_its_metric(ties: bool) -> None:
    y, proba, groups = predictions(150, 2, ties=ties)
    band = pr_curve_band(y, proba[:, 1], groups, grid=20001, n_bootstrap=20)
    assert band.value.mean() == pytest.approx(METRICS["pr_auc"](y, proba), abs=1e-3)
    assert (band.low <= band.high).all() and band.low.mean() < band.value.mean() < band.high.mean()


def test_bands_draw_whole_groups() -> None:
    y, proba, _ = predictions(60, 2)
    names = np.arange(60).astype(str)
    for curve in (roc_curve_band, pr_curve_band):
        once = curve(y, proba[:, 1], names, n_bootstrap=100)
        twice = curve(np.tile(y, 2), np.tile(proba[:, 1], 2), np.tile(names, 2), n_bootstrap=100)
        assert np.allclose(once, twice, atol=1e-12)


def test_curves_of_folds_are_drawn_from_pairs_within_folds() -> None:
    """The area of the ROC curve and its corner are those of the table; a shift between folds changes nothing."""
    y, proba, groups = predictions(300, 2)
    folds, column = np.unique(groups, return_inverse=True)[1] % 3, proba[:, 1]
    shifted = np.clip(column / 4 + folds / 4, 0, 1)
    pooled, apart = (roc_curve_band(y, s, groups, folds=folds, grid=20001, n_bootstrap=0) for s in (column, shifted))
    assert np.allclose(pooled.value, apart.value, atol=1e-12)
    whole = np.stack([1 - shifted, shifted], axis=1)
    assert apart.value[1:-1].mean() == pytest.approx(METRICS["roc_auc"](y, whole, folds=folds), abs=1e-3)
    assert abs(apart.value.mean() - METRICS["roc_auc"](y, whole)) > 0.01, "pooling would tell another story"
    pairs = [np.prod(np.bincount(y[folds == k])) for k in range(3)]
    found = rates(y, shifted, groups, folds=folds, specificity=0.8, sensitivity=0.9)
    each = [rates(y[folds == k], column[folds == k], specificity=0.8, sensitivity=0.9) for k in range(3)]
    for place, interval in enumerate(found):
        assert interval.value == pytest.approx(np.average([row[place].value for row in each], weights=pairs))
        assert interval.low < interval.value < interval.high
    assert found.partial_auc.value == pytest.approx(
        np.average(
            [reference.roc_auc_score(y[folds == k], column[folds == k], max_fpr=0.2) for k in range(3)], weights=pairs
        )
    )
    strict = rates(y, shifted, groups, folds=folds, sensitivity=0.995)
    assert np.isnan(strict.specificity.low), "not even one patient may be missed"
    assert not np.isnan(strict.sensitivity.low)
    narrow, wide = (roc_curve_band(y, column, groups, folds=f, n_bootstrap=200) for f in (None, folds))
    assert (wide.high - wide.low).mean() > (narrow.high - narrow.low).mean(), "folds share training images"


def test_a_stated_prevalence_is_that_of_images_drawn_so() -> None:
    """Decision curve and reliability at 0.1 are those of a sample in which positives are so rare."""
    random = np.random.default_rng(0)
    y = np.repeat([0, 1], 400)
    score = np.clip(random.beta(2 + 2 * y, 4), 0.01, 0.99)
    rare = np.concatenate([np.repeat(np.flatnonzero(y == 0), 9), np.flatnonzero(y == 1)])  # a positive in ten
    at = [0.05, 0.1, 0.4]
    found, drawn = net_benefit(y, score, at, prevalence=0.1), net_benefit(y[rare], score[rare], at)
    assert found.model == pytest.approx(drawn.model) and found.treat_all == pytest.approx(drawn.treat_all)
    stated, sampled = reliability_curve(y, score, prevalence=0.1), reliability_curve(y[rare], score[rare])
    assert stated.predicted == pytest.approx(sampled.predicted) and stated.observed == pytest.approx(sampled.observed)
    assert ((stated.low <= stated.observed) & (stated.observed <= stated.high)).all()
    usual = net_benefit(y, score, at, prevalence=0.5)
    plain = net_benefit(y, score, at)
    assert usual.model == pytest.approx(plain.model) and usual.high == pytest.approx(plain.high)


def test_some_metrics_are_those_of_all() -> None:
    y, proba, groups = predictions(120, 2)
    every = score(y, proba, groups, n_bootstrap=100, seed=4)
    some = score(y, proba, groups, only=("brier", "roc_auc", "pr_auc"), n_bootstrap=100, seed=4)
    assert list(some) == ["brier", "roc_auc", "pr_auc"] and all(every[name] == some[name] for name in some)


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_operating_points_are_the_best_of_all_thresholds(ties: bool) -> None:
    y, proba, _ = predictions(150, 2, ties=ties)
    column = proba[:, 1]
    points = operating_points(y, column, sensitivity=0.9)
    assert list(points) == ["youden", "sensitivity>=0.9"]

    def rates(threshold: float) -> tuple[float, float]:
        decision = column >= threshold
        return decision[y == 1].mean(), (~decision)[y == 0].mean()

    every = [rates(t) for t in np.unique(column)]
    assert sum(rates(points["youden"])) == pytest.approx(max(map(sum, every)))
    sensitivity, specificity = rates(points["sensitivity>=0.9"])
    assert sensitivity >= 0.9
    assert specificity == max(right for found, right in every if found >= 0.9)
    assert points["youden"] not in column, "halfway to the next lower score"


def test_net_benefit_by_its_definition() -> None:
    y, proba, _ = predictions(150, 2)
    curve = net_benefit(y, proba[:, 1], [0.0, 0.1, 0.5])
    for row, t in enumerate((0.0, 0.1, 0.5)):
        treated = proba[:, 1] >= t
        expected = (treated & (y == 1)).sum() / 150 - (treated & (y == 0)).sum() / 150 * t / (1 - t)
        assert curve.model[row] == pytest.approx(expected)
    assert curve.treat_all[0] == curve.model[0] == pytest.approx(y.mean())
    assert curve.treat_all[2] == pytest.approx(2 * y.mean() - 1)
    with pytest.raises(FirnError, match="thresholds 0 <= t < 1"):
        net_benefit(y, proba[:, 1], [1.0])


def test_net_benefit_band_is_that_of_a_difference_of_shares() -> None:
    """Newcombe's hybrid score interval of two shares (1998, method 10), as statsmodels has it."""
    from statsmodels.stats.proportion import confint_proportions_2indep

    y, proba, _ = predictions(200, 2)
    curve = net_benefit(y, proba[:, 1], [0.3, 0.5])
    share = y.mean()
    balanced = net_benefit(y, proba[:, 1], [share])  # where both shares have the same weight
    called = proba[:, 1] >= share
    hits, alarms = called[y == 1].sum(), called[y == 0].sum()
    low, high = confint_proportions_2indep(hits, y.sum(), alarms, (1 - y).sum(), method="newcomb")
    assert (balanced.low[0], balanced.high[0]) == pytest.approx((share * low, share * high), rel=1e-9)
    copied = net_benefit(*(np.tile(column, 3) for column in (y, proba[:, 1])), [0.3, 0.5], np.tile(np.arange(200), 3))
    assert copied.low == pytest.approx(curve.low, abs=0.01) and copied.high == pytest.approx(curve.high, abs=0.01)
    perfect = net_benefit(y, np.eye(2)[y][:, 1], [0.5])
    assert perfect.low[0] < perfect.model[0] == share == pytest.approx(perfect.high[0]), "not called certain"
    assert np.isnan(net_benefit([1, 1], [0.2, 0.3], [0.25]).low).all()


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_rates_at_rates_are_the_best_of_all_thresholds(ties: bool) -> None:
    y, proba, groups = predictions(150, 2, ties=ties)
    column = proba[:, 1]
    found = rates(y, column, groups, specificity=0.8, sensitivity=0.9)
    called = column >= np.append(np.unique(column), 2)[:, None]
    sensitivity, specificity = called[:, y == 1].mean(axis=1), (~called)[:, y == 0].mean(axis=1)
    assert found.sensitivity.value == pytest.approx(sensitivity[specificity >= 0.8].max())
    assert found.specificity.value == pytest.approx(specificity[sensitivity >= 0.9].max())
    assert found.partial_auc.value == pytest.approx(reference.roc_auc_score(y, column, max_fpr=0.2))
    assert all(interval.low < interval.value < interval.high for interval in found)
    assert np.isnan(rates([1, 1], [0.2, 0.3])).all()


def test_reliability_curve_adds_up_to_the_calibration_error() -> None:
    y, proba, _ = predictions(150, 2)
    curve = reliability_curve(y, proba[:, 1])
    gaps = np.abs(curve.predicted - curve.observed) * curve.images / 150
    assert gaps.sum() == pytest.approx(METRICS["ece"](y, proba))
    assert curve.images.sum() == 150 and (curve.images > 0).all()
    assert ((curve.low <= curve.observed) & (curve.observed <= curve.high)).all()


def test_wilson_bounds_are_those_of_statsmodels() -> None:
    from statsmodels.stats.proportion import proportion_confint

    curve = reliability_curve([1, 0, 0, 1, 1, 1], [0.2, 0.2, 0.2, 0.9, 0.9, 0.9], bins=2)
    for row, hits in enumerate((1, 3)):
        expected = proportion_confint(hits, 3, method="wilson")
        assert (curve.low[row], curve.high[row]) == pytest.approx(expected)


def test_reliability_bounds_count_groups() -> None:
    """Copies of an image in its group tell nothing new, and a bin of one patient tells nearly nothing."""
    from scipy.stats import t
    from statsmodels.stats.proportion import proportion_confint

    y, proba, _ = predictions(300, 2)
    names = np.arange(300)
    once = reliability_curve(y, proba[:, 1], names, bins=4)
    assert np.allclose(once, reliability_curve(y, proba[:, 1], bins=4))
    copied = reliability_curve(np.tile(y, 4), np.tile(proba[:, 1], 4), np.tile(names, 4), bins=4)
    assert copied.low == pytest.approx(once.low, abs=0.006) and copied.high == pytest.approx(once.high, abs=0.006)
    y, column = np.array([1] * 8 + [0, 1, 0, 1]), np.repeat([0.9, 0.2], [8, 4])
    lonely = reliability_curve(y, column, np.repeat(["a", "b", "c"], [8, 2, 2]), bins=2)
    assert lonely.low[1] < 0.02 and lonely.high[1] == 1.0
    ratio = float(t.isf(0.025, 3) / t.isf(0.025, 1))  # two patients alike, of 2 images each
    expected = proportion_confint(2 * ratio**2, 4 * ratio**2, method="wilson")
    assert (lonely.low[0], lonely.high[0]) == pytest.approx(expected)


@pytest.mark.parametrize("grouped", [False, True])
def test_calibration_slope_and_intercept_are_those_of_statsmodels(grouped: bool) -> None:
    """The values, and the bounds of leaving out one group at a time: of all groups where some have both classes."""
    from scipy.stats import t
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.generalized_linear_model import GLM

    y, proba, names = predictions(300, 2)
    groups = np.unique(names, return_inverse=True)[1] if grouped else np.arange(300)
    odds = np.log(proba[:, 1] / proba[:, 0])
    line, n_groups = calibration_line(y, proba[:, 1], groups), int(groups.max()) + 1
    evidence = effective_groups(*(len(np.unique(groups[y == k])) for k in (0, 1)))
    whole = [np.arange(n_groups)]
    classes = whole if grouped else [np.flatnonzero(y == k) for k in (0, 1)]
    fits = (np.column_stack([odds, np.ones(300)]), np.zeros(300), classes), (np.ones((300, 1)), odds, whole)
    for interval, (design, offset, drawn) in zip(line, fits, strict=True):

        def fit(keep: NDArray[np.bool_], design: Floats = design, offset: Floats = offset) -> float:
            model = GLM(y[keep], design[keep], family=Binomial(), offset=offset[keep])
            return float(model.fit(tol=1e-12).params[0])

        left_out = np.array([fit(groups != g) for g in range(n_groups)])
        variance = sum((len(at) - 1) ** 2 / len(at) * left_out[at].var(ddof=1) for at in drawn)
        half = np.sqrt(variance) * t.isf(0.025, evidence - 1)
        assert interval.value == pytest.approx(fit(groups >= 0), rel=1e-6)
        assert interval.high - interval.value == pytest.approx(half, rel=0.05), "ours takes one step of Newton's method"
        assert interval.value - interval.low == pytest.approx(half, rel=0.05)


def test_calibration_line_finds_the_factor_and_says_what_it_cannot() -> None:
    y, proba = overconfident(2, 3.0)
    line = calibration_line(y, proba[:, 1])
    assert line.slope.low < 1 / 3 < line.slope.high and line.intercept.low < 0 < line.intercept.high
    shifted = 1 / (1 + np.exp(-(np.log(proba[:, 1] / proba[:, 0]) / 3 + 1)))
    assert calibration_line(y, shifted).intercept.value == pytest.approx(-1, abs=0.1)
    thrice = calibration_line(*(np.tile(c, 3) for c in (y, proba[:, 1])), np.tile(np.arange(4000), 3))
    assert np.allclose(thrice, line, rtol=1e-6), "copies in their groups"
    constant = calibration_line([0, 0, 1, 1, 1, 1], [0.1] * 6).intercept
    assert constant.value == pytest.approx(np.log(2) + np.log(9)) and constant.low < constant.value < constant.high
    separated = calibration_line([0, 0, 1, 1], [0.1, 0.2, 0.7, 0.9])
    assert np.isnan(separated.slope).all() and not np.isnan(separated.intercept).any()
    for labels, groups in (([1, 1, 1], None), ([0, 1, 1], [0, 1, 1])):
        assert np.isnan(calibration_line(labels, [0.4, 0.3, 0.8], groups)).all()


@pytest.mark.parametrize(("prevalence", "spread"), [(0.5, 0.2), (0.2, 1.0)])
def test_calibration_intercept_holds_for_patients_as_they_come(prevalence: float, spread: float) -> None:
    """Of perfectly calibrated models few are called too high or too low; with the mix of classes held it was half."""
    random, held = np.random.default_rng(1), 0
    for _ in range(200):
        odds = random.normal(np.log(prevalence / (1 - prevalence)), spread, 100)
        proba = 1 / (1 + np.exp(-odds))
        line = calibration_line((random.random(100) < proba).astype(int), proba)
        held += line.intercept.low <= 0 <= line.intercept.high
    assert 182 <= held <= 199


def overconfident(k: int, factor: float) -> tuple[Ints, Floats]:
    """Return labels, and probabilities whose logarithms are `factor` times too far apart."""
    random = np.random.default_rng(1)
    logits = random.normal(size=(4000, k)) * 1.5
    right = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    y = (right.cumsum(axis=1) < random.random((4000, 1))).sum(axis=1)
    wrong = np.exp(factor * logits)
    return y, wrong / wrong.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("k", [2, 4])
def test_temperature_finds_the_factor(k: int) -> None:
    y, proba = overconfident(k, 3.0)
    fitted = fit_temperature(y, proba)
    assert fitted.temperature == pytest.approx(3, rel=0.1)
    assert METRICS["ece"](y, fitted(proba)) < METRICS["ece"](y, proba) / 3
    assert (fitted(proba).argmax(axis=1) == proba.argmax(axis=1)).all()
    loss = METRICS["log_loss"](y, fitted(proba))
    for near in (0.98, 1.02):
        assert loss < METRICS["log_loss"](y, type(fitted)(fitted.temperature * near)(proba))


def test_platt_is_a_logistic_regression_on_smoothed_targets() -> None:
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.generalized_linear_model import GLM

    y, proba = overconfident(2, 2.0)
    y, proba = y[:300], proba[:300]
    fitted = fit_platt(y, proba)
    positives, negatives = y.sum(), (1 - y).sum()
    targets = np.where(y == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    design = np.column_stack([np.log(proba[:, 1] / proba[:, 0]), np.ones(300)])
    slope, intercept = GLM(targets, design, family=Binomial()).fit().params
    assert (fitted.slope, *fitted.intercepts) == pytest.approx((slope, 0.0, intercept), abs=1e-4)


def test_platt_stays_finite_where_the_classes_separate() -> None:
    y = np.repeat([0, 1], 20)
    proba = fit_platt(y, np.eye(2)[y])(np.eye(2)[y])
    assert proba[-1, 1] == pytest.approx(21 / 22, abs=1e-3)


def test_isotonic_is_that_of_scikit_learn() -> None:
    from sklearn.isotonic import IsotonicRegression

    y, proba, _ = predictions(200, 2, ties=True)
    fitted = fit_isotonic(y, proba)
    expected = IsotonicRegression(out_of_bounds="clip").fit(proba[:, 1], y)
    new = np.linspace(0, 1, 57)
    assert fitted(np.stack([1 - new, new], axis=1))[:, 1] == pytest.approx(expected.predict(new), abs=1e-9)


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("name", CALIBRATIONS)
def test_every_calibration_mends_and_survives_json(name: str, k: int) -> None:
    y, proba = overconfident(k, 3.0)
    fitted = CALIBRATIONS[name](y[:2000], proba[:2000])
    mended = fitted(proba[2000:])
    assert mended.shape == (2000, k) and mended.sum(axis=1) == pytest.approx(1)
    assert METRICS["ece"](y[2000:], mended) < METRICS["ece"](y[2000:], proba[2000:]) / 2
    again = calibration_from_json(fitted.to_json())
    assert again == fitted and (again(proba) == fitted(proba)).all()


@pytest.mark.parametrize("text", ["", "[]", '{"kind": "magic"}', '{"kind": "platt"}', '{"kind": "platt", "a": 1}'])
def test_other_text_is_no_calibration(text: str) -> None:
    with pytest.raises(FirnError, match="expected a calibration"):
        calibration_from_json(text)


def test_metrics_import_without_the_heavy_libraries() -> None:
    heavy = "{'torch', 'sklearn', 'statsmodels', 'scipy'}"
    code = f"import sys, models.metrics; sys.exit(str({heavy} & sys.modules.keys() or ''))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.strip() == ""
