"""The shard writer of one entry: images wait for a full batch, go through the network, and are committed in shards."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from features.cache import content as memory
from features.cache.content import UNKNOWN, Digests
from features.cache.entry import Entry, cache_root
from features.cache.lease import Leases
from features.datasets.dataset import Dataset
from features.extraction.cuda_graph import made
from features.extraction.forward import Forward, to_arrays
from features.extraction.job import Job, no_seconds
from features.extraction.workers import WorkerPool
from features.storage import make_folder

_BEHIND = 64 << 20  # bytes of features that may wait while a slow disk is written to, before the networks wait too,
_BATCHES_BEHIND = 16  # and batches: what a SIGKILL costs at most, besides the shard that is being filled


class _Computed(NamedTuple):
    """A batch that went through the network."""

    named: dict[str, Tensor]
    after: torch.cuda.Event | None  # at which a GPU has made it
    seconds: float  # until it was asked for


class ShardWriter:
    """Fills one entry. Used from one thread; others compute and write."""

    def __init__(self, job: Job, forward: Forward, geometry: int, pool: WorkerPool) -> None:
        self.entry, self.parts, self.geometry = job.entry, job.parts, geometry
        self.leases = Leases(self.entry.shards)
        self.seconds = no_seconds()  # at work: forward, write
        self.waits = no_seconds()  # for the network ("forward"), for room in the queue to it ("write")
        self.committed = 0  # images
        self._forward, self._pool = forward, pool
        self._seen = {part: set[str]() for part in self.parts}  # shard files whose rows are in _have
        self._have = {part: set[bytes]() for part in self.parts}
        self._waiting: list[tuple[int, bytes, NDArray[np.generic]]] = []
        self._queued: set[bytes] = set()
        self._ended: list[int] = []
        self._partitions: dict[int, list[tuple[list[bytes], Mapping[str, NDArray[Any]]]]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._behind: deque[Future[None]] = deque()
        self._most_behind = pool.size + max(1, min(_BATCHES_BEHIND, _BEHIND // (forward.batch_size * job.row_bytes())))
        self.rescan()

    @property
    def batch_size(self) -> int:
        """Return how many images go through the network at once."""
        return self._forward.batch_size

    @property
    def rows(self) -> int:
        """Return of how many images every part has a committed row."""
        return min(len(have) for have in self._have.values())

    def rescan(self) -> None:
        """Learn of rows committed since the last look, by this process or another."""
        for part in self.parts:
            new = [name for name in self.entry.files(part) if name not in self._seen[part]]
            for name in new:
                self._have[part].update(self.entry.digests_in(name))
                self._seen[part].add(name)

    def lacks(self, sha256: bytes) -> bool:
        """Tell whether an image has no committed row in some part and is not on its way either."""
        return sha256 not in self._queued and any(sha256 not in have for have in self._have.values())

    def holds_any(self, digests: list[bytes]) -> bool:
        """Tell whether some of these images have committed rows."""
        return not self._have[self.parts[0]].isdisjoint(digests)

    def add(self, partition: int, sha256: bytes, pixels: NDArray[np.generic]) -> None:
        """Take in one image of a leased partition; runs the network whenever a batch is full."""
        self._queued.add(sha256)
        self._waiting.append((partition, sha256, pixels))
        if len(self._waiting) >= self._forward.batch_size:
            self.flush()

    def end(self, partition: int) -> None:
        """Note that no more images of a partition will come; it is committed when the waiting ones are through."""
        self._ended.append(partition)
        if not self._waiting:
            self.flush()

    def flush(self) -> None:
        """Have the network run on what waits, and the result and the partitions that ended handed to the writer."""
        rows, ended = self._waiting, self._ended
        self._waiting, self._ended = [], []
        named = self._pool.submit(self._run, [pixels for _, _, pixels in rows]) if rows else None
        self._behind.append(self._thread.submit(self._write, [(u, s) for u, s, _ in rows], named, ended))
        start = time.perf_counter()
        while len(self._behind) > self._most_behind:
            self._behind.popleft().result()
        self.waits["write"] += time.perf_counter() - start

    def _run(self, pixels: list[NDArray[np.generic]]) -> _Computed:
        """Return what the network gives for a batch, and the seconds that it took. Runs in a thread of the pool."""
        start = time.perf_counter()
        named = self._forward(stacked(pixels))
        return _Computed(named, made(named), time.perf_counter() - start)

    def _write(self, rows: list[tuple[int, bytes]], named: Future[_Computed] | None, ended: list[int]) -> None:
        """Wait for the network, sort rows into partitions and commit those that ended. Runs in the writing thread.

        Batches come here in their order, whichever is computed first.
        """
        arrays = self._computed(named) if named else {}
        for partition in sorted({partition for partition, _ in rows}):
            at = [i for i, (u, _) in enumerate(rows) if u == partition]
            # Copies: rows that wait would else lie scattered in the memory that the next maps are to reuse.
            taken = {name: array[at[0] : at[-1] + 1].copy() for name, array in arrays.items()}
            self._partitions.setdefault(partition, []).append(([rows[i][1] for i in at], taken))
        self.leases.touch()
        for partition in ended:
            self._commit(partition)

    def _computed(self, named: Future[_Computed]) -> dict[str, NDArray[Any]]:
        """Wait for the network and the device."""
        start = time.perf_counter()
        tensors, after, seconds = named.result()
        launched = time.perf_counter()
        arrays = to_arrays(tensors, self.entry.key.precision, after)
        done = time.perf_counter()
        self.seconds["forward"] += seconds + done - launched
        self.waits["forward"] += done - start
        return arrays

    def _commit(self, partition: int) -> None:
        """Write the shards of one partition, one per part, for the rows that the part lacks."""
        start = time.perf_counter()
        pieces = self._partitions.pop(partition, [])
        digests = [sha256 for some, _ in pieces for sha256 in some]
        for part in self.parts:
            lacking = np.array([sha256 not in self._have[part] for sha256 in digests], dtype=bool)
            if lacking.any():
                names = [name for name in pieces[0][1] if name.startswith(f"{part}/") or name == part]
                arrays = {name: np.concatenate([a[name] for _, a in pieces])[lacking] for name in names}
                path = self.entry.commit(part, np.array(digests, dtype="S64")[lacking], arrays)
                self._seen[part].add(path.name)
                self._have[part].update(digests)
        self.committed += len(digests)
        self.leases.release(partition)
        self.seconds["write"] += time.perf_counter() - start

    def close(self) -> None:
        """Wait for the writer and commit what partitions still hold, so that an interruption loses nothing."""
        try:
            while self._behind:
                self._behind.popleft().result()
            for partition in list(self._partitions):
                self._commit(partition)
        finally:
            self._thread.shutdown(wait=True, cancel_futures=True)
            self.leases.release()


def stacked(pixels: list[NDArray[np.generic]]) -> NDArray[np.generic]:
    """Return one (n, 1 or 3, S, S) array; grey images are repeated only where colour ones are among them."""
    channels = max(p.shape[0] for p in pixels)
    return np.stack([p if p.shape[0] == channels else np.repeat(p, channels, axis=0) for p in pixels])


def remembered(dataset: Dataset) -> Digests:
    """Return the digests of all images that are as they were when last read."""
    return Digests.of(dataset.ids, dataset.source.stamps(dataset.ids), Digests.load(_memo(dataset)))


def _memo(dataset: Dataset) -> Path:
    return cache_root(dataset.name) / "digests.h5"


def settle(dataset: Dataset, digests: Digests, clock: int) -> int:
    """Digest images again that were written just before `clock` (ns), once a later change would show in their times.

    A file may change twice within one tick of its clock; without this a set made this moment would never be ready.
    Returns the time from which on the digests hold.
    """
    touched = digests.stamps[:, 1:].max(axis=1, initial=0)
    fresh = np.flatnonzero((touched >= clock - memory.RACY_NS) & digests.known())
    if not len(fresh):
        return clock
    time.sleep(max(0.0, (int(touched[fresh].max()) + memory.RACY_NS - time.time_ns()) / 1e9 + 0.01))
    clock = time.time_ns()
    for i in fresh.tolist():
        with contextlib.suppress(OSError):
            now = hashlib.sha256(dataset.source.read(dataset.ids[i])).hexdigest().encode()
            digests.sha256[i] = now if now == digests.sha256[i] else UNKNOWN
    return clock


def refresh(
    dataset: Dataset,
    digests: Digests,
    clock: int,
    behind: Callable[[], Iterable[tuple[Entry, Mapping[str, str]]]],
) -> None:
    """Bring the memo and the masters up to date, one process at a time.

    `behind` is asked for the entries, each with the contents that could not be read, once the digests hold what other
    processes have learnt.
    """
    versions = {name: version(name) for name in ("torch", "torchvision", "h5py", "numpy", "pillow")}
    memo = _memo(dataset)
    make_folder(memo.parent)
    with Leases(memo.parent).turn():
        digests.fill(Digests.load(memo))
        for entry, left_out in behind():
            entry.refresh(dataset, digests, left_out, versions)
        digests.save(memo, clock=clock)
