"""A file in memory that holds what was written and no holes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, final

import h5py
import numpy as np
from numpy.typing import NDArray

from features.cache.sealed import USER_BLOCK

__all__ = ["Sparse", "reserve"]


@final
class Sparse:
    """HDF5's frame around arrays of any size, whose bytes come later and from elsewhere.

    HDF5 does not write to the disk itself, for it does not survive a full one. What h5py asks of a file object:
    https://docs.h5py.org/en/stable/high/file.html#python-file-like-objects
    """

    def __init__(self) -> None:
        self.writes: list[tuple[int, bytes]] = []  # in the order of writing, later ones on top
        self._size = self._at = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a place and return it."""
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        """Return the place."""
        return self._at

    def write(self, data: memoryview) -> int:
        """Keep what is written."""
        self.writes.append((self._at, bytes(data)))
        self._at += len(self.writes[-1][1])
        self._size = max(self._size, self._at)
        return len(self.writes[-1][1])

    def read(self, size: int) -> bytes:
        """Return what was written, zeros elsewhere."""
        read = bytearray(size)
        for at, piece in self.writes:
            start, stop = max(at, self._at), min(at + len(piece), self._at + size)
            if start < stop:
                read[start - self._at : stop - self._at] = piece[start - at : stop - at]
        self._at += size
        return bytes(read)

    def truncate(self, size: int | None = None) -> int:
        """Set the length."""
        self._size = self._at if size is None else size
        return self._size

    def flush(self) -> None:
        """Have nothing to do."""

    def around(self, arrays: Mapping[int, NDArray[Any]]) -> list[bytes | memoryview]:
        """Return the file from the end of the user block on, in pieces, with `arrays` (contiguous) at their offsets."""
        pieces: list[bytes | memoryview] = []
        at = USER_BLOCK
        for offset, array in sorted(arrays.items(), key=lambda item: item[0]):
            self.seek(at)
            pieces += [self.read(offset - at), array.view(np.uint8).reshape(-1).data]
            at = offset + array.nbytes
        self.seek(at)
        return [*pieces, self.read(max(0, self._size - at))]


def reserve(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> h5py.Dataset:
    """Make a contiguous dataset whose place in the file is settled while its bytes come later, from elsewhere."""
    creation, links = h5py.h5p.create(h5py.h5p.DATASET_CREATE), h5py.h5p.create(h5py.h5p.LINK_CREATE)
    creation.set_layout(h5py.h5d.CONTIGUOUS)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    links.set_create_intermediate_group(True)
    kind, space = h5py.h5t.py_create(dtype), h5py.h5s.create_simple(shape)
    return h5py.Dataset(h5py.h5d.create(file.id, name.encode(), kind, space, dcpl=creation, lcpl=links))
