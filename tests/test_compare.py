"""Runs in, results out: who is chosen, by what, and who is not distinguishable from it."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import stored
from rich.console import Console
from runs_for_tests import draw_predictions, draw_runs, make_run
from verbs_for_tests import verb

from features.errors import CacheError, FirnError, UnknownName
from models.metrics import METRICS, Interval, bootstrap_test, claim, compare_with, delong_test, operating_points, score
from models.runs.compare import choose, compare_runs, run_names
from models.runs.pair import compare_two
from models.runs.record import Run, load_runs
from models.runs.results import UNDECIDED, ComparisonResult
from models.runs.scores import as_dict
from models.validation.predictions import Predictions
from pipeline.render.html_page import render_page
from pipeline.render.terminal import print_table

DRAWS = 120  # of the bootstrap: enough to see that it is asked for


@pytest.fixture(scope="module")
def two() -> tuple[list[Run], dict[str, Any]]:
    runs = draw_runs(2)
    return runs, compared(runs, n_bootstrap=DRAWS, seed=3)


@pytest.fixture(scope="module")
def seven() -> tuple[list[Run], dict[str, Any]]:
    runs = draw_runs(7, strengths=(1.2, 2.0), train=280, test=140)
    return runs, compared(runs, n_bootstrap=DRAWS)


def with_part(run: Run, other: Predictions, *, test: bool) -> Run:
    """Return `run` with the test (or out-of-fold) probabilities of `other`."""
    own = run.predictions
    taken = ((own.fold < 0) == test)[:, None]
    return Run(run.folder, run.record, own._replace(proba=np.where(taken, other.proba, own.proba)))


def compared(runs: Sequence[Run], **options: Any) -> dict[str, Any]:
    """Return what results.json says of runs."""
    return compare_runs(runs, **options).to_json()


def printed(results: dict[str, Any], width: int = 100) -> str:
    text = io.StringIO()
    print_table(ComparisonResult.from_json(results), Console(file=text, width=width))
    return text.getvalue()


def test_chosen_by_validation_not_by_test() -> None:
    good, poor = (draw_predictions(2, strength=s, noise=i) for i, s in enumerate((2.5, 0.3)))
    modest = with_part(make_run(good, "modest"), poor, test=True)
    lucky = with_part(make_run(poor, "lucky"), good, test=True)
    results = compared([lucky, modest], n_bootstrap=DRAWS)
    first, second = results["runs"]
    assert results["chosen"] == first["name"] == modest.name
    assert [row["validation_rank"] for row in results["runs"]] == [1, 2]
    assert second["test"]["roc_auc"]["value"] > first["test"]["roc_auc"]["value"]
    assert second["against_chosen"]["verdict"] == "higher"
    assert "the other run is better on the test images, which had no part in the choice" in results["summary"]


ONE: dict[str, Any] = {"folds": 1, "finetuning": {"networks": "one"}}


def test_a_fold_of_easy_images_is_no_merit() -> None:
    """Networks of some folds stand where their difference from the best run of all folds on those puts them."""
    leader, weak = (draw_predictions(2, strength=s, noise=i) for i, s in enumerate((1.5, 0.5)))
    easy = leader.fold == 0
    right = np.where(leader.y[:, None] == np.arange(2), 0.9, 0.1)
    leader, weak = (p._replace(proba=np.where(easy[:, None], right, p.proba)) for p in (leader, weak))
    shown = easy | (leader.fold < 0)
    alone = make_run(weak.take(shown)._replace(proba=0.1 + 0.8 * weak.proba[shown]), "alone", **ONE)
    runs = [alone, make_run(leader, "leader"), make_run(weak, "weak")]
    results = compared(runs, n_bootstrap=DRAWS)
    found = {row["head"]: row for row in results["runs"]}
    assert found["alone"]["validation"]["roc_auc"]["value"] == 1 > found["leader"]["validation"]["roc_auc"]["value"]
    assert [*found] == ["leader", "alone", "weak"], "as good as the leader there, and less sure of it"
    said = "Networks of some folds only (NETWORKS=one, 2, ...) are validated on these"
    assert said in printed(results)
    assert said in render_page(compare_runs(runs, n_bootstrap=DRAWS), runs)
    assert said not in render_page(compare_runs(runs[1:], n_bootstrap=DRAWS), runs[1:])
    assert choose(runs).record.head == "leader"
    assert choose([alone]) is alone
    confident = make_run(
        leader.take(shown)._replace(proba=np.where(leader.proba[shown] > 0.5, 0.95, 0.05)), "sure", **ONE
    )
    assert choose([*runs, confident]).record.head == "sure", "better on the images that both were held against"
    two = make_run(leader.take(leader.fold < 2), "two", folds=2, finetuning={"networks": "2"})
    assert choose([alone, two]) is two, "nor where no run is of all folds"


def test_scores_are_those_of_the_metrics(two: tuple[list[Run], dict[str, Any]]) -> None:
    runs, results = two
    by_name = {run.name: run for run in runs}
    for row in results["runs"]:
        for part, test in (("validation", False), ("test", True)):
            p = by_name[row["name"]].predictions.part(test=test)
            expected = score(
                p.y, p.proba, p.groups, folds=p.fold, threshold=row["threshold"], n_bootstrap=DRAWS, seed=3
            )
            assert row[part] == {name: as_dict(interval) for name, interval in expected.items()}
            assert list(row[part]) == list(METRICS)


def test_thresholds_come_from_out_of_fold_predictions(two: tuple[list[Run], dict[str, Any]]) -> None:
    runs, results = two
    row = results["runs"][0]
    run = next(run for run in runs if run.name == row["name"])
    held, tested = (run.predictions.part(test=test) for test in (False, True))
    points = operating_points(held.y, held.proba[:, 1])
    assert {name: point["threshold"] for name, point in row["thresholds"].items()} == points
    assert row["threshold"] == points["youden"]
    for name, at in points.items():
        called = tested.proba[:, 1] >= at
        assert row["thresholds"][name]["sensitivity"]["value"] == called[tested.y == 1].mean()
        assert row["thresholds"][name]["specificity"]["value"] == (~called)[tested.y == 0].mean()
        assert row["thresholds"][name]["sensitivity"]["low"] < called[tested.y == 1].mean()
    called = tested.proba[:, 1] >= points["youden"]
    assert row["confusion"][1] == [int((~called)[tested.y == 1].sum()), int(called[tested.y == 1].sum())]


def test_paired_delong_in_simultaneous_tests(two: tuple[list[Run], dict[str, Any]]) -> None:
    runs, results = two
    by_name = {run.name: run.predictions.part(test=True) for run in runs}
    chosen, *others = results["runs"]
    parts = [by_name[row["name"]] for row in results["runs"]]
    tests = compare_with(parts[0].y, [part.proba for part in parts], parts[0].groups, chosen_here=False, seed=3)
    assert chosen["against_chosen"] is None
    for row, test, part in zip(others, tests, parts[1:], strict=True):
        versus = row["against_chosen"]
        alone = delong_test(part.y, part.proba[:, 1], parts[0].proba[:, 1], part.groups)
        assert versus["difference"] == test.difference._asdict()
        assert (versus["p_value"], versus["p_adjusted"]) == (test.p_value, test.p_adjusted)
        assert test.p_value == pytest.approx(alone.p_value)
        assert versus["distinguishable"] == (test.p_adjusted < 0.05)
    assert [row["against_chosen"]["verdict"] for row in others] == [UNDECIDED, "lower"]
    assert "; 1 of 2 others shows no detectable difference." in results["summary"]


def test_a_test_split_of_one_class_is_not_called_a_tie() -> None:
    runs = draw_runs(2)
    one = [run.predictions._replace(y=np.where(run.predictions.fold < 0, 1, run.predictions.y)) for run in runs]
    results = compared([replace(run, predictions=p) for run, p in zip(runs, one, strict=True)], n_bootstrap=DRAWS)
    assert [row["against_chosen"]["verdict"] for row in results["runs"][1:]] == ["cannot be tested"] * 2
    assert "all 2 others are not to be tested against it on these images" in results["summary"]
    assert "untestable" in printed(results)


def test_more_classes_take_the_most_probable_one_and_the_bootstrap(seven: tuple[list[Run], dict[str, Any]]) -> None:
    runs, results = seven
    chosen, other = results["runs"]
    best, worse = (next(run for run in runs if run.name == row["name"]).predictions for row in (chosen, other))
    best, worse = best.part(test=True), worse.part(test=True)
    assert chosen["threshold"] is None
    assert chosen["thresholds"] == {}
    assert np.trace(chosen["confusion"]) == (best.proba.argmax(axis=1) == best.y).sum()
    assert chosen["test"]["accuracy"]["value"] == pytest.approx((best.proba.argmax(axis=1) == best.y).mean())
    test = bootstrap_test("roc_auc", best.y, worse.proba, best.proba, best.groups, n_bootstrap=DRAWS)
    assert other["against_chosen"]["p_value"] == pytest.approx(test.p_value)
    assert "most probable class" in results["protocol"][2]


def test_each_class_against_the_rest(seven: tuple[list[Run], dict[str, Any]]) -> None:
    runs, results = seven
    chosen = next(run for run in runs if run.name == results["chosen"])
    p = chosen.predictions.part(test=True)
    areas = [row["roc_auc"]["value"] for row in results["classes"]]
    assert np.mean(areas) == pytest.approx(results["runs"][0]["test"]["roc_auc"]["value"])
    third = results["classes"][2]
    decided = p.proba.argmax(axis=1) == 2
    assert third["name"] == "kind_2"
    assert third["images"] == (p.y == 2).sum()
    assert third["recall"] == pytest.approx(decided[p.y == 2].mean())
    assert third["precision"] == pytest.approx((p.y == 2)[decided].mean())


def test_order_of_runs_changes_nothing(two: tuple[list[Run], dict[str, Any]]) -> None:
    runs, results = two
    assert compared(runs[::-1], n_bootstrap=DRAWS, seed=3) == results


def test_without_test_images_only_validation() -> None:
    runs = draw_runs(2, train=120, test=0)
    results = compared(runs, n_bootstrap=DRAWS)
    first, *others = results["runs"]
    assert [row["test"] for row in results["runs"]] == [None] * 3
    assert [row["against_chosen"]["verdict"] for row in others] == [UNDECIDED, "lower"]
    assert first["validation"]["roc_auc"]["low"] < first["validation"]["roc_auc"]["value"]
    assert results["corrected"]["value"] < first["validation"]["roc_auc"]["value"], "choosing flatters"
    assert "when corrected for the choice" in results["summary"]
    assert "there are no test images" in compared(runs[:1], n_bootstrap=DRAWS)["summary"]
    assert "validation ROC AUC" in printed(results)


def test_thresholds_without_test_images_come_from_the_other_folds() -> None:
    """The sensitivity of a fold is at the threshold that the other folds of its repeat chose."""
    run = draw_runs(2, train=120, test=0)[2]
    held = run.predictions
    decided = np.zeros(len(held.y), bool)
    for fold in range(5):
        own = held.fold == fold
        at = operating_points(held.y[~own], held.proba[~own, 1])["youden"]
        decided[own] = held.proba[own, 1] >= at
    row = compared([run], n_bootstrap=DRAWS)["runs"][0]
    assert row["thresholds"]["youden"]["sensitivity"]["value"] == pytest.approx(decided[held.y == 1].mean())
    assert row["confusion"][1][1] == (decided & (held.y == 1)).sum()
    whole = operating_points(held.y, held.proba[:, 1])["youden"]
    assert row["threshold"] == whole
    assert (decided != (held.proba[:, 1] >= whole)).any()


def test_what_the_images_cannot_tell_is_null() -> None:
    runs = draw_runs(2)
    kept = [(run.predictions.fold >= 0) | (run.predictions.y == 1) for run in runs]
    runs = [
        Run(run.folder, run.record, Predictions(*(c[at] for c in run.predictions)))
        for run, at in zip(runs, kept, strict=True)
    ]
    results = json.loads(json.dumps(compared(runs, n_bootstrap=DRAWS), allow_nan=False))
    assert results["runs"][0]["test"]["roc_auc"] == {"value": None, "low": None, "high": None}
    assert results["runs"][1]["against_chosen"]["p_adjusted"] is None
    assert results["runs"][1]["against_chosen"]["distinguishable"] is False
    assert "–" in printed(results)


def test_other_images_are_refused() -> None:
    first = make_run(draw_predictions(2, strength=1.0), "logistic")
    again = make_run(draw_predictions(2, strength=1.0), "knn", manifest="ef" * 32, backbone="alexnet")
    moved = make_run(draw_predictions(2, strength=1.0, seed=1), "mlp")
    for other in (again, moved):
        with pytest.raises(CacheError) as error:
            compared([first, other])
        message = str(error.value)
        assert first.name in message
        assert other.name in message
        assert "make extract train-heads DATASET=drawn" in message
        assert "\n" not in message


def test_no_run_and_no_validation_are_refused() -> None:
    with pytest.raises(CacheError, match="make train-heads"):
        compared([])
    with pytest.raises(CacheError, match="no out-of-fold predictions"):
        compared(draw_runs(2, train=0, test=60))


def test_names_differ() -> None:
    p = draw_predictions(2, strength=1.0)
    runs = [make_run(p), make_run(p, entry="resnet18-ffff0000"), make_run(p, "knn"), make_run(p, seed=5), make_run(p)]
    names = run_names(runs)
    assert len(set(names)) == 5
    assert names[2] == "knn on resnet18 layer4 avg"
    assert names[1] == "logistic on resnet18 layer4 avg [resnet18-ffff0000]"
    assert names[3] == "logistic on resnet18 layer4 avg [resnet18-0123abcd] [seed 5]"


def test_results_carry_what_makes_them_again() -> None:
    p = draw_predictions(2, strength=1.0)
    maps = make_run(p, "map", view="layer4 maps")
    both = make_run(p, "knn", backbone="alexnet", asked_blocks="2", view="layer3+layer4 avg")
    results = compared([make_run(p, labels="binary")], n_bootstrap=DRAWS)
    assert results["commands"] == [
        "make extract DATASET=drawn BACKBONE=resnet18 PREPROCESS=squash PRECISION=float32 SEED=0",
        "make train-heads DATASET=drawn LABELS=binary BACKBONE=resnet18 HEADS=logistic BLOCKS=1 POOL=avg "
        "PREPROCESS=squash PRECISION=float32 SEED=0",
        "make compare DATASET=drawn LABELS=binary SEED=0",
    ]
    results = compared([make_run(p), maps, both], n_bootstrap=DRAWS)
    extracts = [line for line in results["commands"] if "extract" in line]
    trainings = [line for line in results["commands"] if "train-heads" in line]
    assert any("BACKBONE=resnet18" in line and "MAPS=layer4" in line for line in extracts)
    assert any("HEADS='logistic map' BLOCKS=1" in line for line in trainings)
    assert any("HEADS=knn BLOCKS=2" in line for line in trainings)
    assert [len(digest) for digest in results["runs"][0]["key_digests"]] == [64]


def test_table_fits_and_marks_ties(two: tuple[list[Run], dict[str, Any]]) -> None:
    _, results = two
    text = printed(results)
    assert max(map(len, text.splitlines())) <= 100
    chosen, tie, lower = (line for line in text.splitlines() if line.strip()[:1].isdigit() and " on resnet18" in line)
    assert all(row["name"] in line for row, line in zip(results["runs"], (chosen, tie, lower), strict=True))
    area = results["runs"][0]["test"]["roc_auc"]
    assert f"{area['value']:.3f} [{area['low']:.3f}, {area['high']:.3f}]" in chosen
    assert (chosen.split()[-1], tie.split()[-1], lower.split()[-1]) == ("chosen", "open", "lower")
    assert "open: no detectable difference" in text
    assert results["summary"] in " ".join(text.split())
    assert "out-of-fold" in text
    assert max(map(len, printed(results, 60).splitlines())) <= 60


def test_names_cannot_steer_the_terminal() -> None:
    runs = draw_runs(2, strengths=(1.5,), backbone="\x1b[2J[red]evil", note="\x1b]0;title\x07")
    text = printed(compared(runs, n_bootstrap=DRAWS))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[red]evil" in text


def test_equivalence_is_claimed_against_a_stated_margin_only(two: tuple[list[Run], dict[str, Any]]) -> None:
    runs, plain = two
    assert {row["against_chosen"]["claim"] for row in plain["runs"][1:]} == {""}
    bounds = [row["against_chosen"]["difference"] for row in plain["runs"][1:]]
    wide, narrow = max(max(-d["low"], d["high"]) for d in bounds) + 1e-9, -bounds[0]["low"] + 1e-9
    assert narrow > bounds[0]["high"]
    results = compared(runs, n_bootstrap=DRAWS, seed=3, margin=wide)
    assert [row["against_chosen"]["claim"] for row in results["runs"][1:]] == [f"equivalent within {wide:g}"] * 2
    assert [row["against_chosen"]["difference"] for row in results["runs"][1:]] == bounds
    assert "equivalent" in printed(results)
    assert f"MARGIN={wide:g}" in results["commands"][-1]
    assert "stated (MARGIN=), not found" in results["protocol"][4]
    results = compared(runs, n_bootstrap=DRAWS, seed=3, margin=narrow)
    assert [row["against_chosen"]["claim"] for row in results["runs"][1:]] == [f"equivalent within {narrow:g}", ""]
    results = compared(runs, n_bootstrap=DRAWS, seed=3, margin=narrow - 1e-6)
    assert results["runs"][1]["against_chosen"]["claim"] == ""


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (-0.019, 0.019, "equivalent within 0.02"),
        (-0.019, 0.021, "not worse by more than 0.02"),
        (-0.02, 0.01, ""),
        (-0.03, 0.03, ""),
        (math.nan, math.nan, ""),
    ],
)
def test_claims(low: float, high: float, said: str) -> None:
    """The whole interval, ends included, has to be on the right side; what has no interval claims nothing."""
    assert claim(Interval(0.0, low, high), 0.02) == said


def test_two_runs_alone(two: tuple[list[Run], dict[str, Any]]) -> None:
    """DeLong of the areas, the paired bootstrap of all else, each run at its own threshold."""
    runs, results = two
    found = compare_two(runs[0], runs[2], seed=3, n_bootstrap=DRAWS, margin=0.05)
    parts = [run.predictions.part(test=True) for run in (runs[0], runs[2])]
    scores = [part.proba[:, 1] for part in parts]
    assert found.differences["roc_auc"].test == delong_test(parts[0].y, *scores, parts[0].groups)
    by_name = {row["name"]: row for row in results["runs"]}
    for name in ("roc_auc", "sensitivity", "specificity", "brier"):
        row = found.differences[name]
        sides = [by_name[run.name]["test"][name]["value"] for run in (runs[0], runs[2])]
        assert [row.a, row.b] == pytest.approx(sides)
        assert row.test.difference.value == pytest.approx(sides[0] - sides[1])
        assert row.test.difference.low < row.test.difference.value < row.test.difference.high
    assert (found.tested, found.images, found.groups) == (True, 80, 40)
    assert found.claim == "not worse by more than 0.05"
    same = compare_two(runs[0], runs[0], seed=3, n_bootstrap=DRAWS).differences["roc_auc"]
    assert (same.test.difference.value, same.test.p_value) == (0.0, 1.0)


def test_two_runs_out_of_fold_are_each_at_the_threshold_of_its_other_folds() -> None:
    runs = draw_runs(2, train=120, test=0)
    results = compared(runs, n_bootstrap=DRAWS)
    by_name = {row["name"]: row for row in results["runs"]}
    found = compare_two(runs[0], runs[2], n_bootstrap=DRAWS)
    for name, row in found.differences.items():
        for run, value in ((runs[0], row.a), (runs[2], row.b)):
            assert value == pytest.approx(by_name[run.name]["validation"][name]["value"]), name
    assert not found.tested


def test_two_runs_by_name_and_by_folder(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names as the table prints them, or folders, which need no data set; the last line is the verdict."""
    folder = str(workshop / "spots")
    runs = load_runs(stored("spots"))
    (name, other), (place, _) = run_names(runs)[:2], [str(run.folder) for run in runs[:2]]
    (line,) = verb("compare", folder, a=name, b=other)
    printed = capsys.readouterr().out
    assert f"A: {name}" in printed
    assert "PROTOCOL=split: the same 8 test images" in printed
    assert line.startswith("ROC AUC: ")
    assert verb("compare", folder, a=place, b=other) == [line]
    assert verb("compare", "no-such-set", a=place, b=place)[0].startswith("ROC AUC: no detectable difference")
    with pytest.raises(UnknownName, match=r"unknown run .*known: "):
        verb("compare", folder, a=name, b="none")
    with pytest.raises(FirnError, match="A= and B= together"):
        verb("compare", folder, a=name)


def test_what_two_runs_of_two_sets_suggest_does_not_name_them_again(workshop: Path, tmp_path: Path) -> None:
    (run, *_) = load_runs(stored("spots"))
    other = Path(shutil.copytree(run.folder, tmp_path / "other"))
    record = json.loads((other / "run.json").read_text()) | {"dataset": "other", "asked": "other"}
    (other / "run.json").write_text(json.dumps(record))
    with pytest.raises(CacheError, match=r"named by: make compare DATASET=\S+$"):
        verb("compare", a=str(run.folder), b=str(other))


def test_two_runs_of_two_tasks_are_not_compared() -> None:
    p = draw_predictions(2, strength=1.0)
    with pytest.raises(CacheError, match=r"two runs of one data set, which are named by: make compare DATASET=colon$"):
        compare_two(make_run(p, dataset="colon", asked="colon"), make_run(p, "knn"))
    with pytest.raises(CacheError, match=r"LABELS=classes and .* under binary.*run: make train-heads"):
        compare_two(make_run(p), make_run(p, "knn", labels="binary"))
    with pytest.raises(CacheError, match=r"PROTOCOL=split and .* under cv.*run: make train-heads"):
        compare_two(make_run(p), make_run(p, "knn", protocol="cv"))
    with pytest.raises(CacheError, match="different images"):
        compare_two(make_run(p), make_run(draw_predictions(2, strength=1.0, seed=1), "knn"))


def test_no_interval_is_outside_its_metric(two: tuple[list[Run], dict[str, Any]]) -> None:
    _, results = two
    for row in results["runs"]:
        for name, interval in row["test"].items():
            if name == "ece":
                assert (interval["low"], interval["high"]) == (None, None)
                continue
            assert interval["low"] <= interval["value"] <= interval["high"], name
            assert name in ("log_loss", "mcc") or 0 <= interval["low"] <= interval["high"] <= 1
            assert all(math.isfinite(number) for number in interval.values())


def test_a_stack_is_told_to_flatter_itself() -> None:
    """Where a stack is among the runs, the page says how its validation score came about."""
    plain = draw_runs(2)
    assert "A stack learned" not in compared(plain, n_bootstrap=DRAWS)["protocol"][0]
    stack = make_run(
        plain[0].predictions, "stack", bases=["a", "b"], view="2 runs", blocks=[], asked_blocks="", pool=""
    )
    results = compared([*plain, stack], n_bootstrap=DRAWS)
    assert "A stack learned" in results["protocol"][0]
    assert "stack of 2 runs" in [row["name"] for row in results["runs"]]
    assert any("HEADS=stack" in command for command in results["commands"])
