"""Groups that only the files tell: images of equal bytes, and the patient in the header of a DICOM file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from features.datasets.dataset import Dataset
from features.datasets.listing import IMAGES, FileSource
from features.errors import BadDataset
from features.progress import shown
from features.storage import artifacts_root, write_whole

T = TypeVar("T")
_BLOCK = 4096  # bytes from the middle of a file, which tell most from each other
_REMEMBERED = 1000  # files: what is read of fewer is read again the next time
_DICOM = (".dcm", ".dicom")


def grouped(dataset: Dataset) -> Dataset:
    """Return the data set with the groups that its files tell.

    Where no group is known, the PatientID of DICOM files is one. Where Firn is to draw the split, images of equal bytes
    are of one group, and the groups that they are in are one. Files other than DICOM are read only where another has
    the same size, and none is read again while its times and sizes stay.
    """
    if not isinstance(dataset.source, FileSource):
        return dataset
    if not dataset.grouped_by:
        patients = _remembered(dataset, "patients", _patients)
        if len(set(patients) - {""}) > 1:
            groups = [patient or image for patient, image in zip(patients, dataset.ids, strict=True)]
            dataset = replace(dataset, groups=np.array(groups, np.str_), grouped_by="patient")
    if not set(np.unique(dataset.splits).tolist()) <= {"", "train"}:
        return dataset
    first = equal_bytes(dataset)
    copies = int((first != np.arange(len(first))).sum())
    if not copies:
        return dataset
    for label, name in enumerate(() if dataset.findings else dataset.classes):
        own = first[dataset.labels == label]
        if len(own) > 1 and len(set(own.tolist())) == 1:
            what = f"the {len(own):,} images of class {name!r} are one and the same, byte for byte"
            raise BadDataset(f"{dataset.source.where}: {what}; export them again")
    note = f"{dataset.note} {copies:,} images are copies of others, byte for byte, and of one group with them.".lstrip()
    return replace(dataset, groups=_joined(dataset.groups, first), note=note)


def equal_bytes(dataset: Dataset) -> NDArray[np.int64]:
    """Return for each image (n,) the row of the first one of the same bytes: its own where there is no other."""
    return np.array(_remembered(dataset, "equal", _first_of_equals), np.int64)


def _joined(groups: NDArray[np.str_], first: NDArray[np.int64]) -> NDArray[np.str_]:
    """Return the groups with those made one that hold images of equal bytes."""
    above: dict[str, str] = {}

    def top(group: str) -> str:
        while group in above:
            group = above[group]
        return group

    names = groups.tolist()
    for row in np.flatnonzero(first != np.arange(len(first))).tolist():
        one, other = sorted((top(names[row]), top(names[int(first[row])])))
        if one != other:
            above[other] = one
    return np.array([top(name) for name in names], np.str_)


def _first_of_equals(dataset: Dataset) -> list[int]:
    source, sizes = dataset.source, dataset.source.stamps(dataset.ids).size
    if not isinstance(source, FileSource):
        return list(range(len(dataset)))
    keys: list[object] = sizes.tolist()
    for question in (_middle, _whole):
        rows = _shared(keys)
        paths = [source.root / dataset.ids[row] for row in rows]
        for row, answer in zip(rows, _ask(question, paths, f"compare {dataset.name}"), strict=True):
            keys[row] = (sizes[row], answer)
    first = dict[object, int]()
    return [first.setdefault(key, row) for row, key in enumerate(keys)]


def _shared(keys: list[object]) -> list[int]:
    """Return the rows whose key another row has too."""
    count = Counter(keys)
    return [row for row, key in enumerate(keys) if count[key] > 1]


def _middle(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _BLOCK) // 2)
        return hashlib.sha256(file.read(_BLOCK)).hexdigest()


def _whole(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _patients(dataset: Dataset) -> list[str]:
    """Return the PatientID of each image, empty where there is none."""
    rows = [row for row, image in enumerate(dataset.ids) if _may_be_dicom(image)]
    paths = [Path(dataset.source.where, dataset.ids[row]) for row in rows]
    found = dict(zip(rows, _ask(_patient, paths, f"patients of {dataset.name}"), strict=True))
    return [found.get(row, "") for row in range(len(dataset))]


def _may_be_dicom(image: str) -> bool:
    name = image.lower()
    return name.endswith(_DICOM) or not name.endswith(IMAGES)


def _patient(path: Path) -> str:
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        header = dcmread(path, stop_before_pixels=True, specific_tags=["PatientID"])
    except (InvalidDicomError, EOFError, ValueError, NotImplementedError):
        return ""
    element = header.get_item("PatientID")  # as it stands in the file: no value is checked
    value = element.value if element is not None else b""
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value or "")
    return text.strip(" \0")


def _ask(question: Callable[[Path], T], paths: list[Path], what: str) -> list[T]:
    """Return what is answered of each file, by threads. Raises BadDataset where one cannot be read."""
    if not paths:
        return []
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            ThreadPoolExecutor(4 * (os.cpu_count() or 1)) as threads,
            shown(what) as progress,
        ):
            return [
                _counted(answer, n, len(paths), progress) for n, answer in enumerate(threads.map(question, paths), 1)
            ]
    except OSError as error:
        raise BadDataset(f"{error.filename} cannot be read ({error.strerror}); mend it and rerun") from None


def _counted(answer: T, done: int, total: int, progress: Callable[[int, int], None]) -> T:
    progress(done, total)
    return answer


def _remembered(dataset: Dataset, what: str, ask: Callable[[Dataset], list[T]]) -> list[T]:
    """Return an answer for each image, kept below artifacts while no file changes."""
    stamps = dataset.source.stamps(dataset.ids)
    key = hashlib.sha256("\0".join(dataset.ids).encode())
    for column in stamps:
        key.update(column.tobytes())
    path = artifacts_root() / "datasets" / f"{dataset.name}-{what}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_bytes())
        if kept["key"] == key.hexdigest() and len(kept["answers"]) == len(dataset):
            answers: list[T] = kept["answers"]
            return answers
    answers = ask(dataset)
    if len(dataset) >= _REMEMBERED:
        with contextlib.suppress(OSError):
            write_whole(path, [json.dumps({"key": key.hexdigest(), "answers": answers}).encode()])
    return answers
