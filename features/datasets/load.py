"""From a name or a path to a data set."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from features.datasets.csv_manifest import find_manifest, read_manifest
from features.datasets.dataset import Dataset
from features.datasets.image_folder import class_folders, read_folders
from features.datasets.medmnist import read_medmnist
from features.datasets.packed import Packed, read_pack
from features.datasets.registry import DATASETS, Row
from features.datasets.splits import settle_splits
from features.errors import BadDataset, UnknownName, unknown
from features.storage import slug

READERS: dict[str, Callable[[Path, str], Dataset]] = {
    ".csv": read_manifest,
    ".npz": read_medmnist,
    ".h5": read_pack,
    ".hdf5": read_pack,
}


def load_dataset(name_or_path: str, *, seed: int = 0) -> Dataset:
    """Load a row of DATASETS, else what lies at a path, without opening an image.

    A path is a folder of class folders (with or without train, val and test above them), a CSV manifest
    (`path,label[,split][,group]`), a folder with one in it, a MedMNIST `.npz`, or a pack of features (`.h5`), which
    keeps the split that it was packed with. `seed` draws a split where none came.
    Raises UnknownName for what is neither, BadDataset for what is missing or not laid out so.
    """
    row = DATASETS.get(name_or_path)
    if row is not None:
        return settle_splits(_read_row(name_or_path, row), seed=seed)
    path = Path(os.path.expanduser(name_or_path))  # noqa: PTH111 - Path.expanduser() raises where there is no such user
    if not name_or_path or not os.path.exists(path):  # noqa: PTH110 - Path.exists() raises at a name too long
        names = unknown("data set", name_or_path, DATASETS)
        raise UnknownName(
            f"{names}; a path may be given as well, to a folder, a CSV manifest or a .npz, but none is there"
        )
    dataset = _read_path(path)
    return dataset if isinstance(dataset.source, Packed) else settle_splits(dataset, seed=seed)


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


def _name_of(stem: str) -> str:
    """Return the name of a data set at a path; never that of a row, whose groups and cache are its own."""
    name = slug(stem)
    return f"{name}-path" if name in DATASETS else name


def _read_path(path: Path) -> Dataset:
    if path.is_dir():
        name, manifest = _name_of(path.resolve().name), find_manifest(path)
        return read_manifest(manifest, name) if manifest else read_folders(path, name)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise BadDataset(f"{path} is no data set; expected a folder, a CSV manifest, a MedMNIST .npz or a pack (.h5)")
    return reader(path, _name_of(path.stem))


def _read_row(name: str, row: Row) -> Dataset:
    root = _find(name, row)
    if root.is_dir():
        dataset = read_folders(root, name, classes=row.classes, keep=row.keep)
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
    return place.is_file() or (place.is_dir() and bool(class_folders(place, classes)))
