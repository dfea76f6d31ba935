"""The threads that run the networks: on a CPU one per core, each with a batch of its own; on a GPU one.

Two batches on a core each are done sooner than one after the other on both: layers have no threads to wait for, and
what is not divided among threads (Python, small layers) runs beside the other batch. The same threads decode, so that
no more of them are at work than there are cores.
"""

from __future__ import annotations

import ctypes
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from threading import Barrier
from typing import ParamSpec, TypeVar

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's numbers for them

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


class WorkerPool:
    """Threads for work that torch does. What they do is the same to the last bit, however many there are."""

    def __init__(self, device: str) -> None:
        """Start as many as torch would use threads for one batch (torch.set_num_threads, OMP_NUM_THREADS)."""
        on_cpu, threads = device == "cpu", torch.get_num_threads()
        self.size = threads if on_cpu else 1
        self.decoders: Executor | None = None  # who decodes beside them: on a GPU it is none of theirs
        self._pool = ThreadPoolExecutor(self.size, thread_name_prefix="forward")
        if on_cpu:
            _keep_memory()
            together = Barrier(self.size)  # or one thread could take the orders of two
            for each in [self._pool.submit(_alone, together) for _ in range(self.size)]:
                each.result()
            self.decoders = self._pool
            torch.set_num_threads(threads)  # a thread's number is also that of all later threads: theirs as before

    def submit(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have one of the threads do some work."""
        return self._pool.submit(work, *args, **kwargs)

    def each(self, work: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
        """Yield work(item) for every item, in their order; items are asked for a few ahead."""
        running: deque[Future[T]] = deque()
        for item in items:
            running.append(self._pool.submit(work, item))
            while len(running) > self.size + 1:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()

    def close(self) -> None:
        """Wait for the work that has begun, and drop the rest."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _keep_memory() -> None:
    """Have glibc keep the memory of maps for the next batch, instead of asking the system for zeroed pages again.

    By default it decides anew at every size that it meets: the same run took 20 or 650 thousand page faults, and up to
    two fifths longer. See mallopt(3); elsewhere nothing is done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(_MMAP_THRESHOLD, 32 << 20)  # its largest: what is smaller comes out of the heap of its thread
        mallopt(_TRIM_THRESHOLD, 128 << 20)  # twice what the heap of a thread grows to


def _alone(together: Barrier) -> None:
    """Have torch use one core in this thread; wait until all threads are ready."""
    torch.get_num_threads()  # or this thread would take the number of all again, when it first computes
    torch.set_num_threads(1)
    together.wait()
