"""The specification of a backbone: all that stage one needs to know before it runs, in plain values without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.cache.key import Key
from features.images import Augmentation, Geometry

RED, BLUE = 0.299, 0.114  # of luma, as in JPEG; the rest is green


def luma(colour: Any) -> Any:
    """Return the grey (..., 1, S, S) of colours (..., 3, S, S), an array or a tensor; of three equal channels these."""
    red, green, blue = (colour[..., i : i + 1, :, :] for i in range(3))
    return green + RED * (red - green) + BLUE * (blue - green)


@dataclass(frozen=True)
class BackboneSpec:
    """A backbone with its weights, blocks and preprocessing."""

    name: str
    file: Path  # the weights
    weights: str  # sha256 of the tensors in use
    blocks: Mapping[str, tuple[int, int, int]]  # block -> (C, H, W)
    size: int  # side of the image that the network sees
    resize: int  # short side before torchvision's centre crop
    interpolation: str
    mean: tuple[float, ...]  # of each channel that the network sees: three, or one of grey
    std: tuple[float, ...]
    largest: float = 0.0  # magnitude in any map of the float32 network, for drawn images
    augmentation: Augmentation | None = None  # how images are varied on the way in
    class_token: bool = False  # whether every block has a token for the whole image, pooled/<block>/cls

    def geometry(self, preprocess: str) -> Geometry:
        """Return how an image is brought to the network's size: "crop", "squash" or "pad"."""
        return Geometry(preprocess, self.size, self.resize, self.interpolation, self.augmentation)

    @property
    def poolings(self) -> tuple[str, ...]:
        """Return the pooled features of a block: "avg", "max" and, of a transformer with a class token, "cls"."""
        return ("avg", "max", "cls") if self.class_token else ("avg", "max")

    def normalised(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """Return pixels (..., 1 or 3, S, S) on the scale 0..255 as the network wants them, a channel for each mean."""
        mean, std = (np.array(v, np.float32)[:, None, None] for v in (self.mean, self.std))
        seen = pixels.astype(np.float32)
        if len(self.mean) == 1 and seen.shape[-3] == 3:
            seen = luma(seen)
        return np.asarray((seen / np.float32(255) - mean) / std, dtype=np.float32)  # grey becomes three channels here

    def key(self, *, preprocess: str, precision: str, stored: str = "float16") -> Key:
        """Return the key of the cache entry that this spec fills."""
        line = f"{self.geometry(preprocess).describe()}; mean {list(self.mean)}, std {list(self.std)}"
        return Key(self.name, self.weights, tuple(self.blocks), line, precision, stored)
