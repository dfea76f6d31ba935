"""The table of formats that are read, each known by its first bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from features.errors import BadPicture
from features.images import dicom, raster
from features.images import npy as arrays
from features.images.image import Opened

__all__ = ["FORMATS", "Format", "open_picture"]


class Format(NamedTuple):
    """One row of FORMATS."""

    name: str
    begins: tuple[bytes, ...]  # with any of these
    at: int  # so many bytes into the file
    open: Callable[[bytes], Opened]


FORMATS = (
    Format("JPEG", (b"\xff\xd8\xff",), 0, raster.open_jpeg),
    Format("PNG", (b"\x89PNG\r\n\x1a\n",), 0, raster.open_png),
    Format("NPY", (b"\x93NUMPY",), 0, arrays.open_npy),
    Format("DICOM", (b"DICM",), 128, dicom.open_dicom),  # before TIFF, whose header its preamble may hold
    Format("DICOM", (b"\2\0\0\0", b"\x08\0\0\0", b"\x08\0\5\0", b"\x08\0\x08\0"), 0, dicom.open_dicom),
    Format("TIFF", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), 0, raster.open_tiff),
    Format("BMP", (b"BM",), 0, raster.open_bmp),
    Format("GIF", (b"GIF87a", b"GIF89a"), 0, raster.open_gif),
)


def open_picture(data: bytes) -> Opened:
    """Read the header of an encoded picture; `BadPicture` where no row of FORMATS fits the first bytes."""
    for row in FORMATS:
        if data.startswith(row.begins, row.at):
            return row.open(data)
    came = f"{len(data)} bytes that begin with {data[:8]!r}" if data else "an empty file"
    raise BadPicture(f"expected {', '.join(dict.fromkeys(row.name for row in FORMATS))}, got {came}")
