"""Augmentation of images in batches on the device: each is turned, scaled, shifted, mirrored and lit by itself.

torchvision.transforms.v2 draws its random numbers once for a batch, so that all its images would be varied alike, and
one call for each image leaves a GPU waiting. Here one affine grid per image goes through one `grid_sample`, and light
is arithmetic with one number per image. The numbers are drawn beforehand (`models.finetuning.batches`), so that an
image looks the same for a seed and an epoch in whichever batch and on whatever device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from features.backbones.spec import luma
from models.finetuning.settings import AUGMENTATIONS, Amplitudes

NUMBERS: Final = 9  # drawn for each image: angle, scale, shifts, brightness, contrast, gamma, mirror, quarter turns
_PLAIN = Amplitudes()


def augment(pixels: Tensor, drawn: Tensor, how: Amplitudes, flip: str) -> Tensor:
    """Return images (B, C, S, S) on the scale 0..255 varied by `drawn` (B, NUMBERS) from [0, 1), in float32.

    Positions are interpolated bilinearly, what comes in from outside is reflected. `flip` is a row of FLIPS.
    """
    pixels, about_zero = pixels.float(), 2 * drawn - 1
    if flip != "none" or how.degrees or how.scale or how.shift:
        grid = affine_grid(_matrices(about_zero, drawn, how, flip), list(pixels.shape), align_corners=True)
        pixels = grid_sample(pixels, grid, padding_mode="reflection", align_corners=True)
    return _lit(pixels, about_zero, how) if how.brightness or how.contrast or how.gamma else pixels


def _matrices(about_zero: Tensor, drawn: Tensor, how: Amplitudes, flip: str) -> Tensor:
    """Return where in an image each position of the varied one lies, (B, 2, 3) in units of half a side."""
    angle = about_zero[:, 0] * math.radians(how.degrees)
    if flip == "any":
        angle = angle + torch.floor(4 * drawn[:, 8]) * (math.pi / 2)
    scale = 1 / (1 + about_zero[:, 1] * how.scale)
    mirror = torch.where(drawn[:, 7] < 0.5, -1.0, 1.0) if flip != "none" else torch.ones_like(scale)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    x, y = 2 * how.shift * about_zero[:, 2], 2 * how.shift * about_zero[:, 3]
    return torch.stack([torch.stack([cos * mirror, -sin, x], 1), torch.stack([sin * mirror, cos, y], 1)], 1)


def _lit(pixels: Tensor, about_zero: Tensor, how: Amplitudes) -> Tensor:
    """Change gamma, then contrast about each image's mean, then brightness; the scale stays 0..255."""
    brightness, contrast, gamma = (about_zero[:, i].view(-1, 1, 1, 1) for i in (4, 5, 6))
    pixels = 255 * (pixels.clamp(0, 255) / 255).pow((gamma * how.gamma).exp())
    mean = pixels.mean((1, 2, 3), keepdim=True)
    return (mean + (pixels - mean) * (1 + contrast * how.contrast) + 255 * brightness * how.brightness).clamp(0, 255)


@lru_cache(maxsize=16)
def _of_channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return a number for each channel, (1, C, 1, 1); sent to a device once, for a GPU waits for what it is sent."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device).view(1, -1, 1, 1)


@dataclass(frozen=True)
class Pixels:
    """How decoded images become what a network sees."""

    mean: tuple[float, ...]  # of each channel that the network sees, on the scale 0..1
    std: tuple[float, ...]

    def __call__(
        self, pixels: Tensor, drawn: Tensor | None = None, augmented: str = "none", flip: str = "none"
    ) -> Tensor:
        """Return images (B, 1 or 3, S, S) on the scale 0..255 as (B, C, S, S) float32, normalised, channels last.

        `drawn` (B, NUMBERS) varies them as a row of AUGMENTATIONS and one of FLIPS say; without they stay as they are.
        """
        values = pixels.float() if drawn is None else augment(pixels, drawn, AUGMENTATIONS[augmented], flip)
        if len(self.mean) == 1 and values.shape[1] == 3:
            values = luma(values)
        mean, std = (_of_channels(tuple(v), pixels.device) for v in (self.mean, self.std))
        normal = (values / 255 - mean) / std  # grey images become three channels here
        return normal.contiguous(memory_format=torch.channels_last)
