"""Claims: which process is at work on which stretch of images, so that several can fill one entry at once.

A claim is a small file made with O_EXCL, which is atomic without working locks, also over NFS version 3 and later
(open(2)). Claims save double work and nothing more: rows are named by content, so a claim taken twice does no harm.
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

_WORDLESS = 1.0  # seconds that a claim may be without text: its holder died, or the power went, before there was any


def claims_in(folder: Path) -> dict[Path, bool]:
    """Return every claim in a folder of shards and whether its holder lives."""
    claims = Claims(folder)
    return {path: not claims._abandoned(path) for path in sorted(folder.glob(".unit-*.claim"))}


class Claims:
    """The claims of this process in one entry."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mine: set[int] = set()

    def _path(self, unit: int) -> Path:
        return self._folder / f".unit-{unit:06d}.claim"

    def acquire(self, unit: int) -> bool:
        """Claim a unit; False where a living process holds it. The claim of a dead one is taken over."""
        path = self._path(unit)
        for _ in range(2):
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                if not self._abandoned(path):
                    return False
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
                continue
            self._mine.add(unit)  # before the text, which may not fit on a full disk
            with os.fdopen(descriptor, "w") as file:
                json.dump({"host": socket.gethostname(), "process": os.getpid()}, file)
            return True
        return False

    def _abandoned(self, path: Path) -> bool:
        """Tell whether the holder of a claim is gone; one without text is being written, for a moment."""
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
    def turn(self, unit: int = 0, *, patience: float = 30.0) -> Iterator[None]:
        """Hold a claim during a block, one process after the other; go on without it after `patience` seconds."""
        end = time.monotonic() + patience
        while not (mine := self.acquire(unit)) and time.monotonic() < end:
            time.sleep(0.02)
        try:
            yield
        finally:
            if mine:
                self.release(unit)

    def touch(self) -> None:
        """Give a sign of life for all claims of this process."""
        for unit in list(self._mine):
            with contextlib.suppress(OSError):
                os.utime(self._path(unit))

    def release(self, unit: int | None = None) -> None:
        """Give back one claim, or all."""
        for mine in [unit] if unit is not None else list(self._mine):
            self._mine.discard(mine)
            with contextlib.suppress(OSError):
                self._path(mine).unlink()
