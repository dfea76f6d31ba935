"""What is said of the chosen run alone, against loops by hand; the columns that make subgroups."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from runs_for_tests import draw_predictions, draw_runs, make_run
from sklearn import metrics as reference
from verbs_for_tests import compare

from features.datasets import load_dataset
from features.datasets.columns import Columns, further_columns
from features.errors import BadDataset, FirnError, UnknownName
from models.metrics import calibration_line, fit_platt, operating_points, score
from models.metrics.sample_size import RATIO_ERROR, WIDTH, validation_size
from models.runs.columns import bins_in, numbers_in, subgroup_columns
from models.runs.compare import compare_runs
from models.runs.examination import ExaminationOptions, at_stated, examine, points_by_group, shares_in
from models.runs.record import Run
from models.runs.results import ComparisonResult
from models.runs.scores import as_dict
from models.validation.predictions import Predictions
from pipeline.render.html_page import write_report

DRAWS = 80


def columns_of(run: Run, seed: int = 0) -> Columns:
    """Return a sex, an age and a file name for every image."""
    ids = sorted(set(run.predictions.ids.tolist()))
    random = np.random.default_rng(seed)
    ages = np.array([f"{age:03d}Y" for age in random.integers(1, 90, len(ids))])
    ages[::9] = ""
    return Columns(ids, {"sex": random.choice(["F", "M"], len(ids)), "age": ages, "file": np.array(ids)})


def aggregated(p: Predictions, how: str) -> dict[tuple[str, int], tuple[int, float]]:
    """Return label and probability of each patient in each fold, image by image."""
    found: dict[tuple[str, int], list[tuple[int, float]]] = {}
    for group, y, proba, fold in zip(p.groups, p.y, p.proba[:, 1], p.fold, strict=True):
        found.setdefault((str(group), int(fold)), []).append((int(y), float(proba)))
    join = {"mean": np.mean, "maximum": np.max, "noisy-or": lambda v: 1 - np.prod([1 - x for x in v])}[how]
    return {key: (max(y for y, _ in rows), float(join([x for _, x in rows]))) for key, rows in found.items()}


@pytest.mark.parametrize("how", ["mean", "maximum", "noisy-or"])
def test_scores_by_patient_are_those_of_a_loop(how: str) -> None:
    run = draw_runs(2)[0]
    found = examine(run, ExaminationOptions(aggregate=how), n_bootstrap=DRAWS).by_group
    assert found is not None
    rows = aggregated(run.predictions, how)
    held = np.array([row for (_, fold), row in rows.items() if fold >= 0])
    tested = np.array([row for (_, fold), row in rows.items() if fold < 0])
    assert found["scores"]["roc_auc"]["value"] == pytest.approx(reference.roc_auc_score(*tested.T))
    at = operating_points(held[:, 0].astype(int), held[:, 1])["youden"]
    assert found["thresholds"]["youden"]["threshold"] == pytest.approx(at)
    assert found["scores"]["sensitivity"]["value"] == pytest.approx((tested[tested[:, 0] == 1, 1] >= at).mean())
    assert found["groups"] == [(tested[:, 0] == k).sum() for k in (0, 1)] and found["mixed"] == 0
    assert points_by_group(run)[how]["youden"] == pytest.approx(at)


def test_out_of_fold_patients_stay_in_their_folds() -> None:
    run = draw_runs(2, train=120, test=0)[0]
    found = examine(run, n_bootstrap=DRAWS).by_group
    assert found is not None
    rows = aggregated(run.predictions, "mean")
    y, proba, fold = (np.array(c) for c in zip(*((y, p, f) for (_, f), (y, p) in rows.items()), strict=True))
    pairs = [np.prod(np.bincount(y[fold == k])) for k in range(5)]
    areas = [reference.roc_auc_score(y[fold == k], proba[fold == k]) for k in range(5)]
    assert found["scores"]["roc_auc"]["value"] == pytest.approx(np.average(areas, weights=pairs))


def test_patients_of_mixed_classes_are_counted_and_the_rule_is_said() -> None:
    run = draw_runs(2)[0]
    first = run.predictions.groups == run.predictions.part(test=True).groups[0]
    mixed = run.predictions._replace(y=np.where(first, [0, 1] * (len(first) // 2), run.predictions.y))
    found = examine(replace(run, predictions=mixed), n_bootstrap=DRAWS)
    assert found.by_group is not None and found.by_group["mixed"] == 1
    assert any("1 patient with images of several classes is counted as “opacity”" in r for r in found.remarks)
    three = make_run(draw_predictions(3, strength=1.5))
    y = three.predictions.y.copy()
    y[first] = [0, 1]
    left_out = examine(replace(three, predictions=three.predictions._replace(y=y)), n_bootstrap=DRAWS)
    assert left_out.by_group is not None and left_out.by_group["mixed"] == 1
    assert sum(left_out.by_group["groups"]) == 39
    with pytest.raises(FirnError, match="AGGREGATE=maximum is for two classes"):
        examine(three, ExaminationOptions(aggregate="maximum"), n_bootstrap=DRAWS)


def test_one_image_a_patient_has_no_second_table() -> None:
    run = draw_runs(2)[0]
    alone = run.predictions._replace(groups=run.predictions.ids)
    assert examine(replace(run, predictions=alone), n_bootstrap=DRAWS).by_group is None


def test_subgroups_are_those_of_the_metrics_at_the_threshold_of_the_table() -> None:
    run = draw_runs(2)[0]
    columns = columns_of(run)
    found = examine(run, ExaminationOptions(bins="age:40"), columns, n_bootstrap=DRAWS, seed=2)
    p, at = run.predictions.part(test=True), dict(zip(columns.ids, columns.values["sex"], strict=True))
    held = run.predictions.part(test=False)
    threshold = operating_points(held.y, held.proba[:, 1])
    sex = np.array([at[image] for image in p.ids])
    by_sex, by_age = found.subgroups
    for row in by_sex["rows"]:
        own = sex == row["name"]
        expected = score(
            p.y[own], p.proba[own], p.groups[own], threshold=threshold["youden"], n_bootstrap=DRAWS, seed=2
        )
        assert {name: row[name] for name in ("roc_auc", "sensitivity", "specificity")} == {
            name: as_dict(expected[name]) for name in ("roc_auc", "sensitivity", "specificity")
        }
        slope = calibration_line(p.y[own], p.proba[own, 1], p.groups[own]).slope
        assert row["calibration_slope"] == as_dict(slope)
        assert row["images"] == [(p.y[own] == k).sum() for k in (0, 1)] and row["few"]
    assert [row["name"] for row in by_age["rows"]] == ["under 40", "40 or more"] and by_age["left_out"] > 0
    assert sum(found.everyone["images"]) == 80
    assert found.passed_over == ["file: a value of its own for each image or group, as names and numbers of rows have"]
    assert all(test["p_adjusted"] >= test["p_value"] for table in found.subgroups for test in table["tests"].values())


def values(**columns: list[str]) -> dict[str, NDArray[np.str_]]:
    return {name: np.array(column) for name, column in columns.items()}


def test_which_columns_make_subgroups() -> None:
    n, y = 60, np.arange(60) % 2
    groups = np.array([f"p{i // 2}" for i in range(n)])
    given = values(
        device=["b", "a", ""] * 20,
        grade=[str(i // 2 % 3 * 5) for i in range(n)],
        age=[str(i) for i in range(n)],
        dose=[f"{i / 7:.3f}" for i in range(n)],
        row=[str(i) for i in range(n)],
        patient_number=[str(i // 2) for i in range(n)],
        note=[f"word {i // 2 % 20}" for i in range(n)],
        centre=["one"] * n,
        empty=[""] * n,
        finding=[str(k) for k in y],
    )
    found = subgroup_columns(given, y, groups, {})
    assert {name: levels.order for name, levels in found.levels.items()} == {
        "device": ("a", "b"),
        "grade": ("0", "5", "10"),
        "age": ("under 18", "18 to under 40", "40 to under 65"),
        "dose": ("under 2.857", "2.857 to under 5.714", "5.714 or more"),
    }
    assert np.bincount(np.unique(found.levels["dose"].words, return_inverse=True)[1]).tolist() == [20, 20, 20]
    reasons = dict(remark.split(": ", 1) for remark in found.passed_over)
    assert reasons["note"] == "20 different values, more than 12"
    assert reasons["centre"] == "one value only" and reasons["empty"] == "no value"
    assert "of its own" in reasons["row"] and "of its own" in reasons["patient_number"]
    assert reasons["finding"] == "each of its values has images of one class only"
    named = subgroup_columns(given, y, groups, {"row": (30.0,)})
    assert named.levels["row"].order == ("under 30", "30 or more")
    with pytest.raises(FirnError, match="BINS=note: needs a column of numbers, and note holds 'word 0'"):
        subgroup_columns(given, y, groups, {"note": (3.0,)})
    young = subgroup_columns(values(age=[f"{i / 4:g}" for i in range(n)]), y, groups, {}).levels["age"]
    assert young.order == ("under 5", "5 to under 10", "10 or more"), "bins of adults do not part them"
    with pytest.raises(UnknownName, match="did you mean dose"):
        subgroup_columns(given, y, groups, {"doses": (1.0,)})


def test_ages_of_dicom_are_in_years_and_words_are_no_numbers() -> None:
    found = numbers_in(np.array(["045Y", "006M", "", "7.5"]))
    assert found is not None
    np.testing.assert_allclose(found, [45, 0.5, np.nan, 7.5])
    european = numbers_in(np.array(["20,5", "-3,25", "7", ""]))
    assert european is not None
    np.testing.assert_allclose(european, [20.5, -3.25, 7, np.nan])
    assert numbers_in(np.array(["1,234"])) is None, "a thousand for some"
    assert numbers_in(np.array(["1", "two"])) is None and numbers_in(np.array(["inf"])) is None


def test_a_table_beside_images_in_folders_gives_columns(spots: Path, tmp_path: Path) -> None:
    dataset, table = load_dataset(str(spots)), tmp_path / "more.csv"
    lines = [f"{image},{'A' if i % 2 else 'na'}" for i, image in enumerate(dataset.ids[:-3])]
    table.write_text("\n".join(["file,Site", *lines, "elsewhere.png,B"]))
    found = further_columns(dataset, str(table))
    assert found.values["site"].tolist() == ["A" if i % 2 else "" for i in range(len(dataset) - 3)] + [""] * 3
    assert found.remarks == (
        "more.csv: lines that are no image of the data set: 1",
        "more.csv: images without a line: 3",
    )
    table.write_text("path,site\nnormal/test000.png,A\n")
    assert further_columns(dataset, str(table)).values["site"][dataset.ids.index("test/normal/test000.png")] == "A"
    for text, words in (
        ("path,site\ntest000.png,A\n", "line 2: 'test000.png' means several images"),
        ("path,site\nspot/test000.png,A\nspot/test000.png,B\n", "line 3: .* has other values on an earlier line"),
        ("path,site\nnothing.png,A\n", "names no image of"),
        ("where,site\nnothing.png,A\n", "no column 'path'"),
    ):
        table.write_text(text)
        with pytest.raises(BadDataset, match=words):
            further_columns(dataset, str(table))


def test_a_stated_prevalence_moves_probabilities_by_bayes_rule_and_says_so() -> None:
    run = draw_runs(2)[0]
    p, held = run.predictions, run.predictions.part(test=False)
    few = p._replace(y=np.where((p.fold >= 0) & (np.arange(len(p.y)) % 3 == 0), 0, p.y))
    run = replace(run, predictions=few)
    held = few.part(test=False)
    found = examine(run, ExaminationOptions(prevalence="0.1"), n_bootstrap=DRAWS)
    trained = held.y.mean()
    assert found.prevalence["trained"] == pytest.approx([1 - trained, trained])
    assert found.prevalence["stated"] == pytest.approx([0.9, 0.1])
    assert any("differ in their shares of classes" in remark for remark in found.remarks)
    platt = fit_platt(held.y, held.proba)(few.part(test=True).proba)
    odds = platt[:, 1] / platt[:, 0] * (1 - trained) / trained * 0.1 / 0.9
    moved, prevalence = at_stated(run, found)
    assert prevalence == 0.1 and moved.proba[:, 1] == pytest.approx(odds / (1 + odds))
    y, called = few.part(test=True).y, moved.proba[:, 1] >= 0.2
    benefit = next(row for row in found.prevalence["net_benefit"] if row["threshold"] == 0.2)
    expected = 0.1 * called[y == 1].mean() - 0.9 * called[y == 0].mean() * 0.25
    assert benefit["value"] == pytest.approx(expected) and benefit["low"] < expected < benefit["high"]
    plain = examine(run, n_bootstrap=DRAWS).prevalence
    assert plain["stated"] is None and plain["line"] == {}


@pytest.mark.parametrize("text", ["0", "1.2", "many", "0.5,0.6", "0.2,0.3,nan", ","])
def test_no_prevalence_is_refused_before_any_work(text: str) -> None:
    with pytest.raises(FirnError, match="expected PREVALENCE= to be"):
        ExaminationOptions(prevalence=text)


def test_other_options_are_refused_before_any_work() -> None:
    with pytest.raises(UnknownName, match="did you mean maximum"):
        ExaminationOptions(aggregate="maxmum")
    for bins in ("age", "age:", "age:40,20", "age:x", ":3", "age:nan"):
        with pytest.raises(FirnError, match="expected BINS= to be"):
            ExaminationOptions(bins=bins)
    assert bins_in("age:18,65 BMI:25") == {"age": (18.0, 65.0), "bmi": (25.0,)}
    assert shares_in("0.2, 0.3 0.5").tolist() == [0.2, 0.3, 0.5]


def test_prevalence_of_more_classes_is_for_predict() -> None:
    run = make_run(draw_predictions(3, strength=1.5))
    with pytest.raises(FirnError, match="make predict takes a share for each"):
        examine(run, ExaminationOptions(prevalence="0.2,0.3,0.5"), n_bootstrap=DRAWS)
    with pytest.raises(FirnError, match="is of 2 classes, and there are 3"):
        examine(run, ExaminationOptions(prevalence="0.2"), n_bootstrap=DRAWS)


def test_sizes_of_a_validation_reach_their_aims() -> None:
    """Simulated: as many images give an interval of that width, and a ratio observed to expected of that error."""
    random, share, distance = np.random.default_rng(0), 0.3, 1.2
    from scipy.stats import norm

    size = validation_size(share, float(norm.cdf(distance / np.sqrt(2))))
    areas = []
    for _ in range(400):
        y = random.permutation(size.roc_auc) < share * size.roc_auc
        areas.append(reference.roc_auc_score(y, random.normal(size=size.roc_auc) + distance * y))
    assert 2 * 1.96 * np.std(areas) == pytest.approx(WIDTH, rel=0.15)
    observed = random.binomial(size.calibration, share, 4000) / size.calibration
    assert np.std(np.log(observed / share)) == pytest.approx(RATIO_ERROR, rel=0.06)
    assert validation_size(0.05, 0.9).calibration > size.calibration


def test_many_runs_on_the_same_test_images_are_said() -> None:
    run = draw_runs(2)[0]
    assert not any("have judged" in r for r in examine(run, judged=20, n_bootstrap=DRAWS).remarks)
    assert any("have judged 21 runs" in r for r in examine(run, judged=21, n_bootstrap=DRAWS).remarks)
    held = draw_runs(2, train=120, test=0)[0]
    assert not any("have judged" in r for r in examine(held, judged=21, n_bootstrap=DRAWS).remarks)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[ComparisonResult, Path]:
    runs = draw_runs(2)
    result = compare_runs(runs, ExaminationOptions(prevalence="0.2"), columns_of(runs[0]), n_bootstrap=DRAWS)
    page = write_report(result, runs, tmp_path_factory.mktemp("seen"))
    return result, page


def test_the_page_tells_subgroups_patients_and_the_prevalence(seen: tuple[ComparisonResult, Path]) -> None:
    result, page = seen
    text = " ".join(page.read_text(encoding="utf-8").split())
    for words in (
        "<b>sex</b>",
        "18 to under 40",
        "no detectable difference (p =",
        'id="by-group"',
        "At the stated prevalence of 0.2, not at that of these images",
        "Partial ROC AUC",
        "DeLong (Obuchowski for several images a patient)",
        "Exploratory: this threshold was not fixed beforehand",
        "Passed over: file:",
        "predicted probability at a prevalence of 0.2",
        *result.examination.remarks,
    ):
        assert words in text, words
    assert "AGGREGATE" not in result.commands[-1] and result.commands[-1].endswith("PREVALENCE=0.2")


def test_tables_beside_the_page_hold_the_same_numbers(seen: tuple[ComparisonResult, Path]) -> None:
    result, page = seen
    again = ComparisonResult.from_json(result.to_json())
    assert again.examination == result.examination
    with (page.parent / "subgroups.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    every: list[dict[str, Any]] = [dict(result.examination.everyone)]
    every += [row for table in result.examination.subgroups for row in table["rows"]]
    assert [row["value"] for row in rows] == [row["name"] for row in every]
    for line, row in zip(rows, every, strict=True):
        assert float(line["roc_auc_low"]) == row["roc_auc"]["low"] and int(line["images_opacity"]) == row["images"][1]
    with (page.parent / "predictions-by-group.csv").open(newline="") as file:
        patients = list(csv.DictReader(file))
    assert len(patients) == 120 and {row["id"] for row in patients} == {row["group"] for row in patients}


def test_compare_takes_a_table_of_columns(workshop: Path, tmp_path: Path) -> None:
    """From the command line's options to the page, of images in class folders."""
    folder = workshop / "spots"
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    (tmp_path / "more.csv").write_text("\n".join(["path,site", *(f"{n},{'AB'[i % 2]}" for i, n in enumerate(names))]))
    page = Path(compare(str(folder), columns=str(tmp_path / "more.csv"), prevalence="estimated"))
    assert "<b>site</b>" in page.read_text(encoding="utf-8")
    assert (page.parent / "subgroups.csv").is_file() and not (page.parent / "predictions-by-group.csv").exists()
    compare(str(folder))
    assert not (page.parent / "subgroups.csv").exists(), "of an earlier comparison"
