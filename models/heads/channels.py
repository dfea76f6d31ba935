"""Feature maps in their principal channels: fewer numbers a position, so that heads on maps train in seconds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.pooling import grid
from models.heads.head import Array

__all__ = ["ROWS", "Channels", "coarse", "principal_channels"]

SIDE = 7  # positions a side that heads look at; the last maps of most backbones
ROWS = 256  # pictures converted to float32 at once
_POSITIONS = 8_192  # positions, of all pictures, that the directions are learned from


class Channels(NamedTuple):
    """`(x - mean) @ basis` for the channels x of a position: the leading principal components of standardised ones."""

    mean: NDArray[np.float32]  # (C,)
    basis: NDArray[np.float32]  # (C, c)

    def positions(self, X: Array) -> NDArray[np.float32]:
        """Return the principal channels of X (n, C, H, W) at its `coarse` positions, (n, c, P)."""
        pieces = []
        for i in range(0, len(X), ROWS):
            block = X[i : i + ROWS]
            Z = coarse(self.project(block).reshape(len(block), -1, *block.shape[2:]))
            pieces.append(Z.reshape(*Z.shape[:2], -1))
        return np.concatenate(pieces)

    def project(self, X: Array) -> NDArray[np.float32]:
        """Return X (n, C, H, W) of any precision as (n, c, H * W), float32."""
        n, channels = X.shape[:2]
        positions = int(np.prod(X.shape[2:]))
        out = np.empty((n, self.basis.shape[1], positions), np.float32)
        shift = (self.mean @ self.basis)[:, None]
        for i in range(0, n, ROWS):
            block = X[i : i + ROWS].reshape(-1, channels, positions).astype(np.float32)
            np.subtract(self.basis.T @ block, shift, out=out[i : i + ROWS])
        return out


def coarse(maps: Array) -> Array:
    """Return maps (n, c, H, W) averaged to SIDE x SIDE positions; those that are no larger as they are."""
    if min(maps.shape[2:]) <= SIDE:
        return maps
    return grid(maps, SIDE).reshape(*maps.shape[:2], SIDE, SIDE)


def principal_channels(X: Array, most: int, *, seed: int = 0) -> Channels:
    """Return at most `most` principal directions of the channels of X (n, C, H, W), scaled to a mean variance of 1.

    Channels are standardised first, over positions drawn from all pictures; the directions are the eigenvectors of
    their covariance. With C <= most it is an exact rotation of the standardised channels.
    """
    from scipy.linalg import eigh

    drawn = _positions(X, seed)
    mean, std = drawn.mean(axis=0, dtype=np.float64), drawn.std(axis=0, dtype=np.float64)
    scale = np.where(std > 1e-6 * (1 + np.abs(mean)), 1 / np.where(std > 0, std, 1), 0)
    standard = ((drawn - mean) * scale).astype(np.float32)
    covariance = (standard.T @ standard).astype(np.float64) / len(drawn)
    last = X.shape[1] - 1
    variance, directions = eigh(covariance, subset_by_index=[max(0, last + 1 - most), last])
    power = float(np.sqrt(max(variance.mean(), 1e-12)))
    basis = scale[:, None] * directions[:, ::-1] / power
    return Channels(mean.astype(np.float32), np.ascontiguousarray(basis, dtype=np.float32))


def _positions(X: Array, seed: int) -> NDArray[np.float32]:
    """Return the channels at positions drawn evenly from the pictures, (at most _POSITIONS or so, C)."""
    rng = np.random.default_rng(seed)
    n, channels = X.shape[:2]
    positions = int(np.prod(X.shape[2:]))
    rows = np.sort(rng.permutation(n)[:_POSITIONS])
    each = min(positions, max(1, _POSITIONS // len(rows)))
    pieces = []
    for i in range(0, len(rows), ROWS):
        block = X[rows[i : i + ROWS]].reshape(-1, channels, positions)
        at = rng.permuted(np.tile(np.arange(positions), (len(block), 1)), axis=1)[:, :each]
        pieces.append(np.take_along_axis(block, at[:, None], axis=2).astype(np.float32).swapaxes(1, 2))
    return np.concatenate(pieces).reshape(-1, channels)
