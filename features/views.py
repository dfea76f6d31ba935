"""Views: (X, y, ids, groups) out of the cache, for chosen blocks and poolings, one or several backbones together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.cache.entry import Entry
from features.cache.index import Manifest, Rows
from features.cache.pack import Pack
from features.cache.shard import Shard
from features.errors import CacheError, unknown

Array = NDArray[Any]
GEM_POWER = 3.0
_LEAST = 1e-6  # below it the generalised mean has no gradient and no meaning


def gem(maps: Array, power: float = GEM_POWER) -> NDArray[np.float32]:
    """Return the generalised mean over positions, (n, C): between the mean (power 1) and the maximum.

    Radenovic, Tolias & Chum 2018 (arXiv:1711.02512), with their power of 3; values below 0 count as 0.
    """
    clipped = np.maximum(maps.astype(np.float32), _LEAST)
    return np.asarray((clipped**power).mean(axis=(2, 3)) ** (1 / power), dtype=np.float32)


def grid(maps: Array, cells: int) -> NDArray[np.float32]:
    """Return the means over cells x cells parts, (n, C * cells^2), cells of one channel side by side.

    Parts are those of adaptive average pooling: they overlap by a row where the side is no multiple of `cells`.
    """
    height, width = maps.shape[2:]
    means = [
        maps[:, :, top:bottom, left:right].mean(axis=(2, 3), dtype=np.float32)
        for top, bottom in _parts(height, cells)
        for left, right in _parts(width, cells)
    ]
    return np.stack(means, axis=2).reshape(len(maps), -1)


def _parts(side: int, cells: int) -> list[tuple[int, int]]:
    return [(i * side // cells, -(-(i + 1) * side // cells)) for i in range(cells)]


class Pool(NamedTuple):
    """One row of POOLS: pooled arrays that are cached, or a function of the cached maps."""

    about: str
    cached: tuple[str, ...] = ()
    of_maps: Callable[[Array], NDArray[np.float32]] | None = None


POOLS: dict[str, Pool] = {
    "avg": Pool("mean over positions", ("avg",)),
    "max": Pool("maximum over positions", ("max",)),
    "both": Pool("mean and maximum side by side", ("avg", "max")),
    "gem": Pool("generalised mean, power 3 (needs maps)", of_maps=gem),
    "grid2": Pool("means over 2x2 parts (needs maps)", of_maps=partial(grid, cells=2)),
    "grid3": Pool("means over 3x3 parts (needs maps)", of_maps=partial(grid, cells=3)),
}


def choose_pool(name: str) -> Pool:
    """Return a row of POOLS. Raises UnknownName."""
    if name not in POOLS:
        raise unknown("pool", name, POOLS)
    return POOLS[name]


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


Cached = Entry | Pack

_MADE_BY = {Entry: "extract", Pack: "cache-pack"}
_STRETCH = 64 << 20  # bytes of one array read at once


class View(NamedTuple):
    """What a head sees. Rows are images, sorted by id."""

    X: Any  # (n, d) float32, an array or `features.cache.reader.FeatureRows`; (n, C, H, W) for maps
    y: NDArray[np.int64]  # (n,)
    ids: NDArray[np.str_]  # (n,)
    groups: NDArray[np.str_]  # (n,)
    splits: NDArray[np.str_]  # (n,)

    def take(self, at: NDArray[np.bool_] | NDArray[np.intp]) -> View:
        """Return the chosen rows; those of features on the disk are not read."""
        X = self.X[at] if isinstance(self.X, np.ndarray) else self.X.take(at)
        return View(X, self.y[at], self.ids[at], self.groups[at], self.splits[at])


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
    """Return pooled features of one or several blocks side by side, (n, sum of their widths) float32.

    Poolings of maps read the maps piece by piece. Every block of rows passes its checksum. Raises UnknownName for a
    pooling that is no row of POOLS, CacheError for damage and for maps that were not extracted.
    """
    way, manifest = choose_pool(pool), load_manifest(entry)
    if way.of_maps is None:
        names = [f"pooled/{block}/{kind}" for block in blocks for kind in way.cached]
        return _view(manifest, lambda order: read_arrays(entry, manifest, "pooled", names, order))
    parts = [_maps_part(entry, manifest, block) for block in blocks]

    def pooled(order: NDArray[np.intp]) -> NDArray[Any]:
        arrays = [read_arrays(entry, manifest, part, [part], order, way.of_maps) for part in parts]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=1)

    return _view(manifest, pooled)


def map_view(entry: Cached, block: str) -> View:
    """Return the feature maps of one block, (n, C, H, W) float16; CacheError where they were not extracted."""
    manifest = load_manifest(entry)
    part = _maps_part(entry, manifest, block)
    return _view(manifest, lambda order: read_arrays(entry, manifest, part, [part], order))


def _maps_part(entry: Cached, manifest: Manifest, block: str) -> str:
    """Return the part that holds the maps of a block."""
    if f"maps/{block}" not in manifest.parts:
        raise CacheError(f"no maps of {block} at {entry.folder}; run: make {made_by(entry)} MAPS={block}")
    return f"maps/{block}"


def _view(manifest: Manifest, read: Callable[[NDArray[np.intp]], NDArray[Any]]) -> View:
    order = np.argsort(manifest.ids, kind="stable")
    text = (np.char.decode(column[order], "utf-8") for column in (manifest.ids, manifest.groups, manifest.splits))
    ids, groups, splits = text
    return View(read(order), manifest.labels[order], ids, groups, splits)


def read_arrays(
    entry: Cached,
    manifest: Manifest,
    part: str,
    names: list[str],
    order: NDArray[np.intp],
    change: Callable[[NDArray[Any]], NDArray[np.float32]] | None = None,
) -> NDArray[Any]:
    """Read arrays side by side, shard by shard; pooled features become float32, maps stay as stored.

    `change`, where given, is applied to the rows of an array as they are read: maps need not fit into memory.
    """
    rows = manifest.parts[part].take(order)
    X: NDArray[Any] | None = None
    for index in np.unique(rows.shard):
        with entry.shard(rows.shards[index]) as shard:
            X = _room(shard, names, len(order), change) if X is None else X
            for at in _stretches(rows, int(index), shard.column(names[0]).row_bytes):
                first, last = int(rows.row[at[0]]), int(rows.row[at[-1]]) + 1
                start = 0
                together = bool((np.diff(at) == 1).all() and (np.diff(rows.row[at]) == 1).all())
                to = slice(int(at[0]), int(at[-1]) + 1) if together else at
                for name in names:
                    column = shard.read(name, first, last)
                    column = column if change is None else change(column)
                    X[to, start : start + column.shape[1]] = column if together else column[rows.row[at] - first]
                    start += column.shape[1]
    if X is None:
        raise CacheError(f"{entry.folder} has no rows yet; run: make extract BACKBONE={entry.key.backbone}")
    return X


def _room(
    shard: Shard, names: list[str], n: int, change: Callable[[NDArray[Any]], NDArray[np.float32]] | None
) -> NDArray[Any]:
    """Return an array for n rows of the named arrays side by side."""
    columns = [shard.column(name) for name in names]
    if change is not None:
        width = change(np.zeros((1, *columns[0].shape[1:]), columns[0].dtype)).shape[1]
        return np.empty((n, width), np.float32)
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
    """Return views of several backbones side by side, joined by id; images that some view lacks are dropped."""
    ids = views[0].ids
    for view in views[1:]:
        ids = np.intersect1d(ids, view.ids)
    taken = [view.take(np.searchsorted(view.ids, ids)) for view in views]
    return taken[0]._replace(X=np.concatenate([view.X for view in taken], axis=1))
