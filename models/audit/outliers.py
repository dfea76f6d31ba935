"""Outliers by distance to the nearest neighbours, and blank images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FAR = 4.0  # robust standard deviations; of a normal distribution three in 100,000 are beyond
BLACK, FLAT = 16, 8  # of 255: nothing brighter than this, no more than this between dark and bright
_TAIL = 0.01  # share of the pixels at either end that does not count


class Odd(NamedTuple):
    """Outlying rows, strongest first, with the value that they were found by."""

    row: NDArray[np.int64]  # (m,)
    value: NDArray[np.float64]  # (m,)


def far_out(y: NDArray[np.int64], distance: NDArray[np.float64]) -> Odd:
    """Return the outliers: rows whose mean neighbour distance (n,) is more than FAR robust z-scores in its class.

    On the logarithm of the distance: z = (x - median) / (1.4826 MAD), Iglewicz & Hoaglin 1993; the distance to the
    nearest ones by Ramaswamy, Rastogi & Shim 2000 (SIGMOD 29:427).
    """
    x = np.log(np.maximum(distance, 1e-12))
    z = np.zeros(len(x))
    for label in np.unique(y):
        own = y == label
        middle = np.median(x[own])
        spread = 1.4826 * np.median(np.abs(x[own] - middle))
        z[own] = (x[own] - middle) / spread if spread > 0 else 0.0
    return _ranked(z, z > FAR, -z)


def blank(thumbnails: NDArray[np.uint8]) -> Odd:
    """Return the blank thumbnails of (n, S, S), near-black or near-constant, with the range of grey that they use."""
    flat = thumbnails.reshape(len(thumbnails), -1)
    ends = [_TAIL, 1 - _TAIL]
    low, high = np.concatenate(
        [np.quantile(part, ends, axis=1, method="nearest") for part in np.array_split(flat, 1 + len(flat) // 4096)], 1
    ).astype(np.float64)
    return _ranked(high - low, (high <= BLACK) | (high - low <= FLAT), high - low)


def _ranked(value: NDArray[np.float64], which: NDArray[np.bool_], by: NDArray[np.float64]) -> Odd:
    row = np.flatnonzero(which)
    row = row[np.argsort(by[row], kind="stable")]
    return Odd(row, value[row])
