"""The end of an extraction: what the pictures' digests are is remembered, and the masters list what the shards hold."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np

from features.cache import content as memory
from features.cache.content import UNKNOWN, Digests
from features.cache.entry import Entry, cache_root
from features.cache.lease import Claims
from features.datasets.dataset import Dataset
from features.storage import make_folder

__all__ = ["refresh", "remembered", "settle"]


def remembered(dataset: Dataset) -> Digests:
    """Return the digests of all pictures that are as they were when last read."""
    return Digests.of(dataset.ids, dataset.source.stamps(dataset.ids), Digests.load(_memo(dataset)))


def _memo(dataset: Dataset) -> Path:
    return cache_root(dataset.name) / "digests.h5"


def settle(dataset: Dataset, digests: Digests, clock: int) -> int:
    """Read pictures again that were written just before `clock` (ns), when their times have become telling.

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
    with Claims(memo.parent).turn():
        digests.fill(Digests.load(memo))
        for entry, left_out in behind():
            entry.refresh(dataset, digests, left_out, versions)
        digests.save(memo, clock=clock)
