"""Ordered grades: quadratic weighted kappa and mean absolute error, in the scores, the table and the page."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from runs_for_tests import draw_runs
from sklearn.metrics import cohen_kappa_score, mean_absolute_error

from features.errors import FirnError
from models.metrics import ordered_metrics, score
from models.runs.compare import compare_runs
from models.runs.examination import ExaminationOptions
from models.runs.scores import grades
from pipeline.render.ranking import ranking_columns
from pipeline.render.terminal import examined_lines

ORDERED = ExaminationOptions(ordered=True)


def drawn(seed: int, n: int = 300, k: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return as many images of each grade (n,), probabilities (n, k) that lean towards it, and groups of three."""
    rng = np.random.default_rng(seed)
    y = np.repeat(rng.permutation(np.arange(n // 3) % k), 3)
    seen = y + rng.normal(size=n)
    logits = -np.square(seen[:, None] - np.arange(k))
    proba = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return y, proba, np.repeat(np.arange(n // 3), 3)


@pytest.mark.parametrize("ranks", [[0, 1, 2, 3, 4], [4, 2, 0, 1, 3]])
def test_values_are_scikit_learns(ranks: list[int]) -> None:
    """Also where the classes are not in the order of the grades."""
    y, proba, groups = drawn(1)
    found = score(y, proba, groups, only=("accuracy",), also=ordered_metrics(ranks), n_bootstrap=300)
    place = np.array(ranks)
    true, decided = place[y], place[proba.argmax(axis=1)]
    assert found["kappa"].value == pytest.approx(cohen_kappa_score(true, decided, weights="quadratic"), abs=1e-12)
    assert found["grades_off"].value == pytest.approx(mean_absolute_error(true, decided), abs=1e-12)
    for interval in (found["kappa"], found["grades_off"]):
        assert interval.low < interval.value < interval.high


def test_intervals_hold_the_truth() -> None:
    """In at least 90 of 100 samples of a hundred patients, of 95 that are promised."""
    metrics = ordered_metrics(range(5))
    y, proba, _ = drawn(0, n=90_000)
    truth = {name: metric(y, proba) for name, metric in metrics.items()}
    held = dict.fromkeys(metrics, 0)
    for seed in range(1, 101):
        y, proba, groups = drawn(seed)
        for name, interval in score(y, proba, groups, only=("accuracy",), also=metrics, n_bootstrap=200).items():
            if name in held:
                held[name] += interval.low <= truth[name] <= interval.high
    assert min(held.values()) >= 90, held


def test_what_no_draw_of_patients_changes_has_no_interval() -> None:
    """Each grade wholly right or wholly wrong: resampling within grades repeats it, which is no certainty."""
    y = np.repeat([0, 1, 2, 3], 2)
    proba = np.eye(4)[[1, 1, 1, 1, 2, 2, 3, 3]]
    found = score(y, proba, np.arange(8), also=ordered_metrics(range(4)), n_bootstrap=100)
    constant = {name for name, interval in found.items() if interval.low == interval.high}
    assert not constant, constant
    assert found["kappa"].value == pytest.approx(0.875) and np.isnan(found["kappa"].low)


def test_constant_decisions_are_chance() -> None:
    """Kappa 0 with no interval of one grade decided for all; NaN where truth is one grade too."""
    y, _, groups = drawn(2)
    constant = np.tile(np.eye(5)[2], (len(y), 1))
    assert score(y, constant, groups, also=ordered_metrics(range(5)), n_bootstrap=50)["kappa"].value == 0
    assert np.isnan(ordered_metrics(range(5))["kappa"](np.full(len(y), 2), constant))


def test_every_run_and_the_page_have_them() -> None:
    """Beside the ROC AUC, which still chooses."""
    runs = [
        replace(run, record=replace(run.record, classes=("0", "1", "2", "3", "4")))
        for run in draw_runs(5, strengths=(2.0, 1.0))
    ]
    results = compare_runs(runs, ORDERED, n_bootstrap=100)
    assert all({"kappa", "grades_off"} <= set(run.shown) for run in results.runs)
    assert [column.metric for column in ranking_columns(results) if not column.extra][1:4] == [
        "roc_auc",
        "kappa",
        "grades_off",
    ]
    said = " ".join(examined_lines(results))
    assert "Grades of the chosen run: Quadratic weighted kappa 0." in said
    assert any("ORDERED=1" in command for command in results.commands)
    assert "kappa" not in compare_runs(runs, n_bootstrap=20).metrics


def test_classes_that_are_no_numbers() -> None:
    """What was expected, what came, what to do."""
    with pytest.raises(FirnError, match=r"numbers, such as 0 to 4, for ORDERED=1, got mild, severe; write the grades"):
        grades(("mild", "severe"))
    assert set(grades(("10", "2", "-1.5"))) == {"kappa", "grades_off"}
