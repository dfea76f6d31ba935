"""Leases: which process is at work on which partition of the images, so that several can fill one entry at once.

A lease is a small file made with O_EXCL, which is atomic without working locks, also over NFS version 3 and later
(open(2)). Leases save double work and nothing more: rows are named by content, so a lease taken twice does no harm.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from features.storage import age, is_dead

_WORDLESS = 1.0  # seconds that a lease may be without text: its holder died, or the power went, before there was any


def leases_in(folder: Path) -> dict[Path, bool]:
    """Return every lease in a folder of shards and whether its holder lives."""
    leases = Leases(folder)
    return {path: not leases._abandoned(path) for path in sorted(folder.glob(".unit-*.claim"))}


class Leases:
    """The leases of this process in one entry."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mine: set[int] = set()

    def _path(self, partition: int) -> Path:
        return self._folder / f".unit-{partition:06d}.claim"

    def acquire(self, partition: int) -> bool:
        """Lease a partition; False where a living process holds it. The lease of a dead one is taken over."""
        path = self._path(partition)
        for _ in range(2):
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                if not self._abandoned(path):
                    return False
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
                continue
            self._mine.add(partition)  # before the text, which may not fit on a full disk
            with os.fdopen(descriptor, "w") as file:
                json.dump({"host": socket.gethostname(), "process": os.getpid()}, file)
            return True
        return False

    def _abandoned(self, path: Path) -> bool:
        """Tell whether the holder of a lease is gone; one without text is being written, for a moment."""
        try:
            try:
                holder = json.loads(path.read_text())
                host, process = str(holder["host"]), str(holder["process"])
            except (ValueError, KeyError, TypeError):
                return age(path) > _WORDLESS
            return is_dead(path, host, process)
        except OSError:
            return False

    @contextlib.contextmanager
    def turn(self, *, patience: float = 30.0) -> Iterator[None]:
        """Hold the first lease during a block, one process after the other; go on without it after some seconds."""
        end = time.monotonic() + patience
        while not (mine := self.acquire(0)) and time.monotonic() < end:
            time.sleep(0.02)
        try:
            yield
        finally:
            if mine:
                self.release(0)

    def touch(self) -> None:
        """Give a sign of life for all leases of this process."""
        for partition in list(self._mine):
            with contextlib.suppress(OSError):
                os.utime(self._path(partition))

    def release(self, partition: int | None = None) -> None:
        """Give back one lease, or all."""
        for mine in [partition] if partition is not None else list(self._mine):
            self._mine.discard(mine)
            with contextlib.suppress(OSError):
                self._path(mine).unlink()
