"""validate: a frozen bundle on a set from elsewhere, its numbers held against scikit-learn and statsmodels."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import CHROMIUM, Browser, complaints, requested
from conftest import draw, stored
from runs_for_tests import draw_predictions
from sklearn.metrics import brier_score_loss, log_loss, matthews_corrcoef, recall_score, roc_auc_score
from verbs_for_tests import bundle, selected, verb

from features.datasets.load import load_to_judge
from features.errors import BadBundle, BadDataset, BadImage, FirnError, UnknownName
from models.metrics import fit_platt
from models.predictor.archive import BUNDLE
from models.predictor.loading import load
from models.predictor.manifest import Contents
from models.predictor.seen import SEEN
from models.runs.record import load_runs
from models.validation.class_names import matched_labels
from models.validation.external import LabelledSet, subgroup_columns, validated
from models.validation.recalibration import crossfitted, fit_intercept
from pipeline.render.validation_page import validation_page

Result = dict[str, Any]


@pytest.fixture(scope="module")
def model(trained_spots: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle of the plain linear run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIRN_ARTIFACTS", str(trained_spots / "artifacts"))
        (run,) = [r for r in load_runs(stored("spots")) if r.record.head == "logistic" and r.record.pool == "avg"]
        target = tmp_path_factory.mktemp("bundle") / "spots.zip"
        bundle(selected(run.folder), out=target)
    return target


def table(folder: Path, *, per_class: int = 14, seed: int = 9, lines: str = "") -> Path:
    """Draw images from elsewhere, two of each patient, with a table of label, patient, sex and age."""
    draw(folder, per_class=per_class, test=1, seed=seed)
    rows = ["path,label,patient,sex,age,finding_b"]
    for k, name in enumerate(("normal", "spot")):
        for i in range(per_class):
            about = f"{name}{i // 2},{'F' if i % 4 < 2 else 'M'},{20 + 3 * i},{i % 2}"
            rows.append(f"train/{name}/train{i:03d}.png,{('Healthy', 'SPOT')[k]},{about}")
    path = folder / "labels.csv"
    path.write_text("\n".join([*rows, *filter(None, [lines])]) + "\n")
    return path


def validate(model: Path, dataset: Path, out: Path, **options: Any) -> Result:
    """Run the verb; return what validation.json says."""
    lines = verb("validate", model=str(model), dataset=str(dataset), out=str(out), **options)
    assert lines[-1] == str(out / "validation.html")
    return dict(json.loads((out / "validation.json").read_text(encoding="utf-8")))


def rows_of(folder: Path, name: str = "predictions.csv") -> list[dict[str, str]]:
    with (folder / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def judged(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """Return the result on the drawn table, and the folder that it lies in."""
    root = tmp_path_factory.mktemp("elsewhere")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIRN_ARTIFACTS", str(root / "artifacts"))
        return validate(model, table(root / "set"), root / "out", map="Healthy=normal"), root / "out"


def test_scores_are_those_of_scikit_learn_at_the_frozen_thresholds(judged: tuple[Result, Path], model: Path) -> None:
    result, folder = judged
    rows = rows_of(folder)
    y = np.array([row["label"] == "spot" for row in rows])
    p = np.array([float(row["p_spot"]) for row in rows])
    frozen = {name: point.threshold for name, point in load(model).contents.points.items()}
    assert {name: row["threshold"] for name, row in result["points"].items()} == frozen
    called = p >= frozen["youden"]
    expected = {
        "roc_auc": roc_auc_score(y, p),
        "sensitivity": recall_score(y, called),
        "specificity": recall_score(~y, ~called),
        "accuracy": np.mean(y == called),
        "mcc": matthews_corrcoef(y, called),
        "brier": brier_score_loss(y, p),
        "log_loss": log_loss(y, p),
    }
    assert {name: result["here"][name]["value"] for name in expected} == pytest.approx(expected)
    for name, at in frozen.items():
        assert result["points"][name]["here"]["sensitivity"]["value"] == pytest.approx(recall_score(y, p >= at))
        assert result["points"][name]["here"]["specificity"]["value"] == pytest.approx(recall_score(~y, p < at))
    assert [[int((~called & ~y).sum()), int((called & ~y).sum())]] == result["confusion"][:1]
    assert result["recorded_on"] == "test"
    card = load(model).contents.card["results"]["test"]
    assert result["recorded"]["roc_auc"] == card["roc_auc"]
    assert result["images"] == {
        "given": 28,
        "judged": 28,
        "groups": 14,
        "without_class": 0,
        "unreadable": 0,
        "trained_on": 0,
        "tested_on": 0,
    }


def test_calibration_is_that_of_statsmodels(judged: tuple[Result, Path]) -> None:
    import statsmodels.api as sm

    result, folder = judged
    rows = rows_of(folder)
    y = np.array([row["label"] == "spot" for row in rows]).astype(np.int64)
    ours = [result["calibration"]["as it ranks"], result["calibration"]["by the bundle (platt)"]]
    for name, row in zip(("p_spot", "calibrated_spot"), ours, strict=True):
        p = np.array([float(line[name]) for line in rows])
        odds = np.log(p / (1 - p))
        large = sm.GLM(y, np.ones(len(y)), family=sm.families.Binomial(), offset=odds).fit()
        assert row["intercept"]["value"] == pytest.approx(float(large.params[0]), abs=1e-5)
        assert row["brier"]["value"] == pytest.approx(brier_score_loss(y, p))


def test_updates_are_scored_on_groups_that_they_were_not_fitted_on(judged: tuple[Result, Path]) -> None:
    result, folder = judged
    rows = rows_of(folder)
    y = np.array([row["label"] == "spot" for row in rows]).astype(np.int64)
    proba = np.array([[float(row[f"calibrated_{name}"]) for name in ("normal", "spot")] for row in rows])
    fit = fit_platt(y, proba)
    assert result["recalibration"]["platt"]["fit"] == {"slope": fit.slope, "intercepts": list(fit.intercepts)}
    inside = log_loss(y, fit(proba)[:, 1])
    assert result["recalibration"]["platt"]["scores"]["log_loss"]["value"] > inside
    assert result["recalibration"]["prevalence"]["labels"] is False
    shares = result["prevalence"]
    assert shares["here"] == {"normal": 0.5, "spot": 0.5}
    assert shares["training"] == {"normal": 0.5, "spot": 0.5}
    assert sum(shares["estimated"].values()) == pytest.approx(1)


@pytest.mark.parametrize(("strength", "empty"), [(0.02, True), (3.0, False)])
def test_probabilities_that_tell_nothing_tell_no_class_shares(strength: float, empty: bool) -> None:
    """An estimate that leaves nothing of a class that is there is no update, and a remark says so."""
    given = draw_predictions(3, strength=strength, train=0, test=90)
    proba = given.proba**0.1 * [2, 1, 1] if empty else given.proba
    proba = proba / proba.sum(axis=1, keepdims=True)
    card = {"data": {"counts": {"train": {"a": 30, "b": 30, "c": 30}}}}
    contents = Contents("logistic", ("a", "b", "c"), (), (), "", None, {}, None, {}, card)
    nothing = np.full(90, np.nan)
    found = LabelledSet(given.y, proba, proba, given.groups, nothing, nothing > 0, {}, "patient")
    about = {"name": "x", "note": "", "command": ""}
    result = validated(
        found, contents, dataset=about, images={"given": 90, "judged": 90, "tested_on": 0}, n_bootstrap=60
    )
    assert ("prevalence" in result.recalibration) is not empty
    assert (result.prevalence["estimated"] is None) is empty
    assert any("no update by class shares" in line for line in result.remarks) is empty
    assert ("estimated without labels</th>" in validation_page(result, given, given)) is not empty


def test_the_intercept_alone_makes_the_mean_right() -> None:
    """Fitted on many images, the mean probability of each class is its share, and odds move by one factor."""
    rng = np.random.default_rng(0)
    for k in (2, 4):
        y = rng.integers(0, k, 20_000)
        logits = 1.5 * np.eye(k)[y] + rng.normal(size=(len(y), k)) + np.arange(k)
        proba = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        moved = fit_intercept(y, proba)(proba)
        np.testing.assert_allclose(moved.mean(axis=0), np.bincount(y) / len(y), atol=1e-3)
        change = np.log(moved) - np.log(proba)
        assert np.ptp(change - change[:, :1], axis=0).max() < 1e-6
        folds = np.arange(len(y)) % 5
        other = crossfitted(fit_intercept, y, proba, folds)
        own = folds == 3
        np.testing.assert_array_equal(other[own], fit_intercept(y[~own], proba[~own])(proba[own]))


def test_distances_patients_and_subgroups(judged: tuple[Result, Path], model: Path) -> None:
    result, folder = judged
    rows = rows_of(folder)
    distance = np.array([float(row["distance"]) for row in rows])
    novelty, predictor = result["novelty"], load(model)
    assert novelty["flagged"] == sum(row["outlier"] == "yes" for row in rows)
    assert novelty["share"]["value"] == pytest.approx(novelty["flagged"] / len(rows))
    assert novelty["quantiles"][50] == pytest.approx(np.median(distance), abs=1e-4)
    assert len(novelty["training_quantiles"]) == 101
    limit = float((predictor.contents.outliers or {})["threshold"])
    assert novelty["training_quantiles"][98] <= limit <= novelty["training_quantiles"][100]
    patients = sorted({row["group"] for row in rows})
    mean = [np.mean([float(row["p_spot"]) for row in rows if row["group"] == name]) for name in patients]
    of = [name.startswith("spot") for name in patients]
    assert result["by_group"]["roc_auc"]["value"] == pytest.approx(roc_auc_score(of, mean))
    tables = {row["column"]: row for row in result["subgroups"]}
    assert set(tables) - {"unlike training"} == {"sex", "age"}
    women = [row for i, row in enumerate(rows) if i % 14 % 4 < 2]
    area = roc_auc_score([row["label"] == "spot" for row in women], [float(row["p_spot"]) for row in women])
    assert tables["sex"]["rows"][0]["name"] == "F"
    assert tables["sex"]["rows"][0]["scores"]["roc_auc"]["value"] == pytest.approx(area)
    assert [row["name"] for row in tables["age"]["rows"]] == ["18 to under 40", "40 to under 65"]
    assert "class normal has 7 patients, fewer than 20: its scores tell little" in result["remarks"]


def test_columns_that_are_named_make_subgroups() -> None:
    columns = {
        "finding": np.array(["0", "1"] * 15),
        "dose": np.array([str(k % 15) for k in range(30)]),
        "id": np.array([f"image{k}" for k in range(30)]),
    }
    y, groups = np.arange(30) // 15, np.array([f"p{k // 2}" for k in range(30)])
    assert list(subgroup_columns(columns, y, groups)) == ["dose"]
    found = subgroup_columns(columns, y, groups, ["finding", "dose"])
    assert list(np.unique(found["finding"])) == ["0", "1"]
    assert len(np.unique(found["dose"])) == 3
    with pytest.raises(UnknownName, match="column"):
        subgroup_columns(columns, y, groups, ["sex"])
    with pytest.raises(BadDataset, match=r"id: a value of its own .* SUBGROUPS="):
        subgroup_columns(columns, y, groups, ["id"])


def test_training_images_are_left_out_and_test_images_named(model: Path, trained_spots: Path, tmp_path: Path) -> None:
    """The set that the bundle was made of: its training images are no test, whatever their names."""
    renamed = Path(shutil.copytree(trained_spots / "spots", tmp_path / "again"))
    for image in sorted((renamed / "train").rglob("*.png")):
        image.rename(image.with_name(f"other-{image.name}"))
    result = validate(model, renamed, tmp_path / "out")
    assert (result["images"]["judged"], result["images"]["trained_on"], result["images"]["tested_on"]) == (8, 20, 8)
    assert any("trained on the same bytes" in line for line in result["remarks"])
    assert any("no new test" in line for line in result["remarks"])
    test = json.loads(json.dumps(load(model).contents.card["results"]["test"]))
    assert result["here"]["roc_auc"] == test["roc_auc"]
    shutil.rmtree(renamed / "test")
    with pytest.raises(BadDataset, match="trained on all 20 of them"):
        validate(model, renamed, tmp_path / "none")


def test_one_class_alone_and_damaged_images(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sensitivity, and no ROC AUC; unreadable images are counted and listed."""
    draw(tmp_path / "set", per_class=6, test=1, seed=5)
    shutil.rmtree(tmp_path / "set" / "train" / "normal")
    shutil.rmtree(tmp_path / "set" / "test")
    (tmp_path / "set" / "train" / "spot" / "bad.png").write_bytes(b"no image")
    result = validate(model, tmp_path / "set" / "train", tmp_path / "out")
    here = result["here"]
    assert (here["roc_auc"]["value"], here["specificity"]["value"]) == (None, None)
    assert 0 <= here["sensitivity"]["value"] <= 1
    assert "no image is of class normal: ROC AUC, specificity" in " ".join(result["remarks"])
    assert result["no_recalibration"] == "normal has 0 images; two are needed"
    assert (result["images"]["judged"], result["images"]["unreadable"]) == (6, 1)
    assert "bad.png" in rows_of(tmp_path / "out", "unreadable.csv")[0]["path"]
    printed = capsys.readouterr()
    assert "left out spot/bad.png" in printed.err
    assert "cannot be had, only sensitivity" in printed.out
    for image in (tmp_path / "set" / "train" / "spot").iterdir():
        image.write_bytes(f"no image, {image.name}".encode())
    with pytest.raises(BadImage, match="no image could be read"):
        validate(model, tmp_path / "set" / "train", tmp_path / "none")


def test_a_set_of_findings_is_judged_on_one_at_a_time(model: Path, tmp_path: Path) -> None:
    path = table(tmp_path / "set")
    ids = [line.split(",")[0] for line in path.read_text().splitlines()[1:]]
    lines = ["path,mass,edema", *(f"{image},{n % 2},{n // 2 % 2}" for n, image in enumerate(ids))]
    path.write_text("\n".join(lines))
    with pytest.raises(BadDataset, match=r"2 findings per image \(mass, edema\), .*; .* make validate .*TARGET=mass"):
        verb("validate", model=str(model), dataset=str(path))
    with pytest.raises(BadDataset, match="has the classes no mass, mass, and the bundle knows normal, spot"):
        verb("validate", model=str(model), dataset=str(path), target="mass")


def test_classes_by_other_names(model: Path, tmp_path: Path) -> None:
    """The message says which is which and how to type it; what it says runs."""
    dataset = load_to_judge(str(table(tmp_path / "set")))
    with pytest.raises(BadDataset, match=r"the class Healthy, and the bundle knows normal, spot; .*MAP=Healthy=normal"):
        matched_labels(dataset, ("normal", "spot"), model=str(model))
    labels = matched_labels(dataset, ("normal", "spot"), told="Healthy=normal")
    assert np.bincount(labels).tolist() == [14, 14]
    assert np.unique(matched_labels(dataset, ("normal", "spot"), told="Healthy=")).tolist() == [-1, 1]
    with pytest.raises(BadDataset, match=r"MAP='Healthy=clear, SPOT=ill'"):
        matched_labels(dataset, ("clear", "ill"))
    with pytest.raises(BadDataset, match=r"the class SPOT, .*MAP='Healthy=clear, SPOT=ill'"):
        matched_labels(dataset, ("clear", "ill"), told="Healthy=clear")
    assert matched_labels(dataset, ("clear", "ill"), told="Healthy=clear, SPOT=ill").tolist() == labels.tolist()
    with pytest.raises(UnknownName, match="class of the set"):
        matched_labels(dataset, ("normal", "spot"), told="healthy=normal")
    with pytest.raises(UnknownName, match="class of the bundle"):
        matched_labels(dataset, ("normal", "spot"), told="Healthy=clear")
    theirs, mine = ("a=b, left", "a=b, right"), ("x, y", "x")
    twice = replace(dataset, classes=theirs)
    with pytest.raises(BadDataset, match="MAP='a=b, left=x, y, a=b, right=x'"):
        matched_labels(twice, mine)  # what it suggests is read, whatever signs are in the names
    found = matched_labels(twice, mine, told="a=b, left=x, y, a=b, right=x")
    assert found.tolist() == twice.labels.tolist()
    assert np.unique(matched_labels(twice, mine, told="a=b, left=, a=b, right=x, y")).tolist() == [-1, 0]
    with pytest.raises(FirnError, match="expected MAP= as pairs"):
        matched_labels(dataset, ("normal", "spot"), told="Healthy")
    with pytest.raises(FirnError, match="expected MODEL="):
        verb("validate", dataset=str(tmp_path / "set"))
    with pytest.raises(FirnError, match="expected DATASET="):
        verb("validate", model=str(model))


def test_more_classes_of_which_one_is_missing() -> None:
    """Means are over the classes that are there, nothing is fitted, and the page is whole."""
    given = draw_predictions(4, strength=1.5, train=0, test=160)
    part = given.take(given.y != 2)
    classes = ("a", "b", "c", "d")
    contents = Contents("logistic", classes, (), (), "", None, {}, None, {}, {})
    nothing = np.full(len(part.y), np.nan)
    found = LabelledSet(part.y, part.proba, part.proba, part.groups, nothing, nothing > 0, {}, "patient")
    images = {"given": 160, "judged": len(part.y), "tested_on": 0}
    result = validated(found, contents, dataset={"name": "x", "note": "", "command": ""}, images=images, n_bootstrap=60)
    areas = [roc_auc_score(part.y == k, part.proba[:, k]) for k in (0, 1, 3)]
    assert result.here["roc_auc"]["value"] == pytest.approx(np.mean(areas))
    assert "no image is of class c: means over the classes, and ROC AUC, are of the others alone" in result.remarks
    assert (result.recalibration, result.no_recalibration) == ({}, "c has 0 patients; two are needed")
    assert (result.novelty, result.points, result.point) == (None, {}, "")
    assert result.confusion[2] == [0, 0, 0, 0]
    page = validation_page(result, part, part)
    assert "The bundle cannot tell" in page
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["images"]["groups"] == len(set(part.groups))


def test_what_a_stranger_may_write_into_a_bundle(model: Path, tmp_path: Path) -> None:
    """Digests of another form are refused; a card without scores, and a bundle of before, are told."""
    import hashlib
    import zipfile

    from safetensors.numpy import save

    with zipfile.ZipFile(model) as archive:
        archive.extractall(tmp_path / "b")
    text = json.loads((tmp_path / "b" / BUNDLE).read_text())
    text["card"] = {"results": {"test": {"roc_auc": {"value": "<b>"}}}, "data": [], "run": {"identity": 5}}
    content = save({"trained": np.zeros(3), "tested": np.zeros(3)})
    (tmp_path / "b" / SEEN).write_bytes(content)
    text["files"][SEEN] = hashlib.sha256(content).hexdigest()
    (tmp_path / "b" / BUNDLE).write_text(json.dumps(text))
    with pytest.raises(BadBundle, match="64-bit digests"):
        load(tmp_path / "b")
    del text["files"][SEEN]
    (tmp_path / "b" / BUNDLE).write_text(json.dumps(text))
    draw(tmp_path / "set", per_class=4, test=1, seed=5)
    result = validate(tmp_path / "b", tmp_path / "set", tmp_path / "out")
    assert (result["recorded"], result["recorded_on"], result["prevalence"]["training"]) == ({}, "", None)
    assert any("is not known" in line for line in result["remarks"])
    assert all(math.isfinite(row["value"]) for row in result["here"].values())


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: the page is not opened in a browser")
def test_the_page_asks_for_nothing_and_draws_its_figures(judged: tuple[Result, Path], tmp_path: Path) -> None:
    result, folder = judged
    with Browser(tmp_path / "profile") as page:
        page.open(folder / "validation.html")
        assert requested(page) == [(folder / "validation.html").resolve().as_uri()]
        assert complaints(page) == []
        drawn = page.value("[...document.querySelectorAll('.plot')].filter(p => p.querySelector('.main-svg')).length")
        assert drawn == 6
        text = page.value("document.body.innerText")
    assert f"{result['here']['roc_auc']['value']:.3f}" in text
    assert "UPDATED ON THIS SET" in text.upper()
