"""How fast extraction was the last time on this machine, for a word before it begins."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from features.storage import artifacts_root, write_whole

FEWEST = 200  # images that tell a rate


def _path() -> Path:
    return artifacts_root() / "cache" / "rates.json"


def _known() -> dict[str, float]:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return {str(name): float(rate) for name, rate in json.loads(_path().read_text()).items()}
    return {}


def _name(backbones: Sequence[str], device: str, precision: str) -> str:
    return f"{'+'.join(sorted(backbones))} {precision} on {device} of {socket.gethostname()}, {os.cpu_count()} cores"


def last_rate(backbones: Sequence[str], device: str, precision: str) -> float | None:
    """Return images per second of the last extraction with these backbones together, on this machine; None without."""
    return _known().get(_name(backbones, device, precision))


def note_rate(backbones: Sequence[str], device: str, precision: str, images: int, seconds: float) -> None:
    """Remember how fast an extraction was; one of a few images says nothing."""
    if images >= FEWEST:
        rates = _known() | {_name(backbones, device, precision): images / max(seconds, 1e-9)}
        write_whole(_path(), [json.dumps(rates, indent=1).encode()])
