"""One entry of the cache: the folder of a key, its state in words, and how its master is brought up to date."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.cache.content import Digests
from features.cache.index import Manifest, Rows, read_master, write_master
from features.cache.key import Key
from features.cache.lease import leases_in
from features.cache.shard import Shard, write_shard
from features.datasets.dataset import Dataset
from features.datasets.findings import findings_of
from features.errors import BadImage, CacheError, counted
from features.storage import artifacts_root, make_folder, remove_leftovers, slug, sync_folder


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


class State(NamedTuple):
    """What an entry is to a data set, and why."""

    word: Literal["missing", "partial", "stale", "ready"]
    why: str


def cache_root(dataset: str) -> Path:
    """Return the folder of all entries of a data set."""
    return artifacts_root() / "cache" / slug(dataset)


@dataclass(frozen=True)
class Entry:
    """A folder with `features.h5` and `shards/`; making one touches no file."""

    folder: Path
    key: Key

    @property
    def master(self) -> Path:
        """Return the path of the master."""
        return self.folder / "features.h5"

    @property
    def shards(self) -> Path:
        """Return the folder of the shards."""
        return self.folder / "shards"

    def manifest(self) -> Manifest | None:
        """Return what the master says, or None where there is no master. CacheError where it is damaged."""
        try:
            key, manifest = read_master(self.master)
        except FileNotFoundError:
            return None
        if key != self.key:
            differences = "; ".join(self.key.differences(key)) or "another schema"
            raise CacheError(f"{self.master} belongs to another key ({differences}); run: make cache-repair")
        return manifest

    def files(self, part: str) -> list[str]:
        """Return the names of the shard files of one part, sorted; hidden temporary files are left out."""
        prefix = f"{slug(part)}-"
        names = os.listdir(self.shards) if self.shards.is_dir() else []
        return sorted(n for n in names if n.startswith(prefix) and n.endswith(".h5") and len(n) == len(prefix) + 35)

    def scan(self, part: str) -> tuple[NDArray[np.bytes_], Rows]:
        """Return every image that has a committed row: sha256 (m,) sorted and unique, and where its row lies."""
        names = self.files(part)
        digests = [np.array(self.digests_in(name), dtype="S64") for name in names]
        sizes = [len(d) for d in digests]
        shard_of = np.repeat(np.arange(len(names), dtype=np.int32), sizes)
        row_of = np.concatenate([np.arange(n, dtype=np.int32) for n in sizes] or [np.empty(0, np.int32)])
        sha256, first = np.unique(np.concatenate(digests or [np.empty(0, "S64")]), return_index=True)
        return sha256, Rows(names, shard_of[first], row_of[first])

    def digests_in(self, shard: str) -> list[bytes]:
        """Return whose rows a shard holds, in the order of its rows. CacheError where it is damaged."""
        with Shard(self.shards / shard) as opened:
            digests: list[bytes] = opened.sha256.tolist()
        return digests

    def left_out(self) -> tuple[str, ...]:
        """Return the digests of images that could not be read; none where the master cannot be read either."""
        try:
            manifest = self.manifest()
        except CacheError:
            return ()
        return tuple(manifest.left_out) if manifest else ()

    def shard(self, name: str) -> Shard:
        """Return one shard open for reading. CacheError where it is damaged."""
        return Shard(self.shards / name)

    def commit(self, part: str, sha256: NDArray[np.bytes_], arrays: Mapping[str, NDArray[np.generic]]) -> Path:
        """Write one shard; from its return on its rows survive a power cut."""
        return write_shard(self.shards, part, self.key.to_json(), sha256, arrays)

    def clean(self) -> list[Path]:
        """Remove what dead writers left behind; for writers only."""
        make_folder(self.shards)
        folders = (self.folder.parent, self.folder, self.shards)
        removed = [path for folder in folders for path in remove_leftovers(folder)]
        for lease in [c for folder in folders for c, living in leases_in(folder).items() if not living]:
            lease.unlink(missing_ok=True)
            removed.append(lease)
        return removed

    def state(self, dataset: Dataset, digests: Digests, parts: Iterable[str]) -> State:
        """Compare the master with a data set: ready, or what is missing, and why. Reads no image and no shard."""
        manifest = self.manifest()
        if manifest is None:
            return State("partial", "interrupted before the master was written") if self.files("pooled") else MISSING
        lacking = [part for part in parts if part not in manifest.parts]
        if lacking:
            return State("partial", f"no {', '.join(lacking)} yet")
        wanted = digests.known()
        if manifest.left_out:
            wanted &= ~np.isin(digests.sha256, _left_out(manifest))
        same = _same_manifest(manifest, dataset, digests, wanted)
        new = 0 if same and digests.known().all() else _new(manifest, dataset, digests, wanted)
        if new:
            return State("partial", f"{new:,} of {len(dataset):,} images are new, changed or not done yet")
        if missing := self._lost(manifest):
            return State("partial", f"{len(missing)} shards are gone, {missing[0]} first")
        if not same:
            return State("stale", "names, labels, splits or groups changed; the features are all there")
        unreadable = len(dataset) - len(manifest.ids)
        return State("ready", counted(len(manifest.ids), "image") + f", {unreadable:,} unreadable" * bool(unreadable))

    def _lost(self, manifest: Manifest) -> list[str]:
        """Return the shards that the master needs and the folder lacks."""
        lost: list[str] = []
        for part, rows in manifest.parts.items():
            used = {rows.shards[i] for i in np.unique(rows.shard).tolist()}
            lost += sorted(used.difference(self.files(part)))
        return lost

    def refresh(
        self, dataset: Dataset, digests: Digests, left_out: Mapping[str, str], versions: Mapping[str, str]
    ) -> Manifest:
        """Write the master anew from the shards on the disk and what the data set says now; features stay untouched.

        `left_out` tells contents that could not be read; what the master before knew of others is kept.
        """
        sync_folder(self.shards)  # another writer may have renamed a shard this very moment
        pooled, where = self.scan("pooled")
        have = digests.known() & np.isin(digests.sha256, pooled)
        sha256 = digests.sha256[have]
        parts = {"pooled": where.take(np.searchsorted(pooled, sha256))}
        for part in self._map_parts():
            done, rows = self.scan(part)
            if np.isin(sha256, done).all():
                parts[part] = rows.take(np.searchsorted(done, sha256))
        rowless = set(digests.sha256[~have].tolist())
        kept = {s: r for s, r in ({**self._left_out_before(), **left_out}).items() if s.encode() in rowless}
        about = {**_about(dataset), "wanted": len(dataset), "versions": dict(versions)}
        manifest = Manifest(
            digests.ids[have], sha256, dataset.labels[have], *_text_columns(dataset, have), parts, kept, about
        )
        write_master(self.master, self.key, manifest)
        return manifest.order()

    def _left_out_before(self) -> Mapping[str, str]:
        """Return what the master that is there could not read; nothing where it is damaged."""
        try:
            manifest = self.manifest()
        except CacheError:
            return {}
        return manifest.left_out if manifest else {}

    def lists(self, ids: NDArray[np.bytes_]) -> bool:
        """Tell whether the master lists any of these images; a damaged one lists none."""
        try:
            manifest = self.manifest()
        except CacheError:
            return False
        return manifest is not None and bool(np.isin(ids, manifest.ids).any())

    def _map_parts(self) -> list[str]:
        """Return the parts besides `pooled` of which there are shards."""
        return [part for part in (f"maps/{block}" for block in self.key.blocks) if self.files(part)]


MISSING = State("missing", "nothing extracted yet")


def _left_out(manifest: Manifest) -> NDArray[np.bytes_]:
    return np.array([s.encode() for s in manifest.left_out], dtype="S64")


def _about(dataset: Dataset) -> dict[str, Any]:
    """Return what stage two needs to know of the data set when the images are not at hand."""
    return {
        "dataset": dataset.name,
        "classes": list(dataset.classes),
        "label_views": {view: dict(merged) for view, merged in dataset.label_views.items()},
        "grouped_by": dataset.grouped_by,
        "split_by": dataset.split_by,
        "note": dataset.note,
        **({"findings": list(dataset.findings)} if dataset.findings else {}),
    }


def _text_columns(dataset: Dataset, have: NDArray[np.bool_]) -> tuple[NDArray[np.bytes_], NDArray[np.bytes_]]:
    """Return splits and groups as UTF-8 bytes."""
    columns = (np.char.encode(c[have], "utf-8") if have.any() else np.empty(0, "S1") for c in _texts(dataset))
    splits, groups = columns
    return splits, groups


def _texts(dataset: Dataset) -> Sequence[NDArray[np.str_]]:
    return (dataset.splits, dataset.groups)


def _new(manifest: Manifest, dataset: Dataset, digests: Digests, wanted: NDArray[np.bool_]) -> int:
    """Return how many images have no row yet and are not known to be unreadable."""
    new = len(dataset) - int(wanted.sum()) - int((digests.known() & ~wanted).sum())
    return new + int((~np.isin(digests.sha256[wanted], manifest.sha256)).sum())


def _same_manifest(manifest: Manifest, dataset: Dataset, digests: Digests, wanted: NDArray[np.bool_]) -> bool:
    """Tell whether names, contents, labels, splits and groups are those in the master."""
    about = {k: v for k, v in manifest.about.items() if k not in ("wanted", "versions")}
    if len(manifest.ids) != int(wanted.sum()) or about != json.loads(json.dumps(_about(dataset))):
        return False
    by_id = bool((manifest.ids[:-1] <= manifest.ids[1:]).all())
    order = slice(None) if by_id else np.argsort(manifest.ids, kind="stable")
    pairs = zip(
        (manifest.ids, manifest.sha256, manifest.labels, manifest.splits, manifest.groups),
        (digests.ids[wanted], digests.sha256[wanted], dataset.labels[wanted], *_text_columns(dataset, wanted)),
        strict=True,
    )
    return all(np.array_equal(old[order], new) for old, new in pairs)


def open_entry(dataset: str, key: Key) -> Entry:
    """Return the entry of a data set for a key; touches no file."""
    return Entry(cache_root(dataset) / key.folder(), key)


def entries(dataset: str) -> list[Entry]:
    """Return every entry of a data set that has a master, newest last; damaged masters are named by their readers."""
    found = []
    for master in sorted(cache_root(dataset).glob("*/features.h5"), key=lambda p: (p.stat().st_mtime_ns, p)):
        key, _ = read_master(master)
        found.append(Entry(master.parent, key))
    return found


def read_unknown(
    dataset: Dataset, digests: Digests, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> Digests:
    """Return the digests with those of images that are not as they were read from the files; writes nothing.

    An image that cannot be read stays UNKNOWN.
    """
    sha256 = digests.sha256.copy()
    todo = np.flatnonzero(~digests.known()).tolist()
    for done, i in enumerate(todo, start=1):
        try:
            sha256[i] = hashlib.sha256(dataset.source.read(dataset.ids[i])).hexdigest().encode()
        except (OSError, BadImage):
            continue
        finally:
            progress(done, len(todo))
    return digests._replace(sha256=sha256)


def changes(manifest: Manifest, dataset: Dataset, digests: Digests) -> dict[str, list[str]]:
    """Return which images changed, and how, since the master was written: kind -> sorted ids, only kinds that occur.

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
    """Return what images are said to be, as the master has it and as the data set has it now, both as text."""
    before, now = np.array(manifest.about["classes"], np.str_), np.array(dataset.classes, np.str_)
    if dataset.findings and findings_of(manifest.about) != dataset.findings:
        before = np.char.add(before, " of other findings")
    splits, groups = (np.char.decode(column, "utf-8") for column in (manifest.splits, manifest.groups))
    return {
        "relabelled": (before[manifest.labels], now[dataset.labels]),
        "in another split": (splits, dataset.splits),
        "regrouped": (groups, dataset.groups),
    }
