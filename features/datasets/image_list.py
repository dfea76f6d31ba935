"""The images that a user points at for prediction: a folder, one file, or the paths in a table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from features.datasets.dataset import LeftOut, is_missing
from features.datasets.listing import list_images
from features.datasets.table import TABLES, read_table
from features.errors import BadDataset


class Listed(NamedTuple):
    """One image to predict."""

    name: str  # as it is written into predictions.csv
    path: Path
    group: str = ""  # the patient, where a table tells


class Found(NamedTuple):
    """The images to predict, and what lies among them and is left out."""

    images: list[Listed]
    left_out: tuple[LeftOut, ...] = ()


def find_images(images: str) -> Found:
    """Return the images of a folder and all folders below it, the paths in a table, or one file.

    Paths in a table are relative to its folder and stay in it. Raises BadDataset for nothing to read, and for a link
    or a path that leads out.
    """
    path, told = Path(images), ""
    if path.is_dir():
        listing, _ = list_images(path, [""])
        found = Found([Listed(name, path / name) for name in listing.ids], listing.left_out)
        told = "".join(f"; {record}" for record in listing.left_out)
    elif path.suffix.lower() in TABLES:
        found = Found(_from_table(path))
    else:
        found = Found([Listed(path.name, path)] if path.is_file() else [])
    if not found.images:
        raise BadDataset(
            f"no images at {images!r}; expected IMAGES= to be a folder, an image, or a CSV with paths{told}"
        )
    return found


def _from_table(path: Path) -> list[Listed]:
    base, table = Path(os.path.realpath(path.parent)), read_table(path)
    if (at := table.roles.get("path")) is None:
        raise BadDataset(f"{path}, line 1: no column 'path' in {','.join(table.header)!r}")
    group = table.roles.get("group")
    return [
        Listed(
            cells[at],
            _inside(cells[at], base, f"{path}, line {number}"),
            "" if group is None or is_missing(cells[group]) else cells[group],
        )
        for number, cells in table.rows
        if cells[at]
    ]


def _inside(text: str, base: Path, where: str) -> Path:
    """Return the path below the CSV's folder; one that is not there is told of later, as unreadable."""
    try:
        path = Path(os.path.realpath(base / text.replace("\\", "/")))
    except ValueError:  # a NUL
        raise BadDataset(f"{where}: {text!r} is no path") from None
    if not path.is_relative_to(base):
        raise BadDataset(f"{where}: {text!r} leads out of {base}; put the images there, and the CSV beside them")
    return path
