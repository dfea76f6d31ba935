"""How a data set differs from what an entry's master says of it, picture by picture."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.cache.content import Digests
from features.cache.index import Manifest
from features.datasets.dataset import Dataset
from features.errors import BadPicture

__all__ = ["changes", "read_unknown"]


def read_unknown(
    dataset: Dataset, digests: Digests, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> Digests:
    """Return the digests with those of pictures that are not as they were read from the files; writes nothing.

    A picture that cannot be read stays UNKNOWN.
    """
    sha256 = digests.sha256.copy()
    todo = np.flatnonzero(~digests.known()).tolist()
    for done, i in enumerate(todo, start=1):
        try:
            sha256[i] = hashlib.sha256(dataset.source.read(dataset.ids[i])).hexdigest().encode()
        except (OSError, BadPicture):
            continue
        finally:
            progress(done, len(todo))
    return digests._replace(sha256=sha256)


def changes(manifest: Manifest, dataset: Dataset, digests: Digests) -> dict[str, list[str]]:
    """Return which pictures changed, and how, since the master was written: kind -> sorted ids, only kinds that occur.

    "new" (without features yet), "changed" (other bytes under the same name), "renamed" (known bytes under a new
    name), "removed", "unreadable", "relabelled", "in another split", "regrouped".
    """
    order = np.argsort(manifest.ids, kind="stable")
    old_ids, old_sha = manifest.ids[order], manifest.sha256[order]
    _, now, old = np.intersect1d(digests.ids, old_ids, assume_unique=True, return_indices=True)
    left_out = np.array([s.encode() for s in manifest.left_out], dtype="S64")
    unreadable = ~digests.known() | np.isin(digests.sha256, left_out)
    appeared = ~np.isin(digests.ids, old_ids) & ~unreadable
    vanished = ~np.isin(old_ids, digests.ids)
    had = np.isin(digests.sha256, old_sha)
    renamed = appeared & had
    columns = _columns(manifest, dataset)
    kinds = {
        "new": digests.ids[appeared & ~had],
        "changed": digests.ids[now][(digests.sha256[now] != old_sha[old]) & ~unreadable[now]],
        "renamed": digests.ids[renamed],
        "removed": old_ids[vanished & ~np.isin(old_sha, digests.sha256[renamed])],
        "unreadable": digests.ids[unreadable],
        **{kind: digests.ids[now][new[now] != was[order][old]] for kind, (was, new) in columns.items()},
    }
    return {kind: np.char.decode(ids, "utf-8").tolist() for kind, ids in kinds.items() if len(ids)}


def _columns(manifest: Manifest, dataset: Dataset) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Return what pictures are said to be, as the master has it and as the data set has it now, both as text."""
    before, now = np.array(manifest.about["classes"], np.str_), np.array(dataset.classes, np.str_)
    splits, groups = (np.char.decode(column, "utf-8") for column in (manifest.splits, manifest.groups))
    return {
        "relabelled": (before[manifest.labels], now[dataset.labels]),
        "in another split": (splits, dataset.splits),
        "regrouped": (groups, dataset.groups),
    }
