"""Images, labels, groups and splits as they come out of folders, manifests, archives and the table of data sets."""

from __future__ import annotations

import collections
import hashlib
import io
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from features.datasets import DATASETS, SPLITS, Dataset, load_dataset
from features.datasets.dataset import class_order
from features.datasets.findings import label_matrix
from features.datasets.image_folder import class_folders
from features.datasets.listing import IMAGES, FileSource
from features.datasets.load import name_of_path
from features.datasets.registry import published
from features.datasets.splits import split_by_group, straddling
from features.errors import BadDataset, BadDownload, BadImage, UnknownName
from features.options import DatasetOptions, make_command
from features.storage import slug

REAL = Path("../shared/data")
real_data = pytest.mark.skipif(not REAL.exists(), reason="no ../shared/data: the real images are not here")


class QuietHandler(SimpleHTTPRequestHandler):
    """Serve a folder without a word."""

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


def put(root: Path, *paths: str) -> Path:
    """Write a small file at each path; loading lists images and never opens one."""
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(path.encode())
    return root


def many(folder: str, count: int, suffix: str = ".png") -> list[str]:
    return [f"{folder}/{number:03d}{suffix}" for number in range(count)]


def split_of(dataset: Dataset) -> dict[str, str]:
    return dict(zip(dataset.ids, dataset.splits.tolist(), strict=True))


def label_of(dataset: Dataset) -> dict[str, str]:
    return {image: dataset.classes[label] for image, label in zip(dataset.ids, dataset.labels, strict=True)}


def group_of(dataset: Dataset) -> dict[str, str]:
    return dict(zip(dataset.ids, dataset.groups.tolist(), strict=True))


def assert_sound(dataset: Dataset) -> None:
    """Hold a data set to the contract of Dataset."""
    n = len(dataset)
    assert n == len(dataset.labels) == len(dataset.splits) == len(dataset.groups)
    assert dataset.ids == sorted(set(dataset.ids))
    assert dataset.labels.dtype == np.int64
    assert set(dataset.labels.tolist()) == set(range(len(dataset.classes)))
    assert {"train", "test"} <= set(dataset.splits.tolist()) <= set(SPLITS)
    assert slug(dataset.name) == dataset.name
    stamps = dataset.source.stamps(dataset.ids)
    assert [(len(column), column.dtype.name) for column in stamps] == [(n, "int64")] * 3
    for view in dataset.label_views.values():
        assert set(view) == set(dataset.classes)


# --- the real data ---


@real_data
@pytest.mark.parametrize(
    ("name", "train", "test", "groups", "first"),
    [
        ("pneumonia", 5216, 624, 3039, ("NORMAL", "PNEUMONIA")),
        ("colon", 1580, 401, 491, ("colon_n", "colon_aca")),
        ("cervical", 733, 184, 323, ("normal_superficiel", "normal_intermediate", "normal_columnar")),
    ],
)
def test_real_data_is_read_whole_and_no_group_is_on_both_sides(
    monkeypatch: pytest.MonkeyPatch, name: str, train: int, test: int, groups: int, first: tuple[str, ...]
) -> None:
    monkeypatch.setenv("FIRN_DATA", str(REAL))
    dataset = load_dataset(name)
    assert_sound(dataset)
    assert dataset.name == name
    assert collections.Counter(dataset.splits.tolist()) == {"train": train, "test": test}
    assert dataset.classes[: len(first)] == first
    assert len(set(dataset.groups.tolist())) == groups
    assert straddling(dataset.groups, dataset.splits) == []
    assert (dataset.split_by, bool(dataset.grouped_by)) == ("publisher", True)
    assert "Cite" in dataset.note or "CC BY" in dataset.note


@real_data
def test_no_series_of_patients_in_pneumonia_crosses_the_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRN_DATA", str(REAL))
    dataset = load_dataset("pneumonia")
    series = [re.sub(r".*/((NORMAL2-)?IM-\d+|person\d+_[a-z]+).*", r"\1", image) for image in dataset.ids]
    assert len(set(series)) == 4082
    assert straddling(np.array(series), dataset.splits) == []


@real_data
def test_real_images_are_read_and_stamped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRN_DATA", str(REAL))
    dataset = load_dataset("cervical")
    image = dataset.ids[0]
    assert dataset.source.read(image)[:2] == b"\xff\xd8"
    assert dataset.source.stamps(dataset.ids).size[0] == len(dataset.source.read(image))


@real_data
def test_real_folder_by_its_path_has_the_same_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRN_DATA", str(REAL))
    assert load_dataset(str(REAL / "colon")).ids == load_dataset("colon").ids
    with pytest.raises(BadDataset, match="no class but a data set"):
        load_dataset(str(REAL))


# --- the table ---


@pytest.mark.parametrize("name", DATASETS)
def test_every_row_is_consistent(name: str) -> None:
    row = DATASETS[name]
    assert slug(name) == name
    assert len(set(row.classes)) == len(row.classes)
    assert len(row.classes) >= 2 or row.places[0].endswith(".csv")  # a table says its findings itself
    assert row.places
    assert row.note.endswith(".")
    for view in row.label_views.values():
        assert set(view) == set(row.classes)
        assert next(iter(view.values())) == "normal"


@pytest.mark.parametrize("name", [name for name, row in DATASETS.items() if row.prepare is None])
def test_missing_data_set_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("FIRN_DATA", str(tmp_path))
    with pytest.raises(BadDataset) as caught:
        load_dataset(name)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(tmp_path / name), *DATASETS[name].classes, "FIRN_DATA", DATASETS[name].obtain):
        assert part in message


def test_data_lies_in_the_working_folder_where_nothing_else_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "data/colon", *many("colon_n", 3), *many("colon_aca", 3))
    monkeypatch.delenv("FIRN_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    assert load_dataset("colon").source.where == str(Path("data/colon"))


def test_unknown_name_lists_the_rows_and_mentions_paths() -> None:
    with pytest.raises(UnknownName, match=r"did you mean pneumonia\?.*path"):
        load_dataset("pneumona")


@pytest.mark.parametrize("name", ["", "no/such/folder", "~nobody-of-that-name/x", "x" * 300, "a\0b"])
def test_what_is_neither_row_nor_path_is_unknown(name: str) -> None:
    with pytest.raises(UnknownName):
        load_dataset(name)


def test_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match=r"features\.txt is no data set"):
        load_dataset(str(put(tmp_path, "features.txt") / "features.txt"))


def test_row_that_prepares_itself_is_made_where_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def draw(folder: Path) -> None:
        made.append(folder)
        put(folder, *(f"{split}/{label}/p{n:04d}_0.png" for n, split in enumerate(SPLITS) for label in row.classes))

    row = DATASETS["phantom"]
    monkeypatch.setitem(DATASETS, "phantom", replace(row, prepare=draw))
    monkeypatch.setenv("FIRN_ARTIFACTS", str(tmp_path))
    first, again = load_dataset("phantom"), load_dataset("phantom")
    assert made == [tmp_path / "phantom"]
    assert first.ids == again.ids
    assert group_of(first)["test/clear/p0002_0.png"] == "p0002"
    assert "ynthetic" in first.note


def test_phantom_is_drawn_as_its_row_expects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from features.datasets.phantom import draw_phantom

    draw_phantom(tmp_path / "phantom", patients=10, seed=0)
    monkeypatch.setenv("FIRN_ARTIFACTS", str(tmp_path))
    dataset = load_dataset("phantom")
    assert_sound(dataset)
    assert dataset.grouped_by == "patient"
    assert straddling(dataset.groups, dataset.splits) == []
    assert len(set(dataset.groups.tolist())) == 10


# --- layouts of publishers ---


def kaggle_pneumonia() -> list[str]:
    normal = ["IM-0001-0001.jpeg", "NORMAL2-IM-0001-0001.jpeg", "IM-0002-0001-0002.jpeg"]
    ill = ["person1_virus_6.jpeg", "person1_bacteria_1.jpeg", "person12_bacteria_3.jpeg"]
    files = [*(f"NORMAL/{file}" for file in normal), *(f"PNEUMONIA/{file}" for file in ill)]
    return [f"{split}/{file}" for split in SPLITS for file in files]


@pytest.mark.parametrize("place", ["pneumonia", "chest_xray", "chest_xray/chest_xray"])
def test_pneumonia_in_each_place_has_patients_by_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    put(tmp_path / place, *kaggle_pneumonia())
    put(tmp_path / "chest_xray/__MACOSX", "train/NORMAL/._IM-0001-0001.jpeg")
    monkeypatch.setenv("FIRN_DATA", str(tmp_path))
    dataset = load_dataset("pneumonia")
    assert_sound(dataset)
    assert dataset.ids == sorted(kaggle_pneumonia())
    groups = group_of(dataset)
    assert groups["train/NORMAL/IM-0001-0001.jpeg"] == "train/IM-0001"
    assert groups["train/NORMAL/NORMAL2-IM-0001-0001.jpeg"] == "train/IM-0001"
    assert groups["val/NORMAL/IM-0002-0001-0002.jpeg"] == "val/IM-0002"
    assert groups["test/PNEUMONIA/person1_virus_6.jpeg"] == groups["test/PNEUMONIA/person1_bacteria_1.jpeg"]
    assert groups["test/PNEUMONIA/person12_bacteria_3.jpeg"] == "test/person12"


def test_copy_of_kaggles_folder_inside_itself_is_passed_over(tmp_path: Path) -> None:
    files = kaggle_pneumonia()
    put(tmp_path / "chest_xray", *files, *(f"chest_xray/{file}" for file in files), *many("__MACOSX/train", 2))
    assert load_dataset(str(tmp_path / "chest_xray")).ids == sorted(files)


def test_pneumonia_without_splits_is_drawn_by_patient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people = [f"PNEUMONIA/person{n}_virus_{m}.jpeg" for n in range(20) for m in range(3)]
    put(tmp_path / "pneumonia", *people, *(f"NORMAL/IM-{n:04d}-{m:04d}.jpeg" for n in range(20) for m in range(3)))
    monkeypatch.setenv("FIRN_DATA", str(tmp_path))
    dataset = load_dataset("pneumonia")
    assert group_of(dataset)["PNEUMONIA/person7_virus_2.jpeg"] == "person7"
    assert straddling(dataset.groups, dataset.splits) == []
    assert collections.Counter(dataset.splits.tolist()) == {"train": 96, "test": 24}
    assert dataset.split_by.startswith("Firn, 20% of each class drawn as test by patient")


@pytest.mark.parametrize("place", ["lung_colon_image_set/colon_image_sets", "colon_image_sets", "colon"])
def test_colon_as_published_warns_of_unknown_patches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    put(tmp_path / place, *many("colon_n", 10, ".jpeg"), *many("colon_aca", 10, ".jpeg"))
    put(tmp_path / "lung_colon_image_set/lung_image_sets", *many("lung_n", 3, ".jpeg"))
    monkeypatch.setenv("FIRN_DATA", str(tmp_path))
    dataset = load_dataset("colon")
    assert len(dataset) == 20
    assert dataset.grouped_by == ""
    assert "copies may lie on both sides" in dataset.note


def test_colon_patches_are_counted_anew_in_each_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = put(tmp_path / "colon", "train/colon_n/a.jpeg", "train/colon_aca/b.jpeg", "test/colon_n/c.jpeg")
    monkeypatch.setenv("FIRN_DATA", str(tmp_path))
    table = root / "files.csv"
    table.write_text("class,file,source_patch_cluster\ncolon_n,a.jpeg,7\ncolon_aca,b.jpeg,7\ncolon_n,c.jpeg,8\n")
    dataset = load_dataset("colon")
    assert group_of(dataset)["train/colon_n/a.jpeg"] == "colon_n/7"
    assert group_of(dataset)["train/colon_aca/b.jpeg"] == "colon_aca/7"
    table.write_text("class,file,source_patch_cluster\ncolon_n,a.jpeg,7\n")
    with pytest.raises(BadDataset, match="does not list colon_"):
        load_dataset("colon")
    table.write_text("class,file,patch\ncolon_n,a.jpeg,7\n")
    with pytest.raises(BadDataset, match="no column 'source_patch_cluster'"):
        load_dataset("colon")


def test_herlev_as_published_leaves_out_the_segmentations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [
        f"{name}/{149143370 + 10 * n + k}-14914337{n}-00{n}{end}.{suffix}"
        for k, name in enumerate(DATASETS["cervical"].classes)
        for n in range(5)
        for end, suffix in (("", "BMP"), ("-d", "bmp"))
    ]
    put(tmp_path / "smear2005/New database pictures", *cells)
    monkeypatch.setenv("FIRN_DATA", str(tmp_path))
    dataset = load_dataset("cervical")
    assert_sound(dataset)
    assert dataset.ids == sorted(cell for cell in cells if not cell.endswith("-d.bmp"))
    assert dataset.grouped_by == "acquisition group"
    assert group_of(dataset)["normal_superficiel/149143370-149143370-000.BMP"] == "149143370"
    binary = dataset.label_views["binary"]
    assert {name for name, merged in binary.items() if merged == "normal"} == set(dataset.classes[:3])


def test_sipakmed_takes_the_cropped_cells_by_slide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in DATASETS["sipakmed"].classes:
        slides = [f"{name}/{name}/{slide:03d}" for slide in range(1, 6)]
        put(tmp_path / "sipakmed", *(f"{slide}.bmp" for slide in slides))
        put(tmp_path / "sipakmed", *(re.sub(r"/(\d+)$", rf"/CROPPED/\1_0{k}.bmp", s) for s in slides for k in (1, 2)))
        put(tmp_path / "sipakmed", f"{name}/{name}/CROPPED/001_01.dat")
    monkeypatch.setenv("FIRN_DATA", str(tmp_path))
    dataset = load_dataset("sipakmed")
    assert_sound(dataset)
    assert len(dataset) == 5 * 5 * 2
    assert group_of(dataset)["im_Parabasal/im_Parabasal/CROPPED/003_02.bmp"] == "im_Parabasal/003"
    assert straddling(dataset.groups, dataset.splits) == []


# --- folders ---


def test_folder_with_splits_keeps_them_under_any_of_their_names(tmp_path: Path) -> None:
    put(tmp_path, *(f"{split}/{label}/1.png" for split in ("Train", "valid", "test") for label in ("b", "a")))
    dataset = load_dataset(str(tmp_path))
    assert_sound(dataset)
    assert split_of(dataset)["valid/a/1.png"] == "val"
    assert label_of(dataset)["Train/b/1.png"] == "b"
    assert (dataset.split_by, dataset.grouped_by) == ("publisher", "")
    assert dataset.groups.tolist() == dataset.ids


def test_folder_without_splits_has_a_fifth_of_each_class_drawn(tmp_path: Path) -> None:
    put(tmp_path, *many("ill", 50), *many("normal", 20))
    dataset = load_dataset(str(tmp_path))
    assert_sound(dataset)
    assert dataset.classes == ("normal", "ill")
    test = dataset.labels[dataset.splits == "test"]
    assert np.bincount(test).tolist() == [4, 10]
    assert split_of(load_dataset(str(tmp_path))) == split_of(dataset)
    assert split_of(load_dataset(str(tmp_path), seed=1)) != split_of(dataset)
    assert dataset.split_by == "Firn, 20% of each class drawn as test by image, seed 0"


def test_another_share_is_drawn_as_test_where_no_split_came(tmp_path: Path) -> None:
    put(tmp_path / "bare", *many("ill", 50), *many("normal", 20))
    put(tmp_path / "split", *(f"{place}/{i}.png" for place in ("train/a", "train/b", "test/a", "test/b") for i in "12"))
    asked = DatasetOptions(str(tmp_path / "bare"), test=0.4)
    dataset = asked.load()
    assert np.bincount(dataset.labels[dataset.splits == "test"]).tolist() == [8, 20]
    assert dataset.split_by == "Firn, 40% of each class drawn as test by image, seed 0"
    assert make_command("extract", asked).endswith(" TEST=0.4")
    assert DatasetOptions(asked.dataset, **asked.more) == asked
    with pytest.raises(BadDataset, match=r"TEST=0.4 is for a set whose test split Firn draws, and .*/split came with"):
        load_dataset(str(tmp_path / "split"), test=0.4)


def test_val_is_the_test_where_there_is_none(tmp_path: Path) -> None:
    put(tmp_path, *(f"{split}/{label}/1.png" for split in ("train", "validation") for label in "ab"))
    dataset = load_dataset(str(tmp_path))
    assert set(dataset.splits.tolist()) == {"train", "test"}
    assert "val is taken as test" in dataset.split_by


def test_train_alone_has_a_test_drawn_from_it(tmp_path: Path) -> None:
    put(tmp_path, *many("train/a", 10), *many("train/b", 10))
    dataset = load_dataset(str(tmp_path))
    assert collections.Counter(dataset.splits.tolist()) == {"train": 16, "test": 4}
    assert dataset.split_by.startswith("Firn")


@pytest.mark.parametrize("splits", [("test",), ("val", "test")])
def test_test_without_train_is_refused(tmp_path: Path, splits: tuple[str, ...]) -> None:
    put(tmp_path, *(f"{split}/{label}/1.png" for split in splits for label in "ab"))
    with pytest.raises(BadDataset, match=r"holds (test|test and val) and no train: nothing to learn from"):
        load_dataset(str(tmp_path))


def test_class_that_train_lacks_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "train/b/1.png", "test/c/1.png")
    with pytest.raises(BadDataset, match="class 'c' has no image in train"):
        load_dataset(str(tmp_path))


def test_class_with_one_image_cannot_be_drawn_from(tmp_path: Path) -> None:
    put(tmp_path, *many("a", 10), "b/1.png")
    with pytest.raises(BadDataset, match="class 'b' lands on one side of a test split drawn by image"):
        load_dataset(str(tmp_path))


def test_images_of_every_kind_and_depth_are_listed_and_nothing_else(tmp_path: Path) -> None:
    images = [f"a/deep/er/x{suffix}" for suffix in IMAGES] + ["a/UPPER.JPG", "b/ünï côdé.png", "b/1.png"]
    noise = ["a/Thumbs.db", "a/.hidden.png", "a/notes.txt", "a/x.npy", "b/.git/y.png", "b/__MACOSX/z.png", "files.csv"]
    put(tmp_path, *images, *noise)
    assert load_dataset(str(tmp_path)).ids == sorted(images)


def test_empty_class_folder_is_named(tmp_path: Path) -> None:
    put(tmp_path, *many("a", 3), *many("b", 3), "c/readme.txt")
    with pytest.raises(BadDataset, match=rf"{re.escape(str(tmp_path / 'c'))} holds no image"):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize(
    ("paths", "fault"),
    [
        (["only/1.png"], r"one class folder only \(only"),
        (["chest_xray/train/a/1.png", "chest_xray/train/b/1.png"], r"chest_xray is no class but a data set"),
        (["1.png", "2.png"], "no class folder"),
        (["readme.txt"], "no class folder"),
    ],
)
def test_folder_that_is_no_data_set_is_refused(tmp_path: Path, paths: list[str], fault: str) -> None:
    with pytest.raises(BadDataset, match=fault):
        load_dataset(str(put(tmp_path, *paths)))


def test_link_out_of_the_folder_is_refused_and_one_inside_is_a_image(tmp_path: Path) -> None:
    put(tmp_path, "secret.png", *(f"set/{image}" for image in many("a", 3) + many("b", 3)))
    root = tmp_path / "set"
    (root / "a/link.png").symlink_to(root / "b/000.png")
    dataset = load_dataset(str(root))
    assert dataset.source.read("a/link.png") == dataset.source.read("b/000.png")
    (root / "a/out.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(BadDataset, match=r"out\.png is a link that leads out"):
        load_dataset(str(root))


@pytest.mark.parametrize("place", ["c", "a/c"])
def test_link_to_a_folder_is_refused(tmp_path: Path, place: str) -> None:
    put(tmp_path, *many("a", 3), *many("b", 3))
    (tmp_path / place).symlink_to(tmp_path / "a", target_is_directory=True)
    with pytest.raises(BadDataset, match="is a link to"):
        load_dataset(str(tmp_path))


def test_root_may_itself_be_a_link(tmp_path: Path) -> None:
    put(tmp_path / "disk", *many("a", 3), *many("b", 3))
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    assert load_dataset(str(tmp_path / "link")).ids == load_dataset(str(tmp_path / "disk")).ids


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are always Unicode")
def test_file_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    put(tmp_path, *many("a", 3), *many("b", 3))
    Path(os.fsdecode(os.fsencode(tmp_path / "a") + b"/\xff.png")).write_bytes(b"x")
    with pytest.raises(BadDataset, match="UTF-8"):
        load_dataset(str(tmp_path))


def test_wanted_classes_are_found_and_others_passed_over(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "train/other/1.png", "test/b/1.png")
    assert [folder.path for folder in class_folders(tmp_path, ("a", "b")).folders] == ["test/b", "train/a"]


# --- stamps and reading ---


def test_stamps_of_the_listing_are_reused_and_those_of_a_part_are_fresh(tmp_path: Path) -> None:
    put(tmp_path, *many("a", 3), *many("b", 3))
    dataset = load_dataset(str(tmp_path))
    found = (tmp_path / "b/001.png").stat()
    (tmp_path / "b/001.png").write_bytes(b"changed and longer")
    row = dataset.ids.index("b/001.png")
    listed = dataset.source.stamps(dataset.ids)
    assert (listed.size[row], listed.mtime[row], listed.ctime[row]) == (9, found.st_mtime_ns, found.st_ctime_ns)
    assert dataset.source.stamps(["b/001.png"]).size.tolist() == [18]
    assert load_dataset(str(tmp_path)).source.stamps(dataset.ids).size[row] == 18


def test_every_stamp_belongs_to_its_image(tmp_path: Path) -> None:
    paths = many("b", 30) + many("a", 30) + ["a.b/1.png", "a.b/2.png", "a/1.png"]
    put(tmp_path, *paths)
    for n, path in enumerate(paths):
        os.utime(tmp_path / path, ns=(n, 10**18 + n))
    dataset = load_dataset(str(tmp_path))
    listed, fresh = dataset.source.stamps(dataset.ids), FileSource(tmp_path).stamps(dataset.ids)
    for column, expected in zip(listed, fresh, strict=True):
        np.testing.assert_array_equal(column, expected)
    assert len(set(listed.mtime.tolist())) == len(paths)


def test_file_gone_since_listing_is_named(tmp_path: Path) -> None:
    put(tmp_path, *many("a", 3), *many("b", 3))
    dataset = load_dataset(str(tmp_path))
    (tmp_path / "a/000.png").unlink()
    with pytest.raises(BadImage, match=r"a/000\.png"):
        dataset.source.read("a/000.png")
    with pytest.raises(BadDataset, match=r"a/000\.png is gone"):
        dataset.source.stamps(["a/000.png"])


# --- names ---


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["zebra", "ant"], ("ant", "zebra")),
        (["PNEUMONIA", "NORMAL"], ("NORMAL", "PNEUMONIA")),
        (["abnormal", "normal"], ("normal", "abnormal")),
        (["non_normal", "normal"], ("normal", "non_normal")),
        (["ABNORMAL", "other"], ("ABNORMAL", "other")),
        (["Effusion", "No Finding"], ("No Finding", "Effusion")),
        (["covid", "healthy-lung"], ("healthy-lung", "covid")),
        (["case", "control"], ("control", "case")),
        (["uncontrolled", "asthma"], ("asthma", "uncontrolled")),
        (["1", "0"], ("0", "1")),
        (["10", "9", "2"], ("2", "9", "10")),
        (["zoster", "normal", "acne"], ("acne", "normal", "zoster")),
    ],
)
def test_negative_class_comes_first_of_two(names: list[str], order: tuple[str, ...]) -> None:
    assert class_order(names, "here") == order


def test_name_of_a_path_is_a_safe_folder_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = put(tmp_path / "My Scans (v1.0)", *many("a", 5), *many("b", 5))
    name = load_dataset(str(root)).name
    assert re.fullmatch(r"my-scans--v1\.0-[0-9a-f]{6}", name)
    monkeypatch.chdir(root)
    assert load_dataset(".").name == name


def test_data_sets_of_two_places_never_share_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roots = [put(tmp_path / where, *many("a", 5), *many("b", 5)) for where in ("A/images", "B/images", "肺炎", "结肠")]
    names = [load_dataset(str(root)).name for root in roots]
    assert len(set(names)) == 4
    assert [name[:-7] for name in names] == ["images", "images", "肺炎", "结肠"]
    (tmp_path / "link").symlink_to(roots[0])
    assert load_dataset(str(tmp_path / "link")).name == names[0]
    here, there = (name_of_path(tmp_path / "list.csv", root) for root in ("", str(tmp_path / "B")))
    assert here[:5] == there[:5] == "list-"
    assert here != there


# --- splits ---


def patients(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and groups of `count` patients with one to nine images, some with images of two classes."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 10, count)
    groups = np.repeat([f"patient{n}" for n in range(count)], sizes)
    labels = np.repeat(rng.choice(3, count, p=[0.6, 0.3, 0.1]), sizes)
    mixed = rng.random(len(labels)) < 0.05
    return np.where(mixed, 0, labels), groups


@pytest.mark.parametrize("seed", range(5))
def test_split_keeps_groups_whole_and_classes_balanced(seed: int) -> None:
    labels, groups = patients(400, seed)
    test = split_by_group(labels, groups, test=0.2, seed=seed)
    assert test.dtype == bool
    assert straddling(groups, np.where(test, "test", "train")) == []
    shares = np.bincount(labels[test]) / np.bincount(labels)
    assert np.abs(shares - 0.2).max() < 0.05


def test_split_does_not_depend_on_the_order_of_the_rows_but_on_the_seed() -> None:
    labels, groups = patients(100, 0)
    test = split_by_group(labels, groups, test=0.2, seed=0)
    order = np.random.default_rng(1).permutation(len(labels))
    np.testing.assert_array_equal(split_by_group(labels[order], groups[order], test=0.2, seed=0), test[order])
    assert (split_by_group(labels, groups, test=0.2, seed=1) != test).any()


def test_one_huge_group_stays_in_train() -> None:
    labels = np.zeros(1000, np.int64)
    groups = np.array(["huge"] * 900 + [f"g{n}" for n in range(100)])
    for seed in range(10):
        test = split_by_group(labels, groups, test=0.2, seed=seed)
        assert not test[:900].any()
        assert test.sum() == 100


def test_two_groups_of_a_class_are_one_on_each_side() -> None:
    labels, groups = np.array([0, 0, 0, 1, 1, 1]), np.array(["a", "a", "b", "c", "d", "d"])
    assert split_by_group(labels, groups, test=0.2, seed=0).tolist() == [False, False, True, True, False, False]


def test_straddling_names_the_groups_in_more_than_one_split() -> None:
    assert straddling(np.array(["b", "a", "b", "c", "a"]), np.array(["train", "val", "test", "val", "val"])) == ["b"]
    assert straddling(np.array([], str), np.array([], str)) == []


# --- manifests ---


def manifest(root: Path, text: str | bytes, images: Iterable[str] = ()) -> Path:
    put(root, *images)
    path = root / "list.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


FOUR = ["x/1.dcm", "x/2.dcm", "3.png", "a, b.png"]
LINES = 'x/1.dcm,ill,train,p1\n./x//2.dcm,normal,TEST,p2\n3.png,normal,train,\n"a, b.png",ill,test,p1\n'


@pytest.mark.parametrize(
    "encode", [str.encode, lambda text: text.replace("\n", "\r\n").encode("utf-8-sig")], ids=["plain", "bom-crlf"]
)
def test_manifest_gives_label_split_and_group(tmp_path: Path, encode: Callable[[str], bytes]) -> None:
    dataset = load_dataset(str(manifest(tmp_path, encode(f"path,label,split,group\n{LINES}"), FOUR)))
    assert_sound(dataset)
    assert dataset.ids == sorted(FOUR)
    assert label_of(dataset) == {"x/1.dcm": "ill", "x/2.dcm": "normal", "3.png": "normal", "a, b.png": "ill"}
    assert split_of(dataset) == {"x/1.dcm": "train", "x/2.dcm": "test", "3.png": "train", "a, b.png": "test"}
    assert group_of(dataset) == {"x/1.dcm": "p1", "x/2.dcm": "p2", "3.png": "3.png", "a, b.png": "p1"}
    assert dataset.classes == ("normal", "ill")
    assert dataset.split_by == "publisher; groups (group) in more than one split: 1"
    assert dataset.source.read("a, b.png") == b"a, b.png"


def test_manifest_stamps_belong_to_their_images(tmp_path: Path) -> None:
    dataset = load_dataset(str(manifest(tmp_path, f"path,label,split,group\n{LINES}", FOUR)))
    assert dataset.source.stamps(dataset.ids).size.tolist() == [len(image) for image in dataset.ids]


def test_manifest_without_split_is_drawn_by_group(tmp_path: Path) -> None:
    images = [f"{n}-{k}.png" for n in range(40) for k in range(3)]
    lines = [f"{image},{'ill' if int(image.split('-')[0]) % 2 else 'normal'},{image[:-6]}" for image in images]
    dataset = load_dataset(str(manifest(tmp_path, "\n".join(["Path, Label ,Group", *lines, "", ""]), images)))
    assert collections.Counter(dataset.splits.tolist()) == {"train": 96, "test": 24}
    assert straddling(dataset.groups, dataset.splits) == []
    assert dataset.grouped_by == "group"


def test_folder_with_a_manifest_inside_is_read_by_it(tmp_path: Path) -> None:
    root = tmp_path / "Scans"
    manifest(root, f"path,label,split,group\n{LINES}", FOUR)
    put(root, "other.csv", ".list.csv")
    dataset = load_dataset(str(root))
    assert (dataset.name[:6], dataset.ids) == ("scans-", sorted(FOUR))
    (root / "again.csv").write_text("path,label\n")
    with pytest.raises(BadDataset, match=r"several manifests \(again\.csv, list\.csv\)"):
        load_dataset(str(root))


def test_absolute_path_inside_the_folder_and_backslashes_are_accepted(tmp_path: Path) -> None:
    text = f"path,label,split\n{tmp_path}/x/1.dcm,a,train\nx\\2.dcm,b,train\n3.png,a,test\n"
    assert load_dataset(str(manifest(tmp_path, text, FOUR))).ids == ["3.png", "x/1.dcm", "x/2.dcm"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "line 1: no column 'path'"),
        ("where,label\n", "line 1: no column 'path' in 'where,label'"),
        ("path,label,Label\n", "line 1: column 'label' is named twice"),
        ("path,label\nx/1.dcm,a\nx/2.dcm\n", "line 3: 1 cells for the 2 columns"),
        ("path,label\na, b.png,a\n", "line 2: 3 cells for the 2 columns"),
        ("path,label\nx/1.dcm, \n", r"names 0 classes \(\); .*left out 1: rows without a label \(x/1.dcm\)"),
        ("path,label\n,a\n", "line 2: the path '' is not inside"),
        ("path,label\nx/1.dcm,a\n\nx/../x/1.dcm,b\n", "line 4: x/1.dcm is on an earlier line"),
        ("path,label\nx/9.dcm,a\n", "line 2: x/9.dcm is not in"),
        ("path,label\nx,a\n", "line 2: x is no file"),
        ("path,label\n../secret.png,a\n", "line 2: the path '../secret.png' is not inside"),
        ("path,label\n/etc/passwd,a\n", "line 2: the path '/etc/passwd' is not inside"),
        ("path,label\nx/link.png,a\n", "line 2: .*link that leads out"),
        ("path,label\nout/secret.png,a\n", "line 2: out/secret.png leads out"),
        ("path,label,split\nx/1.dcm,a,tset\n", "line 2: unknown split 'tset'; expected train, val or test"),
        ("path,label,split\nx/1.dcm,a,\n", "line 2: unknown split ''"),
        ('path,label\n"x/1.dcm"b,a\n', "line 2: .*expected"),
        ("path,label\nx/1.dcm,a\n", r"names 1 class \(a\)"),
        ("path,label\n", r"names 0 classes"),
        ("path,label\nx/1.dcm,größe\n".encode("latin-1"), "no UTF-8 text"),
    ],
)
def test_fault_in_a_manifest_names_the_csv_and_the_line(tmp_path: Path, text: str | bytes, fault: str) -> None:
    put(tmp_path, "secret.png")
    root = put(tmp_path / "set", *FOUR)
    (root / "x/link.png").symlink_to(tmp_path / "secret.png")
    (root / "out").symlink_to(tmp_path)
    with pytest.raises(BadDataset, match=rf"list\.csv.*{fault}") as caught:
        load_dataset(str(manifest(root, text)))
    assert "\n" not in str(caught.value)


# --- MedMNIST archives ---


def arrays(n: int = 6, shape: tuple[int, ...] = (4, 4)) -> dict[str, np.ndarray]:
    """Return the arrays of a small MedMNIST archive, every image another one."""
    made: dict[str, np.ndarray] = {}
    for k, split in enumerate(SPLITS):
        images = np.arange(n * int(np.prod(shape)), dtype=np.uint8).reshape(n, *shape) + k
        made |= {f"{split}_images": images, f"{split}_labels": (np.arange(n) % 2).astype(np.uint8)[:, None]}
    return made


def archive(path: Path, made: dict[str, np.ndarray]) -> Path:
    np.savez_compressed(path, allow_pickle=True, **made)
    return path


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 3)])
def test_archive_rows_come_back_as_npy(tmp_path: Path, shape: tuple[int, ...]) -> None:
    made = arrays(shape=shape)
    dataset = load_dataset(str(archive(tmp_path / "OrganMNIST.npz", made)))
    assert_sound(dataset)
    assert (dataset.name[:11], dataset.classes, len(dataset)) == ("organmnist-", ("0", "1"), 18)
    assert dataset.split_by == "publisher"
    assert split_of(dataset)["val/000003"] == "val"
    assert label_of(dataset)["val/000003"] == "1"
    row = np.load(io.BytesIO(dataset.source.read("val/000003")), allow_pickle=False)
    np.testing.assert_array_equal(row, made["val_images"][3])


def test_archive_is_unpacked_once_and_again_in_another_process(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.npz", arrays())
    source = load_dataset(str(path)).source
    bytes_of_row = source.read("train/000002")
    copy = pickle.loads(pickle.dumps(source))
    assert copy.read("train/000002") == bytes_of_row
    path.unlink()
    assert source.read("train/000005") != bytes_of_row
    with pytest.raises(BadDataset, match=r"x\.npz cannot be read"):
        source.read("test/000000")


def test_labels_of_an_archive_are_sorted_as_numbers(tmp_path: Path) -> None:
    made = arrays()
    for split in SPLITS:
        made[f"{split}_labels"] = np.array([[10], [9], [2], [2], [9], [10]])
    dataset = load_dataset(str(archive(tmp_path / "x.npz", made)))
    assert dataset.classes == ("2", "9", "10")
    assert label_of(dataset)["test/000000"] == "10"


def test_pneumoniamnist_has_named_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive(tmp_path / "pneumoniamnist_224.npz", arrays())
    monkeypatch.setenv("FIRN_DATA", str(tmp_path))
    dataset = load_dataset("pneumoniamnist")
    assert (dataset.name, dataset.classes) == ("pneumoniamnist", ("normal", "pneumonia"))
    assert label_of(dataset)["test/000001"] == "pneumonia"
    archive(tmp_path / "pneumoniamnist_224.npz", arrays() | {"val_labels": np.full((6, 1), 2)})
    with pytest.raises(BadDataset, match=r"labels \[0, 1, 2\]; expected two or more of \[0, 1\]"):
        load_dataset("pneumoniamnist")


def test_chestmnist_is_downloaded_and_has_named_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small archive of the published layout comes from a server on this machine, under a checksum of its own."""
    rng, made, names = np.random.default_rng(0), arrays(40), DATASETS["chestmnist"].classes
    for split in SPLITS:
        made[f"{split}_labels"] = (rng.random((40, len(names))) < 0.4).astype(np.uint8)
    (tmp_path / "there").mkdir()
    content = archive(tmp_path / "there/chestmnist.npz", made).read_bytes()
    monkeypatch.setenv("FIRN_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("pooch.core.time", SimpleNamespace(sleep=lambda seconds: None))
    handler = partial(QuietHandler, directory=str(tmp_path / "there"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        url = f"http://127.0.0.1:{server.server_port}/chestmnist.npz"
        for digest, fault in (("0" * 32, "cannot download"), (hashlib.md5(content).hexdigest(), "")):
            row = replace(DATASETS["chestmnist"], prepare=published(url, f"md5:{digest}"))
            monkeypatch.setitem(DATASETS, "chestmnist", row)
            with pytest.raises(BadDownload, match=fault) if fault else nullcontext():
                dataset = load_dataset("chestmnist")
        server.shutdown()
    assert (dataset.findings, len(dataset), dataset.split_by) == (names, 120, "publisher")
    assert "not marked" in dataset.note
    matrix = label_matrix(dataset.classes)[dataset.labels]
    np.testing.assert_array_equal(matrix[dataset.splits == "test"], made["test_labels"])
    assert (tmp_path / "data/chestmnist.npz").read_bytes() == content


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"train_labels": np.zeros((6, 14), np.uint8)}, "labels of 1 and 14 columns"),
        ({"train_labels": np.zeros((6, 1))}, "expected whole numbers"),
        ({"train_labels": np.zeros((5, 1), np.uint8)}, "6 rows of train_images but 5"),
        ({"test_images": np.zeros((6, 4, 4, 4), np.uint8)}, r"expected \(n, h, w\)"),
        ({"test_images": np.array([None] * 6)}, "expected numbers"),
        ({f"{split}_labels": np.zeros((6, 1), np.uint8) for split in SPLITS}, r"labels \[0\]; expected two"),
    ],
)
def test_archive_of_another_shape_is_refused(tmp_path: Path, change: dict[str, np.ndarray], fault: str) -> None:
    with pytest.raises(BadDataset, match=fault):
        load_dataset(str(archive(tmp_path / "x.npz", arrays() | change)))


def test_archive_that_lacks_arrays_or_is_broken_is_refused(tmp_path: Path) -> None:
    made = arrays()
    del made["val_labels"]
    path = archive(tmp_path / "x.npz", made)
    with pytest.raises(BadDataset, match=r"lacks val_labels\.npy"):
        load_dataset(str(path))
    path.write_bytes(archive(path, arrays()).read_bytes()[:-100])
    with pytest.raises(BadDataset, match=r"cannot be read as a \.npz"):
        load_dataset(str(path))


# --- the fast path ---


def test_data_sets_are_loaded_without_heavy_imports(tmp_path: Path) -> None:
    put(tmp_path, *many("a", 5), *many("b", 5))
    heavy = "{'torch', 'h5py', 'cv2', 'pydicom', 'sklearn', 'pooch', 'scipy', 'PIL'}"
    code = f"import sys; from features.datasets import load_dataset; load_dataset({str(tmp_path)!r}); "
    check = f"found = {heavy} & set(sys.modules); sys.exit(', '.join(found) or 0)"
    done = subprocess.run([sys.executable, "-c", code + check], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
