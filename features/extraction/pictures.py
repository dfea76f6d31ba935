"""The decode stage: pictures in order, read, digested and decoded by threads a little ahead of the network."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.datasets.dataset import Source
from features.errors import FirnError
from features.images import Geometry, several_pixels

__all__ = ["Prepared", "prepare"]

_TASK = 8  # pictures per task: fewer hand-overs between threads


class Prepared(NamedTuple):
    """One picture on its way to the network."""

    picture: int  # row of the data set
    sha256: bytes  # of the bytes, hex; b"" where they could not be read
    pixels: tuple[NDArray[np.generic], ...]  # one (C, S, S) array per geometry; empty where not needed or unreadable
    error: str  # why it is unreadable, or ""
    seconds: float  # spent on it by a thread


def prepare(
    source: Source,
    ids: list[str],
    indices: Iterable[int],
    geometries: tuple[Geometry, ...],
    *,
    wanted: Callable[[bytes], bool],
    workers: int,
    ahead: int,
) -> Iterator[Prepared]:
    """Yield every picture of `indices` in their order, at most `ahead` pictures before they are asked for.

    `wanted(sha256)` is asked from the threads after the bytes are read and before they are decoded. Decoders release
    the interpreter's lock, so threads suffice.
    """

    def task(batch: list[int]) -> list[Prepared]:
        return [_one(source, ids[i], i, geometries, wanted) for i in batch]

    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    running: deque[Future[list[Prepared]]] = deque()
    batches = _batches(indices)
    try:
        exhausted = False
        while running or not exhausted:
            while not exhausted and len(running) * _TASK < ahead:
                batch = next(batches, None)
                exhausted = batch is None
                if batch:
                    running.append(pool.submit(task, batch))
            if running:
                yield from running.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _batches(indices: Iterable[int]) -> Iterator[list[int]]:
    batch: list[int] = []
    for index in indices:
        batch.append(index)
        if len(batch) == _TASK:
            yield batch
            batch = []
    if batch:
        yield batch


def _one(
    source: Source, picture: str, index: int, geometries: tuple[Geometry, ...], wanted: Callable[[bytes], bool]
) -> Prepared:
    """Read, digest and decode one picture; an unreadable one is told, not raised."""
    start = time.perf_counter()
    sha256 = b""
    try:
        data = source.read(picture)
        sha256 = hashlib.sha256(data).hexdigest().encode()
        needed = wanted(sha256)
        arrays = several_pixels(data, geometries, name=picture) if needed else ()
        return Prepared(index, sha256, arrays, "", time.perf_counter() - start)
    except OSError as error:
        return Prepared(index, b"", (), f"{picture}: {error.strerror or error}", time.perf_counter() - start)
    except FirnError as error:
        return Prepared(index, sha256, (), str(error), time.perf_counter() - start)
