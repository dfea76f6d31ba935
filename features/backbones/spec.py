"""The specification of a backbone: all that stage one needs to know before it runs, in plain values without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from features.cache.key import Key
from features.images import Augmentation, Geometry


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
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    largest: float = 0.0  # magnitude in any map of the float32 network, for drawn images
    augmentation: Augmentation | None = None  # how images are varied on the way in

    def geometry(self, preprocess: str) -> Geometry:
        """Return how an image is brought to the network's size: "crop", "squash" or "pad"."""
        return Geometry(preprocess, self.size, self.resize, self.interpolation, self.augmentation)

    def key(self, *, preprocess: str, precision: str, stored: str = "float16") -> Key:
        """Return the key of the cache entry that this spec fills."""
        line = f"{self.geometry(preprocess).describe()}; mean {list(self.mean)}, std {list(self.std)}"
        return Key(self.name, self.weights, tuple(self.blocks), line, precision, stored)
