"""Garbage collection: files of the cache that no data set uses any more, found first, shown, and only then removed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from features.cache.content import Digests
from features.cache.entry import Entry
from features.cache.index import Manifest
from features.cache.key import Key
from features.cache.lease import leases_in
from features.datasets.dataset import Dataset
from features.errors import CacheError
from features.storage import leftovers, sync_folder, temporary_name


class Waste(NamedTuple):
    """A file or folder that may go."""

    path: Path
    size: int  # bytes
    why: str


class Survey(NamedTuple):
    """What may go, and what stays although one might think otherwise, in words."""

    waste: list[Waste]
    kept: list[str]


def is_busy(entry: Entry) -> bool:
    """Tell whether a living writer holds a lease in the entry."""
    return any(leases_in(entry.shards).values())


def bytes_below(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(p.lstat().st_size for p in files if p.is_symlink() or p.is_file())


def abandoned(folder: Path) -> list[Waste]:
    """Return what dead writers left in a folder: temporary files, half-removed folders and leases."""
    dead = [path for path, living in leases_in(folder).items() if not living]
    return [
        *(Waste(path, bytes_below(path), "left by a process that is gone") for path in leftovers(folder)),
        *(Waste(path, bytes_below(path), "lease of a process that is gone") for path in dead),
    ]


def survey(entry: Entry, dataset: Dataset, digests: Digests, asked: Key) -> Survey:
    """Return what may go of an entry, given the data set as it is and the key that a run would ask for today.

    An entry under another key may go as a whole; else its shards without a row that the master uses. Nothing may go of
    an entry that a writer is at work on, nor a shard as long as it is not settled whose rows it holds.
    """
    if is_busy(entry):
        return Survey([], [f"{entry.folder}: a writer is at work on it"])
    if entry.key != asked:
        why = "; ".join(entry.key.differences(asked))
        if entry.key.blocks != asked.blocks:
            why = (
                f"maps for make finetune, which makes them again: {', '.join(entry.key.blocks)}, {entry.key.preprocess}"
            )
        return Survey([Waste(entry.folder, bytes_below(entry.folder), why)], [])
    left = abandoned(entry.folder) + abandoned(entry.shards)
    try:
        manifest = entry.manifest()
        state = entry.state(dataset, digests, manifest.parts if manifest else ("pooled",))
        if manifest is None or state.word != "ready":
            return Survey(left, [f"{entry.folder}: {state.word} ({state.why}); run make extract first"])
        shards = _shards(entry, manifest, {*digests.sha256.tolist()})
    except CacheError as error:
        return Survey(left, [str(error)])
    return Survey(left + shards.waste, shards.kept)


def _shards(entry: Entry, manifest: Manifest, needed: set[bytes]) -> Survey:
    """Sort the shards of a ready entry into those without a row in use and those with some."""
    used = _rows_in_use(manifest)
    waste, kept = [], []
    for path in sorted(entry.shards.glob("*.h5")):
        with entry.shard(path.name) as shard:
            alive = used.get(path.name, 0)
            if shard.part not in manifest.parts:  # maps on the way to being complete
                alive = sum(digest in needed for digest in shard.sha256.tolist())
            if not alive:
                waste.append(Waste(path, bytes_below(path), f"none of its {len(shard):,} rows is in use"))
            elif alive < len(shard):
                kept.append(f"{path}: {alive:,} of {len(shard):,} rows are in use")
    return Survey(waste, kept)


def _rows_in_use(manifest: Manifest) -> dict[str, int]:
    """Return how many different rows of each shard the master uses."""
    used: dict[str, int] = {}
    for rows in manifest.parts.values():
        pairs = np.unique(np.stack([rows.shard, rows.row]), axis=1)
        counts = np.bincount(pairs[0], minlength=len(rows.shards)).tolist()
        used |= {name: count for name, count in zip(rows.shards, counts, strict=True) if count}
    return used


def remove(waste: Iterable[Waste]) -> list[Waste]:
    """Remove what `survey` and `abandoned` found; return what is gone.

    A folder is moved out of sight before its files go, so that a kill on the way leaves no half entry under a name
    that anybody looks at; the rest is found by `abandoned`. An entry that a writer took up meanwhile stays.
    """
    gone = []
    for item in waste:
        if item.path.is_dir() and not item.path.is_symlink():
            if any(leases_in(item.path / "shards").values()):
                continue
            _remove_folder(item.path)
        else:
            item.path.unlink(missing_ok=True)
        gone.append(item)
    return gone


def _remove_folder(path: Path) -> None:
    """Move a folder one level deeper under a hidden name, where no entry is looked for, and delete it there."""
    bin_ = temporary_name(path.parent / "removed")
    bin_.mkdir()
    os.replace(path, bin_ / path.name)
    sync_folder(path.parent)
    shutil.rmtree(bin_)
