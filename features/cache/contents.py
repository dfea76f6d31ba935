"""The table of contents of a shard: where its arrays lie, so that a reader needs no HDF5 library to find them."""

from __future__ import annotations

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

from features.cache.sealed import USER_BLOCK

__all__ = ["Column", "contents", "read_contents", "read_frame"]

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
