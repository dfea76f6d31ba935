"""The doctor: what it tells of clean, odd and broken data sets, and the exit code that a script can rely on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import draw, stored
from PIL import Image
from test_images import dicom
from verbs_for_tests import doctor, extract
from verbs_for_tests import pack as cache_pack

from features.datasets import load_dataset
from features.errors import BadDataset
from features.images import Geometry, look
from features.inspection.diagnoses import DIAGNOSES, Case, diagnose
from features.inspection.survey import Examination, sample

ROOT = Path(__file__).parents[1]
NET = "squeezenet1_1"


def told(name: str) -> dict[str, Any]:
    """Return what was written for a data set."""
    content: dict[str, Any] = json.loads(
        (Path(os.environ["FIRN_ARTIFACTS"]) / "doctor" / name / "doctor.json").read_text()
    )
    return content


def named(content: dict[str, Any]) -> dict[str, str]:
    """Return the words of each diagnosis."""
    return {one["name"]: one["words"] for one in content["diagnoses"]}


def noise(low: int, high: int, shape: tuple[int, int] = (64, 64), seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(low, high, shape)


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Return a manifest of images each of which has something wrong."""
    folder = tmp_path / "odd"
    folder.mkdir()
    rows = ["path,label,split,group"]

    def add(name: str, content: bytes | np.ndarray[Any, Any], label: str, split: str, group: str) -> None:
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            Image.fromarray(content).save(folder / name)
        rows.append(f"{name},{label},{split},{group}")

    for i in range(12):
        add(f"a{i:02d}.png", noise(0, 4096, seed=i).astype(np.uint16), "a", "train", f"p{i}")
        add(
            f"b{i:02d}.dcm",
            dicom(noise(0, 255, (40, 40), seed=i).astype(np.uint8), "MONOCHROME1"),
            "b",
            "train",
            f"q{i}",
        )
    add("dim.png", noise(0, 5).astype(np.uint8), "a", "train", "p20")
    add("long.png", noise(0, 256, (300, 30)).astype(np.uint8), "a", "train", "p21")
    add("black.png", np.zeros((64, 64), np.uint8), "a", "train", "p22")
    add("cut.png", b"\x89PNG\r\n\x1a\n", "a", "train", "p23")
    add("series.dcm", dicom(np.zeros((2, 8, 8), np.uint8), NumberOfFrames=2), "b", "train", "q20")
    add("straddles.png", noise(0, 4096, seed=50).astype(np.uint16), "a", "test", "p1")
    (folder / "manifest.csv").write_text("\n".join(rows))
    return folder


def test_a_clean_set(spots: Path) -> None:
    """The command answers in words and with 0; the sheet shows both classes; nothing is kept but these files."""
    command = [sys.executable, "-W", "error", "-m", "pipeline", "doctor", "--dataset", str(spots), "--backbone", NET]
    done = subprocess.run([*command, "--maps", "1"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"{stored('spots')}: 32 images of 2 classes, no groups"
    assert "an estimate from" in done.stdout
    assert done.stdout.splitlines()[-1] == "verdict: ready with warnings"
    content = told(stored("spots"))
    assert named(content).keys() == {"small", "no-groups"}
    assert content["counts"] == {"test": {"normal": 4, "spot": 4}, "train": {"normal": 12, "spot": 12}}
    assert (content["headers"], content["decoded"]) == (32, 32)
    assert content["cost"]["rate"] > 1
    with Image.open(Path(os.environ["FIRN_ARTIFACTS"]) / "doctor" / stored("spots") / "sheet.png") as image:
        assert image.width > 1000
    assert not list((Path(os.environ["FIRN_ARTIFACTS"]) / "cache").rglob("*.h5"))
    assert content["cost"]["asked"] == content["cost"]["pooled"] + content["cost"]["maps"]
    extract(str(spots), NET, maps="1")
    shards = sum(path.stat().st_size for path in Path(os.environ["FIRN_ARTIFACTS"]).rglob("shards/*.h5"))
    assert 0.8 < shards / content["cost"]["asked"] < 1.25


def test_an_odd_set(odd: Path) -> None:
    """Each fault of the images is told by its own words, and none stops the rest."""
    lines, ready = doctor(str(odd), NET)
    assert ready
    found = named(told(stored("odd")))
    assert "12 of" in found["unused-bits"]
    assert found["monochrome1"].startswith("12 of 12 DICOM images are MONOCHROME1")
    assert found["dim"].startswith("1 of ")
    assert found["blank"].startswith("2 of 28 images")
    assert any("series.dcm: expected one image, got 2 frames" in reason for reason in told(stored("odd"))["unreadable"])
    assert "2 of 30 images" in found["unreadable"]
    assert "PREPROCESS=pad" in found["aspect"]
    assert "for example p1" in found["straddling-group"]
    assert found["class-not-tested"] == "no test image of b"
    assert "small" in found
    telling = [one["words"] for one in told(stored("odd"))["diagnoses"] if one["name"] == "telling-files"]
    assert any(words.startswith("being a DICOM file alone tells") for words in telling)
    assert lines[-1] == "verdict: ready with warnings"


def test_what_was_left_out_and_guessed_is_said(tmp_path: Path) -> None:
    """Masks and files that are no images are counted, and a positive class that no name tells is a warning."""
    folder = draw(tmp_path / "set", per_class=6, test=2)
    for split in ("train", "test"):
        (folder / split / "normal").rename(folder / split / "left")
        (folder / split / "spot").rename(folder / split / "right")
    (folder / "train/left/train000_mask.png").write_bytes(b"mask")
    (folder / "train/left/notes.txt").write_text("notes")
    (folder / "test/right/test000.png").write_bytes((folder / "train/left/train000.png").read_bytes())
    lines, ready = doctor(str(folder), NET)
    assert ready
    assert "positive  right (a guess: no name says which class is the finding)" in lines
    found = named(told(stored("set")))
    assert found["left-out"] == "left out 1: masks, annotations or other drawings beside their image (" + (
        "train/left/train000_mask.png)"
    )
    assert found["passed-over"] == "left out 1: files that are no images (train/left/notes.txt)"
    assert "POSITIVE=left chooses the other" in found["positive-class"]
    equal = [one["words"] for one in told(stored("set"))["diagnoses"] if one["name"] == "equal-images"]
    assert [words.split(",")[0] for words in equal] == [
        f"1 images are in two {w} at once" for w in ("splits", "classes")
    ]


@pytest.mark.parametrize("what", ["alike", "black", "one class"])
def test_images_that_show_nothing_are_a_fault(tmp_path: Path, what: str) -> None:
    """All alike, or constant: there is nothing to learn. One class of them is a warning."""
    folder = draw(tmp_path / "set", per_class=6, test=2)
    for n, path in enumerate(sorted(folder.rglob("*.png"))):
        if what != "one class" or path.parent.name == "spot":
            pixels = noise(0, 255) if what == "alike" else np.zeros((64, 64), int)
            pixels[0, 0] = n % 8
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    _, ready = doctor(str(folder), NET)
    assert ready == (what == "one class")
    assert ("nothing-to-see" in named(told(stored("set")))) == (what != "one class")
    assert named(told(stored("set"))).get("class-alike", "").startswith("the images of spot") == (what == "one class")


def test_masks_that_no_name_tells_are_a_fault(tmp_path: Path) -> None:
    """Images of two values among others are masks; a set of nothing else is none of doctor's business."""
    folder = draw(tmp_path / "set", per_class=6, test=2)
    mask = np.zeros((64, 64), np.uint8)
    mask[20:30, 30:50] = 255
    for n in range(3):
        Image.fromarray(np.roll(mask, n, axis=0)).save(folder / f"train/spot/z{n}.png")
    _, ready = doctor(str(folder), NET)
    assert not ready
    assert named(told(stored("set")))["masks"].startswith(
        "3 of 19 images have two values only, such as train/spot/z0.png"
    )


def test_what_is_no_data_set_is_a_fault(tmp_path: Path) -> None:
    """The reason and the verdict, as for every other fault."""
    (tmp_path / "set").mkdir()
    lines, ready = doctor(str(tmp_path / "set"), NET)
    assert not ready
    assert lines[0].startswith(f"fault: {tmp_path / 'set'} holds no class folder; expected")
    assert lines[-1] == "verdict: not ready"


def test_not_ready(spots: Path) -> None:
    """What cannot work is a fault and the exit code 2: no weights, one patient only, images that do not open."""
    command = [sys.executable, "-m", "pipeline", "doctor", "--dataset", str(spots), "--weights", "none.pth"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "fault: no weights file none.pth" in done.stdout
    assert "verdict: not ready" in done.stdout
    assert "Traceback" not in done.stderr
    for path in sorted(spots.rglob("*.png"))[::2]:
        path.write_bytes(b"no image")
    for path in sorted(spots.rglob("*.png"))[1:4:2]:
        path.write_bytes(b"no image either")
    lines, ready = doctor(str(spots), NET)
    assert not ready
    assert any(line.startswith("fault: 18 of 32 images looked at cannot be read") for line in lines)


def test_diagnoses_of_the_table(spots: Path) -> None:
    """Those that come from labels, groups and disk."""
    dataset = load_dataset(str(spots))
    one = replace(dataset, grouped_by="patient", groups=np.where(dataset.labels == 1, "p1", dataset.groups))
    words = {d.name: d.words for d in diagnose(Case(one, Examination(), needed=10**9, free=10**6))}
    assert "spot to learn from come from one patient" in words["class-of-one-group"]
    assert "needs 1,000 MB and 1 MB are free" in words["disk-full"]
    assert (
        "more than half"
        in {d.name: d.words for d in diagnose(Case(one, Examination(), needed=9, free=10))}["disk-tight"]
    )
    few = dataset.labels.copy()
    few[np.flatnonzero((dataset.splits == "train") & (few == 1))[2:]] = 0
    many = replace(dataset, labels=few)
    assert "spot (2)" in {d.name: d.words for d in diagnose(Case(many, Examination()))}["few-images"]
    assert all(level in ("fault", "warning", "note") for level, _ in DIAGNOSES.values())


def test_a_sample_holds_every_class(tmp_path: Path) -> None:
    """Large sets are sampled: about the share of each class and split, and a few of the rarest."""
    dataset = load_dataset(str(draw(tmp_path / "many", per_class=6, test=2, size=8)))
    n = 40_000
    labels = (np.arange(n) % 1000 == 0).astype(np.int64)
    large = replace(
        dataset,
        ids=[f"{i:06d}.png" for i in range(n)],
        labels=labels,
        splits=np.where(np.arange(n) % 5 == 0, "test", "train"),
        groups=np.arange(n).astype(str),
    )
    rows = sample(large, 500, seed=1)
    assert len(rows) <= 500
    assert (np.diff(rows) > 0).all()
    assert labels[rows].sum() >= 20
    assert 0.1 < (large.splits[rows] == "test").mean() < 0.4


def test_a_look_tells_the_values_as_stored() -> None:
    """Deep images are not judged by what they are stretched to."""
    geometry = Geometry("squash", 16, 16, "bilinear")
    deep = dicom(noise(100, 3000).astype(np.uint16))
    found = look(deep, geometry, name="deep")
    assert (found.low, found.high) == (noise(100, 3000).min(), noise(100, 3000).max())
    assert found.square.shape == (1, 16, 16)
    plain = dicom(noise(7, 200).astype(np.uint8))
    found = look(plain, geometry, name="plain")
    assert (found.low, found.high) == (noise(7, 200).min(), noise(7, 200).max())


def test_a_pack_has_nothing_to_look_at(spots: Path, tmp_path: Path) -> None:
    """The doctor needs the images, and says so."""
    extract(str(spots), NET)
    pack = tmp_path / "spots.h5"
    cache_pack(str(spots), NET, out=str(pack))
    with pytest.raises(BadDataset, match="without the images"):
        doctor(str(pack), NET)
