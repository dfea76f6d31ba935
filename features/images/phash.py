"""Grey thumbnails and their perceptual hashes, by which near-duplicates are found."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SIDE = 64  # of a thumbnail; large enough for structures that differ between patients, 4 kB each
_HALF, _KEPT = SIDE // 2, 8
HASH_BITS = _KEPT * _KEPT - 1
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_BLOCK = 4096  # thumbnails transformed at once


def thumbnail(pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Return pixels (1, S, S) or (3, S, S) on the scale 0..255 as grey (S, S) uint8."""
    planes = pixels.astype(np.float32)
    grey = planes[0] if len(planes) == 1 else np.tensordot(_LUMA, planes, 1)
    return np.rint(grey).astype(np.uint8)


def hash_bits(thumbnails: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return the perceptual hash of thumbnails (n, SIDE, SIDE), (n, HASH_BITS).

    The low 8 x 8 coefficients of the cosine transform of 32 x 32 means, without the mean itself, each against their
    median (Zauner 2010, "Implementation and benchmarking of perceptual image hash functions"). Brightness and contrast
    do not change it.
    """
    from scipy.fft import dctn

    bits = np.empty((len(thumbnails), HASH_BITS), bool)
    for i in range(0, len(thumbnails), _BLOCK):
        block = thumbnails[i : i + _BLOCK]
        means = block.reshape(len(block), _HALF, 2, _HALF, 2).mean((2, 4), dtype=np.float32)
        low = dctn(means, axes=(1, 2), norm="ortho")[:, :_KEPT, :_KEPT].reshape(len(block), -1)[:, 1:]
        bits[i : i + _BLOCK] = low > np.median(low, axis=1, keepdims=True)
    return bits
