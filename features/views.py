"""Views: (X, y, ids, groups) out of the cache, for chosen blocks and poolings, one or several backbones together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.cache.entry import Entry
from features.cache.master import Manifest, Rows
from features.cache.pack import Pack
from features.cache.shards import Shard
from features.errors import CacheError, unknown

__all__ = [
    "POOLS",
    "Cached",
    "View",
    "choose_blocks",
    "join",
    "load_manifest",
    "made_by",
    "map_view",
    "pooled_view",
    "read_arrays",
]

Cached = Entry | Pack

POOLS = {"avg": ("avg",), "max": ("max",), "both": ("avg", "max")}
_MADE_BY = {Entry: "extract", Pack: "cache-pack"}
_STRETCH = 64 << 20  # bytes of one array read at once


class View(NamedTuple):
    """What a head sees. Rows are pictures, sorted by id."""

    X: NDArray[np.float32]  # (n, d), or (n, C, H, W) for maps
    y: NDArray[np.int64]  # (n,)
    ids: NDArray[np.str_]  # (n,)
    groups: NDArray[np.str_]  # (n,)
    splits: NDArray[np.str_]  # (n,)

    def take(self, at: NDArray[np.bool_] | NDArray[np.intp]) -> View:
        """Return the chosen rows."""
        return View(self.X[at], self.y[at], self.ids[at], self.groups[at], self.splits[at])


def made_by(entry: Cached) -> str:
    """Return the make target that writes such features."""
    return _MADE_BY[type(entry)]


def load_manifest(entry: Cached) -> Manifest:
    """Return the entry's manifest. CacheError with the command to type where there is none."""
    manifest = entry.manifest()
    if manifest is None:
        raise CacheError(f"no features at {entry.folder}; run: make extract BACKBONE={entry.key.backbone}")
    return manifest


def choose_blocks(known: Sequence[str], wanted: str) -> tuple[str, ...]:
    """Return blocks for "all", a number of last blocks ("1"), or names ("layer3 layer4"), in network order."""
    if wanted == "all":
        return tuple(known)
    if wanted.isdigit() and 0 < int(wanted) <= len(known):
        return tuple(known[-int(wanted) :])
    names = wanted.replace(",", " ").split()
    for name in names:
        if name not in known:
            raise unknown("block", name, [*known, "all", f"1..{len(known)}"])
    return tuple(block for block in known if block in names)


def pooled_view(entry: Cached, blocks: Sequence[str], pool: str = "avg") -> View:
    """Return pooled features of one or several blocks side by side, (n, sum of channels) float32.

    Every block of rows passes its checksum. Raises UnknownName for a pooling that is none of POOLS, CacheError for
    damage.
    """
    if pool not in POOLS:
        raise unknown("pool", pool, POOLS)
    names = [f"pooled/{block}/{kind}" for block in blocks for kind in POOLS[pool]]
    return _view(entry, load_manifest(entry), "pooled", names)


def map_view(entry: Cached, block: str) -> View:
    """Return the feature maps of one block, (n, C, H, W) float16; CacheError where they were not extracted."""
    manifest = load_manifest(entry)
    if f"maps/{block}" not in manifest.parts:
        raise CacheError(f"no maps of {block} at {entry.folder}; run: make {made_by(entry)} MAPS={block}")
    return _view(entry, manifest, f"maps/{block}", [f"maps/{block}"])


def _view(entry: Cached, manifest: Manifest, part: str, names: list[str]) -> View:
    order = np.argsort(manifest.ids, kind="stable")
    X = read_arrays(entry, manifest, part, names, order)
    text = (np.char.decode(column[order], "utf-8") for column in (manifest.ids, manifest.groups, manifest.splits))
    ids, groups, splits = text
    return View(X, manifest.labels[order], ids, groups, splits)


def read_arrays(
    entry: Cached, manifest: Manifest, part: str, names: list[str], order: NDArray[np.intp]
) -> NDArray[np.float32]:
    """Read arrays side by side, shard by shard; pooled features become float32, maps stay as stored."""
    rows = manifest.parts[part].take(order)
    X: NDArray[np.float32] | None = None
    for index in np.unique(rows.shard):
        with entry.shard(rows.shards[index]) as shard:
            X = _room(shard, names, len(order)) if X is None else X
            for at in _stretches(rows, int(index), shard.column(names[0]).row_bytes):
                first, last = int(rows.row[at[0]]), int(rows.row[at[-1]]) + 1
                start = 0
                together = bool((np.diff(at) == 1).all() and (np.diff(rows.row[at]) == 1).all())
                to = slice(int(at[0]), int(at[-1]) + 1) if together else at
                for name in names:
                    column = shard.read(name, first, last)
                    X[to, start : start + column.shape[1]] = column if together else column[rows.row[at] - first]
                    start += column.shape[1]
    if X is None:
        raise CacheError(f"{entry.folder} has no rows yet; run: make extract BACKBONE={entry.key.backbone}")
    return X


def _room(shard: Shard, names: list[str], n: int) -> NDArray[np.float32]:
    """Return an array for n rows of the named arrays side by side."""
    columns = [shard.column(name) for name in names]
    if len(columns[0].shape) == 2:
        return np.empty((n, sum(column.shape[1] for column in columns)), np.float32)
    return np.empty((n, *columns[0].shape[1:]), columns[0].dtype)


def _stretches(rows: Rows, shard: int, row_bytes: int) -> list[NDArray[np.intp]]:
    """Return the rows that lie in a shard, in its order, in pieces that fit into memory beside the result."""
    at = np.flatnonzero(rows.shard == shard)
    at = at[np.argsort(rows.row[at], kind="stable")]
    step = max(1, _STRETCH // row_bytes)
    return np.split(at, range(step, len(at), step))


def join(views: Sequence[View]) -> View:
    """Return views of several backbones side by side, joined by id; pictures that some view lacks are dropped."""
    ids = views[0].ids
    for view in views[1:]:
        ids = np.intersect1d(ids, view.ids)
    taken = [view.take(np.searchsorted(view.ids, ids)) for view in views]
    return taken[0]._replace(X=np.concatenate([view.X for view in taken], axis=1))
