"""Pictures that lie as files below one folder."""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.datasets.dataset import Stamps
from features.errors import BadDataset, BadPicture

__all__ = ["PICTURES", "FileSource", "Listing", "is_visible", "list_pictures", "refuse_link", "sorted_stamps"]

PICTURES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".dcm", ".dicom")


class Listing(NamedTuple):
    """The pictures found below a folder and what the file system said of them on the way."""

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

    def read(self, picture: str) -> bytes:
        """Return the bytes of one file; raise BadPicture where it cannot be read."""
        path = self.root / picture
        try:
            return path.read_bytes()
        except OSError as error:
            raise BadPicture(
                f"{path} was listed but cannot be read ({error.strerror}); put it back and rerun"
            ) from None

    def stamps(self, pictures: list[str]) -> Stamps:
        """Return size and times of each picture; raise BadDataset where a file is gone."""
        if self.listing is not None and pictures == self.listing.ids:
            return self.listing.stamps
        numbers = array("q")
        try:
            for picture in pictures:
                found = (self.root / picture).stat()
                numbers.extend((found.st_size, found.st_mtime_ns, found.st_ctime_ns))
        except OSError as error:
            raise BadDataset(f"{error.filename} is gone ({error.strerror}); put it back and rerun") from None
        return sorted_stamps(numbers, range(len(pictures)))


class _Sweep(NamedTuple):
    base: str
    keep: re.Pattern[str]
    ids: list[str]
    numbers: array[int]  # size, mtime and ctime of each id, one after the other


def list_pictures(root: Path, folders: Iterable[str], keep: str = "") -> tuple[Listing, NDArray[np.int64]]:
    """List the pictures below each of `folders` (relative to `root`, none inside another) in one sweep of the disk.

    Hidden files, `__MACOSX` and files that are no pictures by their extension are left out, and so is every id that the
    regular expression `keep` is not found in. Returns the listing, and (n,) the index of each picture's folder.
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
    """Append the pictures that lie in one folder to the sweep; return its subfolders."""
    below = []
    try:
        with os.scandir(f"{sweep.base}/{folder}") as entries:
            for entry in entries:
                name = entry.name
                if not is_visible(name):
                    continue
                if entry.is_symlink():
                    refuse_link(sweep.base, entry.path)
                picture = f"{folder}/{name}"
                if entry.is_dir():
                    below.append(picture)
                elif name.lower().endswith(PICTURES) and sweep.keep.search(picture) and entry.is_file():
                    found = entry.stat()
                    sweep.ids.append(picture)
                    sweep.numbers.extend((found.st_size, found.st_mtime_ns, found.st_ctime_ns))
    except OSError as error:
        raise BadDataset(f"{error.filename} cannot be listed ({error.strerror}); mend it and rerun") from None
    return below


def is_visible(name: str) -> bool:
    """Tell whether a file or folder is meant to be seen, unlike `.DS_Store` and the `__MACOSX` of a zip."""
    return name[0] != "." and name != "__MACOSX"


def _require_text(ids: list[str]) -> None:
    """Raise BadDataset at a name that cannot be written as UTF-8 into a cache."""
    for picture in ids:
        if not picture.isascii():
            try:
                picture.encode()
            except UnicodeEncodeError:
                raise BadDataset(f"the name of the file {picture!a} is no UTF-8 text; rename it") from None


def refuse_link(base: str, path: str) -> None:
    """Raise BadDataset unless the link at `path` leads to a file below `base`, which itself is free of links.

    Links to folders are refused as well: such a folder may hold the link, and its pictures would count twice.
    """
    target = os.path.realpath(path)
    if not target.startswith(base + os.sep):
        raise BadDataset(f"{path} is a link that leads out of {base}, to {target}; put the files themselves there")
    if not Path(target).is_file():
        raise BadDataset(f"{path} is a link to {target}, which is no file; put the files themselves there")


def sorted_stamps(numbers: array[int], order: Sequence[int] | NDArray[np.int64]) -> Stamps:
    """Return the stamps in the given order of pictures from size (bytes), mtime and ctime (ns) of each in turn."""
    table = np.asarray(numbers, np.int64).reshape(-1, 3)
    return Stamps(*(column[order] for column in table.T))
