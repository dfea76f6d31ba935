"""What every format is decoded to: values on the scale 0..255, and the facts of the file they came from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from features.errors import BadImage

MAX_PIXELS = 250_000_000  # a whole mammogram has 25 million; beyond this a file is taken for a decompression bomb
MAX_BYTES = 1_000_000_000  # of memory that decoding one image may take: 200 million pixels of 8-bit grey, 42 of 16
_BLOCK = 1 << 16  # pixels compared at once: colour shows early, and small pieces of memory are at hand

# (H, W) grey or (H, W, 3) colour: uint8 for 8-bit images, float32 for deeper ones.
DecodedImage = NDArray[np.uint8] | NDArray[np.float32]


class ImageFacts(NamedTuple):
    """What the header of a file says, before anything is decoded."""

    format: str  # JPEG, PNG, TIFF, BMP, GIF, DICOM or NPY
    width: int
    height: int
    channels: int  # samples per pixel as stored; 1 for a palette
    bits: int  # per sample, as stored
    photometric: str  # grey, rgb, palette, cmyk, ...; for DICOM its own word (MONOCHROME1, ...)
    frames: int = 1

    def decoded_bytes(self) -> int:
        """Return the memory that decoding takes at its peak, at most; measured for each kind of image."""
        colour = self.channels > 1 or self.photometric == "PALETTE COLOR"
        if self.bits > 8 or self.photometric == "PALETTE COLOR":
            a_pixel = 24 if not colour else 40 if self.channels <= 3 else 64
        elif self.channels > 3 or self.photometric in ("palette", "grey+alpha"):
            a_pixel = 21  # transparency is laid on black in four channels
        else:
            a_pixel = 10 if colour else 5
        return self.width * self.height * a_pixel


class Opened(NamedTuple):
    """An image whose header is read; its pixels are not, until `decode` is called."""

    facts: ImageFacts
    decode: Callable[[], DecodedImage]
    stored: Callable[[], NDArray[Any]] | None = None  # values of more than 8 bits as they are in the file


def eight_bit(image: Image.Image) -> DecodedImage:
    """Decode an 8-bit (or 1-bit) image of any mode to grey or colour.

    Transparency that hides nothing, or everything (an alpha that nobody has filled in), is dropped; other images
    with transparency are laid on black.
    """
    if image.mode == "La":
        image = image.getchannel(0)  # multiplied by its alpha, so it lies on black already
    elif image.has_transparency_data:
        image = _on_black(image.convert("RGBA"))
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    return without_copies(np.asarray(image))


def _on_black(image: Image.Image) -> Image.Image:
    """Return an RGBA image as RGB on a black ground."""
    colour, alpha = image.convert("RGB"), image.getchannel("A")
    if alpha.getextrema() in ((255, 255), (0, 0)):
        return colour
    return Image.composite(colour, Image.new("RGB", image.size), alpha)


def without_copies(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return one channel of a colour image whose three are equal at every pixel; any other image as it is."""
    import cv2

    if image.ndim == 2 or not image.size:
        return image
    height, width = image.shape[:2]
    rows = max(1, _BLOCK // width)
    red, others = np.empty((height, width), np.uint8), np.empty((2, min(rows, height), width), np.uint8)
    for top in range(0, height, rows):
        block = image[top : top + rows]
        planes = [red[top : top + rows], *others[:, : len(block)]]
        cv2.split(block, planes)
        if any(cv2.norm(planes[0], other, cv2.NORM_INF) for other in planes[1:]):
            return image
    return red


def channels_first(image: DecodedImage) -> DecodedImage:
    """Return a copy of (H, W) or (H, W, 3) as (1, H, W) or (3, H, W)."""
    import cv2

    if image.ndim == 2:
        return image[None].copy()
    planes = np.empty((3, *image.shape[:2]), image.dtype)
    cv2.split(image, list(planes))  # several times as fast as numpy's transposition, and other threads run
    return planes


def from_array(array: NDArray[Any], bits: int = 0) -> DecodedImage:
    """Return the image of an array (H, W), (H, W, 1) or (H, W, 3) of integers or floats.

    uint8 stays as it is. Other grey is stretched from its own minimum..maximum to 0..255, so that 12 bits in a 16-bit
    file are not nearly black; a constant image becomes 0. Colour of other integers is scaled from 0..2**bits - 1
    (`bits` 0: those of the type), which leaves its balance alone; colour of floats from the minimum..maximum of all
    three channels. NaN and infinity raise `BadImage`.
    """
    if array.ndim == 3 and (array.shape[2] == 1 or _is_grey(array)):
        array = array[..., 0]
    if array.dtype == np.uint8 and bits in (0, 8):
        return np.ascontiguousarray(array)
    if array.ndim == 2 or array.dtype.kind == "f":
        return finite(stretched(array))
    return full_scale(array, 2 ** (bits or array.dtype.itemsize * 8) - 1)


def _is_grey(array: NDArray[Any]) -> bool:
    """Tell whether the channels of (H, W, 3) are equal everywhere."""
    return bool((array[..., :1] == array[..., 1:]).all())


def stretched(array: NDArray[Any], among: NDArray[Any] | None = None) -> NDArray[np.float32]:
    """Return `array` with the minimum..maximum of `among` (or of itself) mapped to 0..255, and cut there."""
    reference = array if among is None else among
    low, high = float(reference.min()), float(reference.max())
    values = _floats(array)
    values -= low
    values /= (high - low) or 1.0
    values *= 255
    return np.clip(values, 0, 255, out=values).astype(np.float32, copy=False)


def full_scale(array: NDArray[Any], top: int) -> NDArray[np.float32]:
    """Return unsigned `array` with 0..top mapped to 0..255, and cut there."""
    values = _floats(array)
    values *= 255 / top
    return np.clip(values, 0, 255, out=values).astype(np.float32, copy=False)


def _floats(array: NDArray[Any]) -> NDArray[np.floating]:
    """Return a copy in the smallest floats that can hold every value exactly, or nearly so for 64-bit integers."""
    return array.astype(np.float64 if array.dtype.itemsize > 2 else np.float32)


def finite(values: NDArray[Any]) -> NDArray[Any]:
    """Return `values`; NaN and infinity, whether stored or come of a range too wide for floats, raise `BadImage`."""
    if not np.isfinite(values).all():
        raise BadImage("expected finite values, got NaN or infinity")
    return values
