"""Tables of images with a label each (CSV manifests): one line an image, `path,label[,split][,group][,others]`."""

from __future__ import annotations

import os
import posixpath
import re
import stat
import sys
import unicodedata
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.datasets.dataset import Dataset, LeftOut, class_order, is_guess, is_missing, left_out, same_class
from features.datasets.findings import MISSING
from features.datasets.listing import FileSource, Listing, list_images, refuse_link, sorted_stamps
from features.datasets.splits import SPLIT_NAMES, split_names
from features.datasets.table import (
    LAYOUT,
    Table,
    contradicted,
    label_columns,
    nearly_findings,
    plain_name,
    read_findings,
    read_labels,
    read_table,
    refuse_no_classes,
    rivals,
    several_findings,
)
from features.errors import BadDataset, counted

_PATIENT = re.compile(  # CheXpert's patient00001/, MIMIC-CXR's p10000032/ (below p10/), sub-01/, subject_7_left.png
    r"(?i)(?:^|/)((?:patient|pat|subject|subj|participant|person|case)[ _-]?\d+(?=[/_-])|sub-\d+(?=[/_-])|p\d{3,}(?=/))"
)
SPLIT_LISTS = {"test_list.txt": "test", "train_val_list.txt": "train"}  # of ChestX-ray14, beside its table


class _Line(NamedTuple):
    label: str
    split: str
    group: str
    row: int  # of the table


class _Rows(NamedTuple):
    lines: dict[str, _Line]  # by image
    numbers: array[int]  # size, mtime and ctime of each in turn
    left_out: tuple[LeftOut, ...]


def read_manifest(
    path: Path,
    name: str,
    *,
    root: Path | None = None,
    target: str = "",
    task: str = "",
    uncertain: str = MISSING,
    fewest: int = 2,
) -> Dataset:
    """Read a table into a data set whose splits are still as given, empty where there are none.

    Paths are relative to `root`, the folder of the table by default, and stay in it, links included; bare names are
    looked for in all folders below it. A row without a label is left out, an image without a group is one of its own,
    columns without a role are kept by name. Several findings per image (`task` "findings", or by itself where the table
    shows it and neither a target nor the task "classes" is given) make a label matrix; `uncertain` is what -1 counts
    as. Raises BadDataset that names the table, the line and what was expected, `fewest` classes among it.
    """
    table, base = read_table(path), root or path.parent
    if "path" not in table.roles:
        raise BadDataset(f"{path}, line 1: no column 'path' in {','.join(table.header)!r}; expected {LAYOUT}")
    findings, labels = _labels(table, target, task, uncertain)
    if not task and fewest > 1:
        refuse_no_classes(table, target, findings or labels, findings=bool(findings))
    lines, numbers, gone = _read_rows(table, labels, base, bool(findings))
    gone += _passed_over(table, target, bool(findings))
    of_lines = {line.label for line in lines.values()}
    classes = tuple(sorted(of_lines)) if findings else class_order(of_lines, path)
    _require_classes(path, classes, fewest, gone)
    rank = {label: rank for rank, label in enumerate(classes)}
    found, ids = list(lines), sorted(lines)
    order = sorted(range(len(found)), key=found.__getitem__)
    sorted_lines = [lines[image] for image in ids]
    groups, unit = _groups(table, ids, sorted_lines)
    of_labels = {plain_name(finding) for finding in findings} or label_columns(table, target)
    return Dataset(
        name=name,
        classes=classes,
        ids=ids,
        labels=np.array([rank[line.label] for line in sorted_lines], np.int64),
        splits=np.array(_splits(table, base, ids, [line.split for line in sorted_lines]), np.str_),
        groups=np.array(groups, np.str_),
        source=FileSource(base, Listing(ids, sorted_stamps(numbers, order))),
        grouped_by=unit,
        columns=_columns(table, [line.row for line in sorted_lines], of_labels),
        left_out=gone,
        positive_is_guess=not findings and is_guess(classes),
        findings=findings,
    )


def _labels(table: Table, target: str, task: str, uncertain: str) -> tuple[tuple[str, ...], list[str]]:
    """Return the names of the findings, where each image may have several, and the label of each row."""
    if task == "findings" or (not task and not target and several_findings(table)):
        return read_findings(table, uncertain)
    return (), read_labels(table, target, uncertain=uncertain)


def _require_classes(path: Path, classes: tuple[str, ...], fewest: int, gone: tuple[LeftOut, ...]) -> None:
    """Raise BadDataset, with what was left out, where the table names fewer classes than are needed."""
    if len(classes) < fewest:
        told, wanted = "".join(f"; {record}" for record in gone), "two" if fewest > 1 else "one"
        named = f"{counted(len(classes), 'class', 'classes')} ({', '.join(classes)})"
        raise BadDataset(f"{path} names {named}; expected {wanted} or more{told}")


def _read_rows(table: Table, labels: list[str], folder: Path, findings: bool) -> _Rows:
    """Find the image of each row that has a label."""
    lines: dict[str, _Line] = {}
    numbers, files = array("q"), _Files(folder)
    gone: dict[str, list[str]] = {"rows without a label": [], "rows that repeat an image": []}
    for row, ((number, cells), label) in enumerate(zip(table.rows, labels, strict=True)):
        text = cells[table.roles["path"]]
        if not label:
            gone["rows without a label"].append(_unlabelled(table, text, cells))
            continue
        try:
            if not (found := files.find(text, number)):
                continue
            line = _line(table, cells, sys.intern(label), row)
            if found.image in lines:
                _require_same(found.image, lines[found.image], line, findings)
        except BadDataset as fault:
            raise BadDataset(f"{table.path}, line {number}: {fault}") from None
        if found.image in lines:
            gone["rows that repeat an image"].append(found.image)
            continue
        lines[found.image] = line
        numbers.extend((found.stat.st_size, found.stat.st_mtime_ns, found.stat.st_ctime_ns))
    told = [record for reason, names in gone.items() for record in left_out(reason, names)]
    return _Rows(lines, numbers, (*told, *files.left_out(table, set(lines))))


def _passed_over(table: Table, target: str, findings: bool) -> tuple[LeftOut, ...]:
    """Return the columns and the marks of no finding that could have been labels or groups, and do not count."""
    told: tuple[LeftOut, ...] = ()
    if findings or (target and plain_name(target) not in table.header):
        told += left_out("marks of no finding on images that have one as well, which counts", contradicted(table))
    if findings and "label" not in table.roles:
        told += left_out("columns that are no finding, with values besides 1, 0, -1 and blank", nearly_findings(table))
    for role in ("group",) if target else ("label", "group"):
        if role in table.roles:
            what = f"columns that could be the {role} as well as {table.header[table.roles[role]]}, which is taken"
            told += left_out(what, rivals(table, role))
    return told


def _unlabelled(table: Table, image: str, cells: list[str]) -> str:
    """Return the name of an image without a label, with the word that says so: `None` is a grade for some."""
    word = cells[table.roles["label"]] if "label" in table.roles else ""
    return f"{image}: {word}" if word else image


def _require_same(image: str, first: _Line, line: _Line, findings: bool) -> None:
    """Raise BadDataset where two lines of one image contradict each other."""
    for what, one, other in zip(_Line._fields[:3], first[:3], line[:3], strict=True):
        if same_class(one) != same_class(other):
            came = "with other findings" if findings and what == "label" else f"with the {what} {one!r} for {other!r}"
            advice = ", and its findings in one cell (a|b)" if what == "label" and not findings else ""
            raise BadDataset(f"{image} is on an earlier line already, {came}; expected each image once{advice}")


def _line(table: Table, cells: list[str], label: str, row: int) -> _Line:
    split = group = ""
    if (at := table.roles.get("split")) is not None:
        split = SPLIT_NAMES.get(cells[at].lower(), "")
        if not split:
            raise BadDataset(f"unknown split {cells[at]!r}; expected train, val or test")
    if (at := table.roles.get("group")) is not None and not is_missing(cells[at]):
        group = cells[at]
    return _Line(label, split, group, row)


def _groups(table: Table, ids: list[str], lines: list[_Line]) -> tuple[list[str], str]:
    """Return the group of each image, itself where it has none, and what a group is: patient for `patient_id`."""
    groups, unit = _spelled_alike([line.group for line in lines]), ""
    if any(groups):
        column = table.header[table.roles["group"]]
        unit = re.sub(r"_?id$", "", column) or column
    elif "group" not in table.roles and (patients := patients_in(ids)):
        groups, unit = patients, "patient"
    return [group or image for group, image in zip(groups, ids, strict=True)], unit


def _spelled_alike(groups: list[str]) -> list[str]:
    """Return the groups, spelled in one way where some are equal but for case, blanks or the way of a number."""
    keys = {group: same_class(group) for group in sorted(set(groups))}
    first: dict[str, str] = {}
    for group, key in keys.items():
        first.setdefault(key, group)
    return [first[keys[group]] for group in groups]


def _columns(table: Table, rows: list[int], of_labels: set[str]) -> dict[str, NDArray[np.str_]]:
    """Return the columns without a role, by name and in the order of `rows`; a missing value is empty."""
    cells = [table.rows[row][1] for row in rows]
    return {
        name: np.array(["" if is_missing(row[at]) else row[at] for row in cells], np.str_)
        for name, at in table.others().items()
        if name not in of_labels
    }


def patients_in(ids: list[str]) -> list[str]:
    """Return the patient of each image where every path names one, as CheXpert's; else none."""
    found = [_PATIENT.search(image) for image in ids]
    return [match[1] for match in found if match] if all(found) else []


def _splits(table: Table, base: Path, ids: list[str], given: list[str]) -> list[str]:
    """Return the splits: the column's, else the publisher's list beside the table, else those of folders above."""
    if "split" in table.roles:
        return given
    for file, split in SPLIT_LISTS.items():
        path = table.path.with_name(file)
        named = set(path.read_text(encoding="utf-8", errors="replace").split()) if path.is_file() else set()
        if named and not named.isdisjoint(own := [posixpath.basename(image) for image in ids]):
            other = "train" if split == "test" else "test"
            return [split if image in named else other for image in own]
    above = [image.partition("/")[0] for image in ids]
    folders = split_names(sorted(set(above)))
    return [folders[folder] for folder in above] if folders.keys() == set(above) else given


class _File(NamedTuple):
    image: str  # relative to the root
    stat: os.stat_result


class _Files:
    """The files below a root, found by their path or by their bare name with or without a suffix."""

    def __init__(self, root: Path) -> None:
        self.root, self.base = root, os.path.realpath(root)
        self.safe = set[str]()  # folders known to lie in `base`, links resolved
        self.by_name: dict[str, list[str]] | None = None
        self.absent: list[tuple[int, str]] = []  # lines and bare names that are nowhere

    def find(self, text: str, number: int) -> _File | None:
        """Return the file of a cell; None, remembered, for a bare name that is nowhere. Raises BadDataset."""
        image = _inside(text, self.root, self.base)
        for spelled in self._spellings(image):
            if os.path.lexists(f"{self.base}/{spelled}"):
                return _File(spelled, _stat(self.base, spelled, self.safe))
        if "/" in image:
            raise BadDataset(f"{image} is not in {self.base}; {_OTHER_ROOT}")
        places = self._named().get(image, [])
        if len(places) > 1:
            raise BadDataset(f"{image} is there {len(places)} times ({places[0]}, {places[1]}, ...); give its path")
        if not places:
            self.absent.append((number, image))
            return None
        return _File(places[0], _stat(self.base, places[0], self.safe))

    def _spellings(self, image: str) -> Iterator[str]:
        """Yield a path as given, in other Unicode forms, and without a first folder that is not there."""
        yield image
        if not image.isascii():
            yield from (unicodedata.normalize(form, image) for form in ("NFC", "NFD"))
        first, _, rest = image.partition("/")
        if rest and not os.path.lexists(f"{self.base}/{first}"):
            yield rest

    def left_out(self, table: Table, used: set[str]) -> tuple[LeftOut, ...]:
        """Return the rows without an image and the images without a row. Raises BadDataset where none was found."""
        if self.absent and not used:
            number, image = self.absent[0]
            raise BadDataset(f"{table.path}, line {number}: {image} is not in {self.base}; {_OTHER_ROOT}")
        listed = {image for images in (self.by_name or {}).values() for image in images}
        return left_out("rows whose image is not there", [image for _, image in self.absent]) + left_out(
            "images that no used row of the table names", listed - used, images=True
        )

    def _named(self) -> dict[str, list[str]]:
        """Return the images below the root by name and by name without suffix, listed once."""
        if self.by_name is None:
            self.by_name = {}
            for image in list_images(self.root, [""])[0].ids:
                name = posixpath.basename(image)
                for key in dict.fromkeys((name, posixpath.splitext(name)[0])):
                    self.by_name.setdefault(key, []).append(image)
        return self.by_name


_OTHER_ROOT = "expected the path of an image; ROOT= names the folder that paths are relative to"


def _inside(text: str, folder: Path, base: str) -> str:
    """Return a path as it reads from the root, '/' as separator; `base` is the real path of `folder`."""
    path = posixpath.normpath(text.replace("\\", "/"))
    if path.startswith("/"):
        path = path.removeprefix(f"{base}/").removeprefix(f"{posixpath.abspath(folder)}/")
    if not text or "\0" in text or path == ".." or path.startswith(("/", "../")):
        root = f"; ROOT={posixpath.dirname(path)} reads from there" if path.startswith("/") else ""
        raise BadDataset(f"the path {text!r} is not inside {folder}; expected one relative to that folder{root}")
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
