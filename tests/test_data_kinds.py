"""Kinds of data as people have them, of which an earlier version made something else in silence (docs/data.md)."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from test_datasets import group_of, label_of, many, put, split_of
from test_images import dicom

from features.datasets import Dataset, load_dataset
from features.datasets.dataset import class_order, is_guess
from features.datasets.file_facts import equal_bytes
from features.datasets.findings import label_matrix
from features.datasets.image_list import find_images
from features.datasets.listing import MASKS, THUMBNAILS
from features.datasets.splits import split_names, straddling
from features.errors import BadDataset, UnknownName

TWO = (*many("normal", 10), *many("sick", 10))


def load(path: Path, **options: str) -> Dataset:
    return load_dataset(str(path), **options)


def reasons(dataset: Dataset) -> dict[str, int]:
    return {record.reason: record.count for record in dataset.left_out}


def table(root: Path, lines: list[str], *, name: str = "list.csv", encoding: str = "utf-8") -> Path:
    """Write a table below a header, and the images that its first column names."""
    path = put(root) / name
    root.mkdir(parents=True, exist_ok=True)
    path.write_bytes("\n".join(lines).encode(encoding))
    return path


def rows(count: int = 10) -> list[tuple[str, str]]:
    """Return path and label of `count` images of two classes each."""
    return [(f"img/{label}{n}.png", label) for label in ("normal", "sick") for n in range(count)]


def with_images(root: Path, lines: list[str], **options: str) -> Path:
    put(root, *(image for image, _ in rows()))
    return table(root, lines, **options)


# --- what is an image ---


@pytest.mark.parametrize(
    "folder",
    ["@eaDir/000.png", "#recycle", "@Recycle", ".AppleDouble", "__MACOSX", "$RECYCLE.BIN", ".thumbnails", "~snapshot"],
)
def test_folders_of_a_nas_or_system_are_left_out_and_counted(tmp_path: Path, folder: str) -> None:
    put(tmp_path, *TWO, f"sick/{folder}/thumb.jpg", "sick/._000.png", "sick/Thumbs.db", "sick/.DS_Store")
    dataset = load(tmp_path)
    assert dataset.ids == sorted(TWO)
    assert reasons(dataset) == {"folders and files of a NAS or an operating system": 2}


@pytest.mark.parametrize(
    "mask",
    [
        "sick/000_mask.png",
        "sick/000_mask_1.png",
        "sick/000-Segmentation.tif",
        "sick/mask_000.png",
        "sick/000_lung_mask.png",
        "sick/000-d.bmp",
        "sick/000 GroundTruth.png",
        "sick/000_superpixels.png",
    ],
)
def test_masks_beside_their_image_are_left_out(tmp_path: Path, mask: str) -> None:
    dataset = load(put(tmp_path, *TWO, mask))
    assert dataset.ids == sorted(TWO)
    assert reasons(dataset) == {MASKS: 1}
    assert mask in str(dataset.left_out[0])


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("masks", MASKS),
        ("Annotations", MASKS),
        ("lung masks", MASKS),
        ("ground_truth", MASKS),
        ("thumbs", THUMBNAILS),
    ],
)
def test_folders_of_masks_are_left_out(tmp_path: Path, folder: str, reason: str) -> None:
    images = [*many("normal/images", 10), *many("sick/images", 10)]
    put(tmp_path, *images, *many(f"normal/{folder}", 10), *many(f"sick/{folder}/deep", 9), f"sick/{folder}/extra.png")
    dataset = load(tmp_path)
    assert dataset.ids == sorted(images)
    assert reasons(dataset) == {reason: 20}


@pytest.mark.parametrize("folder", ["results", "Output", "heatmaps", "grad-cam", "predictions_2", "unlabeled"])
@pytest.mark.parametrize("above", ["", "train/"])
def test_folders_that_are_hardly_classes_are_asked_about(tmp_path: Path, folder: str, above: str) -> None:
    put(tmp_path, *(f"{above}{image}" for image in TWO), *many(f"{above}{folder}", 10))
    said = rf"the folder {folder} beside normal, which is hardly a class: take it out of there; .* TARGET=folder$"
    with pytest.raises(BadDataset, match=said):
        load(tmp_path)
    assert set(load(tmp_path, target="folder").classes) == {"normal", "sick", folder}


def test_names_that_only_look_like_masks_stay(tmp_path: Path) -> None:
    """Without an image of that name beside them they may be the images; and a class may be called after masks."""
    odd = [*many("with_mask", 9), "with_mask/unmasked_mask.png", *many("without_mask", 9), "without_mask/labels/x.png"]
    dataset = load(put(tmp_path, *odd))
    assert dataset.ids == sorted(odd)
    assert dataset.classes == ("without_mask", "with_mask")


def test_files_are_known_by_suffix_else_by_their_first_bytes(tmp_path: Path) -> None:
    put(
        tmp_path,
        *TWO,
        "sick/a.jfif",
        "sick/b.JPE",
        "sick/c.gif",
        "sick/notes.txt",
        "sick/BM_is_no_bitmap",
        "sick/d.nii.gz",
    )
    scan = dicom(np.zeros((4, 4), np.uint8))
    (tmp_path / "sick/IM000001").write_bytes(scan)
    (tmp_path / "sick/1.2.826.0.1").write_bytes(scan + b"\0")
    (tmp_path / "sick/DICOMDIR").write_bytes(scan)
    dataset = load(tmp_path)
    more = {"sick/a.jfif", "sick/b.JPE", "sick/c.gif", "sick/IM000001", "sick/1.2.826.0.1"}
    assert set(dataset.ids) == {*TWO, *more}
    assert reasons(dataset) == {"images in a format that Firn does not read": 1, "files that are no images": 3}


def test_predict_lists_the_same_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    put(tmp_path, *TWO, "sick/000_mask.png", "sick/x.nii", "@eaDir/000.png/thumb.jpg")
    found = find_images(str(tmp_path))
    assert [one.name for one in found.images] == sorted(TWO)
    assert sum(record.count for record in found.left_out) == 3
    with pytest.raises(BadDataset, match=r"no images at .*left out 1: images in a format"):
        find_images(str(put(tmp_path / "only", "x.nii")))


@pytest.mark.parametrize("beside", ["", "list.csv"])
def test_what_firn_wrote_into_the_folder_is_no_part_of_it(
    tmp_path: Path, beside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, *TWO, *many("artifacts/doctor/set", 10), *many("sick/artifacts", 2))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FIRN_ARTIFACTS", "artifacts")
    if beside:
        lines = [f"{i},{'ab'[n % 2]}" for n, i in enumerate((*TWO, *many("sick/artifacts", 2)))]
        table(tmp_path, ["path,label", *lines], name=beside)
    dataset = load(tmp_path / beside)
    assert dataset.ids == sorted((*TWO, *many("sick/artifacts", 2)))
    assert len(dataset.classes) == 2 and not dataset.left_out


def test_splits_may_lie_inside_the_class_folders(tmp_path: Path) -> None:
    put(tmp_path, *many("normal/train", 6), *many("normal/test", 3), *many("sick/Train", 6), *many("sick/test", 3))
    dataset = load(tmp_path)
    assert dataset.classes == ("normal", "sick")
    assert split_of(dataset) == {i: "test" if "/test/" in i else "train" for i in dataset.ids}
    assert label_of(dataset) == {i: i.partition("/")[0] for i in dataset.ids}


@pytest.mark.parametrize(
    ("folders", "fault"),
    [
        (("normal", "sick", "test"), "holds the folder test beside normal: a split, or a class"),
        (("train1", "train2", "val"), "holds the folder val beside train1: a split, or a class"),
        (("Site_A/normal", "Site_A/sick", "Site_B/normal", "Site_B/sick"), "each hold normal and sick: sites"),
        (
            ("8863/0", "8863/1", "8864/0", "8864/1"),
            r"folders \(8863, \.\.\.\) that each hold 0 and 1: sites or patients",
        ),
    ],
)
def test_folders_beside_or_above_the_classes_are_asked_about(
    tmp_path: Path, folders: tuple[str, ...], fault: str
) -> None:
    put(tmp_path, *(image for folder in folders for image in many(folder, 5)))
    with pytest.raises(BadDataset, match=rf"{fault}.*; give a table .*make doctor DATASET=.* TARGET=folder"):
        load(tmp_path)
    assert set(load(tmp_path, target="folder").classes) == {folder.partition("/")[0] for folder in folders}


@pytest.mark.parametrize("inside", ["CC MLO", "left right", "40X 100X", "1 2 3"])
def test_folders_inside_the_classes_are_part_of_them(tmp_path: Path, inside: str) -> None:
    put(tmp_path, *(i for c in ("a", "sick") for folder in inside.split() for i in many(f"{c}/{folder}", 5)))
    assert load(tmp_path).classes == ("a", "sick")


@pytest.mark.parametrize("name", ["{c}/p{n:03}/1.png", "train/{c}/Patient {n}/1.png", "{c}/subject_{n}_left.png"])
def test_patients_are_known_by_the_names_of_folders_and_files(tmp_path: Path, name: str) -> None:
    put(tmp_path, *(name.format(c=c, n=n).replace("1.png", f"{k}.png") for c in "ab" for n in range(6) for k in "12"))
    dataset = load(tmp_path)
    assert (dataset.grouped_by, len(set(dataset.groups.tolist()))) == ("patient", 6)
    assert not straddling(dataset.groups, dataset.splits)


def test_images_beside_the_class_folders_are_counted(tmp_path: Path) -> None:
    put(tmp_path, *TWO, "loose.png")
    assert reasons(load(tmp_path)) == {"images beside the class folders": 1}
    put(tmp_path / "other", *(f"train/{image}" for image in TWO), *many("pred", 3), "train/loose.png")
    assert reasons(load(tmp_path / "other")) == {
        "images beside the class folders": 1,
        "folders beside train and test": 1,
    }


# --- what is a class, what is a split ---


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["training_set", "test_data"], ["train", "test"]),
        (["Train_set", "Val_set"], ["train", "val"]),
        (["TrainImages", "ValidationImages", "testset"], ["train", "val", "test"]),
        (["ISIC_Training", "ISIC_Test"], ["train", "test"]),
        (["dev", "holdout", "trainset"], ["val", "test", "train"]),
        (["pre_test", "post_test"], []),
        (["tested", "untested"], []),
    ],
)
def test_names_of_splits(names: list[str], splits: list[str]) -> None:
    assert list(split_names(names).values()) == splits


@pytest.mark.parametrize("names", [("images_001", "images_002"), ("x_part_1", "x_part_2"), ("patient1", "patient2")])
def test_folders_that_differ_by_a_number_only_are_asked_about(tmp_path: Path, names: tuple[str, str]) -> None:
    put(tmp_path, *many(names[0], 10), *many(names[1], 10))
    with pytest.raises(BadDataset, match=rf"differ by a number only.*: make doctor DATASET={tmp_path} TARGET=folder$"):
        load(tmp_path)
    assert load(tmp_path, target="folder").classes == names


@pytest.mark.parametrize("names", [("grade_1", "grade_2"), ("0", "1"), ("BIRADS 3", "BIRADS 4"), ("1_a", "2_b")])
def test_numbers_that_are_classes_are_none_the_worse(tmp_path: Path, names: tuple[str, str]) -> None:
    assert load(put(tmp_path, *many(names[0], 10), *many(names[1], 10))).classes == names


def test_folders_of_images_and_masks_are_no_classes(tmp_path: Path) -> None:
    put(tmp_path, *many("images", 10), *many("masks", 10))
    with pytest.raises(BadDataset, match="images and masks, which are no classes"):
        load(tmp_path)


@pytest.mark.parametrize("names", [("Normal", "normal"), ("No Finding", "no_finding"), ("1", "01")])
def test_a_class_spelled_twice_is_named(tmp_path: Path, names: tuple[str, str]) -> None:
    put(
        tmp_path,
        *(
            f"{split}/{label}/1.png"
            for split, name in (("train", names[0]), ("test", names[1]))
            for label in (name, "sick")
        ),
    )
    with pytest.raises(BadDataset, match=f"{names[0]!r} and {names[1]!r}|{names[1]!r} and {names[0]!r}"):
        load(tmp_path)


def test_composed_and_decomposed_letters_are_one_class(tmp_path: Path) -> None:
    both = [("train", "NFC"), ("test", "NFD")]
    put(
        tmp_path,
        *(f"{s}/{unicodedata.normalize(f, 'lésion')}/{s}.png" for s, f in both),
        *(f"{s}/normal/{s}.png" for s, _ in both),
    )
    assert load(tmp_path).classes == ("normal", "lésion")


# --- tables ---


def test_a_table_beside_a_single_folder_is_used_however_it_was_saved(tmp_path: Path) -> None:
    pairs = rows()
    for n, (mark, encoding, name) in enumerate(
        [(";", "utf-8-sig", "a.csv"), ("\t", "utf-16", "b.csv"), ("\t", "utf-16-le", "c.tsv"), (",", "utf-8", "d.CSV")]
    ):
        root = tmp_path / str(n)
        with_images(
            root, [f"Image{mark}Diagnosis", *(f"{p}{mark}{label}" for p, label in pairs)], name=name, encoding=encoding
        )
        assert label_of(load(root)) == dict(pairs)
    root = tmp_path / "excel"
    with_images(root, ["sep=;", "path;label", *(f"{p};{label}" for p, label in pairs)])
    assert label_of(load(root)) == dict(pairs)


def test_a_table_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    put(tmp_path, *many("img", 10), "labels.xlsx")
    with pytest.raises(BadDataset, match=r"labels\.xlsx cannot be used: expected a CSV with path,label"):
        load(tmp_path)
    with pytest.raises(BadDataset, match="save its sheet as CSV UTF-8"):
        load(tmp_path / "labels.xlsx")


def test_a_table_beside_class_folders_agrees_or_is_asked_about(tmp_path: Path) -> None:
    put(tmp_path, *TWO)
    table(tmp_path, ["file,class", *(f"{image.split('/')[1]},{image.split('/')[0]}" for image in TWO)])
    assert reasons(load(tmp_path)) == {"tables beside the class folders": 1}
    table(tmp_path, ["file,class", "000.png,benign"])
    with pytest.raises(
        BadDataset, match=r"a table list\.csv of other labels.*make doctor DATASET=.*list\.csv; .*TARGET=folder"
    ):
        load(tmp_path)
    assert load(tmp_path, target="folder").classes == ("normal", "sick")


def test_missing_labels_leave_rows_out_and_missing_groups_stand_alone(tmp_path: Path) -> None:
    words = ["nan", "NA", "", "None", "?", "#REF!"]
    lines = [f"{p},{label},{words[n % 6] if n < 6 else f'p{n // 2}'}" for n, (p, label) in enumerate(rows())]
    lines = [
        *lines[:12],
        *(line.replace(",sick,", f",{words[n]},") for n, line in enumerate(lines[12:18])),
        *lines[18:],
    ]
    dataset = load(with_images(tmp_path, ["path,label,patient_id", *lines]))
    assert reasons(dataset) == {"rows without a label": 6}
    assert dataset.left_out[0].examples[1] == "img/sick3.png: NA"  # a grade may be called None, so the word is shown
    assert len(dataset) == 14
    assert (dataset.grouped_by, group_of(dataset)["img/normal0.png"]) == ("patient", "img/normal0.png")
    assert group_of(dataset)["img/normal8.png"] == group_of(dataset)["img/normal9.png"] == "p4"


@pytest.mark.parametrize(
    "twice",
    [
        ("normal", "Normal"),
        ("0", "0.0"),
        ("no finding", "No_Finding"),
        ("normal", "normal\u200b"),
        ("non-small", "non\u2013small"),
    ],
)
def test_a_label_spelled_twice_is_named(tmp_path: Path, twice: tuple[str, str]) -> None:
    lines = [f"{p},{twice[n % 2] if label == 'normal' else '1'}" for n, (p, label) in enumerate(rows())]
    words = re.escape(f"list.csv: {min(twice)!r} and {max(twice)!r} look like one class")
    with pytest.raises(BadDataset, match=words):
        load(with_images(tmp_path, ["path,label", *lines]))


def test_a_group_spelled_as_a_float_is_the_same_group(tmp_path: Path) -> None:
    lines = [f"{p},{label},{n // 2}{'.0' if n % 2 else ''}" for n, (p, label) in enumerate(rows())]
    groups = group_of(load(with_images(tmp_path, ["path,label,group", *lines])))
    assert groups["img/normal0.png"] == groups["img/normal1.png"] == "0"
    assert len(set(groups.values())) == 10


def test_a_group_that_a_spreadsheet_rounded_is_refused(tmp_path: Path) -> None:
    lines = [f"{p},{label},1.2345{n // 2}E+12" for n, (p, label) in enumerate(rows())]
    with pytest.raises(BadDataset, match=r"line 2: patient_id 1\.23450E\+12 was rounded by a spreadsheet"):
        load(with_images(tmp_path, ["path,label,Patient_ID", *lines]))


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("phase", ("Train", "valid")),
        ("Dataset_type", ("TRAIN", "TEST")),
        ("is_valid", ("False", "True")),
        ("is_train", ("1", "0")),
    ],
)
def test_a_column_that_names_splits_is_one_whatever_it_is_called(
    tmp_path: Path, column: str, words: tuple[str, str]
) -> None:
    lines = [f"{p},{label},{words[p[-5] in '89']}" for p, label in rows()]
    dataset = load(with_images(tmp_path, [f"path,label,{column}", *lines]))
    assert {i[-5] for i, split in split_of(dataset).items() if split == "test"} == {"8", "9"}
    assert (dataset.split_by.partition(",")[0], list(dataset.columns)) == ("publisher", [])
    twice = [f"{line},{'train' if n % 2 else 'test'}" for n, line in enumerate(lines)]
    with pytest.raises(BadDataset, match=rf"the columns {column.lower()} and mine all name splits; call the one"):
        load(with_images(tmp_path, [f"path,label,{column},mine", *twice]))


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("class,diagnosis", {"columns that could be the label as well as class, which is taken": 1}),
        ("label,label_name", {}),  # the same in words
        ("label,group,patient_id", {"columns that could be the group as well as group, which is taken": 1}),
        ("label,patient_id,case_id", {}),  # the studies of a patient are in his group
    ],
)
def test_a_second_column_for_one_thing_is_told_of_where_it_differs(
    tmp_path: Path, header: str, told: dict[str, int]
) -> None:
    cells = {"class": "xy", "label": "01", "group": "abcd", "patient_id": "pqrst", "case_id": "0123456789"}
    lines = []
    for n, (p, label) in enumerate(rows()):
        own = {name: word[n // (20 // len(word)) % len(word)] for name, word in cells.items()}
        own |= {"diagnosis": label, "label_name": label} | ({"class": "xy"[n % 2]} if "class" in header else {})
        lines.append(",".join([p, *(own[name] for name in header.split(","))]))
    assert reasons(load(with_images(tmp_path, [f"path,{header}", *lines]))) == told


@pytest.mark.parametrize("column", ["split", "set", "fold"])
def test_a_split_by_another_word_among_known_ones_is_refused(tmp_path: Path, column: str) -> None:
    lines = [f"{p},{label},{'test' if n % 3 == 0 else n % 3}" for n, (p, label) in enumerate(rows())]
    with pytest.raises(BadDataset, match=r"line 3: unknown split '1'; expected train, val or test"):
        load(with_images(tmp_path, [f"path,label,{column}", *lines]))


def test_other_columns_are_kept_by_name(tmp_path: Path) -> None:
    lines = [f"{n},{p},{label},{40 + n},{'F' if n % 2 else 'nan'}" for n, (p, label) in enumerate(rows())]
    dataset = load(with_images(tmp_path, [",path,label,Patient Age,sex", *lines]))
    assert list(dataset.columns) == ["patient_age", "sex"]
    assert (
        "fold"
        in load(with_images(tmp_path, ["path,label,fold", *(f"{p},{k},{len(p) % 3}" for p, k in rows())])).columns
    )
    folds = ["path,label,fold", *(f"{p},{k},{'test' if p.endswith('9.png') else 'training'}" for p, k in rows())]
    assert set(load(with_images(tmp_path, folds)).splits.tolist()) == {"train", "test"}
    ages = dict(zip(dataset.ids, dataset.columns["patient_age"].tolist(), strict=True))
    assert (ages["img/normal0.png"], ages["img/sick9.png"]) == ("40", "59")
    assert set(dataset.columns["sex"].tolist()) == {"F", ""}


def test_root_is_where_the_paths_begin(tmp_path: Path) -> None:
    put(tmp_path / "share", *(image for image, _ in rows()))
    path = table(tmp_path / "here", ["path,label", *(f"{tmp_path}/share/{p},{label}" for p, label in rows())])
    with pytest.raises(BadDataset, match=rf"is not inside .*; ROOT={tmp_path}/share/img reads from there"):
        load(path)
    assert load(path, root=str(tmp_path / "share")).ids == sorted(image for image, _ in rows())
    relative = table(tmp_path / "here", ["path,label", *(f"{p},{label}" for p, label in rows())])
    assert load(relative, root=str(tmp_path / "share")).source.where == str(tmp_path / "share")
    with pytest.raises(BadDataset, match="ROOT=nowhere is no folder"):
        load(path, root="nowhere")
    with pytest.raises(BadDataset, match="ROOT= goes with a table"):
        load_dataset("phantom", root=str(tmp_path))


def test_an_archives_own_folder_in_front_of_all_paths_is_forgiven(tmp_path: Path) -> None:
    path = with_images(tmp_path, ["Path,label", *(f"CheXpert-v1.0-small/{p},{label}" for p, label in rows())])
    assert label_of(load(path)) == dict(rows())


def test_repeated_rows_are_counted_and_contradictions_refused(tmp_path: Path) -> None:
    lines = [f"{p},{label}" for p, label in rows()]
    path = with_images(tmp_path, ["path,label", *lines, lines[0]])
    assert reasons(load(path)) == {"rows that repeat an image": 1}
    path.write_text("\n".join(["path,label", *lines, "img/normal0.png,sick"]))
    with pytest.raises(
        BadDataset, match=r"line 22: img/normal0\.png is on an earlier line already, with the label 'nor"
    ):
        load(path)
    path.write_text(
        "\n".join(["path,label,group", *(f"{line},{n:02}" for n, line in enumerate(lines)), f"{lines[7]},7"])
    )
    assert reasons(load(path)) == {"rows that repeat an image": 1}  # 07 and 7 are one group


def test_numbers_with_decimals_are_a_regression(tmp_path: Path) -> None:
    lines = [f"{p},{n * 1.7 + 0.15:.2f}" for n, (p, _) in enumerate(rows())]
    with pytest.raises(
        BadDataset, match=r"20 different numbers with decimals, such as .*a regression, which Firn does not do"
    ):
        load(with_images(tmp_path, ["path,target", *lines]))


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ([str(20 + n) for n in range(30)] * 2, "30 different whole numbers"),
        ([f"2021-03-{1 + n % 7:02}" for n in range(60)], "7 dates"),
        ([f"{1 + n % 7}.3.21" for n in range(60)], "7 dates"),
        ([f"P{n // 2:03}" for n in range(60)], "30 different values in 60 rows"),
        ([f"the heart is large ({n})" for n in range(60)], "60 different values in 60 rows"),
        ([f'"effusion, right; seen on {n}"' for n in range(60)], "61 different values in 60 rows"),
    ],
    ids=["ages", "dates", "short-dates", "patients", "free-text", "free-text-with-commas"],
)
def test_ages_dates_names_and_free_text_are_no_labels(tmp_path: Path, values: list[str], what: str) -> None:
    images = [image for image, _ in rows(30)]
    put(tmp_path, *images)
    lines = [f"{p},{v},{'FM'[n % 2]}" for n, (p, v) in enumerate(zip(images, values, strict=True))]
    path = table(tmp_path, ["path,label,sex", *lines])
    told = rf"the column label was taken for the labels and holds {what}.*hardly (\w+);.* make doctor .* TARGET=sex"
    with pytest.raises(BadDataset, match=told) as refused:
        load(path)
    assert load(path, target="sex").classes == ("F", "M")
    kind = re.search(told, str(refused.value))
    assert kind
    assert str(refused.value).endswith(f"TASK={kind[1]}")
    if "dates" in what or "numbers" in what:
        assert len(load(path, task="classes").classes) == len(set(values))


def test_no_finding_beside_a_finding_is_told_with_a_count(tmp_path: Path) -> None:
    images = [image for image, _ in rows(30)]
    put(tmp_path, *images)
    cells = ["No Finding|Mass" if n < 6 else "No Finding" if n < 30 else "Mass|Edema" for n in range(60)]
    words = table(tmp_path, ["path,label", *map(",".join, zip(images, cells, strict=True))])
    told = {"marks of no finding on images that have one as well, which counts": 6}
    assert reasons(load(words)) == told
    assert reasons(load(words, target="Mass")) == told
    assert not reasons(load(table(tmp_path, words.read_text().replace("No Finding|", "").split("\n"))))
    columns = [f"{p},{int(n < 30)},{int(n > 23)},{int(n % 3 == 0)},1" for n, p in enumerate(images)]
    dataset = load(table(tmp_path, ["path,No Finding,Mass,Edema,Support Devices", *columns], name="columns.csv"))
    assert reasons(dataset)["marks of no finding on images that have one as well, which counts"] == 14


def test_many_classes_with_images_enough_are_classes(tmp_path: Path) -> None:
    images = [f"img/{n:03}.png" for n in range(96)]
    put(tmp_path, *images)
    for values in ([f"tissue {n % 30}" for n in range(96)], [str(n % 24) for n in range(96)]):
        dataset = load(table(tmp_path, ["path,label", *map(",".join, zip(images, values, strict=True))]))
        assert len(dataset.classes) == len(set(values))


# --- tables of publishers ---


def nih(root: Path) -> Path:
    """Write ChestX-ray14 as unpacked: parts of the archive, and the table beside them."""
    lines = ["Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"]
    for n in range(40):
        put(root, f"images_{n % 2 + 1:03}/images/{n:08}_000.png")
        finding = "No Finding" if n % 2 else "Effusion|Mass" if n % 4 else "Effusion"
        lines.append(f"{n:08}_000.png,{finding},0,{n // 2},50,M,PA")
    (root / "Data_Entry_2017.csv").write_text("\n".join(lines))
    return root


def matrix_of(dataset: Dataset) -> list[list[int]]:
    """Return the label matrix of a set of findings."""
    rows: list[list[int]] = label_matrix(dataset.classes)[dataset.labels].tolist()
    return rows


def test_chestxray14_has_findings_and_knows_patients_and_lists(tmp_path: Path) -> None:
    root = nih(tmp_path)
    findings = load(root)
    assert (findings.findings, findings.grouped_by, findings.positive) == (("Effusion", "Mass"), "patient", "")
    assert matrix_of(findings)[:4] == [[1, 0], [1, 1], [1, 0], [1, 1]]  # of images_001
    assert np.sum(matrix_of(findings), axis=0).tolist() == [20, 10]
    with pytest.raises(BadDataset, match=r"line 4: several findings .*leave TASK= away, or choose .*TARGET=.*No F"):
        load(root, task="classes")
    with pytest.raises(UnknownName, match=r"unknown task 'finding'.*did you mean findings"):
        load(root, task="finding")
    with pytest.raises(UnknownName, match=r"unknown finding 'Efusion'.*did you mean Effusion"):
        load(root, target="Efusion")
    dataset = load(root, target="Effusion")
    assert dataset.classes == ("no Effusion", "Effusion")
    assert (np.bincount(dataset.labels).tolist(), dataset.grouped_by, len(set(dataset.groups.tolist()))) == (
        [20, 20],
        "patient",
        20,
    )
    assert {"patient_age", "view_position"} <= dataset.columns.keys()
    (root / "test_list.txt").write_text("\n".join(f"{n:08}_000.png" for n in range(8)))
    tested = {image[-16:] for image, split in split_of(load(root, target="Effusion")).items() if split == "test"}
    assert tested == {f"{n:08}_000.png" for n in range(8)}


def test_ham10000_is_read_by_its_table(tmp_path: Path) -> None:
    lines = ["lesion_id,image_id,dx,dx_type,age,sex,localization"]
    for n in range(20):
        put(tmp_path, f"HAM10000_images_part_{n % 2 + 1}/ISIC_{n:07}.jpg")
        lines.append(f"HAM_{n // 2},ISIC_{n:07},{'mel' if n % 4 < 2 else 'nv'},histo,50.0,male,back")
    put(tmp_path, "HAM10000_images_part_1/ISIC_9999999.jpg")
    (tmp_path / "HAM10000_metadata.csv").write_text("\n".join([*lines, "HAM_99,ISIC_0000099,nv,histo,50.0,male,back"]))
    dataset = load(tmp_path)
    assert (dataset.classes, dataset.grouped_by, len(dataset)) == (("nv", "mel"), "lesion", 20)
    assert reasons(dataset) == {"rows whose image is not there": 1, "images that no used row of the table names": 1}


def test_padchest_and_rsna_columns(tmp_path: Path) -> None:
    put(tmp_path / "pad", *many("images", 20))
    lines = ["ImageID,PatientID,Projection,Labels"]
    lines += [f"{n:03}.png,{n},PA,\"['{'pneumonia' if n % 2 else 'normal'}']\"" for n in range(20)]
    (tmp_path / "pad/PADCHEST.csv").write_text("\n".join(lines))
    assert load(tmp_path / "pad").classes == ("normal", "pneumonia")
    lines[2] = lines[2].replace("'pneumonia'", "'pneumonia', 'cardiomegaly'")
    (tmp_path / "pad/PADCHEST.csv").write_text("\n".join(lines))
    findings = load(tmp_path / "pad")
    assert findings.findings == ("pneumonia",)
    assert reasons(findings) == {"findings that fewer than 10 patients have, or have not": 1}
    assert findings.left_out[0].examples == ("cardiomegaly (1)",)
    assert load(tmp_path / "pad", target="pneumonia").classes == ("no pneumonia", "pneumonia")
    put(tmp_path / "rsna", *many("stage_2_train_images", 20, ".dcm"))
    boxes = [f"{n:03},,,,,{int(n % 2)}" for n in range(20)] + ["001,5,5,9,9,1"]
    (tmp_path / "rsna/stage_2_train_labels.csv").write_text("\n".join(["patientId,x,y,width,height,Target", *boxes]))
    rsna = load(tmp_path / "rsna")
    assert (rsna.classes, rsna.grouped_by, reasons(rsna)) == (("0", "1"), "patient", {"rows that repeat an image": 1})


def test_a_column_for_each_finding(tmp_path: Path) -> None:
    """One finding of each image is its class (ISIC); several make a label matrix, and -1 is uncertain (CheXpert)."""
    one = [f"{p},{int(label == 'normal')},{int(label == 'sick')}" for p, label in rows()]
    assert label_of(load(with_images(tmp_path, ["image,normal,sick", *one]))) == dict(rows())
    put(tmp_path, *(image for image, _ in rows(12)))
    several = [f"{p},1.0,{1.0 if label == 'sick' else 0.0}" for p, label in rows(12)]
    several[0] = several[0].replace(",0.0", ",-1.0")
    path = with_images(tmp_path, ["Path,Edema,Mass", *several])
    with pytest.raises(
        BadDataset, match=r"no column 'label'.*make doctor DATASET=.* TARGET=mass; there are edema, mass"
    ):
        load(path, task="classes")
    findings = load(path)
    assert findings.findings == ("mass",)  # every image has an edema, so that nothing tells one
    assert (findings.left_out[0].examples, findings.columns.keys()) == (("edema (24)",), set())
    assert matrix_of(load(path, uncertain="positive")) == [[1], *matrix_of(findings)[1:]]
    assert matrix_of(findings)[0] == [-1]
    dataset = load(path, target="Mass")
    assert (dataset.classes, reasons(dataset)) == (("no Mass", "Mass"), {"rows without a label": 1})
    assert label_of(load(path, target="Mass", uncertain="negative")).keys() == dict(rows(12)).keys()


# --- groups that the files tell ---


def test_images_of_equal_bytes_are_on_one_side_of_a_split_that_firn_draws(tmp_path: Path) -> None:
    put(tmp_path, *many("normal", 40), *many("sick", 40))
    for n in range(0, 40, 2):
        (tmp_path / f"sick/{n + 1:03}.png").write_bytes((tmp_path / f"sick/{n:03}.png").read_bytes())
    for seed in range(3):
        dataset = load_dataset(str(tmp_path), seed=seed)
        first = equal_bytes(dataset)
        assert (first != np.arange(80)).sum() == 20
        assert straddling(first.astype(str), dataset.splits) == []
        assert "20 images are copies of others" in dataset.note
    put(tmp_path / "other", *(f"{split}/{label}/1.png" for split in ("train", "test") for label in "ab"))
    for split in ("train", "test"):
        (tmp_path / "other" / split / "a/1.png").write_bytes(b"x")
    assert load(tmp_path / "other").note == ""


def test_equal_bytes_across_groups_make_them_one(tmp_path: Path) -> None:
    lines = [f"{p},{label},p{n // 2}" for n, (p, label) in enumerate(rows())]
    path = with_images(tmp_path, ["path,label,group", *lines])
    (tmp_path / "img/normal0.png").write_bytes((tmp_path / "img/normal9.png").read_bytes())
    groups = group_of(load(path))
    assert (
        groups["img/normal0.png"] == groups["img/normal1.png"] == groups["img/normal8.png"] == groups["img/normal9.png"]
    )


def test_answers_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("features.datasets.file_facts._REMEMBERED", 10)
    put(tmp_path / "set", *TWO)
    (tmp_path / "set/sick/000.png").write_bytes((tmp_path / "set/sick/001.png").read_bytes())
    first = equal_bytes(load(tmp_path / "set"))
    asked: list[Path] = []
    monkeypatch.setattr("features.datasets.file_facts._middle", lambda path: asked.append(path) or str(path))
    assert equal_bytes(load(tmp_path / "set")).tolist() == first.tolist()
    assert not asked
    (tmp_path / "set/sick/000.png").write_bytes(b"another")
    assert (equal_bytes(load(tmp_path / "set")) == np.arange(20)).all()
    assert asked


def test_a_class_of_one_image_many_times_is_refused(tmp_path: Path) -> None:
    put(tmp_path, *TWO)
    for n in range(10):
        (tmp_path / f"sick/{n:03}.png").write_bytes(b"black")
    with pytest.raises(BadDataset, match="the 10 images of class 'sick' are one and the same"):
        load(tmp_path)


def test_patients_come_from_dicom_headers_where_no_column_tells(tmp_path: Path) -> None:
    for n in range(20):
        path = tmp_path / ("normal" if n % 2 else "sick") / (f"{n}.dcm" if n % 3 else f"IM{n}")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(dicom(np.full((4, 4), n, np.uint8), PatientID=f"P{n // 4}" if n else ""))
    dataset = load(tmp_path)
    assert (dataset.grouped_by, len(set(dataset.groups.tolist()))) == ("patient", 6)
    assert straddling(dataset.groups, dataset.splits) == []
    lines = [f"{image},{label},s{n}" for n, (image, label) in enumerate(label_of(dataset).items())]
    assert load(table(tmp_path, ["path,label,subject", *lines])).grouped_by == "subject"


# --- which class is positive ---


@pytest.mark.parametrize(
    ("negative", "positive"),
    [
        ("non-COVID", "COVID"),
        ("Uninfected", "Parasitized"),
        ("nevus", "melanoma"),
        ("NonTumor", "Tumor"),
        ("No_TB", "TB"),
        ("0_negative", "1_positive"),
        ("no disease", "disease"),
        ("notumor", "tumor"),
        ("without_mask", "with_mask"),
        ("unaffected", "affected"),
        ("colon_n", "colon_aca"),
        ("benign", "malignant"),
        ("0. No DR", "1. DR"),
        ("tumor free", "tumor"),
        ("healthy", "unhealthy"),
        ("Normal", "not normal"),
        ("cyst", "malignant"),
        ("nv", "mel"),
        ("-", "+"),
        ("0", "1"),
    ],
)
def test_the_healthy_class_is_known_by_many_names(negative: str, positive: str) -> None:
    assert class_order([positive, negative], "here") == (negative, positive)
    assert not is_guess((negative, positive))


@pytest.mark.parametrize("names", [("mass", "nodule"), ("abnormal", "other"), ("普通", "肺炎"), ("1", "2")])
def test_a_guess_is_called_one(tmp_path: Path, names: tuple[str, str]) -> None:
    dataset = load(put(tmp_path, *many(names[0], 5), *many(names[1], 5)))
    assert dataset.positive_is_guess
    assert dataset.positive == max(names)
    chosen = load(tmp_path, positive=min(names))
    assert (chosen.classes, chosen.positive_is_guess) == ((max(names), min(names)), False)
    assert label_of(chosen) == label_of(dataset)


def test_positive_must_be_one_of_two_classes(tmp_path: Path) -> None:
    put(tmp_path, *TWO)
    with pytest.raises(UnknownName, match="unknown class 'ill'; known: normal, sick"):
        load(tmp_path, positive="ill")
    put(tmp_path, *many("third", 10))
    with pytest.raises(BadDataset, match="POSITIVE= chooses between two classes"):
        load(tmp_path, positive="sick")


def test_the_document_names_every_test_here_and_no_other() -> None:
    named = re.findall(r"`(test_\w+)`", (Path(__file__).parents[1] / "docs/data.md").read_text())
    here = {name for name in globals() if name.startswith("test_")}
    assert here - set(named) == {"test_the_document_names_every_test_here_and_no_other", "test_answers_are_kept"}
    assert set(named) <= here
