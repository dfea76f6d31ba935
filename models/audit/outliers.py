"""Outliers by distance to the nearest neighbours."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FAR = 4.0  # robust standard deviations; of a normal distribution three in 100,000 are beyond


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
    row = np.flatnonzero(z > FAR)
    row = row[np.argsort(-z[row], kind="stable")]
    return Odd(row, z[row])
