"""Class folders: the name of a folder is the class of its images, with or without train, val and test above them."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from features.datasets.dataset import Dataset, LeftOut, class_order, is_guess, is_healthy, left_out
from features.datasets.listing import IMAGES, FileSource, is_system, list_images
from features.datasets.splits import split_names
from features.errors import BadDataset, command

_OF_CLASSES = frozenset(  # words that a number makes a class: grade_1, grade_2
    re.findall(
        r"\w+",
        "class classes c grade g stage level score type category cat label kl k rads birads pirads tirads tr cin isup "
        "gleason t severity",
    )
)
_OF_IMAGES = frozenset({"image", "images", "img", "imgs", "mask", "masks", "annotation", "annotations", "labels"})
_BESIDE_CLASSES = re.compile(  # what programs write beside the classes, and images that nobody has sorted yet
    r"(my )?(results?|outputs?|out|pred(iction)?s?|inference|heat ?maps?|overlays?|(grad ?)?cams?|saliency( maps?)?|"
    r"plots?|figures?|logs?|checkpoints?|te?mp|backup|unlabell?ed|unsorted|unannotated)"
)


class ClassFolder(NamedTuple):
    """A folder whose images, at whatever depth, are of one class and one split."""

    path: str  # relative to the root of the data set
    split: str  # one of SPLITS, or empty where there is no such level
    name: str  # of the class


class Layout(NamedTuple):
    """The class folders below a root, and what lies beside them."""

    folders: list[ClassFolder]
    left_out: tuple[LeftOut, ...] = ()


def read_folders(root: Path, name: str, *, classes: tuple[str, ...] = (), keep: str = "", fewest: int = 2) -> Dataset:
    """Read a folder of class folders into a data set whose splits are still as found, empty where there are none.

    `classes`, where given, are the folders to look for, in the order of the labels; all others are passed over.
    `keep` is a regular expression to be found in an id. Raises BadDataset where a class folder holds no
    image or there are fewer than the `fewest` classes.
    """
    folders, beside = class_folders(root, classes)
    names = classes or class_order((folder.name for folder in folders), root)
    _require_layout(root, folders, fewest)
    listing, owners = list_images(root, [folder.path for folder in folders], keep)
    counts = np.bincount(owners, minlength=len(folders))
    for folder, count in zip(folders, counts, strict=True):
        if not count:
            found = "; ".join(map(str, listing.left_out))
            what = f"no image ({' '.join(IMAGES)})" + (f"; below {root}: {found}" if found else "")
            raise BadDataset(f"the class folder {root / folder.path} holds {what}; fill it or remove it")
    return Dataset(
        name=name,
        classes=names,
        ids=listing.ids,
        labels=np.array([names.index(folder.name) for folder in folders], np.int64)[owners],
        splits=np.array([folder.split for folder in folders], np.str_)[owners],
        groups=np.array(listing.ids, np.str_),
        source=FileSource(root, listing),
        left_out=listing.left_out + beside,
        positive_is_guess=not classes and is_guess(names),
    )


def class_folders(root: Path, wanted: Collection[str] = ()) -> Layout:
    """Return the class folders below `root`, of the `wanted` classes where any are given.

    The folders of `root` are splits where one of them is called train or all of them are called after splits; any other
    folder beside them is passed over (Kaggle's `chest_xray` holds a second copy of itself). Else they are the classes,
    with splits inside each or without.
    """
    top, loose = _look(root)
    splits = split_names(top)
    if list(splits) != top and "train" not in splits.values():
        found, beside = _inner_splits(root, top) or [ClassFolder(name, "", _nfc(name)) for name in top], []
    else:
        found, beside = [], [folder for folder in top if folder not in splits]
        for above, split in splits.items():
            names, images = _look(root / above)
            loose += [f"{above}/{image}" for image in images]
            found += [ClassFolder(f"{above}/{name}", split, _nfc(name)) for name in names]
    return Layout(
        [folder for folder in found if not wanted or folder.name in wanted],
        left_out("folders beside train and test", beside, images=True)
        + left_out("images beside the class folders", loose, images=True),
    )


def _inner_splits(root: Path, classes: list[str]) -> list[ClassFolder]:
    """Return the folders of the splits inside each of two or more classes; none where one holds anything else."""
    found = []
    for name in classes if len(classes) > 1 else ():
        inside, images = _look(root / name)
        splits = split_names(inside)
        if images or list(splits) != inside or "train" not in splits.values():
            return []
        found += [ClassFolder(f"{name}/{folder}", split, _nfc(name)) for folder, split in splits.items()]
    return found


def doubt(root: Path, folders: list[ClassFolder]) -> str:
    """Say why the names of the folders are hardly those of classes; empty where they may well be."""
    names = sorted({folder.name for folder in folders})
    if len(names) < 2:
        return f"holds {f'one class folder only ({names[0]})' if names else 'no class folder'}"
    bare = {re.sub(r"[\W\d_]+", " ", name).strip().lower() for name in names}
    if len(bare) == 1 and (word := bare.pop()) and not _OF_CLASSES & set(word.split()):
        return f"holds folders whose names differ by a number only ({names[0]}, {names[1]}, ...): parts or patients"
    if set(map(str.lower, names)) <= _OF_IMAGES:
        return f"holds the folders {' and '.join(names)}, which are no classes"
    if splits := [folder.name for folder in folders if not folder.split and split_names([folder.name])]:
        return f"holds the folder {splits[0]} beside {next(n for n in names if n not in splits)}: a split, or a class"
    hardly = [name for name in names if _BESIDE_CLASSES.fullmatch(re.sub(r"[\W\d_]+", " ", name).strip().lower())]
    if 0 < len(hardly) < len(names):
        beside = next(name for name in names if name not in hardly)
        return f"holds the folder {hardly[0]} beside {beside}, which is hardly a class: take it out of there"
    return _inside_each(root, folders)


def _inside_each(root: Path, folders: list[ClassFolder]) -> str:
    """Say that folders with the names of classes lie inside each of those that are taken for classes."""
    shared, paths = set[str](), [root / folder.path for folder in folders]
    for path in paths:
        inside = set(_look(path)[0])
        if len(shared := shared & inside if shared else inside) < 2:
            return ""
    names = sorted(shared)
    numbers = all(name.isdigit() for name in [*names, *(folder.name for folder in folders)])
    if not (numbers or any(map(is_healthy, names))):
        return ""
    return f"holds folders ({folders[0].name}, ...) that each hold {' and '.join(names[:2])}: sites or patients"


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _look(folder: Path) -> tuple[list[str], list[str]]:
    """Return the subfolders, sorted, and the names of the images that lie in a folder itself."""
    try:
        with os.scandir(folder) as entries:
            seen = [(entry.name, entry.is_dir()) for entry in entries if not is_system(entry)]
    except OSError as error:
        raise BadDataset(f"{folder} cannot be listed ({error.strerror}); mend it and rerun") from None
    folders = sorted(name for name, is_folder in seen if is_folder)
    return folders, [name for name, is_folder in seen if not is_folder and name.lower().endswith(IMAGES)]


def _require_layout(root: Path, folders: list[ClassFolder], fewest: int) -> None:
    base = Path(os.path.realpath(root))
    for folder in folders:
        if (real := Path(os.path.realpath(base / folder.path))) != base / folder.path:
            raise BadDataset(f"{root / folder.path} is a link to {real}; put the folder itself there")
        if "train" in split_names(_look(root / folder.path)[0]).values():
            raise BadDataset(
                f"{root / folder.path} is no class but a data set, for it holds train; give its path instead: "
                f"{command('doctor', DATASET=root / folder.path)}"
            )
    if len({folder.name for folder in folders}) < fewest:
        alone = len(folders) == 1  # else it is in several splits, and a path to one of them has lost the others
        inside = f"; if the classes are inside it: {command('doctor', DATASET=root / folders[0].path)}" if alone else ""
        raise BadDataset(
            f"{root} {doubt(root, folders)}; expected a folder for each of two or more classes, with or without train "
            f"and test above them, or a CSV manifest with the columns path,label{inside}"
        )
