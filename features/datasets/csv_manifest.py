"""Tables of images with a label each (CSV manifests): one line an image, `path,label[,split][,group]`."""

from __future__ import annotations

import csv
import os
import posixpath
import stat
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from features.datasets.dataset import Dataset, class_order
from features.datasets.image_folder import FileSource, Listing, refuse_link, sorted_stamps
from features.datasets.splits import SPLIT_NAMES
from features.errors import BadDataset

COLUMNS = ("path", "label", "split", "group")
LAYOUT = "path,label[,split][,group]"


class _Line(NamedTuple):
    label: str
    split: str
    group: str


def read_manifest(path: Path, name: str) -> Dataset:
    """Read a CSV (UTF-8, comma, a header) into a data set whose splits are still as given, empty where there are none.

    Paths are relative to the folder of the CSV and stay in it, links included. An image with no group is a group of
    its own. Raises BadDataset that names the CSV, the line and what was expected.
    """
    lines, numbers = _read_lines(path)
    classes = class_order(line.label for line in lines.values())
    if len(classes) < 2:
        raise BadDataset(f"{path} names {len(classes)} classes ({', '.join(classes)}); expected two or more")
    found, ids = list(lines), sorted(lines)
    order = sorted(range(len(found)), key=found.__getitem__)
    rank = {label: rank for rank, label in enumerate(classes)}
    return Dataset(
        name=name,
        classes=classes,
        ids=ids,
        labels=np.array([rank[lines[image].label] for image in ids], np.int64),
        splits=np.array([lines[image].split for image in ids], np.str_),
        groups=np.array([lines[image].group or image for image in ids], np.str_),
        source=FileSource(path.parent, Listing(ids, sorted_stamps(numbers, order))),
        grouped_by="group" if any(line.group for line in lines.values()) else "",
    )


def _read_lines(path: Path) -> tuple[dict[str, _Line], array[int]]:
    """Return the lines by image, and size, mtime and ctime of each in turn."""
    lines: dict[str, _Line] = {}
    numbers = array("q")
    base, safe = os.path.realpath(path.parent), set[str]()
    for number, row in _rows(path):
        try:
            image, line = _inside(row["path"], path.parent, base), _line(row)
            if image in lines:
                raise BadDataset(f"{image} is on an earlier line already; expected each image once")
            found = _stat(base, image, safe)
        except BadDataset as fault:
            raise BadDataset(f"{path}, line {number}: {fault}") from None
        lines[image] = line
        numbers.extend((found.st_size, found.st_mtime_ns, found.st_ctime_ns))
    return lines, numbers


def find_manifest(folder: Path) -> Path | None:
    """Return the CSV in `folder` whose header has path and label, or None; raise BadDataset where there are several."""
    found = [path for path in sorted(folder.glob("[!.]*.csv")) if {"path", "label"} <= set(_first_line(path))]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise BadDataset(f"{folder} holds several manifests ({names}); give the path of the one that is meant")
    return found[0] if found else None


def _first_line(path: Path) -> list[str]:
    """Return the cells of the first line of a CSV in lower case; empty where it is no UTF-8 text."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [cell.strip().lower() for cell in next(csv.reader(file), [])]
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number of each line and its cells by column, stripped of space at either end."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = _header(path, next(reader, []))
            for cells in reader:
                if len(cells) not in (0, len(header)):
                    came = f"{len(cells)} cells for the {len(header)} columns {','.join(header)}"
                    raise BadDataset(f"{path}, line {reader.line_num}: {came}; quote a cell that holds a comma")
                if cells:
                    yield reader.line_num, dict(zip(header, map(str.strip, cells), strict=True))
    except UnicodeDecodeError as error:
        raise BadDataset(f"{path} is no UTF-8 text ({error.reason}); save it as CSV UTF-8") from None
    except csv.Error as error:
        raise BadDataset(f"{path}, line {reader.line_num}: {error}; expected {LAYOUT} with commas between") from None
    except OSError as error:
        raise BadDataset(f"{path} cannot be read ({error.strerror}); mend it and rerun") from None


def _header(path: Path, cells: list[str]) -> list[str]:
    header = [cell.strip().lower() for cell in cells]
    if missing := [column for column in ("path", "label") if column not in header]:
        raise BadDataset(f"{path}, line 1: no column {missing[0]!r} in {','.join(header)!r}; expected {LAYOUT}")
    if odd := [column for column in header if column not in COLUMNS or header.count(column) > 1]:
        raise BadDataset(f"{path}, line 1: column {odd[0]!r} is unknown or named twice; expected {LAYOUT}, no others")
    return header


def _line(row: dict[str, str]) -> _Line:
    if not row["label"]:
        raise BadDataset("the label is empty; expected the name of a class")
    split = row.get("split")
    if split is not None and split.lower() not in SPLIT_NAMES:
        raise BadDataset(f"unknown split {split!r}; expected train, val or test")
    return _Line(sys.intern(row["label"]), SPLIT_NAMES.get((split or "").lower(), ""), row.get("group", ""))


def _inside(text: str, folder: Path, base: str) -> str:
    """Return a path as it reads from the folder of the CSV, '/' as separator; `base` is the real path of `folder`."""
    path = posixpath.normpath(text.replace("\\", "/"))
    if path.startswith("/"):
        path = path.removeprefix(f"{base}/").removeprefix(f"{posixpath.abspath(folder)}/")
    if not text or "\0" in text or path == ".." or path.startswith(("/", "../")):
        raise BadDataset(f"the path {text!r} is not inside {folder}; expected one relative to the folder of the CSV")
    return path


def _stat(base: str, image: str, safe: set[str]) -> os.stat_result:
    """Return what the file system says of an image; `safe` are the folders known to lie in `base`, links resolved."""
    path, parent = f"{base}/{image}", posixpath.dirname(image)
    if parent not in safe and not Path(base, parent).resolve().is_relative_to(base):
        raise BadDataset(f"{image} leads out of {base} by a link; put the files themselves there")
    safe.add(parent)
    try:
        found = os.lstat(path)
        if stat.S_ISLNK(found.st_mode):
            refuse_link(base, path)
            found = Path(path).stat()
    except OSError as error:
        raise BadDataset(f"{image} is not in {base} ({error.strerror}); expected the path of an image") from None
    if not stat.S_ISREG(found.st_mode):
        raise BadDataset(f"{image} is no file; expected the path of an image")
    return found
