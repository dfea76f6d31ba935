"""Decode an image of any format: its header, its pixels in its own size, or the square that a network takes."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.lib import format as npy
from PIL import Image

from features.errors import BadImage
from features.images import decoding as arrays
from features.images import dicom, raster
from features.images import raster as plain
from features.images.augment import Pixels
from features.images.image import MAX_BYTES, MAX_PIXELS, DecodedImage, ImageFacts, Opened, from_array
from features.images.preprocess import Geometry, fit, layers

_READ_HEADER = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def open_npy(data: bytes) -> Opened:
    """Open an array (H, W), (H, W, 1) or (H, W, 3) of integers or floats; objects are never unpickled."""
    stream = io.BytesIO(data)
    version = npy.read_magic(stream)
    if version not in _READ_HEADER:
        raise BadImage(f"expected .npy version 1 or 2, got {version}")
    shape, by_column, dtype = _READ_HEADER[version](stream)
    if dtype.kind not in "uif":
        raise BadImage(f"expected an array of integers or floats, got {dtype}")
    if not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))) or min(shape) < 0:
        raise BadImage(f"expected an array (H, W), (H, W, 1) or (H, W, 3), got {shape}")
    # a view of `data`: numpy.load would take the memory that the header asks for before it looks at the length
    flat = np.frombuffer(data, dtype, count=math.prod(shape), offset=stream.tell())
    array = flat.reshape(shape, order="F" if by_column else "C").astype(dtype.newbyteorder("="), copy=False)
    channels = shape[2] if len(shape) == 3 else 1
    photometric = "grey" if channels == 1 else "rgb"
    facts = ImageFacts("NPY", shape[1], shape[0], channels, dtype.itemsize * 8, photometric)
    return Opened(facts, partial(from_array, array), lambda: array)


_DECODERS = r"(PIL|cv2|pydicom|pylibjpeg|openjpeg|rle|jpeg_ls|imagecodecs|features\.images)(\.|$)"
warnings.filterwarnings("ignore", module=_DECODERS)  # what they say of an image that they can read all the same


class Format(NamedTuple):
    """One row of FORMATS."""

    name: str
    begins: tuple[bytes, ...]  # with any of these
    at: int  # so many bytes into the file
    open: Callable[[bytes], Opened]


FORMATS = (
    Format("JPEG", (b"\xff\xd8\xff",), 0, partial(plain.jpeg, careful=raster.open_jpeg)),
    Format("PNG", (b"\x89PNG\r\n\x1a\n",), 0, partial(plain.png, careful=raster.open_png)),
    Format("NPY", (b"\x93NUMPY",), 0, arrays.open_npy),
    Format("DICOM", (b"DICM",), 128, dicom.open_dicom),  # before TIFF, whose header its preamble may hold
    Format("DICOM", (b"\2\0\0\0", b"\x08\0\0\0", b"\x08\0\5\0", b"\x08\0\x08\0"), 0, dicom.open_dicom),
    Format("TIFF", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), 0, raster.open_tiff),
    Format("BMP", (b"BM",), 0, raster.open_bmp),
    Format("GIF", (b"GIF87a", b"GIF89a"), 0, raster.open_gif),
)


def open_image(data: bytes) -> Opened:
    """Read the header of an encoded image; `BadImage` where no row of FORMATS fits the first bytes."""
    for row in FORMATS:
        if data.startswith(row.begins, row.at):
            return row.open(data)
    came = f"{len(data)} bytes that begin with {data[:8]!r}" if data else "an empty file"
    raise BadImage(f"expected {', '.join(dict.fromkeys(row.name for row in FORMATS))}, got {came}")


def pixels(data: bytes, geometry: Geometry, *, name: str) -> Pixels:
    """Return an encoded image as (C, size, size): C is 1 for grey and 3 for colour, values are 0..255.

    uint8 for 8-bit images; float32 for deeper ones, whose low bits it keeps. Contiguous and writable. Safe to call
    from several threads, which then run side by side. Raises `BadImage`, which begins with `name`, for anything that
    cannot be read.
    """
    return several_pixels(data, (geometry,), name=name)[0]


def several_pixels(data: bytes, geometries: Sequence[Geometry], *, name: str) -> tuple[Pixels, ...]:
    """Return what `pixels` returns for each geometry; decoded once, and fitted once for all views."""
    with _blaming(name):
        image = _decoded(data)
        squares = {one: fit(image, one) for one in dict.fromkeys(geometry.plain() for geometry in geometries)}
    views = ((squares[geometry.plain()], geometry.augmentation) for geometry in geometries)
    return tuple(augmentation(square, data) if augmentation else square for square, augmentation in views)


def decode(data: bytes, *, name: str) -> tuple[Image.Image, ...]:
    """Return an encoded image in its own size: one of mode L or RGB, or where it is deeper one of mode F per channel.

    See `features.images` for what becomes of deep, grey and transparent images. Raises `BadImage`.
    """
    with _blaming(name):
        return tuple(layers(_decoded(data)))


def describe(data: bytes, name: str) -> ImageFacts:
    """Return what the header of an encoded image says, without decoding it. Raises `BadImage`."""
    with _blaming(name):
        return open_image(data).facts


class Look(NamedTuple):
    """An image as it is stored, and as a network sees it."""

    facts: ImageFacts
    low: float  # of the values as stored
    high: float
    square: Pixels  # (C, size, size), as `pixels` returns it


def look(data: bytes, geometry: Geometry, *, name: str) -> Look:
    """Return the header, the range of the stored values and the square of an image. Raises `BadImage`."""
    with _blaming(name):
        opened = _checked(open_image(data))
        image = opened.decode()
        values = opened.stored() if opened.facts.bits > 8 and opened.stored else image
        return Look(opened.facts, float(values.min()), float(values.max()), fit(image, geometry.plain()))


@contextmanager
def _blaming(name: str) -> Iterator[None]:
    """Raise whatever a decoder raises as `BadImage`, which names the image and what to do."""
    try:
        yield
    except BadImage as error:
        raise BadImage(f"{name}: {error}; replace the file or take it out of the data set") from None
    except (GeneratorExit, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # decoders raise anything; a panic in the Rust of one of them is no Exception
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise BadImage(
            f"{name}: cannot be decoded ({reason}); replace the file or take it out of the data set"
        ) from error


def _decoded(data: bytes) -> DecodedImage:
    """Open, check the size before memory is taken, decode."""
    return _checked(open_image(data)).decode()


def _checked(opened: Opened) -> Opened:
    """Refuse by its header an image without pixels, one of more than can be decoded, or several frames."""
    facts = opened.facts
    if min(facts.width, facts.height) < 1:
        raise BadImage(f"expected an image, got {facts.width} x {facts.height} pixels")
    if facts.width * facts.height > MAX_PIXELS:
        raise BadImage(f"expected at most {MAX_PIXELS} pixels, got {facts.width} x {facts.height}")
    if (needed := facts.decoded_bytes()) > MAX_BYTES:
        kind = f"{facts.width} x {facts.height} pixels of {facts.channels} x {facts.bits} bits"
        raise BadImage(f"expected an image that decodes in {MAX_BYTES:.0e} bytes, got {kind}, which take {needed:.1e}")
    if facts.frames != 1:
        raise BadImage(f"expected one image, got {facts.frames} frames, which have to be files of their own")
    return opened
