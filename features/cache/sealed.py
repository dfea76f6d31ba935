"""HDF5 files built in memory and sealed: the first 512 bytes (HDF5's user block) hold a digest of all that follows.

Building in memory keeps half-written HDF5 off the disk, and a full disk is a plain OSError from `write`. Stock
HDF5 tools skip the user block: https://docs.hdfgroup.org/hdf5/latest/_h5_f__u_g.html (user block).
"""

from __future__ import annotations

import itertools
import mmap
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from features.errors import CacheError
from features.storage import write_whole

_SIGNATURE = b"GCOL\x01\0\0\0"
_HEADER = 16  # of a collection, and of an object in it


def check_heaps(path: Path) -> None:
    """Raise ValueError where a heap does not lead from object to object to its end: HDF5 would follow it for ever.

    Every heap in the file is walked, wherever it lies; this reads the file once. OSError passes through.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as image:
            at = image.find(_SIGNATURE)
            while at >= 0:
                _walk(image, at, size)
                at = image.find(_SIGNATURE, at + 1)


def _walk(image: mmap.mmap, start: int, size: int) -> None:
    """Follow the objects of one collection."""
    if start + _HEADER > size:
        raise ValueError("a heap of its texts is cut short")
    end = start + int(struct.unpack_from("<Q", image, start + 8)[0])
    if end > size:
        raise ValueError("a heap of its texts is larger than the file")
    at = start + _HEADER
    while at + _HEADER <= end:
        number, length = struct.unpack_from("<H6xQ", image, at)
        step = _HEADER + -(-length // 8) * 8 if number else length  # number 0 is the free space, header included
        if step < _HEADER or at + step > end:
            raise ValueError("a heap of its texts leads nowhere")
        at += step


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
        """Do nothing: all is in memory."""

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


USER_BLOCK = 512
_numbers = itertools.count()
_PIECE = 1 << 22  # bytes read at once
_PREFIX = b"Firn sealed HDF5, xxh3-128 of all bytes after the first 512: "


def build(fill: Callable[[h5py.File], None]) -> bytes:
    """Return the bytes of an HDF5 file filled by `fill`; the format (1.10) checksums its own metadata."""
    name = f"memory-{next(_numbers)}"  # HDF5 takes two open files of one name for the same file
    with h5py.File(name, "w", driver="core", backing_store=False, libver=("v110", "v110")) as file:
        fill(file)
        file.flush()
        image: bytes = file.id.get_file_image()
    return image


def seal(digest: str) -> bytes:
    """Return the user block of a file, given the xxh3-128 (hex) of all that follows."""
    return (_PREFIX + digest.encode() + b"\n").ljust(USER_BLOCK, b"\0")


def write_sealed(path: Path, image: bytes) -> None:
    """Write user block and image so that `path` is absent, as before, or whole."""
    write_whole(path, [seal(xxhash.xxh3_128_hexdigest(image)), image])


def digest_of(path: Path) -> str:
    """Return the digest that the file claims for itself, in hex.

    Raises CacheError where the file has no seal.
    """
    with path.open("rb") as file:
        head = file.read(USER_BLOCK)
    if not head.startswith(_PREFIX):
        raise CacheError(f"{path} has no seal; run: make cache-verify")
    return head[len(_PREFIX) : len(_PREFIX) + 32].decode("ascii", "replace")


def is_whole(path: Path) -> bool:
    """Tell whether every byte of the file is as it was sealed. OSError passes through."""
    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        head = file.read(USER_BLOCK)
        while piece := file.read(_PIECE):
            hasher.update(piece)
    return head == seal(hasher.hexdigest())
