"""A file is absent or right: write under a temporary name, sync, then rename."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "STALE_AFTER",
    "artifacts_root",
    "data_root",
    "is_dead",
    "remove_leftovers",
    "slug",
    "temporary_name",
    "write_whole",
]

STALE_AFTER = 600.0  # seconds without a sign of life after which a writer on another host counts as dead


def data_root() -> Path:
    """Return the folder of the named data sets, `$FIRN_DATA` (default `data`)."""
    return Path(os.environ.get("FIRN_DATA") or "data")


def artifacts_root() -> Path:
    """Return the folder of everything that Firn writes, `$FIRN_ARTIFACTS` (default `artifacts`)."""
    return Path(os.environ.get("FIRN_ARTIFACTS") or "artifacts")


def slug(text: str) -> str:
    """Return `text` as a folder name of [a-z0-9._-]."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in text.lower())
    return kept.strip("-.") or "unnamed"


def temporary_name(path: Path) -> Path:
    """Return a hidden name beside `path` that tells whose it is: host and process."""
    return path.with_name(f".{path.name}~{socket.gethostname()}~{os.getpid()}~{time.monotonic_ns():x}.tmp")


def write_whole(path: Path, pieces: Iterable[bytes | memoryview], *, replace: bool = True) -> None:
    """Write `pieces` so that `path` is afterwards either as before or whole and on the disk.

    With `replace=False` an existing file of that name is left alone (the name tells the content).
    OSError (disk full, read-only) passes through after the temporary file is gone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            for piece in pieces:
                _write_all(descriptor, memoryview(piece).cast("B"))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if replace or not path.exists():
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
    _sync_folder(path.parent)


def _write_all(descriptor: int, piece: memoryview) -> None:
    """Write every byte; `os.write` may take fewer than it was given."""
    while piece:
        piece = piece[os.write(descriptor, piece) :]


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; some network file systems cannot, and then the close has done it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove the temporary files of dead writers in `folder`; return them. For writers only, never for readers."""
    removed = []
    for path in folder.glob(".*~*~*~*.tmp"):
        _, host, process, *_ = [*path.name.split("~"), "", ""]
        with contextlib.suppress(OSError):
            if is_dead(path, host, process):
                path.unlink()
                removed.append(path)
    return removed


def is_dead(path: Path, host: str, process: str) -> bool:
    """Tell whether the process that made a file is gone.

    On this host the process table knows; of another host's file, one that has not been touched for STALE_AFTER seconds
    of the file system's own clock counts as abandoned.
    """
    if host == socket.gethostname() and process.isdigit():
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
    return _clock_of(path.parent) - path.stat().st_mtime > STALE_AFTER


def _clock_of(folder: Path) -> float:
    """Return the file system's own time, by touching a file; hosts' clocks differ."""
    probe = temporary_name(folder / "clock")
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
