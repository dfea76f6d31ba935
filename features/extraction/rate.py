"""How fast pictures would go through: decode and forward, overlapped as in the loop, without writing anything."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.backbones.recipe import Recipe
from features.datasets.dataset import Source
from features.extraction.forward import Forward, to_arrays
from features.extraction.pictures import prepare

__all__ = ["Rate", "measure_rate"]


class Rate(NamedTuple):
    """What was measured."""

    pictures: int  # that went through
    seconds: float

    @property
    def per_second(self) -> float:
        """Return pictures per second; 0 where none went through."""
        return self.pictures / self.seconds if self.pictures else 0.0


def measure_rate(
    source: Source,
    ids: list[str],
    recipes: Sequence[Recipe],
    preprocess: str,
    *,
    device: str,
    precision: str,
    batch_size: int,
    workers: int,
    most_seconds: float,
) -> Rate:
    """Run pictures `ids` through all backbones, whole batches only, until they or the seconds are over.

    The networks are warmed up first. Unreadable pictures count for nothing.
    """
    nets = [Forward(recipe, device=device, precision=precision, batch_size=batch_size) for recipe in recipes]
    for net, recipe in zip(nets, recipes, strict=True):
        to_arrays(net(np.zeros((batch_size, 1, recipe.size, recipe.size), np.uint8)))
    geometries = tuple(recipe.geometry(preprocess) for recipe in recipes)
    waiting: list[tuple[NDArray[np.generic], ...]] = []
    done, start, now = 0, time.perf_counter(), 0.0
    ahead = 2 * batch_size + 8 * workers
    for picture in prepare(
        source, ids, range(len(ids)), geometries, wanted=lambda _: True, workers=workers, ahead=ahead
    ):
        waiting += [picture.pixels] if picture.pixels else []
        if len(waiting) == batch_size:
            for net, squares in zip(nets, zip(*waiting, strict=True), strict=True):
                to_arrays(net(np.stack([np.broadcast_to(square, (3, *square.shape[1:])) for square in squares])))
            done, now = done + len(waiting), time.perf_counter() - start
            waiting.clear()
            if now > most_seconds:
                break
    return Rate(done, now)
