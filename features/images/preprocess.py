"""The three ways from an image of any shape to a square."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from PIL import Image

from features.errors import BadImage, FirnError, unknown
from features.images.augment import Augmentation
from features.images.image import MAX_PIXELS

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
        return replace(self, augmentation=None)


@dataclass(frozen=True)
class Way:
    """One row of PREPROCESS: the function and the line that describes it."""

    line: str
    apply: Callable[[Image.Image, Geometry], Image.Image]

    def __call__(self, image: Image.Image, geometry: Geometry) -> Image.Image:
        """Return `image` (mode L, RGB or F) as a square of `geometry.size` pixels in the same mode."""
        return self.apply(image, geometry)


def fit(image: Image.Image, geometry: Geometry) -> Image.Image:
    """Return `image` (mode L, RGB or F) as a square of `geometry.size` pixels in the same mode."""
    return PREPROCESS[geometry.how](image, geometry)


def _crop(image: Image.Image, geometry: Geometry) -> Image.Image:
    """Do as torchvision's `Resize(resize)` and `CenterCrop(size)` do with a PIL image, bit for bit."""
    width, height = image.size
    short, side = min(width, height), geometry.resize
    scaled = _resampled(image, (int(side * width / short), int(side * height / short)), geometry)
    left, top = _start(scaled.width, geometry.size), _start(scaled.height, geometry.size)
    return scaled.crop((left, top, left + geometry.size, top + geometry.size))


def _start(length: int, size: int) -> int:
    """Return where a centred piece of `size` begins; below 0 where the image is the smaller of the two."""
    return round((length - size) / 2) if length >= size else -((size - length) // 2)


def _squash(image: Image.Image, geometry: Geometry) -> Image.Image:
    """Show the whole image, whatever becomes of its aspect."""
    return _resampled(image, (geometry.size, geometry.size), geometry)


def _pad(image: Image.Image, geometry: Geometry) -> Image.Image:
    """Show the whole image in its own aspect, centred on black."""
    width, height = image.size
    scale = geometry.size / max(width, height)
    scaled = _resampled(image, (max(1, round(width * scale)), max(1, round(height * scale))), geometry)
    left, top = _start(scaled.width, geometry.size), _start(scaled.height, geometry.size)
    return scaled.crop((left, top, left + geometry.size, top + geometry.size))


def _resampled(image: Image.Image, size: tuple[int, int], geometry: Geometry) -> Image.Image:
    """Return `image` at `size` (width, height); the image itself where it has that size."""
    if image.size == size:
        return image
    if size[0] * size[1] > MAX_PIXELS:
        raise BadImage(f"too long and thin: {image.width} x {image.height} would grow to {size[0]} x {size[1]} pixels")
    return image.resize(size, INTERPOLATIONS[geometry.interpolation])


PREPROCESS: dict[str, Way] = {
    "crop": Way("short side to {geometry.resize} ({geometry.interpolation}, antialias), centre {geometry.size}", _crop),
    "squash": Way("whole image to {geometry.size} x {geometry.size} ({geometry.interpolation}, antialias)", _squash),
    "pad": Way(
        "long side to {geometry.size} ({geometry.interpolation}, antialias), centred on black {geometry.size}", _pad
    ),
}
