"""Shards: immutable HDF5 files of rows, named by their own content, with a checksum per block of rows.

A shard holds one *part* of an entry for some images: `pooled` (every block, averaged and maximised over
positions) or `maps/<block>`. Parts have shards of their own, so maps can be added later and pooled features load
without touching them. Arrays are stored contiguously: any row is one read at a known offset. After the HDF5 file comes
a table of contents with these offsets, which stock tools do not see and which makes opening a shard one read.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from features.cache.sealed import USER_BLOCK, Sparse, reserve, seal
from features.errors import CacheError
from features.storage import slug, write_whole

_MAGIC = b"FIRN-TOC"
_TAIL = 8 + 8 + len(_MAGIC)  # xxh3-64 of the table, its length, the magic word


class Column(NamedTuple):
    """Where one array lies in the file."""

    offset: int  # bytes from the start of the file
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    checksums: int  # where the checksums of its blocks of rows lie

    @property
    def row_bytes(self) -> int:
        """Return the bytes of one row."""
        return int(self.dtype.itemsize * math.prod(self.shape[1:]))


def contents(part: str, key: str, data: Mapping[str, NDArray[Any]], places: Mapping[str, int]) -> list[bytes]:
    """Return the bytes that follow the HDF5 file: the table, its checksum, its length and a magic word."""
    columns = {
        name: [places[name], list(array.shape), array.dtype.str, places[f"checksums/{name}"]]
        for name, array in data.items()
        if not name.startswith("checksums/")
    }
    table = json.dumps({"part": part, "key": key, "columns": columns}).encode()
    return [table, xxhash.xxh3_64_digest(table), len(table).to_bytes(8, "little"), _MAGIC]


def read_contents(descriptor: int) -> tuple[str, str, dict[str, Column]] | None:
    """Return part, key and columns of a shard; None for a file without a table. ValueError where it is damaged."""
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, _TAIL, max(0, size - _TAIL))
    if not tail.endswith(_MAGIC) or len(tail) < _TAIL:
        return None
    length = int.from_bytes(tail[8:16], "little")
    table = os.pread(descriptor, length, size - _TAIL - length) if length < size - _TAIL else b""
    if xxhash.xxh3_64_digest(table) != tail[:8]:
        raise ValueError("its table of contents does not match its checksum")
    found = json.loads(table)
    columns = {
        n: Column(at, tuple(shape), np.dtype(kind), sums) for n, (at, shape, kind, sums) in found["columns"].items()
    }
    return found["part"], found["key"], columns


def read_frame(path: Path) -> tuple[str, str, dict[str, Column]]:
    """Return the same from the HDF5 file itself, for packs, which have no table. ValueError for anything else."""
    columns: dict[str, Column] = {}

    def note(name: str, node: h5py.Dataset | h5py.Group) -> None:
        if isinstance(node, h5py.Dataset) and not name.startswith("checksums/"):
            sums = node.file[f"checksums/{name}"].id.get_offset()
            columns[name] = Column(node.id.get_offset() or 0, node.shape, node.dtype, sums or 0)

    with h5py.File(path, "r", locking=False) as file:
        file.visititems(note)
        part = str(file.attrs["part"])
        if part != "pack" or file.userblock_size != USER_BLOCK or "sha256" not in columns:
            raise ValueError("its table of contents is missing, so it was cut short")
        return part, str(file.attrs["key"]), columns


_PLAIN = "biufS"  # kinds of numpy: no objects, no fields
_BLOCK_BYTES = 65536  # a checksum covers about this much, so that one row of maps can be checked on its own


def block_rows(row_bytes: int) -> int:
    """Return how many rows share one checksum."""
    return max(1, _BLOCK_BYTES // max(1, row_bytes))


def write_shard(
    folder: Path, part: str, key: str, sha256: NDArray[np.bytes_], arrays: Mapping[str, NDArray[np.generic]]
) -> Path:
    """Write one shard into `folder` and return its path.

    `sha256` (m,) S64 tells whose rows these are; `arrays` maps names such as "pooled/layer4/avg" to (m, ...) arrays.
    """

    data: dict[str, NDArray[Any]] = {"sha256": sha256, "checksums/sha256": checksums(sha256)}
    for name, array in arrays.items():
        data[name], data[f"checksums/{name}"] = np.ascontiguousarray(array), checksums(array)
    sparse = Sparse()
    with h5py.File(sparse, "w", userblock_size=USER_BLOCK, libver=("v110", "v110")) as file:
        file.attrs["about"] = "Firn shard: one row per image; sha256[i] is the digest of the image of row i"
        file.attrs["part"], file.attrs["key"], file.attrs["rows"] = part, key, len(sha256)
        places = {name: reserve(file, name, array.shape, array.dtype).id.get_offset() for name, array in data.items()}
        for name, array in arrays.items():
            file[f"checksums/{name}"].attrs["rows_per_checksum"] = block_rows(_row_bytes(array))
    pieces = [*sparse.around({places[name]: array for name, array in data.items()}), *contents(part, key, data, places)]
    hasher = xxhash.xxh3_128()
    for piece in pieces:
        hasher.update(piece)
    path = folder / f"{slug(part)}-{hasher.hexdigest()}.h5"
    write_whole(path, [seal(hasher.hexdigest()), *pieces], replace=False)
    return path


def _row_bytes(array: NDArray[np.generic]) -> int:
    return array.itemsize * math.prod(array.shape[1:])


def checksums(array: NDArray[np.generic]) -> NDArray[np.uint64]:
    """Return xxh3-64 of each block of rows, (ceil(m / rows per block),)."""
    rows = block_rows(_row_bytes(array))
    contiguous = np.ascontiguousarray(array).view(np.uint8).reshape(len(array), _row_bytes(array))
    starts = range(0, len(array), rows)
    return np.array([xxhash.xxh3_64_intdigest(contiguous[i : i + rows].data) for i in starts], dtype=np.uint64)


def _check_columns(columns: Mapping[str, Column], size: int) -> None:
    """Raise ValueError for arrays that are not plain numbers or texts inside the file, before memory is taken."""
    for name, column in columns.items():
        plain = column.dtype.kind in _PLAIN and column.dtype.itemsize > 0 and min(column.shape, default=-1) >= 0
        if not plain or min(column.offset, column.checksums) < 0:
            raise ValueError(f"{name} is no array of numbers or texts")
        if column.offset + math.prod(column.shape) * column.dtype.itemsize > size:
            raise ValueError(f"{name} is larger than the file")


class Shard:
    """A shard open for reading; every row that is read has passed its checksum."""

    def __init__(self, path: Path, *, mend: str = "make cache-repair") -> None:
        self.path, self._mend = path, mend
        self._checksums: dict[str, list[int]] = {}
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise CacheError(f"{path}: {error.strerror}; run: {mend}") from None
        try:
            self.part, self.key, self._columns = read_contents(self._descriptor) or read_frame(path)
            _check_columns(self._columns, os.fstat(self._descriptor).st_size)
        except (OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
            self.close()
            raise self._damaged(f"not readable ({error})") from None

    @functools.cached_property
    def sha256(self) -> NDArray[np.bytes_]:
        """Whose rows these are, (m,) S64."""
        return self.read("sha256", 0, len(self)).astype("S64", copy=False)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.column("sha256").shape[0]

    def names(self) -> list[str]:
        """Return the arrays of features in this shard."""
        return [name for name in self._columns if name != "sha256"]

    def column(self, name: str) -> Column:
        """Return shape, dtype and place of an array; CacheError where the shard has none of that name."""
        if name not in self._columns:
            raise self._damaged(f"has no {name}")
        return self._columns[name]

    def read(self, name: str, start: int, stop: int) -> NDArray[np.generic]:
        """Return rows [start, stop) of an array after checking every block that they touch.

        Raises CacheError where a checksum differs or the file is short.
        """
        column = self.column(name)
        if not 0 <= start <= stop <= column.shape[0]:
            raise self._damaged(f"has no rows {start} to {stop - 1} of {name}")
        rows = block_rows(column.row_bytes)
        first, last = start // rows * rows, min(-(-stop // rows) * rows, column.shape[0])
        whole = np.empty((last - first, *column.shape[1:]), column.dtype)
        self._checked(name, column, first, whole)
        return whole[start - first : stop - first]

    def gather(
        self, name: str, rows: NDArray[np.integer[Any]], out: NDArray[Any], to: NDArray[np.integer[Any]]
    ) -> None:
        """Put row `rows[i]` of an array into `out[to[i]]`, checked likewise; `out` is contiguous and of its dtype."""
        column = self.column(name)
        size, offset = column.row_bytes, column.offset
        if block_rows(size) > 1:
            for row, place in zip(rows.tolist(), to.tolist(), strict=True):
                out[place] = self.read(name, row, row + 1)[0]
            return
        if rows.size and not (int(rows.min()) >= 0 and int(rows.max()) < column.shape[0]):
            raise self._damaged(f"has no row {int(rows.max())} of {name}")
        view, known = memoryview(out.reshape(-1).view(np.uint8)), self._known(name, column.shape[0])  # type: ignore[arg-type]
        for row, place in zip(rows.tolist(), to.tolist(), strict=True):
            piece = view[place * size : (place + 1) * size]
            whole = os.preadv(self._descriptor, [piece], offset + row * size) == size
            if not whole or xxhash.xxh3_64_intdigest(piece) != known[row]:
                raise self._damaged(f"row {row} of {name} does not match its checksum")

    def _checked(self, name: str, column: Column, first: int, out: NDArray[np.generic]) -> None:
        """Fill `out` with whole blocks of rows and compare each with its checksum."""
        rows = block_rows(column.row_bytes)
        view, block = memoryview(out.reshape(-1).view(np.uint8)), rows * column.row_bytes  # type: ignore[arg-type]
        if view.nbytes and os.preadv(self._descriptor, [view], column.offset + first * column.row_bytes) != view.nbytes:
            raise self._damaged("is cut short")
        known = self._known(name, -(-column.shape[0] // rows))
        for number, at in enumerate(range(0, view.nbytes, block), first // rows):
            if xxhash.xxh3_64_intdigest(view[at : at + block]) != known[number]:
                last = min((number + 1) * rows, column.shape[0]) - 1
                raise self._damaged(f"rows {number * rows} to {last} of {name} do not match their checksum")

    def _known(self, name: str, blocks: int) -> list[int]:
        """Return the checksums of an array, one for each block of rows."""
        if name not in self._checksums:
            self._checksums[name] = self._bytes(self.column(name).checksums, 8 * blocks).view(np.uint64).tolist()
        return self._checksums[name]

    def _bytes(self, offset: int, size: int) -> NDArray[np.uint8]:
        raw = np.empty(size, np.uint8)
        if size and os.preadv(self._descriptor, [raw.data], offset) != size:
            raise self._damaged("is cut short")
        return raw

    def _damaged(self, what: str) -> CacheError:
        return CacheError(f"damaged {self.path}: {what}; run: {self._mend}")

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        """Close the file when nobody reads from it any more."""
        self.close()

    def __enter__(self) -> Shard:
        """Return the shard itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()
