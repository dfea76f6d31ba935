"""The decode stage: images in order, read by threads of their own and decoded a little ahead of the network."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from features.backbones.spec import BackboneSpec
from features.datasets.dataset import Source
from features.errors import FirnError
from features.images import Geometry, pixels, several_pixels

T = TypeVar("T")

_TASK = 8  # images per task: fewer hand-overs between threads
_THREADS = 2  # that decode for an ImageStream


class Prepared(NamedTuple):
    """One image on its way to the network."""

    image: int  # row of the data set
    sha256: bytes  # of the bytes, hex; b"" where they could not be read
    pixels: tuple[NDArray[np.generic], ...]  # one (C, S, S) array per geometry; empty where not needed or unreadable
    error: str  # why it is unreadable, or ""
    reading: float  # seconds that a thread took for reading and digesting it
    decoding: float  # seconds that a thread took for decoding and fitting it
    waiting: float  # seconds that this thread waited for the bytes before


class _Read(NamedTuple):
    """The bytes of one image, or None where they are not needed or could not be read."""

    image: int
    sha256: bytes
    data: bytes | None
    error: str
    seconds: float


def prepare(
    source: Source,
    ids: list[str],
    indices: Iterable[int],
    geometries: tuple[Geometry, ...],
    *,
    wanted: Callable[[bytes], bool],
    workers: int,
    ahead: int,
    decoders: Executor | None = None,
) -> Iterator[Prepared]:
    """Yield every image of `indices` in their order, decoded at most `ahead` images before they are asked for.

    `workers` threads read, so that no core waits for a disk or a network; as many others decode, or `decoders`.
    `wanted(sha256)` is asked from the threads that read, before the bytes are decoded. Decoders release the
    interpreter's lock, so threads suffice.
    """

    def read(batch: list[int]) -> list[_Read]:
        return [_read(source, ids[i], i, wanted) for i in batch]

    def decode(batch: Future[list[_Read]]) -> list[Prepared]:
        start = time.perf_counter()
        first, *others = batch.result()
        waited = time.perf_counter() - start
        return [_decode(ids[one.image], one, geometries, waited * (one is first)) for one in (first, *others)]

    readers = ThreadPoolExecutor(workers, thread_name_prefix="read")
    pool = decoders or ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        tasks = batches(indices, _TASK)
        yield from _in_order(
            tasks, lambda batch: readers.submit(read, batch), lambda batch: pool.submit(decode, batch), ahead
        )
    finally:
        readers.shutdown(wait=True, cancel_futures=True)
        if not decoders:
            pool.shutdown(wait=True)


def _in_order(
    tasks: Iterator[list[int]],
    read: Callable[[list[int]], Future[list[_Read]]],
    decode: Callable[[Future[list[_Read]]], Future[list[Prepared]]],
    ahead: int,
) -> Iterator[Prepared]:
    """Yield the images of tasks in their order; at most `ahead` of them are being read, and as many decoded."""
    reading: deque[Future[list[_Read]]] = deque()
    decoding: deque[Future[list[Prepared]]] = deque()
    exhausted = False
    try:
        while reading or decoding or not exhausted:
            while not exhausted and len(reading) * _TASK < ahead:
                batch = next(tasks, None)
                exhausted = batch is None
                if batch:
                    reading.append(read(batch))
            while reading and len(decoding) * _TASK < ahead:
                decoding.append(decode(reading.popleft()))
            if decoding:
                yield from decoding.popleft().result()
    finally:
        for task in decoding:
            task.cancel()


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` items; the last one may be shorter."""
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _read(source: Source, image: str, index: int, wanted: Callable[[bytes], bool]) -> _Read:
    """Read and digest one image; why it cannot be read is returned, not raised."""
    start = time.perf_counter()
    sha256, data, why = b"", None, ""
    try:
        data = source.read(image)
        sha256 = hashlib.sha256(data).hexdigest().encode()
        data = data if wanted(sha256) else None
    except OSError as error:
        why = f"{image}: {error.strerror or error}"
    except FirnError as error:
        why = str(error)
    return _Read(index, sha256, data, why, time.perf_counter() - start)


def _decode(image: str, read: _Read, geometries: tuple[Geometry, ...], waited: float) -> Prepared:
    """Decode one image that was read; why it cannot be decoded is returned, not raised."""
    start = time.perf_counter()
    pixels: tuple[NDArray[np.generic], ...] = ()
    why = read.error
    if read.data is not None:
        try:
            pixels = several_pixels(read.data, geometries, name=image)
        except (FirnError, OSError) as error:
            why = str(error)
    return Prepared(read.image, read.sha256, pixels, why, read.seconds, time.perf_counter() - start, waited)


class ImageStream:
    """Images as a backbone sees them, decoded whenever they are read; threads decode side by side."""

    def __init__(self, source: Source, ids: Sequence[str], spec: BackboneSpec, preprocess: str) -> None:
        """Take the names of the images, sorted, and the spec that says size, mean and standard deviation."""
        self.ids: NDArray[np.str_] = np.asarray(ids, dtype=np.str_)  # (n,)
        self._source, self._geometry, self._spec = source, spec.geometry(preprocess), spec

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    def read(self, at: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Return images `at`, (len(at), channels, S, S) float32, normalised. Raises BadImage, OSError."""
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="decode") as threads:
            return np.stack(list(threads.map(self._one, self.ids[at].tolist())))

    def _one(self, image: str) -> NDArray[np.float32]:
        return self._spec.normalised(pixels(self._source.read(image), self._geometry, name=image))
