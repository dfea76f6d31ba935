"""Throughput of extraction, measured on a few images: decode and forward overlapped, nothing written."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import chain, islice
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from features.backbones.spec import BackboneSpec
from features.datasets.dataset import Source
from features.extraction.forward import Forward, to_arrays
from features.extraction.prefetch import batches
from features.extraction.processes import decoded
from features.extraction.shard_writer import stacked
from features.extraction.workers import WorkerPool

Pixels: TypeAlias = tuple[NDArray[np.generic], ...]  # of one image, (C, S, S) for each network


class Rate(NamedTuple):
    """The measured throughput."""

    images: int  # that went through
    seconds: float

    @property
    def per_second(self) -> float:
        """Return images per second; 0 where none went through."""
        return self.images / self.seconds if self.images else 0.0


def measure_rate(
    source: Source,
    ids: list[str],
    specs: Sequence[BackboneSpec],
    preprocess: str,
    *,
    device: str,
    precision: str,
    batch_size: int,
    workers: int,
    images: int,
    most_seconds: float,
) -> Rate:
    """Run images `ids` through all backbones, whole batches only, until they or the seconds are over.

    They are decoded as in an extraction of so many `images`. The networks are warmed up first, and the time begins with
    the first image. Unreadable images count for nothing.
    """
    nets = [Forward(spec, device=device, precision=precision, batch_size=batch_size) for spec in specs]
    geometries = tuple(spec.geometry(preprocess) for spec in specs)
    pool = WorkerPool(device)
    how: dict[str, Any] = {"device": device, "workers": workers, "ahead": 2 * batch_size + 8 * workers}
    coming = decoded(source, ids, geometries, **how, images=images, decoders=pool.decoders)

    def through(batch: Sequence[Pixels]) -> int:
        for net, squares in zip(nets, zip(*batch, strict=True), strict=True):
            to_arrays(net(stacked(list(squares))))
        return len(batch)

    try:
        through([tuple(np.zeros((1, spec.size, spec.size), np.uint8) for spec in specs)] * batch_size)
        readable = (p.pixels for p in coming if p.pixels)
        first = [*islice(readable, 1)]  # readers and decoders have begun
        done, start, now = 0, time.perf_counter(), 0.0
        some = batches(chain(first, readable), batch_size)
        for batch in pool.each(through, (whole for whole in some if len(whole) == batch_size)):
            done, now = done + batch, time.perf_counter() - start
            if now > most_seconds:
                break
    finally:
        coming.close()
        pool.close()
    return Rate(done, now)
