"""predict: folders, DICOM files and lists to a CSV that a spreadsheet opens without harm."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom.data
import pytest
from conftest import stored
from PIL import Image
from runs_for_tests import without_digests
from verbs_for_tests import bundle, predict, selected

from features.datasets.image_list import find_images
from features.errors import BadBundle, BadDataset, BadImage, CacheError, FirnError, UnknownName
from features.options import DatasetOptions
from features.storage import csv_lines
from models.predictor.predictor import Prediction
from models.runs.compare import choose
from models.runs.options import ModelSelector, RunOptions
from models.runs.record import load_runs
from pipeline.predict import predictions_table, threshold_of_groups

ROOT = Path(__file__).parents[1]
DICOM = Path(pydicom.data.__file__).parent / "test_files"
READABLE = ("CT_small.dcm", "MR_small.dcm", "examples_palette.dcm", "SC_rgb_small_odd.dcm", "JPEG2000.dcm")
UNREADABLE = ("rtplan.dcm", "MR_truncated.dcm", "SC_rgb_rle_2frame.dcm")


def table(folder: Path, name: str = "predictions.csv") -> list[dict[str, str]]:
    """Return the lines of a CSV."""
    with (folder / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def linear(workshop: Path) -> ModelSelector:
    """Return what finds the plain linear run."""
    (folder,) = (workshop / "artifacts" / "heads" / stored("spots")).glob("*/features.12-avg/logistic")
    return selected(folder)


def test_the_command(linear: ModelSelector, workshop: Path, tmp_path: Path) -> None:
    """The numbers of the comparison from the command line, a bundle made once, and a line that says what was done."""
    command = [sys.executable, "-W", "error", "-m", "pipeline", "predict", "--model", linear.model]
    command += ["--images", str(workshop / "spots" / "test"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "out" / "predictions.csv")
    assert "making the bundle of logistic" in done.stderr
    test = linear.load().predictions.part(test=True)
    rows = {f"test/{row['path']}": row for row in table(tmp_path / "out")}
    assert list(rows) == test.ids.tolist()
    ours = [[float(rows[image][f"p_{name}"]) for name in ("normal", "spot")] for image in test.ids]
    np.testing.assert_allclose(ours, test.proba, rtol=0, atol=1e-6)
    assert {row["decision"] for row in rows.values()} <= {"normal", "spot"}
    assert table(tmp_path / "out", "unreadable.csv") == []
    (made,) = (workshop / "artifacts" / "bundles").rglob("bundle.json")
    stamp = made.stat().st_mtime_ns
    predict(str(workshop / "spots" / "test"), linear, out=str(tmp_path / "again"))
    assert made.stat().st_mtime_ns == stamp
    assert (tmp_path / "again" / "predictions.csv").read_bytes() == (tmp_path / "out" / "predictions.csv").read_bytes()


def test_each_folder_and_each_model_has_a_place_of_its_own(
    linear: ModelSelector, workshop: Path, tmp_path: Path
) -> None:
    """Two folders called scan, one folder before two models: no table of predictions is written over another."""
    (image, *_) = sorted((workshop / "spots" / "test").rglob("*.png"))
    folders = [tmp_path / place / "scan" for place in "ab"]
    for folder in folders:
        folder.mkdir(parents=True)
        shutil.copy(image, folder / "1.png")
    (other,) = (workshop / "artifacts" / "heads" / stored("spots")).glob("*/features.12-avg/lightgbm")
    tables = [Path(predict(f, model)[-1]) for f in folders for model in (linear, selected(other))]
    assert len({*tables}) == 4
    assert all(path.is_file() for path in tables)
    assert Path(predict(folders[0], linear)[-1]) == tables[0]


def test_dicom(linear: ModelSelector, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files that pydicom ships: what holds one image is predicted, the rest is listed with its reason."""
    folder = tmp_path / "pacs"
    folder.mkdir()
    for name in (*READABLE, *UNREADABLE):
        shutil.copy(next(DICOM.rglob(name)), folder)
    summary, path = predict(str(folder), linear, out=str(tmp_path / "out"))
    rows = table(Path(path).parent)
    assert [row["path"] for row in rows] == sorted(READABLE)
    assert {row["outlier"] for row in rows} == {"yes"}
    assert f"{len(READABLE)} unlike the training images, {len(UNREADABLE)} unreadable" in summary
    reasons = {row["path"]: row["reason"] for row in table(tmp_path / "out", "unreadable.csv")}
    assert set(reasons) == set(UNREADABLE)
    assert "without an image" in reasons["rtplan.dcm"]
    assert "left out rtplan.dcm" in capsys.readouterr().err
    predict(str(folder / "CT_small.dcm"), linear, out=str(tmp_path / "one"))
    (alone,) = table(tmp_path / "one")
    again = next(row for row in rows if row["path"] == "CT_small.dcm")
    assert float(alone["p_spot"]) == pytest.approx(float(again["p_spot"]), abs=1e-9)
    with pytest.raises(BadImage, match="no image could be read"):
        predict(str(folder / "rtplan.dcm"), linear, out=str(tmp_path / "none"))


def test_lists(linear: ModelSelector, workshop: Path, tmp_path: Path) -> None:
    """Paths of a CSV stay below it; one that is not there is unreadable, one that leads out is refused."""
    image = workshop / "spots" / "test" / "spot" / "test000.png"
    (tmp_path / "in").mkdir()
    shutil.copy(image, tmp_path / "in" / "a.png")
    lines = tmp_path / "in" / "list.csv"
    lines.write_text("Path,note\na.png,first\nsub/none.png,gone\n")
    predict(str(lines), linear, out=str(tmp_path / "out"))
    assert [row["path"] for row in table(tmp_path / "out")] == ["a.png"]
    assert [row["path"] for row in table(tmp_path / "out", "unreadable.csv")] == ["sub/none.png"]
    (tmp_path / "in" / "link.png").symlink_to(image)
    for text in ("../a.png", "/etc/passwd", "link.png", "a\0.png"):
        lines.write_text(f'path\n"{text}"\n')
        with pytest.raises(BadDataset):
            find_images(str(lines))
    lines.write_text("where\na.png\n")
    with pytest.raises(BadDataset, match="no column 'path'"):
        find_images(str(lines))
    with pytest.raises(BadDataset, match="leads out"):
        find_images(str(tmp_path / "in"))


def test_patients_of_a_table_and_a_stated_prevalence(linear: ModelSelector, workshop: Path, tmp_path: Path) -> None:
    """A line for each patient, and probabilities by Bayes' rule beside those of training, in columns that say so."""
    images = sorted((workshop / "spots" / "test").rglob("*.png"))
    (tmp_path / "in").mkdir()
    lines = ["path,patient"]
    for i, image in enumerate(images):
        shutil.copy(image, tmp_path / "in" / f"{i}.png")
        lines.append(f"{i}.png,p{i // 3}")
    (tmp_path / "in" / "list.csv").write_text("\n".join(lines))
    asked = {"out": str(tmp_path / "out"), "aggregate": "noisy-or", "prevalence": "0.2"}
    *said, path = predict(tmp_path / "in" / "list.csv", linear, **asked)
    rows, patients = table(tmp_path / "out"), table(tmp_path / "out", "predictions-by-group.csv")
    assert path == str(tmp_path / "out" / "predictions.csv")
    for row in rows:
        odds = float(row["calibrated_spot"]) / float(row["calibrated_normal"]) / 4  # trained on halves
        assert float(row["prevalence_0.2_spot"]) == pytest.approx(odds / (1 + odds))
        assert float(row["prevalence_0.8_normal"]) == pytest.approx(1 / (1 + odds))
    assert [row["group"] for row in patients] == ["p0", "p1", "p2"]
    for i, row in enumerate(patients):
        own = [float(image["p_spot"]) for image in rows[3 * i : 3 * i + 3]]
        assert float(row["p_spot"]) == pytest.approx(1 - np.prod([1 - p for p in own]))
        assert int(row["images"]) == len(own)
    assert "decision" not in patients[0] and "no decision" in said[2], "trained on patients of one image"
    assert "0.2 spot (in training 0.5)" in said[1] and "stay at the operating point" in said[1]
    predict(tmp_path / "in" / "list.csv", linear, **asked, point="0.7")
    for row in table(tmp_path / "out", "predictions-by-group.csv"):
        assert row["decision"] == ("spot" if float(row["p_spot"]) >= 0.7 else "normal")
    with pytest.raises(FirnError, match="is of 3 classes, and there are 2"):
        predict(tmp_path / "in" / "list.csv", linear, prevalence="0.2,0.3,0.5")


def test_patients_are_decided_where_training_knew_patients() -> None:
    """The threshold is that of the aggregate asked for; what a stranger's bundle says is a number or nothing."""
    points = {"mean": {"youden": 0.4, "sensitivity>=0.95": 0.2}, "maximum": {"youden": "0.9"}}
    contents = SimpleNamespace(card={"points_by_group": points})
    predictor: Any = SimpleNamespace(contents=contents, classes=("a", "b"), threshold=float)
    found = [threshold_of_groups(predictor, how, point) for how, point in PAIRS]
    assert found == [0.4, 0.2, None, None, 0.3]
    contents.card = {"points_by_group": ["mean"]}
    assert threshold_of_groups(predictor, "mean", "") is None


PAIRS = (("mean", ""), ("mean", "sensitivity>=0.95"), ("maximum", ""), ("noisy-or", "youden"), ("mean", "0.3"))


def test_formulas_in_names(linear: ModelSelector, workshop: Path, tmp_path: Path) -> None:
    """A cell that a spreadsheet would run gets an apostrophe: names of files and of classes."""
    names = ["=cmd|'x'!A1.png", "+1.png", "-2+3.png", "@sum.png", "\tt.png", "\rr.png", "plain.png"]
    (tmp_path / "in").mkdir()
    for name in names:
        shutil.copy(workshop / "spots" / "test" / "spot" / "test000.png", tmp_path / "in" / name)
    (tmp_path / "in" / "=bad.png").write_bytes(b"no image")
    predict(str(tmp_path / "in"), linear, out=str(tmp_path / "out"))
    cells = [row["path"] for row in table(tmp_path / "out")]
    assert sorted(cells) == sorted(name if name == "plain.png" else f"'{name}" for name in names)
    assert table(tmp_path / "out", "unreadable.csv")[0]["path"] == "'=bad.png"
    one, classes = np.ones(1), ("=HYPERLINK(1)", "b")
    found = Prediction(["x"], np.eye(2)[:1], np.eye(2)[:1], np.zeros(1, int), one, one > 2, classes)
    shown = list(csv.reader(csv_lines(predictions_table(found, {})).decode().splitlines()))
    assert shown[1][-3] == "'=HYPERLINK(1)"
    assert all(not cell.startswith(("=", "+", "-", "@")) for row in shown for cell in row)


@pytest.mark.parametrize("head", ["logistic", "finetuned"])
def test_overlays(head: str, workshop: Path, tmp_path: Path) -> None:
    """Every image beside itself under its class map, for heads that have some; others say which have."""
    sought = linear_or(head, workshop)
    folder = tmp_path / "out"
    said = predict(str(workshop / "spots" / "test" / "spot"), sought, overlays=True, out=str(folder))
    assert any(f"4 images beside their class activation maps in {folder / 'overlays'}: blue" in line for line in said)
    drawn = sorted((tmp_path / "out" / "overlays").iterdir())
    assert len(drawn) == 4
    with Image.open(drawn[0]) as image:
        assert image.width == 448
        pixels = np.asarray(image).astype(int)
        left, right = np.split(pixels[:224], 2, axis=1)
        assert np.ptp(pixels[224:], axis=2).max() > 50, "the legend below has colours"
    assert np.ptp(left, axis=2).max() == 0
    assert np.ptp(right, axis=2).max() > 50
    with pytest.raises(FirnError, match="no class maps"):
        predict(str(workshop / "spots" / "test"), linear_or("lightgbm", workshop), overlays=True)


def linear_or(head: str, workshop: Path) -> ModelSelector:
    """Return what finds the run of a head with the plainest view."""
    runs = [run for run in load_runs(stored("spots")) if run.record.head == head and run.record.pool != "both"]
    return selected(runs[0].folder)


def test_the_chosen_run_is_taken(workshop: Path, tmp_path: Path) -> None:
    """Without MODEL the run of best validation of the data set, or the best of a head or backbone."""
    folder = str(workshop / "spots")
    assert selected(dataset=folder).load().folder == choose(load_runs(stored("spots"))).folder
    assert selected(dataset=folder, heads="spatial", backbone="squeezenet1_1").load().record.head == "spatial"
    line = bundle(selected(dataset=folder, heads="spatial"), out=str(tmp_path / "b.zip"))
    assert re.search(r"8 test images agree within \d", line)
    predict(str(workshop / "spots" / "test"), selected(tmp_path / "b.zip"), point="0", out=str(tmp_path / "out"))
    assert {row["decision"] for row in table(tmp_path / "out")} == {"spot"}


def test_a_run_whose_head_was_replaced(linear: ModelSelector, workshop: Path, tmp_path: Path) -> None:
    """A bundle that does not say what the run said of its test images is not called ready."""
    from safetensors.numpy import load_file, save_file

    folder = Path(shutil.copytree(linear.model, tmp_path / "heads" / "logistic"))
    head = folder / "head.safetensors"
    save_file({name: -array for name, array in load_file(head).items()}, head)
    with pytest.raises(CacheError, match=r"head.safetensors is gone, damaged or edited since the run was saved"):
        bundle(selected(folder), out=str(tmp_path / "b"))
    without_digests(folder)
    with pytest.raises(CacheError, match=r"differs by .* from what the run said"):
        bundle(selected(folder), out=str(tmp_path / "b"))


def test_what_is_not_there(linear: ModelSelector, workshop: Path, spots: Path, tmp_path: Path) -> None:
    """One clear line each: no images, no model, no run, no features any more, no such point."""
    (tmp_path / "empty").mkdir()
    for images in (tmp_path / "empty", tmp_path / "none.png"):
        with pytest.raises(BadDataset, match="no images at"):
            predict(str(images), linear)
    with pytest.raises(BadBundle, match="neither a bundle"):
        predict(str(spots), selected(tmp_path))
    with pytest.raises(CacheError, match="run: make extract train-heads"):
        predict(str(spots), selected(dataset=str(workshop / "spots"), heads="knn"))
    with pytest.raises(UnknownName, match="operating point"):
        predict(str(spots), linear, point="best", out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    facts = json.loads((Path(linear.model) / "run.json").read_text())
    facts["keys"][0]["precision"] = "bfloat16"
    folder = Path(shutil.copytree(linear.model, tmp_path / "heads" / "logistic"))
    (folder / "run.json").write_text(json.dumps(facts))
    with pytest.raises(CacheError, match=r"no features at .*make extract train-heads"):
        bundle(selected(folder), out=str(tmp_path / "b"))
    assert not (tmp_path / "b").exists()


def test_the_notebook(linear: ModelSelector, workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines of docs/predict.md run as they are, and leave nothing in the folder they run in."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "predict.md").read_text(), re.DOTALL)
    bundle(linear, out=str(tmp_path / "pneumonia.zip"))
    for name, image in (("one", "spot"), ("other", "normal")):
        shutil.copy(workshop / "spots" / "test" / image / "test000.png", tmp_path / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FIRN_ARTIFACTS")
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["found"].proba.shape == (2, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.png", "other.png", "pneumonia.zip"]


def test_options_beside_a_model_are_said_to_be_unused(
    linear: ModelSelector, workshop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = replace(linear, data=DatasetOptions("my set"), run=RunOptions(protocol="cv"))
    predict(str(workshop / "spots" / "test"), both, out=str(tmp_path / "out"))
    said = f"not used: DATASET='my set' PROTOCOL=cv; {linear.model} is one model already\n"
    assert said in capsys.readouterr().err
    predict(str(workshop / "spots" / "test"), linear, out=str(tmp_path / "out"))
    assert "not used" not in capsys.readouterr().err


def test_nothing_of_an_earlier_prediction_is_left(linear: ModelSelector, workshop: Path, tmp_path: Path) -> None:
    """Groups and overlays of other images would be taken for those of these; files of a user's own stay."""
    folder, out = shutil.copytree(workshop / "spots" / "test", tmp_path / "new"), tmp_path / "out"
    images = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    (folder / "list.csv").write_text("path,patient\n" + "".join(f"{image},p1\n" for image in images[:2]))
    predict(str(folder / "list.csv"), linear, out=str(out), overlays=True)
    (out / "overlays" / "mine.png").touch()
    assert len(list((out / "overlays").iterdir())) == 3
    assert (out / "predictions-by-group.csv").exists()
    predict(str(folder / images[2]), linear, out=str(out))
    assert [path.name for path in (out / "overlays").iterdir()] == ["mine.png"]
    assert not (out / "predictions-by-group.csv").exists()
