"""From a name or a path to a data set."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from features.datasets.csv_manifest import patients_in, read_manifest
from features.datasets.dataset import Dataset, is_missing, left_out, same_class, with_positive
from features.datasets.file_facts import grouped
from features.datasets.findings import choose_uncertain, without_rare
from features.datasets.image_folder import ClassFolder, class_folders, doubt, read_folders
from features.datasets.medmnist import read_medmnist
from features.datasets.packed import Packed, read_pack
from features.datasets.registry import DATASETS, Row
from features.datasets.splits import TEST_SHARE, refuse_share, settle_splits
from features.datasets.table import LAYOUT, TABLES, WORKBOOKS, Table, has_labels, read_table
from features.errors import BadDataset, UnknownName, command, unknown
from features.storage import slug

_LONGEST = 40  # letters of a path's own name in that of its data set
COLUMNS = f"expected a CSV with {LAYOUT}"
TASKS = ("classes", "findings")
FOLDER = "folder"  # as TARGET=: the folders are the classes, whatever their names and whatever tables lie beside them


def load_dataset(
    name_or_path: str,
    *,
    seed: int = 0,
    root: str = "",
    target: str = "",
    positive: str = "",
    test: float = TEST_SHARE,
    task: str = "",
    uncertain: str = "ignore",
) -> Dataset:
    """Load a row of DATASETS, else what lies at a path, without decoding an image.

    A path is a folder of class folders (with or without train, val and test above them), a table
    (`path,label[,split][,group][,others]`), a folder with one in it, a MedMNIST `.npz`, or a pack of features (`.h5`),
    which keeps the split that it was packed with. Where no split came, the share `test` of each class is drawn as test,
    by `seed`. `root` is the folder that the paths of a table are relative to, `target` the finding or column that it is
    about (or "folder"), `positive` the one of two classes that is label 1. `task` is "classes" or "findings" (several
    per image), for a table that shows it wrongly, and `uncertain` what a label of -1 counts as.
    Raises UnknownName for what is neither, BadDataset for what is missing or not laid out so.
    """
    dataset = _loaded(name_or_path, root, target, 2, task, uncertain)
    if isinstance(dataset.source, Packed):
        refuse_share(dataset, test)
        given = {"POSITIVE": positive if positive != dataset.positive else "", "UNCERTAIN": uncertain}
        if late := next((f"{name}={value}" for name, value in given.items() if value not in ("", "ignore")), ""):
            raise BadDataset(f"{name_or_path} was packed with its labels as they are; pack it anew with {late}")
        return dataset
    return settle_splits(without_rare(with_positive(grouped(dataset), positive)), seed=seed, test=test)


def load_to_judge(name_or_path: str, *, root: str = "", target: str = "") -> Dataset:
    """Load a labelled set, as `load_dataset` does, to judge on: one class is enough, and no split is drawn.

    Splits are as they came, empty where there are none.
    """
    dataset = _loaded(name_or_path, root, target, 1, "classes" if target else "", "ignore")
    return dataset if isinstance(dataset.source, Packed) else grouped(dataset)


def _loaded(name_or_path: str, root: str, target: str, fewest: int, task: str, uncertain: str) -> Dataset:
    """Return a data set of `fewest` classes or more, its splits and groups as they came."""
    if task not in ("", *TASKS):
        raise unknown("task", task, TASKS)
    row, root = DATASETS.get(name_or_path), os.path.expanduser(root)  # noqa: PTH111
    path = Path(os.path.expanduser(name_or_path))  # noqa: PTH111 - Path.expanduser() raises where there is no such user
    if row is None and (not name_or_path or not os.path.exists(path)):  # noqa: PTH110 - Path.exists() raises at a name too long
        names = unknown("data set", name_or_path, DATASETS)
        raise UnknownName(
            f"{names}; a path may be given as well, to a folder, a CSV manifest or a .npz, but none is there"
        )
    if row is not None:
        _refuse_options(name_or_path, root, target)
        dataset = _read_row(name_or_path, row, choose_uncertain(uncertain))
    else:
        dataset = _read_path(path, _Way(_root(root), target, task, choose_uncertain(uncertain), fewest))
    _check_task(dataset, task)
    if uncertain != "ignore" and not (dataset.findings or target):
        raise BadDataset(f"UNCERTAIN= is about findings of -1, and {dataset.source.where} has none; leave it away")
    return dataset


def at_hand(name: str) -> Dataset | None:
    """Return a row of DATASETS whose images are on this disk; None where they, or the row, are not.

    Nothing is downloaded or drawn.
    """
    row = DATASETS.get(name)
    if row is None or not any(_holds(row.base() / place, row.classes) for place in row.places):
        return None
    try:
        return load_dataset(name)
    except (BadDataset, OSError):
        return None


def name_of_path(path: Path, root: str = "") -> str:
    """Return the name of the data set at a path: readable, and of no other place, `images-3fa9c1`.

    The digits are of the path with all links resolved, and of the `root` that its images are below.
    """
    place = os.path.realpath(path)
    where = f"{place}\0{os.path.realpath(root)}" if root else place
    stem = Path(place).name if path.is_dir() else Path(place).stem
    return f"{slug(stem)[:_LONGEST]}-{hashlib.sha256(os.fsencode(where)).hexdigest()[:6]}"


class _Way(NamedTuple):
    """How a table is read."""

    root: Path | None
    target: str
    task: str
    uncertain: str
    fewest: int

    @property
    def given(self) -> str:
        """Return the folder of images as it was given."""
        return str(self.root or "")

    def manifest(self, path: Path, name: str) -> Dataset:
        """Return the data set in a table."""
        return read_manifest(path, name, **self._asdict())


def _check_task(dataset: Dataset, task: str) -> None:
    """Raise BadDataset for a task that the labels are not made for."""
    if task and (task == "findings") != bool(dataset.findings):
        raise BadDataset(
            f"{dataset.source.where} has {'several findings' if dataset.findings else 'one label'} per image; "
            f"leave TASK={task} away"
        )


def _read_path(path: Path, way: _Way) -> Dataset:
    name = name_of_path(path, way.given)
    if path.is_dir():
        return _read_folder(path, name, way)
    suffix = path.suffix.lower()
    if suffix in TABLES:
        return way.manifest(path, name)
    _refuse_options(str(path), way.given, way.target)
    if suffix == ".npz":
        return read_medmnist(path, name)
    if suffix in (".h5", ".hdf5"):
        return read_pack(path)
    if suffix in WORKBOOKS:
        raise BadDataset(f"{path} is a workbook; save its sheet as CSV UTF-8 and give that path")
    raise BadDataset(f"{path} is no data set; expected a folder, a CSV manifest, a MedMNIST .npz or a pack (.h5)")


def _refuse_options(name: str, root: str, target: str) -> None:
    if root or target:
        raise BadDataset(
            f"{'ROOT' if root else 'TARGET'}= goes with a table of images, and {name} is none; leave it away"
        )


def _root(root: str) -> Path | None:
    """Return the folder that paths are relative to; None where nothing was given. Raises BadDataset."""
    if root and not os.path.isdir(root):  # noqa: PTH112 - Path.is_dir() raises at a name too long
        raise BadDataset(f"ROOT={root} is no folder; expected the one that the paths of the table are relative to")
    return Path(root) if root else None


def _read_folder(path: Path, name: str, way: _Way) -> Dataset:
    """Read a folder by the table in it, or as class folders where their names are those of classes."""
    tables, others = _tables(path)
    manifests = [table for table in tables if {"path", "label"} <= set(table.header)]
    folders = class_folders(path).folders
    fault = doubt(path, folders)
    if way.target != FOLDER and (manifests or ((fault or way.target or way.root) and tables)):
        found = manifests or tables
        if len(found) > 1:
            names = ", ".join(table.path.name for table in found)
            raise BadDataset(f"{path} holds several manifests ({names}); give the path of the one that is meant")
        return way.manifest(found[0].path, name)
    if way.target != FOLDER:
        _refuse_options(str(path), way.given, way.target)
        _require_classes(path, folders, fault, tables, others)
    dataset = read_folders(path, name, fewest=way.fewest)
    below = [i.split("/", 2 if split else 1)[-1] for i, split in zip(dataset.ids, dataset.splits, strict=True)]
    if patients := patients_in(below):
        dataset = replace(dataset, groups=np.array(patients, np.str_), grouped_by="patient")
    unused = [*(table.path.name for table in tables), *others]
    return replace(dataset, left_out=dataset.left_out + left_out("tables beside the class folders", unused))


def _tables(folder: Path) -> tuple[list[Table], list[str]]:
    """Return the tables in a folder that say something of images, and the names of the other tables and workbooks."""
    tables, others = [], []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in TABLES + WORKBOOKS or path.name.startswith((".", "~$")):
            continue
        try:
            table = read_table(path) if path.suffix.lower() in TABLES else None
        except BadDataset:
            table = None
        if table is not None and has_labels(table):
            tables.append(table)
        else:
            others.append(path.name)
    return tables, others


def _require_classes(
    path: Path, folders: list[ClassFolder], fault: str, tables: list[Table], others: list[str]
) -> None:
    """Raise BadDataset where class folders are in doubt: by their names, or by a table that names other classes."""
    anyway = f"if the folders are the classes: {command('doctor', DATASET=path, TARGET=FOLDER)}"
    if fault and len({folder.name for folder in folders}) > 1:
        tried = f", and {', '.join(others)} cannot be used ({COLUMNS})" if others else ""
        raise BadDataset(f"{path} {fault}{tried}; give a table with the columns path,label, or, {anyway}")
    if fault and others:
        raise BadDataset(f"{path} {fault}, and {', '.join(others)} cannot be used: {COLUMNS}")
    names = {same_class(folder.name) for folder in folders}
    for table in tables:
        labels = {row[table.roles["label"]] for _, row in table.rows} if "label" in table.roles else set()
        if not {same_class(label) for label in labels if not is_missing(label)} <= names:
            raise BadDataset(
                f"{path} holds class folders ({', '.join(sorted({f.name for f in folders}))}) and a table "
                f"{table.path.name} of other labels; for the table: "
                f"{command('doctor', DATASET=table.path)}; {anyway}"
            )


def _read_row(name: str, row: Row, uncertain: str) -> Dataset:
    root = _find(name, row)
    if root.is_dir():
        dataset = read_folders(root, name, classes=row.classes, keep=row.keep)
    elif root.suffix in TABLES:
        dataset = read_manifest(root, name, task="findings", uncertain=uncertain)
    else:
        dataset = read_medmnist(root, name, classes=row.classes)
    dataset = replace(dataset, label_views=row.label_views, note=row.note)
    groups = row.groups(root, dataset.ids)
    if groups is None:
        return replace(dataset, note=f"{row.note} {row.ungrouped}".rstrip())
    return replace(dataset, groups=np.array(groups, np.str_), grouped_by=row.grouped_by)


def _find(name: str, row: Row) -> Path:
    """Return where the data set lies, after making it where it can be made."""
    base = row.base()
    for place in row.places:
        if _holds(base / place, row.classes):
            return base / place
    target = base / row.places[0]
    if row.prepare is None:
        raise BadDataset(
            f"no data set {name} at {target}; put the folders {', '.join(row.classes)} there, bare or below train and"
            f" test, or set FIRN_DATA, now {base}. Get it from: {row.obtain}"
        )
    row.prepare(target)
    return target


def _holds(place: Path, classes: tuple[str, ...]) -> bool:
    return place.is_file() or (place.is_dir() and bool(class_folders(place, classes).folders))
