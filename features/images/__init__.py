"""Encoded images to pixels: JPEG, PNG, TIFF, BMP, GIF, DICOM and `.npy`, grey or colour, 1 to 64 bits.

bytes --plain, else raster, dicom, npy--> (H, W) or (H, W, 3) --preprocess--> (C, S, S) --augment--> a view of it

Eight-bit images keep their values. Deeper ones become float32 on the same 0..255 scale without losing their low bits:
grey from the image's own minimum..maximum (or the window that a DICOM file brings), colour from the full range.
A colour image whose three channels are the same everywhere is read as the one grey plane that it is.
Whatever cannot be read raises `BadImage`; no warning of any decoder gets out.
"""

from __future__ import annotations

from features.images.augment import Augmentation
from features.images.decoding import Look, decode, describe, look, pixels, several_pixels
from features.images.image import MAX_PIXELS, DecodedImage, ImageFacts
from features.images.preprocess import PREPROCESS, Geometry

__all__ = [
    "MAX_PIXELS",
    "PREPROCESS",
    "Augmentation",
    "DecodedImage",
    "Geometry",
    "ImageFacts",
    "Look",
    "decode",
    "describe",
    "look",
    "pixels",
    "several_pixels",
]
