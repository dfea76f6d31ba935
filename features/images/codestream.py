"""The size that a compressed frame inside a DICOM file says of itself, which need not be what the file says."""

from __future__ import annotations

import struct

from features.errors import BadPicture

__all__ = ["coded_size"]

_JPEG = b"\xff\xd8"
_JPEG_FRAME_HEADERS = {*range(0xFFC0, 0xFFD0), 0xFFF7} - {0xFFC4, 0xFFC8, 0xFFCC}
_J2K = b"\xff\x4f\xff\x51"
_JP2 = b"\0\0\0\x0cjP  "


def coded_size(frame: bytes) -> tuple[int, int] | None:
    """Return (width, height) of a JPEG, JPEG-LS or JPEG 2000 codestream, None for all else (RLE has no size)."""
    if frame.startswith(_JP2):
        frame = _unboxed(frame)
    if frame.startswith(_J2K):
        return _j2k_size(frame)
    return _jpeg_size(frame) if frame.startswith(_JPEG) else None


def _unboxed(frame: bytes) -> bytes:
    """Return the codestream of a JP2 file (ITU-T T.800 I.4); a box without length would hold pydicom for ever."""
    at = 12
    while at + 8 <= len(frame):
        length, kind = struct.unpack_from(">I4s", frame, at)
        if kind == b"jp2c":
            return frame[at + 8 :]
        if length < 8:
            raise BadPicture(f"expected a JP2 box of 8 bytes or more, got {length}")
        at += length
    return b""


def _j2k_size(frame: bytes) -> tuple[int, int]:
    """Read the SIZ segment (ITU-T T.800 A.5.1)."""
    right, bottom, left, top = struct.unpack_from(">4I", frame, len(_J2K) + 4)
    return right - left, bottom - top


def _jpeg_size(frame: bytes) -> tuple[int, int] | None:
    """Read the frame header (ITU-T T.81 B.2.2, for JPEG-LS T.87 C.2.2)."""
    at = len(_JPEG)
    while at + 9 <= len(frame):
        marker, length, _, height, width = struct.unpack_from(">HHBHH", frame, at)
        if marker in _JPEG_FRAME_HEADERS:
            return width, height
        at += 2 + length
    return None
