"""A coarser view of the labels: which classes merge into one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.cache.index import Manifest
from features.errors import unknown

__all__ = ["label_view"]


def label_view(manifest: Manifest, labels: str) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the classes under a view of the labels, and the new label of every old one. Raises UnknownName."""
    classes = [str(c) for c in manifest.about["classes"]]
    if labels == "classes":
        return tuple(classes), np.arange(len(classes))
    views: dict[str, Any] = manifest.about["label_views"]
    if labels not in views:
        raise unknown("labels", labels, [*views, "classes"])
    merged = [str(views[labels][c]) for c in classes]
    names = tuple(dict.fromkeys(merged))
    return names, np.array([names.index(m) for m in merged])
