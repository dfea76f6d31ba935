"""When an entry was last used, for whoever tidies up."""

from __future__ import annotations

import contextlib
from pathlib import Path

from features.cache.entry import Entry

__all__ = ["last_used", "note_use"]


def _marker(entry: Entry) -> Path:
    return entry.folder / "last-used"


def note_use(entry: Entry) -> None:
    """Leave a sign that an entry was read; a reader who may not write leaves none."""
    with contextlib.suppress(OSError):
        _marker(entry).touch()


def last_used(entry: Entry) -> float:
    """Return when an entry was last read or written, in seconds since 1970; 0 where nothing tells."""
    times = [0.0]
    for path in (_marker(entry), entry.master):
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)
