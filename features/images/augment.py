"""Augmentation: views of an image, shifted, turned, zoomed and brightened, drawn from a hash of its content."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.errors import FirnError

Pixels = NDArray[np.uint8] | NDArray[np.float32]
_AMPLITUDES = ("shift", "degrees", "zoom", "brightness", "contrast")


@dataclass(frozen=True)
class Augmentation:
    """How one view of every image is drawn. Equal fields and equal bytes of an image give equal pixels."""

    number: int  # which view
    seed: int = 0
    shift: float = 0.06  # of the side, at most, in each direction
    degrees: float = 8.0  # turned at most, either way
    zoom: float = 0.08  # enlarged or shrunk at most
    brightness: float = 0.1  # of the whole scale, at most
    contrast: float = 0.15  # about the image's mean, at most
    flip: bool = False  # left and right exchanged; not for radiographs: the heart is on the left
    turns: bool = False  # quarter turns, for images that have no up

    def __post_init__(self) -> None:
        """Refuse numbers from which no view can be drawn."""
        amplitudes = [getattr(self, name) for name in _AMPLITUDES]
        if not all(0 <= amplitude < math.inf for amplitude in amplitudes) or self.zoom >= 1:
            raise FirnError(f"expected finite amplitudes of 0 or more, and a zoom below 1, got {self.describe()}")
        if min(self.number, self.seed) < 0:
            raise FirnError(f"expected a number and a seed of 0 or more, got {self.describe()}")

    def describe(self) -> str:
        """Return one line that says all that changes the pixels."""
        values = asdict(self) | {name: float(getattr(self, name)) for name in _AMPLITUDES}  # 0 and 0.0 are one view
        return "view " + ", ".join(f"{name} {value}" for name, value in values.items())

    def __call__(self, square: Pixels, content: bytes) -> Pixels:
        """Return a square (C, S, S), uint8 or float32 on the scale 0..255, as this view of the image shows it.

        `content` are the image's encoded bytes, from whose sha256 the view is drawn. The square is resampled once;
        beyond its border it is mirrored, so that no black corner tells the angle.
        """
        seeds = np.frombuffer(hashlib.sha256(content).digest(), "<u4").tolist()
        rng = np.random.default_rng([self.number, self.seed, *seeds])
        x, y, angle, zoom, light, contrast = rng.uniform(-1, 1, 6).tolist()  # all, so that one setting moves no other
        mirrored, quarters = rng.random() < 0.5, int(rng.integers(4))
        if self.turns:
            square = np.rot90(square, quarters, axes=(1, 2))
        if self.flip and mirrored:
            square = square[:, :, ::-1]
        square = self._moved(square, x * self.shift, y * self.shift, angle * self.degrees, 1 + zoom * self.zoom)
        return _lit(square, light * self.brightness * 255, 1 + contrast * self.contrast)

    def _moved(self, square: Pixels, x: float, y: float, degrees: float, zoom: float) -> Pixels:
        """Turn and zoom about the middle, then shift by shares of the side."""
        if not (x or y or degrees) and zoom == 1:
            return square
        import cv2

        side = square.shape[1]
        c, s, middle = zoom * math.cos(math.radians(degrees)), zoom * math.sin(math.radians(degrees)), (side - 1) / 2
        matrix = np.array(
            [[c, s, middle * (1 - c - s) + x * side], [-s, c, middle * (1 - c + s) + y * side]], dtype=np.float64
        )
        planes: Any = np.ascontiguousarray(square.transpose(1, 2, 0))
        moved: Any = cv2.warpAffine(
            planes, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
        )
        out: Pixels = moved[None] if moved.ndim == 2 else moved.transpose(2, 0, 1)
        return out


def _lit(square: Pixels, light: float, contrast: float) -> Pixels:
    """Stretch an image about its mean, then make it lighter; the scale stays 0..255 and the dtype as it is."""
    if not light and contrast == 1:
        same: Pixels = square.copy(order="C")
        return same
    mean = float(square.mean(dtype=np.float64))
    changed: NDArray[np.float32] = np.ascontiguousarray(square, dtype=np.float32) * np.float32(contrast)
    changed = np.clip(changed + np.float32(mean * (1 - contrast) + light), 0, 255)
    if square.dtype == np.uint8:
        return np.rint(changed).astype(np.uint8)
    return changed
