"""MedMNIST archives: one `.npz` with the arrays {train,val,test}_{images,labels} (Yang et al. 2023)."""

from __future__ import annotations

import io
import math
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

from features.datasets.dataset import SPLITS, Dataset, Stamps
from features.datasets.findings import with_findings
from features.devices import memory
from features.errors import BadDataset

KEYS = tuple(f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels"))
_READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@final
@dataclass(frozen=True, eq=False)
class NpzSource:
    """Rows of the image arrays in a MedMNIST archive; image "train/000012" is row 12 of `train_images`.

    The first row read of a split unpacks that split's array, which then stays in memory as long as the source does
    (`pneumoniamnist_224`: 294 MB for all three). A copy sent to another process unpacks its own.
    """

    path: Path
    _unpacked: dict[str, NDArray[np.generic]] = field(default_factory=dict, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __reduce__(self) -> tuple[type[NpzSource], tuple[Path]]:
        """Pickle the path alone."""
        return NpzSource, (self.path,)

    @property
    def where(self) -> str:
        """Return the archive."""
        return str(self.path)

    def read(self, image: str) -> bytes:
        """Return one row, (h, w) or (h, w, 3), as the bytes of a `.npy` file."""
        split, _, row = image.partition("/")
        with self._lock:
            if split not in self._unpacked:
                self._unpacked[split] = _array(self.path, f"{split}_images")
        file = io.BytesIO()
        np.save(file, self._unpacked[split][int(row)], allow_pickle=False)
        return file.getvalue()

    def stamps(self, images: list[str]) -> Stamps:
        """Return size and times of the archive for each of its images."""
        with _readable(self.path):
            found = self.path.stat()
        numbers = found.st_size, found.st_mtime_ns, found.st_ctime_ns
        return Stamps(*(np.full(len(images), number, np.int64) for number in numbers))


def read_medmnist(path: Path, name: str, *, classes: tuple[str, ...] = ()) -> Dataset:
    """Read a MedMNIST archive into a data set, its images left packed; `classes` names the labels 0, 1, ...

    Without `classes` a class goes by its number. Raises BadDataset where an array is missing or of another shape than
    images (n, h, w) or (n, h, w, 3) and whole-number labels (n, 1). Labels (n, L) of 0 and 1 are several findings per
    image, which `classes` names, else their numbers; with one 1 in each row they are classes.
    """
    shapes = _shapes(path)
    labels = {split: _labels(path, split) for split in sorted(SPLITS)}
    for split in SPLITS:
        _require_shapes(path, split, shapes[f"{split}_images"], labels[split])
    width = max(6, len(str(sum(map(len, labels.values())))))  # digits enough for ids to sort as rows do
    ids = [f"{split}/{row:0{width}}" for split, column in labels.items() for row in range(len(column))]
    splits = np.array([image.partition("/")[0] for image in ids], np.str_)
    plain = Dataset(name, (), ids, np.empty(0, np.int64), splits, np.array(ids, np.str_), NpzSource(path))
    wide = [column.reshape(len(column), -1) for column in labels.values()]
    if all(map(_is_one_hot, wide)):
        labels = {split: column.argmax(axis=1) for split, column in zip(labels, wide, strict=True)}
        wide = []
    if any(column.shape[1] > 1 for column in wide):
        return _with_findings(plain, wide, classes)
    values, codes = np.unique(np.concatenate([column.ravel() for column in labels.values()]), return_inverse=True)
    known = list(range(len(classes))) if classes else values.tolist()
    if len(values) < 2 or not set(values.tolist()) <= set(known):
        raise BadDataset(
            f"{path} has the labels {values.tolist()}; expected two or more{f' of {known}' if classes else ''}"
        )
    numbers = np.searchsorted(known, values)[codes].astype(np.int64)
    return replace(plain, classes=classes or tuple(map(str, known)), labels=numbers)


def _is_one_hot(labels: NDArray[np.int64]) -> bool:
    """Tell whether labels (n, L) say which one of L classes each image is of."""
    return labels.shape[1] > 1 and bool(np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all())


def _with_findings(plain: Dataset, labels: list[NDArray[np.int64]], names: tuple[str, ...]) -> Dataset:
    """Return the data set with a label matrix. Raises BadDataset where it is none of 0 and 1, or of other widths."""
    widths = sorted({column.shape[1] for column in labels})
    if len(widths) > 1 or (names and widths != [len(names)]) or not all({0, 1} >= {*np.unique(c)} for c in labels):
        raise BadDataset(
            f"{plain.source.where} has labels of {' and '.join(map(str, widths))} columns; expected 0 and 1 for each "
            f"of {len(names) or 'as many'} findings in all splits"
        )
    return with_findings(plain, names or tuple(map(str, range(widths[0]))), np.concatenate(labels))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except BadDataset:
        raise
    except Exception as error:  # zipfile, zlib, numpy and its parser of headers raise many kinds for a broken file
        raise BadDataset(f"{path} cannot be read as a .npz of plain arrays ({error}); get it anew") from None


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array by its key, read from the headers alone."""
    shapes = {}
    with _readable(path), zipfile.ZipFile(path) as archive:
        if missing := sorted({f"{key}.npy" for key in KEYS} - set(archive.namelist())):
            raise BadDataset(f"{path} lacks {', '.join(missing)}; expected {', '.join(KEYS)} as in MedMNIST")
        for key in KEYS:
            with archive.open(f"{key}.npy") as file:
                shapes[key], _, dtype = _READ_HEADER[np.lib.format.read_magic(file)](file)
            if dtype.kind not in "biuf":
                raise BadDataset(f"{path}: {key} holds {dtype}; expected numbers")
            _require_length(path, key, shapes[key], dtype.itemsize, archive.getinfo(f"{key}.npy").file_size)
    return shapes


def _array(path: Path, key: str) -> NDArray[np.generic]:
    with _readable(path), np.load(path, allow_pickle=False) as archive:
        array: NDArray[np.generic] = archive[key]
    return array


def _require_length(path: Path, key: str, shape: tuple[int, ...], item: int, length: int) -> None:
    """Raise BadDataset unless an array's bytes are there and fit into memory, before numpy takes memory for them."""
    size, most = math.prod(shape) * item, memory() // 2
    if min(shape, default=0) < 0 or size > length:
        raise BadDataset(f"{path}: {key} says {shape} and holds {length:,} bytes; get it anew")
    if size > most:
        raise BadDataset(f"{path}: {key} unpacks to {size:,} bytes, more than half of the memory ({most:,}); split it")


def _labels(path: Path, split: str) -> NDArray[np.int64]:
    labels = _array(path, f"{split}_labels")
    if labels.dtype.kind not in "iub":
        raise BadDataset(f"{path}: {split}_labels are {labels.dtype}; expected whole numbers")
    return labels.astype(np.int64)


def _require_shapes(path: Path, split: str, images: tuple[int, ...], labels: NDArray[np.int64]) -> None:
    if labels.ndim not in (1, 2):
        raise BadDataset(f"{path}: {split}_labels are {labels.shape}; expected (n, 1), or (n, L) of L findings")
    if not (len(images) == 3 or (len(images) == 4 and images[3] == 3)):
        raise BadDataset(f"{path}: {split}_images are {images}; expected (n, h, w) or (n, h, w, 3)")
    if images[0] != len(labels):
        raise BadDataset(f"{path}: {images[0]} rows of {split}_images but {len(labels)} of {split}_labels; get it anew")
