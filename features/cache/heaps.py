"""Global heaps of an HDF5 file, where texts of any length lie: the one structure without a checksum that can hold HDF5.

Layout: https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html (III.E, Disk Format: Global Heap).
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

__all__ = ["check_heaps"]

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
