"""Preprocessing: an image of any shape becomes a square, by crop, squash or pad."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from features.errors import BadImage, FirnError, unknown
from features.images.augment import Augmentation
from features.images.image import MAX_PIXELS, DecodedImage, channels_first

INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Geometry:
    """How an image becomes a square; equal geometries give equal pixels."""

    how: str  # a row of PREPROCESS
    size: int  # final side in pixels
    resize: int  # short side before a centre crop; the other ways do not look at it
    interpolation: str  # a row of INTERPOLATIONS
    augmentation: Augmentation | None = None  # how the square is varied

    def __post_init__(self) -> None:
        """Refuse names that are in no table (`UnknownName`) and sides below 1 (`FirnError`)."""
        if self.how not in PREPROCESS:
            raise unknown("preprocess", self.how, PREPROCESS)
        if self.interpolation not in INTERPOLATIONS:
            raise unknown("interpolation", self.interpolation, INTERPOLATIONS)
        if min(self.size, self.resize) < 1:
            raise FirnError(f"expected sides of 1 pixel or more, got size {self.size} and resize {self.resize}")

    def describe(self) -> str:
        """Return one canonical line, which says all that changes the pixels and nothing else."""
        line = f"{self.how}: " + PREPROCESS[self.how].line.format(geometry=self)
        return f"{line}; {self.augmentation.describe()}" if self.augmentation else line

    def plain(self) -> Geometry:
        """Return the geometry without its augmentation."""
        return replace(self, augmentation=None) if self.augmentation else self


class Way(NamedTuple):
    """One row of PREPROCESS: the line that describes it, and the size (width, height) that an image is brought to."""

    line: str
    scaled: Callable[[int, int, Geometry], tuple[int, int]]


def fit(image: DecodedImage, geometry: Geometry) -> DecodedImage:
    """Return an image as a square (C, size, size): scaled, then its middle, on black where it is the smaller.

    Contiguous and writable, and on the scale 0..255 in the dtype that the image has.
    """
    height, width = image.shape[:2]
    scaled = PREPROCESS[geometry.how].scaled(width, height, geometry)
    if (width, height) == scaled == (geometry.size, geometry.size):
        return channels_first(image)
    left, top = (_start(length, geometry.size) for length in scaled)
    box = (left, top, left + geometry.size, top + geometry.size)
    square = [np.asarray(_resampled(layer, scaled, geometry).crop(box)) for layer in layers(image)]
    if image.dtype == np.uint8:
        return channels_first(square[0])
    deep: NDArray[np.float32] = np.stack(square)
    return np.clip(deep, 0, 255, out=deep)  # bicubic overshoots


def layers(image: DecodedImage) -> list[Image.Image]:
    """Return an image as one of mode L or RGB, or where it is deeper as one of mode F for each channel."""
    return [Image.fromarray(layer) for layer in ([image] if image.dtype == np.uint8 else channels_first(image))]


def _crop(width: int, height: int, geometry: Geometry) -> tuple[int, int]:
    """Scale as torchvision's `Resize(resize)` does with a PIL image, bit for bit; `CenterCrop(size)` is the rest."""
    short, side = min(width, height), geometry.resize
    return int(side * width / short), int(side * height / short)


def _squash(width: int, height: int, geometry: Geometry) -> tuple[int, int]:
    """Show the whole image, whatever becomes of its aspect."""
    return geometry.size, geometry.size


def _pad(width: int, height: int, geometry: Geometry) -> tuple[int, int]:
    """Show the whole image in its own aspect, centred on black."""
    scale = geometry.size / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _start(length: int, size: int) -> int:
    """Return where a centred piece of `size` begins; below 0 where the image is the smaller of the two."""
    return round((length - size) / 2) if length >= size else -((size - length) // 2)


def _resampled(image: Image.Image, size: tuple[int, int], geometry: Geometry) -> Image.Image:
    """Return `image` at `size` (width, height); the image itself where it has that size."""
    if image.size == size:
        return image
    if size[0] * size[1] > MAX_PIXELS:
        raise BadImage(f"too long and thin: {image.width} x {image.height} would grow to {size[0]} x {size[1]} pixels")
    return image.resize(size, INTERPOLATIONS[geometry.interpolation])


PREPROCESS: dict[str, Way] = {  # the lines are in the keys of the cache: not a word of them changes
    "crop": Way("short side to {geometry.resize} ({geometry.interpolation}, antialias), centre {geometry.size}", _crop),
    "squash": Way("whole picture to {geometry.size} x {geometry.size} ({geometry.interpolation}, antialias)", _squash),
    "pad": Way(
        "long side to {geometry.size} ({geometry.interpolation}, antialias), centred on black {geometry.size}", _pad
    ),
}
