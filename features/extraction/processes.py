"""Decoding in other processes, for a GPU that is faster than what one interpreter's lock lets through.

Each process reads, digests and decodes for one thread here, which sends the names of some images through a socket and
gets all their pixels back at once; so an image holds the lock here for some microseconds. A socket needs no shared
memory, of which containers have little, and closes with either side: a process that dies is noticed at once, and none
outlives this one.
"""

from __future__ import annotations

import os
import pickle
import socket
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

import numpy as np

from features.datasets.dataset import Source
from features.datasets.listing import FileSource
from features.errors import FirnError
from features.extraction.prefetch import Prepared, batches, prepare
from features.images import Geometry

FEWEST: Final = 4  # processes; fewer are no faster than threads
IMAGES_FROM: Final = 4096  # below, the half second in which processes begin is not won back
_TASK: Final = 32  # images that are asked for at once


def pays(device: str, workers: int, source: Source, images: int) -> bool:
    """Tell whether so many images of a source are decoded by processes: many files, before a GPU, on many cores."""
    on_gpu = device != "cpu" and sys.platform == "linux"
    return on_gpu and workers >= FEWEST and images >= IMAGES_FROM and isinstance(source, FileSource)


def decoded(
    source: Source,
    ids: list[str],
    geometries: tuple[Geometry, ...],
    *,
    device: str,
    workers: int,
    ahead: int,
    images: int,
    decoders: Executor | None = None,
) -> Generator[Prepared]:
    """Yield images `ids` in their order as an extraction of so many `images` has them: by processes where that pays."""
    rows = range(len(ids))
    if pays(device, workers, source, images):
        with closing(DecodingProcesses(source, geometries, workers)) as processes:
            yield from processes.prepare(ids, rows, ahead=ahead)
        return
    yield from prepare(
        source, ids, rows, geometries, wanted=lambda sha256: True, workers=workers, ahead=ahead, decoders=decoders
    )


class DecodingProcesses:
    """Processes that read and decode images of one source; they begin at once, and `close` ends them."""

    def __init__(self, source: Source, geometries: tuple[Geometry, ...], count: int) -> None:
        """Start so many. `source` goes to each of them, a folder without its listing."""
        own = replace(source, listing=None) if isinstance(source, FileSource) else source
        self._processes = [_Process(own, geometries) for _ in range(count)]
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        for process in self._processes:
            self._idle.put(process)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="decode")

    @property
    def pids(self) -> list[int]:
        """Return the numbers under which the system knows the processes."""
        return [process.pid for process in self._processes]

    def prepare(self, ids: Sequence[str], indices: Iterable[int], *, ahead: int) -> Iterator[Prepared]:
        """Yield every image of `indices` in their order, decoded about `ahead` images before they are asked for."""
        most = len(self._processes) + ahead // _TASK
        tasks, running = batches(indices, _TASK), deque[Future[list[Prepared]]]()
        try:
            for task in tasks:
                running.append(self._threads.submit(self._decode, [(i, ids[i]) for i in task]))
                if len(running) > most:
                    yield from running.popleft().result()
            while running:
                yield from running.popleft().result()
        finally:
            for future in running:
                future.cancel()

    def _decode(self, images: list[tuple[int, str]]) -> list[Prepared]:
        process = self._idle.get()
        try:
            return process.decode(images)
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """Wait for what is being decoded, and for the processes to end."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        for process in self._processes:
            process.close()


class _Process:
    """One process and the socket to it; whoever asks waits for the answer."""

    def __init__(self, source: Source, geometries: tuple[Geometry, ...]) -> None:
        self._work = (source, geometries)
        self._start()

    @property
    def pid(self) -> int:
        return self._popen.pid

    def _start(self) -> None:
        self._socket, theirs = socket.socketpair()
        where = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
        with theirs:
            self._popen = subprocess.Popen(
                [sys.executable, "-P", "-c", f"from {__name__} import serve; serve({theirs.fileno()})"],
                env=os.environ | {"PYTHONPATH": where, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the process that asks
            )
        with suppress(OSError):  # one that is dead already is noticed when it is asked
            _send(self._socket, self._work)
        self._begun = False

    def _await(self) -> None:
        """Wait until the process has begun. Raises FirnError where it ended by itself instead."""
        with suppress(OSError, EOFError):
            self._begun = self._begun or _receive(self._socket)
        if not self._begun and (code := self._popen.wait()) >= 0:  # a killed one is noticed when it is asked
            raise FirnError(
                f"a process that is to decode images does not begin (its exit code is {code}); "
                f"run again with WORKERS={FEWEST - 1}, which decodes by threads"
            )

    def decode(self, images: list[tuple[int, str]]) -> list[Prepared]:
        """Return the images prepared; one that the process dies of, when asked for alone and twice, is unreadable."""
        for _ in range(2):
            self._await()
            with suppress(OSError, EOFError):
                return self._ask(images)
            self.close()
            self._start()
            if len(images) > 1:
                return [prepared for image in images for prepared in self.decode([image])]
        row, name = images[0]
        return [Prepared(row, b"", (), f"{name}: the process that decodes it died, twice", 0.0, 0.0, 0.0)]

    def _ask(self, images: list[tuple[int, str]]) -> list[Prepared]:
        _send(self._socket, [name for _, name in images])
        told: list[tuple[Prepared, list[tuple[tuple[int, ...], str, int]]]] = _receive(self._socket)
        memory, at, found = _exactly(self._socket, sum(size for _, arrays in told for *_, size in arrays)), 0, []
        for (row, _), (prepared, arrays) in zip(images, told, strict=True):
            pixels = []
            for shape, kind, size in arrays:
                pixels.append(memory[at : at + size].view(kind).reshape(shape))
                at += size
            found.append(prepared._replace(image=row, pixels=tuple(pixels)))
        return found

    def close(self) -> None:
        """Close the socket, at which the process ends, and wait for that."""
        self._socket.close()
        self._popen.wait()


def serve(descriptor: int) -> None:
    """Say that this process has begun, then decode what is asked for through a socket until it is closed."""
    with socket.socket(fileno=descriptor) as asking, suppress(EOFError, OSError):
        source, geometries = _receive(asking)
        _send(asking, True)
        while True:
            names = _receive(asking)
            rows, ahead = range(len(names)), len(names)
            found = list(prepare(source, names, rows, geometries, wanted=lambda sha256: True, workers=1, ahead=ahead))
            arrays = [[(array.shape, array.dtype.str, array.nbytes) for array in prepared.pixels] for prepared in found]
            heads = [prepared._replace(pixels=()) for prepared in found]
            _send(asking, list(zip(heads, arrays, strict=True)))
            for prepared in found:
                for array in prepared.pixels:
                    asking.sendall(np.ascontiguousarray(array).data.cast("B"))


def _send(to: socket.socket, what: Any) -> None:
    data = pickle.dumps(what)
    to.sendall(struct.pack("<Q", len(data)) + data)


def _receive(of: socket.socket) -> Any:
    """Return what the other side sent; raise EOFError where it is gone. It is this program itself."""
    (length,) = struct.unpack("<Q", _exactly(of, 8).data)
    return pickle.loads(_exactly(of, length).data)


def _exactly(of: socket.socket, length: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return so many bytes, (length,), in one call where the system gives them at once."""
    memory, there = np.empty(length, np.uint8), 0
    while there < length:
        more = of.recv_into(memory[there:].data, length - there, socket.MSG_WAITALL)
        if not more:
            raise EOFError("the other side is gone")
        there += more
    return memory
