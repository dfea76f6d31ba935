"""Plain JPEG and PNG files, decoded by one call that releases the interpreter's lock.

A file is plain if it has 8 bits of grey or colour, and no orientation, profile, palette or transparency. Its pixels are
the same as Pillow's (`features.images.raster`), which decodes all other files and those in which the call finds a
fault, so that it alone says what is wrong.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from functools import partial

from features.images.image import DecodedImage, ImageFacts, Opened, without_copies

Open = Callable[[bytes], Opened]

_PHOTOMETRIC = {1: "grey", 3: "rgb"}
_JPEG_FRAMES = b"\xc0\xc1\xc2"  # baseline, extended, progressive
# Huffman and quantization tables, restart interval, JFIF, Adobe, comment, with the bytes that they have at least
_JPEG_SEGMENTS = {0xC4: 17, 0xDB: 65, 0xDD: 2, 0xE0: 14, 0xEE: 12, 0xFE: 0}
_JPEG_SCAN = 0xDA
_PNG_BEGIN = b"\0\0\0\rIHDR"
_PNG_CHANNELS = {b"\x08\0\0\0\0": 1, b"\x08\2\0\0\0": 3}  # 8 bits of grey or colour, not interlaced
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


def jpeg(data: bytes, careful: Open) -> Opened:
    """Open a plain JPEG; `careful` opens any other, and decodes what libjpeg-turbo only warns of."""
    facts = _jpeg_facts(data)
    return Opened(facts, partial(_decode_jpeg, data, facts, careful)) if facts else careful(data)


def _jpeg_facts(data: bytes) -> ImageFacts | None:
    """Walk over the segments before the scan (ITU-T T.81 B.1.1.4); None where one of them is not plain."""
    at, facts, end = 2, None, len(data) - 20
    while at < end:
        mark, kind = data[at], data[at + 1]
        length = data[at + 2] << 8 | data[at + 3]
        if mark != 0xFF or length < 2:
            return None
        if kind == _JPEG_SCAN:
            return facts
        if kind in _JPEG_FRAMES and facts is None:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, at + 4)
            if bits != 8 or channels not in _PHOTOMETRIC:
                return None
            facts = ImageFacts("JPEG", width, height, channels, bits, _PHOTOMETRIC[channels])
        elif length - 2 < _JPEG_SEGMENTS.get(kind, len(data)):
            return None
        at += 2 + length
    return None


def _decode_jpeg(data: bytes, facts: ImageFacts, careful: Open) -> DecodedImage:
    """Decode with libjpeg-turbo, which Pillow has too: the same pixels."""
    from simplejpeg import decode_jpeg

    try:
        image = decode_jpeg(data, "RGB" if facts.channels == 3 else "GRAY")
    except ValueError:
        return careful(data).decode()
    return without_copies(image if facts.channels == 3 else image[..., 0])


def png(data: bytes, careful: Open) -> Opened:
    """Open a plain PNG; `careful` opens any other, and decodes what libspng refuses."""
    channels = _PNG_CHANNELS.get(data[24:29])
    if channels is None or not _is_bare(data):
        return careful(data)
    width, height = struct.unpack_from(">II", data, 16)
    facts = ImageFacts("PNG", width, height, channels, 8, _PHOTOMETRIC[channels])
    return Opened(facts, partial(_decode_png, data, careful))


def _is_bare(data: bytes) -> bool:
    """Tell whether a PNG is its header, its pixels and its end, without a chunk besides."""
    if not data.startswith(_PNG_BEGIN, 8) or zlib.crc32(data[12:29]).to_bytes(4) != data[29:33]:
        return False
    at, end = 33, len(data) - len(_PNG_END)
    while at < end and data.startswith(b"IDAT", at + 4):
        at += 12 + int.from_bytes(data[at : at + 4])
    return at == end and data.endswith(_PNG_END)


def _decode_png(data: bytes, careful: Open) -> DecodedImage:
    """Decode with libspng, which prints no warnings."""
    from imagecodecs import spng_decode

    try:
        return without_copies(spng_decode(data))
    except (RuntimeError, ValueError):
        return careful(data).decode()
