"""The audit: every check finds what was planted, a clean set gives no leak, and a second look is quick."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED, draw, needs_images, stored
from PIL import Image, ImageEnhance
from verbs_for_tests import audit, extract, pack

from features.errors import UnknownName
from features.images.phash import HASH_BITS, SIDE, hash_bits, thumbnail
from features.inspection.thumbnails import blank, load_thumbnails
from features.storage import csv_lines
from models.audit import CHECKS, Evidence, Subject, find_all, measure_leakage
from models.audit import neighbours as blocks
from models.audit.duplicates import likeness
from models.audit.label_errors import label_errors
from models.audit.neighbours import best_matches, far_out, mean_distances
from pipeline.__main__ import main
from pipeline.render.audit_page import findings_page

NET = "squeezenet1_1"


def rows_of(name: str) -> list[dict[str, str]]:
    """Return the findings of an audit."""
    with (Path(os.environ["FIRN_ARTIFACTS"]) / "audit" / stored(name) / "findings.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def structure(seed: int = 0, size: int = 128) -> Image.Image:
    """Return a grey image with structure at several scales, as an X-ray has."""
    rng = np.random.default_rng(seed)
    layers = [np.array(Image.fromarray(rng.random((n, n)).astype(np.float32)).resize((size, size), 3)) for n in (4, 24)]
    image = layers[0] + layers[1]
    return Image.fromarray((255 * (image - image.min()) / np.ptp(image)).astype(np.uint8))


def small(image: Image.Image) -> np.ndarray:
    """Return the thumbnail of an image."""
    return thumbnail(np.asarray(image.resize((SIDE, SIDE), 2, reducing_gap=3.0))[None])


def test_the_planted_faults_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A leak of each kind, a conflict, a black image and a file that is no image; the second look is the same."""
    folder = draw(tmp_path / "faulty", per_class=16, test=6)
    train, test = folder / "train", folder / "test"
    shutil.copy(train / "normal" / "train000.png", test / "normal" / "same.png")
    structure(1).save(train / "spot" / "near.png")
    ImageEnhance.Contrast(structure(1).crop((2, 3, 126, 127))).enhance(0.9).save(test / "spot" / "near.jpg", quality=80)
    shutil.copy(train / "normal" / "train001.png", train / "spot" / "conflict.png")
    Image.new("L", (48, 48), 3).save(train / "normal" / "black.png")
    (train / "normal" / "broken.png").write_bytes(b"no image")
    extract(str(folder), NET)
    page = Path(audit(str(folder), NET))
    found = {(row["check"], row["image"], row["other"]) for row in rows_of("faulty")}
    assert found >= {
        ("exact-leak", "test/normal/same.png", "train/normal/train000.png"),
        ("near-leak", "test/spot/near.jpg", "train/spot/near.png"),
        ("label-conflict", "train/spot/conflict.png", "train/normal/train001.png"),
        ("exact-repeat", "train/spot/conflict.png", "train/normal/train001.png"),
        ("blank", "train/normal/black.png", ""),
        ("unreadable", "train/normal/broken.png", ""),
    }
    assert sum(check in ("exact-leak", "near-leak") for check, _, _ in found) == 2
    results = json.loads((page.parent / "audit.json").read_text())
    assert results["test_roc_auc"]["leaked"] == 2
    assert results["test_roc_auc"]["images"] == 14
    shown = capsys.readouterr().out
    assert "same bytes in two splits" in shown
    assert "without the 2 known from training" in shown

    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in page.parent.iterdir()}
    start = time.perf_counter()
    audit(str(folder), NET)
    assert time.perf_counter() - start < 1.0
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in page.parent.iterdir()} == before
    assert capsys.readouterr().out == shown

    shutil.rmtree(page.parent)
    audit(str(folder), NET)
    assert {path.name: path.read_bytes() for path in page.parent.iterdir()} == {k: b for k, (_, b) in before.items()}


def test_a_clean_set_is_a_short_story(spots: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No leak, no repeat, no blank image; one line says so. A pack is audited without its images, and says that."""
    extract(str(spots), NET)
    results = json.loads((Path(audit(str(spots), NET)).parent / "audit.json").read_text())
    quiet = set(CHECKS) - {"label-error", "outlier"}
    assert {name: results["counts"][name] for name in quiet} == dict.fromkeys(quiet, 0)
    assert results["test_roc_auc"]["leaked"] == 0
    assert results["test_roc_auc"]["clean"] == results["test_roc_auc"]["everything"]
    shown = capsys.readouterr().out
    assert "Nothing found of: same bytes in two splits" in shown
    assert "no test image is known from training" in shown

    packed = pack(str(spots), NET, out=str(spots.parent / "spots.h5"))[-1].split()[-1]
    shutil.rmtree(spots)
    results = json.loads((Path(audit(packed, "")).parent / "audit.json").read_text())
    assert set(results["left_out"]) == {"near-leak", "near-repeat", "blank"}
    assert results["counts"]["exact-leak"] == 0
    assert "Left out: same image in two splits (needs the images" in capsys.readouterr().out


def test_thumbnails_are_remembered_by_content(spots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only images that the memo lacks are decoded; a damaged memo is made anew with the same bytes."""
    from features.cache.entry import cache_root
    from features.datasets import load_dataset

    dataset = load_dataset(str(spots))
    memo = cache_root(dataset.name) / "thumbnails.h5"
    ids, sha256 = np.array(dataset.ids), np.array([f"{i:064x}".encode() for i in range(len(dataset))], "S64")
    first = load_thumbnails(dataset, ids[:-1], sha256[:-1], memo)
    decoded: list[int] = []
    again = load_thumbnails(dataset, ids, sha256, memo, progress=lambda done, total: decoded.append(total))
    assert decoded == [1]
    assert np.array_equal(first, again[:-1])
    image = Image.open(spots / dataset.ids[5]).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    assert np.array_equal(again[5], np.asarray(image))
    whole = memo.read_bytes()
    memo.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert np.array_equal(load_thumbnails(dataset, ids, sha256, memo), again)
    assert memo.read_bytes() == whole


@pytest.mark.parametrize(
    "change",
    [
        lambda i: ImageEnhance.Brightness(i).enhance(0.85),
        lambda i: ImageEnhance.Contrast(i).enhance(1.2),
        lambda i: i.resize((110, 120)),
        lambda i: i.crop((0, 4, 122, 126)),
        lambda i: i.rotate(3, Image.Resampling.BILINEAR).crop((6, 6, 122, 122)),
    ],
)
def test_likeness_sees_through_what_copies_go_through(change: object) -> None:
    """Brightness, contrast, size, crop, a small turn; another image and a flat one are not alike."""
    image, copied = small(structure(3)), small(change(structure(3)))  # type: ignore[operator]
    assert likeness(image, copied) > 0.93
    assert likeness(image, small(structure(4))) < 0.5
    assert likeness(image, np.full((SIDE, SIDE), 7, np.uint8)) == 0


def test_hash_is_of_the_image_and_not_of_its_light() -> None:
    """Few bits differ after a change of contrast, about half between different images."""
    image = structure(5)
    pale = Image.fromarray((np.asarray(image) * 0.5 + 60).astype(np.uint8))
    a, b, c = hash_bits(np.stack([small(image), small(pale), small(structure(6))]))
    assert a.shape == (HASH_BITS,)
    assert (a != b).sum() <= 4
    assert 15 < (a != c).sum() < 48


def test_neighbours_by_blocks_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the full matrix, with blocks of a few rows; rows that share a key are no neighbours."""
    rng = np.random.default_rng(0)
    X, key = rng.normal(size=(40, 5)).astype(np.float32), np.arange(40) // 2
    lengths = np.linalg.norm(X, axis=1).astype(np.float32)
    units = X / lengths[:, None]
    monkeypatch.setattr(blocks, "_CELLS", 120)
    full = np.linalg.norm(X[:, None] - X[None], axis=2)
    full[key[:, None] == key] = np.inf
    distance, nearest = mean_distances(units, lengths, key, 3)
    assert np.array_equal(nearest, np.argsort(full, 1)[:, :3])
    assert np.allclose(distance, np.sort(full, 1)[:, :3].mean(1), atol=1e-4)
    cosine = np.where(key[:, None] == key, -np.inf, units @ units.T)
    low, high = np.arange(20), np.arange(20, 40)
    found = best_matches(units, (key,), parts=(low, high))
    for matches, part in zip(found, (low, high), strict=True):
        assert np.array_equal(matches.nearest, part[cosine[:, part].argmax(1)])


def make_subject(n: int = 200, *, seed: int = 0, **changed: object) -> Subject:
    """Return drawn features of two classes that are apart, two images a group, three quarters of them in train."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) // 2 % 2
    names = np.array([f"{i:03d}" for i in range(n)])
    facts: dict[str, object] = {
        "ids": names,
        "y": y.astype(np.int64),
        "splits": np.where(np.arange(n) < 3 * n // 4, "train", "test"),
        "groups": np.array([f"p{i // 2:03d}" for i in range(n)]),
        "sha256": np.char.encode(names),
        "X": (rng.normal(size=(n, 8)) + 6 * y[:, None] * (np.arange(8) < 2)).astype(np.float32),
        "classes": ("a", "b"),
        "grouped_by": "patient",
    }
    return Subject(**{**facts, **changed})  # type: ignore[arg-type]


def test_labels_groups_and_outliers_of_drawn_features() -> None:
    """Flipped labels come first among the doubted, a group in two splits and a far image are found."""
    clean = make_subject()
    y, X, groups = clean.y.copy(), clean.X.copy(), clean.groups.copy()
    flipped = np.array([4, 30, 61, 99])
    y[flipped] = 1 - y[flipped]
    X[10, 7] += 12
    groups[199] = "p000"
    found, left_out = find_all(Evidence(make_subject(y=y, X=X, groups=groups)))
    doubted = [int(finding.image) for finding in found["label-error"]]
    assert set(doubted[:3]) < set(flipped.tolist())
    assert len(set(doubted) & set(flipped.tolist())) >= 3
    assert "looks like" in found["label-error"][0].value
    assert [finding.image for finding in found["outlier"]] == ["010"]
    assert [(f.image, f.value) for f in found["straddling-group"]] == [("199", "patient p000: 3 images")]
    assert set(left_out) == {"near-leak", "near-repeat", "blank"}
    clean_found, _ = find_all(Evidence(clean))
    assert not clean_found["straddling-group"]
    assert len(clean_found["label-error"]) <= 2


def test_confident_joint_and_neighbours_by_hand() -> None:
    """A row counts where another class is as probable as among its own, by far, and most neighbours are of it."""
    y = np.array([0, 0, 0, 1, 1, 1])
    p = np.array([0.9, 0.8, 0.05, 0.1, 0.2, 0.3])
    proba = np.stack([p, 1 - p], 1)
    neighbours = np.array([[1, 2], [0, 2], [3, 4], [4, 5], [3, 5], [3, -1]])
    opinion = label_errors(y, proba, neighbours)
    assert opinion.row.tolist() == [2]
    assert opinion.suggested.tolist() == [1]
    assert opinion.margin.tolist() == pytest.approx([-0.9])
    assert opinion.confidence.tolist() == pytest.approx([1.75 / 3, 0.8])
    assert not len(label_errors(y, proba, np.array([[0, 1]] * 6)).row)


def test_duplicates_share_a_fold_and_leaks_leave_the_score() -> None:
    """Bytes in train and test join their groups; without the leaked images the score is of the others."""
    clean = make_subject()
    sha256, X = clean.sha256.copy(), clean.X.copy()
    sha256[150:170], X[150:170] = sha256[2:22], X[2:22]
    subject = make_subject(sha256=sha256, X=X)
    evidence = Evidence(subject)
    assert np.flatnonzero(evidence.leaked).tolist() == list(range(150, 170))
    assert evidence.linked[2] == evidence.linked[3] == evidence.linked[150] == evidence.linked[151]
    assert len(np.unique(evidence.linked)) == 90
    leakage = measure_leakage(subject, evidence.leaked)
    assert leakage is not None
    assert (leakage.images, leakage.leaked) == (50, 20)
    assert leakage.clean.value > 0.95
    assert leakage.clean.low < leakage.everything.low, "fewer images tell less"


def test_patients_of_both_sides_leave_the_score_too() -> None:
    """Test images of a group that is trained on count as leaked, duplicate or not."""
    clean = make_subject()
    groups = clean.groups.copy()
    groups[160:166] = groups[4]
    leakage = measure_leakage(make_subject(groups=groups), np.zeros(len(groups), bool))
    assert leakage is not None
    assert (leakage.images, leakage.leaked) == (50, 6)


def test_blank_and_far() -> None:
    """Black with a bright dot, and flat grey; the far row of its class only."""
    rng = np.random.default_rng(0)
    thumbnails = rng.integers(0, 255, (4, SIDE, SIDE)).astype(np.uint8)
    thumbnails[1] = rng.integers(0, 12, (SIDE, SIDE))
    thumbnails[1, 5, 5] = 255
    thumbnails[2] = 130 + rng.integers(0, 5, (SIDE, SIDE))
    assert blank(thumbnails)[0].tolist() == [2, 1]
    distance = np.r_[rng.lognormal(0, 0.1, 50), rng.lognormal(2, 0.1, 50)]
    distance[7] = np.exp(1)
    odd = far_out(np.arange(100) // 50, distance)
    assert odd.row.tolist() == [7]
    assert odd.value[0] > 5


def test_names_do_no_harm() -> None:
    """A name is text on the page and in a spreadsheet, whatever it looks like."""
    subject = make_subject(
        ids=np.array(["=1+1<b>.png", *(f"{i:03d}" for i in range(1, 200))]), sha256=np.array(["x"] * 200)
    )
    found, _ = find_all(Evidence(subject))
    empty = ("note", "images", "grouped_by", "left_out", "counts")
    results = {"dataset": "<i>", "backbone": "b", "labels": "classes", **{key: {} for key in empty}}
    results |= {"out_of_fold_accuracy": None, "test_roc_auc": None}
    page = findings_page(results, {"exact-repeat": found["exact-repeat"]}, None)
    assert "=1+1&lt;b&gt;.png" in page
    assert "<b>" not in page
    assert "<i>" not in page
    assert csv_lines([["=1+1", "-0.5", "a", None, 0.1]]) == b"'=1+1,-0.5,a,,0.1\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dataset", "SPOTS", "--backbone", NET], "run: make extract DATASET="),
        (["--dataset", "pneumonai"], "unknown data set"),
        (["--dataset", "SPOTS", "--backbone", "resnet05"], "did you mean resnet50"),
    ],
)
def test_wrong_input_is_one_line(
    spots: Path, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 and what to do."""
    typed = [str(spots) if word == "SPOTS" else word for word in arguments]
    monkeypatch.setattr(sys, "argv", ["pipeline", "audit", *typed])
    assert main() == 2
    said_on_stderr = capsys.readouterr().err
    assert said in said_on_stderr
    assert len(said_on_stderr.strip().splitlines()) == 1


def test_labels_that_are_not_there(spots: Path) -> None:
    """A view of the labels that the set does not have is told with those that it has."""
    extract(str(spots), NET)
    with pytest.raises(UnknownName, match="unknown labels 'binary'; known: classes"):
        audit(str(spots), NET, labels="binary")


@needs_images
def test_real_leaks_are_found_and_nothing_else(tmp_path: Path) -> None:
    """Six leaks among 60 real X-rays, each changed in another way."""
    source, folder = SHARED / "data" / "pneumonia", tmp_path / "xrays"
    for split, count in (("train", 20), ("test", 10)):
        for name in ("NORMAL", "PNEUMONIA"):
            (folder / split / name).mkdir(parents=True)
            for image in sorted((source / split / name).iterdir())[:count]:
                shutil.copy(image, folder / split / name)
    originals = sorted((folder / "train").glob("*/*"))[::7][:6]
    changes = [
        lambda i: i,
        lambda i: i.resize((190, 200)),
        lambda i: ImageEnhance.Brightness(i).enhance(1.1),
        lambda i: ImageEnhance.Contrast(i).enhance(0.85),
        lambda i: i.crop((9, 3, 220, 215)),
        lambda i: i.crop((0, 0, 213, 213)),
    ]
    expected = set()
    for k, (original, change) in enumerate(zip(originals, changes, strict=True)):
        copied = folder / "test" / original.parent.name / f"study{k}.jpg"
        change(Image.open(original)).save(copied, quality=70)
        expected.add((f"test/{original.parent.name}/study{k}.jpg", str(original.relative_to(folder))))
    extract(str(folder), NET)
    audit(str(folder), NET)
    leaks = {(row["image"], row["other"]) for row in rows_of("xrays") if row["check"] == "near-leak"}
    assert leaks == expected
