"""Folders of image files: one below another, and class folders with or without train, val and test above them."""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.datasets.dataset import Dataset, Stamps, class_order
from features.datasets.splits import SPLIT_NAMES
from features.errors import BadDataset, BadImage

IMAGES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".dcm", ".dicom")


class Listing(NamedTuple):
    """The images found below a folder and what the file system said of them on the way."""

    ids: list[str]  # (n,) relative to the folder, '/' as separator; unique and sorted
    stamps: Stamps  # (n,)


@dataclass(frozen=True, eq=False)
class FileSource:
    """Files below `root`; stamps gathered while listing are handed out again instead of asking the disk twice.

    They are older than any later reading, so that a file changed in between has another stamp the next time.
    """

    root: Path
    listing: Listing | None = field(default=None, repr=False)

    @property
    def where(self) -> str:
        """Return the folder."""
        return str(self.root)

    def read(self, image: str) -> bytes:
        """Return the bytes of one file; raise BadImage where it cannot be read."""
        path = self.root / image
        try:
            return path.read_bytes()
        except OSError as error:
            raise BadImage(f"{path} was listed but cannot be read ({error.strerror}); put it back and rerun") from None

    def stamps(self, images: list[str]) -> Stamps:
        """Return size and times of each image; raise BadDataset where a file is gone."""
        if self.listing is not None and images == self.listing.ids:
            return self.listing.stamps
        numbers = array("q")
        try:
            for image in images:
                found = (self.root / image).stat()
                numbers.extend((found.st_size, found.st_mtime_ns, found.st_ctime_ns))
        except OSError as error:
            raise BadDataset(f"{error.filename} is gone ({error.strerror}); put it back and rerun") from None
        return sorted_stamps(numbers, range(len(images)))


class _Sweep(NamedTuple):
    base: str
    keep: re.Pattern[str]
    ids: list[str]
    numbers: array[int]  # size, mtime and ctime of each id, one after the other


def list_images(root: Path, folders: Iterable[str], keep: str = "") -> tuple[Listing, NDArray[np.int64]]:
    """List the images below each of `folders` (relative to `root`, none inside another) in one sweep of the disk.

    Hidden files, `__MACOSX` and files that are no images by their extension are left out, and so is every id that the
    regular expression `keep` is not found in. Returns the listing, and (n,) the index of each image's folder.
    Raises BadDataset at a link that leads out of `root` and at a name that is no UTF-8.
    """
    sweep = _Sweep(os.path.realpath(root), re.compile(keep), [], array("q"))
    owners = array("q")
    for owner, folder in enumerate(folders):
        pending = [folder]
        while pending:
            pending += _scan(pending.pop(), sweep)
        owners.extend([owner] * (len(sweep.ids) - len(owners)))
    _require_text(sweep.ids)
    rows = sorted(range(len(sweep.ids)), key=sweep.ids.__getitem__)
    ids, order = [sweep.ids[row] for row in rows], np.array(rows, np.int64)
    return Listing(ids, sorted_stamps(sweep.numbers, order)), np.asarray(owners, np.int64)[order]


def _scan(folder: str, sweep: _Sweep) -> list[str]:
    """Append the images that lie in one folder to the sweep; return its subfolders."""
    below = []
    try:
        with os.scandir(f"{sweep.base}/{folder}") as entries:
            for entry in entries:
                name = entry.name
                if not is_visible(name):
                    continue
                if entry.is_symlink():
                    refuse_link(sweep.base, entry.path)
                image = f"{folder}/{name}"
                if entry.is_dir():
                    below.append(image)
                elif name.lower().endswith(IMAGES) and sweep.keep.search(image) and entry.is_file():
                    found = entry.stat()
                    sweep.ids.append(image)
                    sweep.numbers.extend((found.st_size, found.st_mtime_ns, found.st_ctime_ns))
    except OSError as error:
        raise BadDataset(f"{error.filename} cannot be listed ({error.strerror}); mend it and rerun") from None
    return below


def is_visible(name: str) -> bool:
    """Tell whether a file or folder is meant to be seen, unlike `.DS_Store` and the `__MACOSX` of a zip."""
    return name[0] != "." and name != "__MACOSX"


def _require_text(ids: list[str]) -> None:
    """Raise BadDataset at a name that cannot be written as UTF-8 into a cache."""
    for image in ids:
        if not image.isascii():
            try:
                image.encode()
            except UnicodeEncodeError:
                raise BadDataset(f"the name of the file {image!a} is no UTF-8 text; rename it") from None


def refuse_link(base: str, path: str) -> None:
    """Raise BadDataset unless the link at `path` leads to a file below `base`, which itself is free of links.

    Links to folders are refused as well: such a folder may hold the link, and its images would count twice.
    """
    target = os.path.realpath(path)
    if not target.startswith(base + os.sep):
        raise BadDataset(f"{path} is a link that leads out of {base}, to {target}; put the files themselves there")
    if not Path(target).is_file():
        raise BadDataset(f"{path} is a link to {target}, which is no file; put the files themselves there")


def sorted_stamps(numbers: array[int], order: Sequence[int] | NDArray[np.int64]) -> Stamps:
    """Return the stamps in the given order of images from size (bytes), mtime and ctime (ns) of each in turn."""
    table = np.asarray(numbers, np.int64).reshape(-1, 3)
    return Stamps(*(column[order] for column in table.T))


class ClassFolder(NamedTuple):
    """A folder whose images, at whatever depth, are of one class and one split."""

    path: str  # relative to the root of the data set
    split: str  # one of SPLITS, or empty where there is no such level
    name: str  # of the class


def read_folders(root: Path, name: str, *, classes: tuple[str, ...] = (), keep: str = "") -> Dataset:
    """Read a folder of class folders into a data set whose splits are still as found, empty where there are none.

    `classes`, where given, are the folders to look for, in the order of the labels; all others are passed over.
    `keep` is a regular expression to be found in an id. Raises BadDataset where a class folder holds no
    image or there are fewer than two classes.
    """
    folders = class_folders(root, classes)
    names = classes or class_order(folder.name for folder in folders)
    _require_layout(root, folders)
    listing, owners = list_images(root, [folder.path for folder in folders], keep)
    counts = np.bincount(owners, minlength=len(folders))
    for folder, count in zip(folders, counts, strict=True):
        if not count:
            what = f"no image ({' '.join(IMAGES)})"
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
