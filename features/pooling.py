"""How a feature map becomes a feature vector: (n, C, H, W) -> (n, d)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.errors import unknown

__all__ = ["POOLS", "Pool", "choose_pool", "gem", "grid"]

Array = NDArray[Any]
GEM_POWER = 3.0
_LEAST = 1e-6  # below it the generalised mean has no gradient and no meaning


def gem(maps: Array, power: float = GEM_POWER) -> NDArray[np.float32]:
    """Return the generalised mean over positions, (n, C): between the mean (power 1) and the maximum.

    Radenovic, Tolias & Chum 2018 (arXiv:1711.02512), with their power of 3; values below 0 count as 0.
    """
    clipped = np.maximum(maps.astype(np.float32), _LEAST)
    return np.asarray((clipped**power).mean(axis=(2, 3)) ** (1 / power), dtype=np.float32)


def grid(maps: Array, cells: int) -> NDArray[np.float32]:
    """Return the means over cells x cells parts, (n, C * cells^2), cells of one channel side by side.

    Parts are those of adaptive average pooling: they overlap by a row where the side is no multiple of `cells`.
    """
    height, width = maps.shape[2:]
    means = [
        maps[:, :, top:bottom, left:right].mean(axis=(2, 3), dtype=np.float32)
        for top, bottom in _parts(height, cells)
        for left, right in _parts(width, cells)
    ]
    return np.stack(means, axis=2).reshape(len(maps), -1)


def _parts(side: int, cells: int) -> list[tuple[int, int]]:
    return [(i * side // cells, -(-(i + 1) * side // cells)) for i in range(cells)]


class Pool(NamedTuple):
    """One row of POOLS: pooled arrays that are cached, or a function of the cached maps."""

    about: str
    cached: tuple[str, ...] = ()
    of_maps: Callable[[Array], NDArray[np.float32]] | None = None


POOLS: dict[str, Pool] = {
    "avg": Pool("mean over positions", ("avg",)),
    "max": Pool("maximum over positions", ("max",)),
    "both": Pool("mean and maximum side by side", ("avg", "max")),
    "gem": Pool("generalised mean, power 3 (needs maps)", of_maps=gem),
    "grid2": Pool("means over 2x2 parts (needs maps)", of_maps=partial(grid, cells=2)),
    "grid3": Pool("means over 3x3 parts (needs maps)", of_maps=partial(grid, cells=3)),
}


def choose_pool(name: str) -> Pool:
    """Return a row of POOLS. Raises UnknownName."""
    if name not in POOLS:
        raise unknown("pool", name, POOLS)
    return POOLS[name]
