"""The images that a user points at: a folder, one file, or the paths in a CSV."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import NamedTuple

from features.datasets.image_folder import list_images
from features.errors import BadDataset


class Listed(NamedTuple):
    """One image to predict."""

    name: str  # as it is written into predictions.csv
    path: Path


def find_images(images: str) -> list[Listed]:
    """Return the images of a folder and all folders below it, the paths in a CSV (column `path`), or one file.

    Paths in a CSV are relative to its folder and stay in it. Raises BadDataset for nothing to read, and for a link or
    a path that leads out.
    """
    path = Path(images)
    if path.is_dir():
        listing, _ = list_images(path, ["."])
        found = [Listed(name.removeprefix("./"), path / name) for name in listing.ids]
    elif path.suffix.lower() == ".csv":
        found = _from_csv(path)
    else:
        found = [Listed(path.name, path)] if path.is_file() else []
    if not found:
        raise BadDataset(f"no images at {images!r}; expected IMAGES= to be a folder, an image, or a CSV with paths")
    return found


def _from_csv(path: Path) -> list[Listed]:
    base = Path(os.path.realpath(path.parent))
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            names = {(name or "").strip().lower(): name for name in reader.fieldnames or []}
            if "path" not in names:
                raise BadDataset(f"{path}, line 1: no column 'path' in {','.join(names)!r}")
            lines = ((reader.line_num, (row[names["path"]] or "").strip()) for row in reader)
            found = [Listed(text, _inside(text, base, f"{path}, line {number}")) for number, text in lines if text]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadDataset(f"{path} cannot be read as a CSV ({error}); save it as CSV UTF-8") from None
    return found


def _inside(text: str, base: Path, where: str) -> Path:
    """Return the path below the CSV's folder; one that is not there is told of later, as unreadable."""
    try:
        path = Path(os.path.realpath(base / text.replace("\\", "/")))
    except ValueError:  # a NUL
        raise BadDataset(f"{where}: {text!r} is no path") from None
    if not path.is_relative_to(base):
        raise BadDataset(f"{where}: {text!r} leads out of {base}; put the images there, and the CSV beside them")
    return path
