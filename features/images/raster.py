"""Any JPEG, PNG, TIFF, BMP and GIF, by Pillow; 16-bit colour, which Pillow cuts to 8 bits, by OpenCV."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from features.errors import BadImage
from features.images.image import (
    DecodedImage,
    ImageFacts,
    Opened,
    eight_bit,
    finite,
    from_array,
    stretched,
    without_copies,
)

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


_MODES = {"1": "grey", "L": "grey", "P": "palette", "RGB": "rgb", "RGBA": "rgb+alpha", "CMYK": "cmyk"}
_PNG_COLOURS = {0: (1, "grey"), 2: (3, "rgb"), 3: (1, "palette"), 4: (2, "grey+alpha"), 6: (4, "rgb+alpha")}
_TIFF_WHITE_IS_ZERO = 0
_TIFF_PHOTOMETRICS = {_TIFF_WHITE_IS_ZERO: "white is zero", 1: "grey", 2: "rgb", 3: "palette", 5: "cmyk", 6: "ycbcr"}
_TIFF_UNSIGNED = (1,)
_WIDTH, _HEIGHT = 256, 257  # tags of a TIFF
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_jpeg(data: bytes) -> Opened:
    """Open a JPEG; its EXIF orientation is applied, further images behind the first (MPO) are not looked at."""
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    image.decodermaxblock = len(data)  # one call of the decoder, which lets other threads run all the while
    return Opened(_facts(image, image.bits), partial(_jpeg, image))


def _jpeg(image: Image.Image) -> DecodedImage:
    """Decode a JPEG and turn it upright."""
    turn = _UPRIGHT.get(_orientation(image)) if "exif" in image.info else None
    return eight_bit(image if turn is None else image.transpose(turn))


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation 1..8, and 1 where EXIF is damaged: the image is not the worse for it."""
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except (ArithmeticError, LookupError, OSError, SyntaxError, TypeError, ValueError, struct.error):
        return 1


def open_png(data: bytes) -> Opened:
    """Open a PNG of 1 to 16 bits."""
    if data[12:16] != b"IHDR":
        raise BadImage("expected a PNG that begins with its header, got another chunk")
    image = PngImagePlugin.PngImageFile(io.BytesIO(data))
    bits, colour = data[24], data[25]
    channels, photometric = _PNG_COLOURS[colour]
    facts = ImageFacts("PNG", *image.size, channels, bits, photometric, image.n_frames)
    return Opened(facts, partial(_png, image, facts, data), partial(_deep, image, facts, data))


def open_tiff(data: bytes) -> Opened:
    """Open a TIFF of 1 to 16 bits, or of 32-bit integers or floats in grey."""
    image = TiffImagePlugin.TiffImageFile(io.BytesIO(data))
    tags = image.tag_v2
    bits, channels = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)), tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
    photometric = _TIFF_PHOTOMETRICS.get(tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0), "other")
    facts = ImageFacts("TIFF", *image.size, channels, max(bits), photometric, image.n_frames)
    return Opened(facts, partial(_tiff, image, facts, data), partial(_deep, image, facts, data))


def _check_covered(tags: Mapping[int, Any], facts: ImageFacts, size: int) -> None:
    """Refuse a TIFF whose pieces do not cover it: Pillow leaves the rest black, however large that is."""
    width, height = int(tags.get(_WIDTH, facts.width)), int(tags.get(_HEIGHT, facts.height))  # before it is turned
    if TiffImagePlugin.TILEWIDTH in tags:
        across, down = int(tags[TiffImagePlugin.TILEWIDTH]), int(tags[TiffImagePlugin.TILELENGTH])
        needed, there = -(-width // across) * -(-height // down), tags.get(TiffImagePlugin.TILEOFFSETS, ())
    else:
        needed = -(-height // int(tags.get(TiffImagePlugin.ROWSPERSTRIP, height)))
        there = tags.get(TiffImagePlugin.STRIPOFFSETS, ())
    if len(there) < needed:
        raise BadImage(f"expected {needed} strips or tiles for {width} x {height} pixels, got {len(there)}")
    if tags.get(TiffImagePlugin.COMPRESSION, 1) == 1 and width * height * facts.channels * facts.bits > 8 * size:
        raise BadImage(f"truncated: expected {width} x {height} pixels, got a file of {size} bytes")


def open_bmp(data: bytes) -> Opened:
    """Open a BMP."""
    image = BmpImagePlugin.BmpImageFile(io.BytesIO(data))
    return Opened(_facts(image, 8), partial(eight_bit, image))


def open_gif(data: bytes) -> Opened:
    """Open a GIF; more than one frame shows in the facts."""
    image = GifImagePlugin.GifImageFile(io.BytesIO(data))
    return Opened(_facts(image, 8)._replace(frames=image.n_frames), partial(eight_bit, image))


def _facts(image: Image.Image, bits: int) -> ImageFacts:
    """Return the facts of an image of the formats that say them by Pillow's mode."""
    depth = 1 if image.mode == "1" else bits
    return ImageFacts(str(image.format), *image.size, len(image.getbands()), depth, _MODES.get(image.mode, image.mode))


def _png(image: PngImagePlugin.PngImageFile, facts: ImageFacts, data: bytes) -> DecodedImage:
    """Decode a PNG by its depth."""
    return eight_bit(image) if facts.bits <= 8 else from_array(_deep(image, facts, data))


def _tiff(image: TiffImagePlugin.TiffImageFile, facts: ImageFacts, data: bytes) -> DecodedImage:
    """Decode a TIFF by its depth; Pillow turns it upright."""
    _check_covered(image.tag_v2, facts, len(data))
    if facts.bits <= 8:
        return eight_bit(image)
    array = _deep(image, facts, data)
    if facts.channels == 1 and facts.photometric == _TIFF_PHOTOMETRICS[_TIFF_WHITE_IS_ZERO]:
        return finite(stretched(-array.astype(np.float64)))  # Pillow inverts 8 bits, and no more
    return from_array(array)


def _deep(image: Image.Image, facts: ImageFacts, data: bytes) -> NDArray[Any]:
    """Return values of more than 8 bits as stored; Pillow takes large unsigned integers for negative ones."""
    if facts.channels > 1:
        return _deep_colour(image, data)
    array: NDArray[Any] = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    unsigned = tags.get(TiffImagePlugin.SAMPLEFORMAT, _TIFF_UNSIGNED) == _TIFF_UNSIGNED
    return array.view(np.uint32) if array.dtype == np.int32 and unsigned and facts.bits == 32 else array


def _deep_colour(image: Image.Image, data: bytes) -> NDArray[np.uint16]:
    """Return the 16-bit colour of a PNG or TIFF as (H, W, 3), on black where it is transparent.

    OpenCV misreads some layouts (separate planes) without a word, so its high bytes have to be Pillow's.
    """
    import cv2

    high = np.asarray(image)
    deep: NDArray[Any] | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if deep is None or deep.dtype != np.uint16 or deep.ndim != 3:
        raise BadImage(f"expected 16-bit RGB or RGBA, got a layout ({image.mode}) that is not read")
    colour: NDArray[np.uint16] = deep[..., 2::-1]
    if not np.array_equal(colour >> 8, high[..., :3]):
        raise BadImage("its 16-bit colour is laid out in a way that is not read; save it as PNG")
    alpha = deep[..., 3:]
    if not image.has_transparency_data or not alpha.any():
        return colour
    return np.rint(colour * (alpha / 65535.0)).astype(np.uint16)
