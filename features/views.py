"""Views: (X, y, ids, groups) out of the cache, for chosen blocks and poolings, one or several backbones together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.cache.entry import Entry
from features.cache.index import Manifest
from features.cache.pack import Pack
from features.cache.reader import FeatureRows, subset
from features.datasets.findings import findings_of, one_finding
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
    "cls": Pool("class token of a transformer", ("cls",)),
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
    """Return the classes under a view of the labels, and the new label of every old one: -1 leaves its rows out.

    Raises UnknownName, and FirnError where images have several findings and the view is not of one of them.
    """
    if findings_of(manifest.about):
        return one_finding(manifest.about, labels)
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


class View(NamedTuple):
    """What a head sees. Rows are images, sorted by id."""

    X: Any  # (n, d) float32, an array or `features.cache.reader.FeatureRows`; (n, C, H, W) for maps
    y: NDArray[np.int64]  # (n,)
    ids: NDArray[np.str_]  # (n,)
    groups: NDArray[np.str_]  # (n,)
    splits: NDArray[np.str_]  # (n,)

    def take(self, at: NDArray[np.bool_] | NDArray[np.intp]) -> View:
        """Return the chosen rows; those of features on the disk are not read."""
        return View(subset(self.X, at), self.y[at], self.ids[at], self.groups[at], self.splits[at])

    def read(self, at: NDArray[np.integer[Any]]) -> Array:
        """Return features of the chosen rows, from the disk where they lie there."""
        return np.asarray(self.X[at])


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
    way = choose_pool(pool)
    if way.of_maps is None:
        return _in_memory(_on_disk(entry, "pooled", _arrays(blocks, way), np.float32))
    views = [map_rows(entry, block) for block in blocks]
    arrays = [_pool(view.X, way.of_maps) for view in views]
    return views[0]._replace(X=arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=1))


def rows_view(entry: Cached, blocks: Sequence[str], pool: str = "avg") -> View:
    """Return what `pooled_view` does, with an X that stays on the disk; rows are in the order of the master.

    Raises UnknownName for a pooling that is none of POOLS, CacheError for an entry without rows.
    """
    way = choose_pool(pool)
    if not way.cached:
        raise CacheError(f"POOL={pool} needs maps in memory, which these features exceed; take POOL=avg, max or both")
    return _on_disk(entry, "pooled", _arrays(blocks, way), np.float32, by_id=False)


def map_view(entry: Cached, block: str) -> View:
    """Return the feature maps of one block, (n, C, H, W) as stored; CacheError where they were not extracted."""
    return _in_memory(map_rows(entry, block))


def map_rows(entry: Cached, block: str) -> View:
    """Return the feature maps of one block with an X that stays on the disk; CacheError as `map_view`."""
    return _on_disk(entry, f"maps/{block}", [f"maps/{block}"])


def _arrays(blocks: Sequence[str], way: Pool) -> list[str]:
    return [f"pooled/{block}/{kind}" for block in blocks for kind in way.cached]


def _on_disk(
    entry: Cached, part: str, names: list[str], dtype: type[np.float32] | None = None, *, by_id: bool = True
) -> View:
    """Return arrays of a part as they lie on the disk, by id or in the order of the master."""
    manifest = load_manifest(entry)
    if part not in manifest.parts:
        block = part.removeprefix("maps/")
        packed = isinstance(entry, Pack)
        how = f"pack it with MAPS={block} where its images are" if packed else f"run: make extract MAPS={block}"
        raise CacheError(f"no maps of {block} at {entry.folder}; {how}")
    if not len(manifest.ids):
        raise CacheError(f"{entry.folder} has no rows yet; run: make extract BACKBONE={entry.key.backbone}")
    order = np.argsort(manifest.ids, kind="stable") if by_id else np.arange(len(manifest.ids))
    ids, groups, splits = (np.char.decode(c[order], "utf-8") for c in (manifest.ids, manifest.groups, manifest.splits))
    rows = manifest.parts[part].take(order)
    if names[0].endswith("/cls") and not has_class_token(entry):
        raise CacheError(f"{entry.key.backbone} has no {names[0]}, for it has no class token; take POOL=avg")
    X = FeatureRows(entry, rows, names, dtype)
    return View(X, manifest.labels[order], ids, groups, splits)


def has_class_token(entry: Cached) -> bool:
    """Return whether pooled features hold class tokens; False for an entry without rows."""
    rows = load_manifest(entry).parts["pooled"]
    if not len(rows.shard):
        return False
    return f"pooled/{entry.key.blocks[-1]}/cls" in entry.shard(rows.shards[int(rows.shard[0])]).names()


def _in_memory(view: View) -> View:
    """Return a view with all of its rows read."""
    with view.X as rows:
        return view._replace(X=rows[:])


def _pool(maps: FeatureRows, of_maps: Callable[[Array], NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return a pooling of maps on the disk, (n, d); they need not fit into memory."""
    out = np.empty((len(maps), of_maps(np.zeros((1, *maps.shape[1:]), maps.dtype)).shape[1]), np.float32)
    with maps:
        for at, some in maps.pieces():
            out[at] = of_maps(some)
    return out


def join(views: Sequence[View]) -> View:
    """Return views of several backbones side by side, joined by id; images that some view lacks are dropped."""
    ids = views[0].ids
    for view in views[1:]:
        ids = np.intersect1d(ids, view.ids)
    taken = [view.take(np.searchsorted(view.ids, ids)) for view in views]
    return taken[0]._replace(X=np.concatenate([view.X for view in taken], axis=1))
