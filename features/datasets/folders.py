"""Class folders, with or without a level of train, val and test above them."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from features.datasets.classes import class_order
from features.datasets.dataset import Dataset
from features.datasets.image_folder import PICTURES, FileSource, is_visible, list_pictures
from features.datasets.splits import SPLIT_NAMES
from features.errors import BadDataset

__all__ = ["ClassFolder", "class_folders", "read_folders"]


class ClassFolder(NamedTuple):
    """A folder whose pictures, at whatever depth, are of one class and one split."""

    path: str  # relative to the root of the data set
    split: str  # one of SPLITS, or empty where there is no such level
    name: str  # of the class


def read_folders(root: Path, name: str, *, classes: tuple[str, ...] = (), keep: str = "") -> Dataset:
    """Read a folder of class folders into a data set whose splits are still as found, empty where there are none.

    `classes`, where given, are the folders to look for, in the order of the labels; all others are passed over.
    `keep` is a regular expression to be found in an id. Raises BadDataset where a class folder holds no
    picture or there are fewer than two classes.
    """
    folders = class_folders(root, classes)
    names = classes or class_order(folder.name for folder in folders)
    _require_layout(root, folders)
    listing, owners = list_pictures(root, [folder.path for folder in folders], keep)
    counts = np.bincount(owners, minlength=len(folders))
    for folder, count in zip(folders, counts, strict=True):
        if not count:
            what = f"no picture ({' '.join(PICTURES)})"
            raise BadDataset(f"the class folder {root / folder.path} holds {what}; fill it or remove it")
    return Dataset(
        name=name,
        classes=names,
        ids=listing.ids,
        labels=np.array([names.index(folder.name) for folder in folders], np.int64)[owners],
        splits=np.array([folder.split for folder in folders], np.str_)[owners],
        groups=np.array(listing.ids, np.str_),
        source=FileSource(root, listing),
    )


def class_folders(root: Path, wanted: Collection[str] = ()) -> list[ClassFolder]:
    """Return the class folders below `root`, of the `wanted` classes where any are given.

    The folders of `root` are splits where one of them is called train or all of them are called after splits; any other
    folder beside them is passed over (Kaggle's `chest_xray` holds a second copy of itself). Else they are the classes.
    """
    top = _subfolders(root)
    splits = [folder for folder in top if folder.lower() in SPLIT_NAMES]
    if splits == top or "train" in {SPLIT_NAMES[folder.lower()] for folder in splits}:
        found = [
            ClassFolder(f"{above}/{name}", SPLIT_NAMES[above.lower()], name)
            for above in splits
            for name in _subfolders(root / above)
        ]
    else:
        found = [ClassFolder(name, "", name) for name in top]
    return [folder for folder in found if not wanted or folder.name in wanted]


def _subfolders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if is_visible(entry.name) and entry.is_dir())
    except OSError as error:
        raise BadDataset(f"{folder} cannot be listed ({error.strerror}); mend it and rerun") from None


def _require_layout(root: Path, folders: list[ClassFolder]) -> None:
    base = Path(os.path.realpath(root))
    for folder in folders:
        if (real := Path(os.path.realpath(base / folder.path))) != base / folder.path:
            raise BadDataset(f"{root / folder.path} is a link to {real}; put the folder itself there")
        if (root / folder.path / "train").is_dir():
            raise BadDataset(
                f"{root / folder.path} is no class but a data set, for it holds train; give its path instead"
            )
    names = sorted({folder.name for folder in folders})
    if len(names) < 2:
        found = f"one class folder only ({names[0]}; are the classes inside it?)" if names else "no class folder"
        raise BadDataset(
            f"{root} holds {found}; expected a folder for each of two or more classes, with or without train and test"
            " above them, or a CSV manifest with the columns path,label"
        )
