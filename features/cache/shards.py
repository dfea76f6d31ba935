"""Shards: immutable HDF5 files of rows, named by their own content, with a checksum per block of rows.

A shard holds one *part* of an entry for some pictures: `pooled` (every block, averaged and maximised over
positions) or `maps/<block>`. Parts have shards of their own, so maps can be added later and pooled features load
without touching them. Arrays are stored contiguously: any row is one read at a known offset.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from features.cache.sealed import USER_BLOCK, build, seal
from features.errors import CacheError
from features.files import slug, write_whole

__all__ = ["Shard", "block_rows", "write_shard"]

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

    def fill(file: h5py.File) -> None:
        file.attrs["about"] = "Firn shard: one row per picture; sha256[i] is the digest of the picture of row i"
        file.attrs["part"], file.attrs["key"], file.attrs["rows"] = part, key, len(sha256)
        file["sha256"] = sha256
        file["checksums/sha256"] = _checksums(sha256)
        for name, array in arrays.items():
            file[name] = array
            file[f"checksums/{name}"] = _checksums(array)
            file[f"checksums/{name}"].attrs["rows_per_checksum"] = block_rows(_row_bytes(array))

    image = build(fill)
    path = folder / f"{slug(part)}-{xxhash.xxh3_128_hexdigest(image)}.h5"
    write_whole(path, [seal(image), image], replace=False)
    return path


def _row_bytes(array: NDArray[np.generic]) -> int:
    return int(array.itemsize * np.prod(array.shape[1:], dtype=np.int64))


def _checksums(array: NDArray[np.generic]) -> NDArray[np.uint64]:
    """Return xxh3-64 of each block of rows, (ceil(m / rows per block),)."""
    rows = block_rows(_row_bytes(array))
    contiguous = np.ascontiguousarray(array).view(np.uint8).reshape(len(array), -1)
    starts = range(0, len(array), rows)
    return np.array([xxhash.xxh3_64_intdigest(contiguous[i : i + rows].data) for i in starts], dtype=np.uint64)


@dataclass(frozen=True)
class Column:
    """Where one array of a shard lies in the file."""

    offset: int  # bytes from the start of the file
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    checksums: NDArray[np.uint64]

    @property
    def row_bytes(self) -> int:
        """Return the bytes of one row."""
        return int(self.dtype.itemsize * np.prod(self.shape[1:], dtype=np.int64))


class Shard:
    """A shard open for reading; every row that is read has passed its checksum."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: dict[str, Column] = {}
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise CacheError(f"{path}: {error.strerror}; run: make cache-repair") from None
        try:
            with h5py.File(path, "r", locking=False) as file:
                self.part, self.key = str(file.attrs["part"]), str(file.attrs["key"])
                file.visititems(self._note)
                if file.userblock_size != USER_BLOCK:
                    raise ValueError("no user block")
            self.sha256 = self.read("sha256", 0, self._columns["sha256"].shape[0])
        except (OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
            self.close()
            raise self._damaged(f"not readable ({error})") from None
        except CacheError:
            self.close()
            raise

    def _note(self, name: str, node: h5py.Dataset | h5py.Group) -> None:
        """Remember where an array lies and its checksums."""
        if isinstance(node, h5py.Dataset) and not name.startswith("checksums/"):
            offset = node.id.get_offset()
            checksums = node.file[f"checksums/{name}"][...]
            self._columns[name] = Column(offset or 0, node.shape, node.dtype, checksums)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.sha256)

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
        rows = block_rows(column.row_bytes)
        first, last = start // rows * rows, min(-(-stop // rows) * rows, column.shape[0])
        raw = np.empty((last - first) * column.row_bytes, np.uint8)
        if os.preadv(self._descriptor, [raw.data], column.offset + first * column.row_bytes) != raw.nbytes:
            raise self._damaged("is cut short")
        for i in range(first, last, rows):
            piece = raw[(i - first) * column.row_bytes : (i - first + rows) * column.row_bytes]
            if xxhash.xxh3_64_intdigest(piece.data) != int(column.checksums[i // rows]):
                raise self._damaged(f"rows {i} to {min(i + rows, last) - 1} of {name} do not match their checksum")
        whole = raw.view(column.dtype).reshape(last - first, *column.shape[1:])
        return whole[start - first : stop - first]

    def _damaged(self, what: str) -> CacheError:
        return CacheError(f"damaged shard {self.path}: {what}; run: make cache-repair")

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def __enter__(self) -> Shard:
        """Return the shard itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()
