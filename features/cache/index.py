"""The master, `features.h5`: which image is which row, and virtual datasets that show all shards as one array."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from features.cache.key import Key
from features.cache.sealed import build, check_heaps, is_whole, write_sealed
from features.cache.shard import Shard
from features.datasets.findings import findings_of
from features.errors import CacheError
from features.storage import slug

MOST_CLASSES = 1024  # an attribute of HDF5 holds 64 KB; `manifest` has all of them
_MOST_RUNS = 4096  # above this many pieces a virtual dataset is slow, and rows are listed in the order of the shards


class Rows(NamedTuple):
    """Where the rows of one part lie; entry i belongs to image i of whatever it is aligned with."""

    shards: list[str]  # file names
    shard: NDArray[np.int32]  # (n,) index into `shards`
    row: NDArray[np.int32]  # (n,) row in that shard

    def take(self, at: NDArray[np.intp]) -> Rows:
        """Return the rows at the given positions."""
        return Rows(self.shards, self.shard[at], self.row[at])

    def runs(self) -> list[tuple[int, int, int, int]]:
        """Return (start, stop, shard, first row) of every stretch of rows that lie together in one shard."""
        if not len(self.row):
            return []
        cut = np.flatnonzero((np.diff(self.row) != 1) | (np.diff(self.shard) != 0)) + 1
        starts, stops = [0, *cut.tolist()], [*cut.tolist(), len(self.row)]
        return [(a, b, int(self.shard[a]), int(self.row[a])) for a, b in zip(starts, stops, strict=True)]


class Manifest(NamedTuple):
    """One line per image that has features, and what the entry as a whole is."""

    ids: NDArray[np.bytes_]  # (n,) utf-8
    sha256: NDArray[np.bytes_]  # (n,) S64 hex
    labels: NDArray[np.int64]  # (n,)
    splits: NDArray[np.bytes_]  # (n,)
    groups: NDArray[np.bytes_]  # (n,) utf-8
    parts: Mapping[str, Rows]  # part -> where its rows lie
    left_out: Mapping[str, str]  # sha256 -> why the image could not be read
    about: Mapping[str, Any]  # dataset, classes, label_views, grouped_by, split_by, note, wanted, versions

    def order(self) -> Manifest:
        """Return the same images sorted by id, or by place on the disk where ids are scattered over the shards."""
        by_id = self._take(np.argsort(self.ids, kind="stable"))
        pooled = next(iter(by_id.parts.values()))
        if len(pooled.runs()) <= _MOST_RUNS:
            return by_id
        return by_id._take(np.lexsort((pooled.row, pooled.shard)))

    def _take(self, at: NDArray[np.intp]) -> Manifest:
        names = ("ids", "sha256", "labels", "splits", "groups")
        parts = {part: rows.take(at) for part, rows in self.parts.items()}
        return self._replace(**{name: getattr(self, name)[at] for name in names}, parts=parts)


def write_master(path: Path, key: Key, manifest: Manifest) -> None:
    """Write `features.h5` over the shards beside it. OSError passes through, the old master staying as it was."""
    manifest = manifest.order()

    def fill(file: h5py.File) -> None:
        file.attrs["about"] = (
            "Firn features: row i of every dataset is the image ids[i]; pooled/<block>/{avg,max} are virtual "
            "datasets over shards/*.h5; labels index the attribute classes"
        )
        file.attrs["key"], file.attrs["key_sha256"] = key.to_json(), key.digest()
        if len(manifest.about["classes"]) <= MOST_CLASSES:
            file.attrs["classes"] = [str(c) for c in manifest.about["classes"]]
        file.attrs["manifest"] = json.dumps(dict(manifest.about), sort_keys=True)
        for name in ("ids", "sha256", "splits", "groups"):
            _write_text(file, name, getattr(manifest, name))
        file["labels"] = manifest.labels
        _write_text(file, "left_out/sha256", np.array(list(manifest.left_out), dtype="S64"))
        reasons = [reason.encode() for reason in manifest.left_out.values()]
        _write_text(file, "left_out/reason", np.array(reasons, dtype=np.bytes_) if reasons else np.empty(0, "S1"))
        for part, rows in manifest.parts.items():
            _write_part(file, path.parent / "shards", part, rows)

    write_sealed(path, build(fill))


def _write_text(file: h5py.File, name: str, text: NDArray[np.bytes_]) -> None:
    """Write fixed-length UTF-8: unlike HDF5's variable-length text it is covered by checksums and quick to read."""
    file[name] = text.astype(h5py.string_dtype("utf-8", max(1, text.dtype.itemsize)))


def _write_part(file: h5py.File, folder: Path, part: str, rows: Rows) -> None:
    """Write where the rows of one part lie, and its virtual datasets."""
    place = f"rows/{slug(part)}"
    file[f"{place}/shard"], file[f"{place}/row"] = rows.shard, rows.row
    file[place].attrs["part"] = part
    _write_text(file, f"{place}/shards", np.array([s.encode() for s in rows.shards] or [b""], dtype=np.bytes_))
    if not rows.shards:
        return
    with Shard(folder / rows.shards[0]) as first:
        columns = {name: first.column(name) for name in first.names()}
    lengths = np.zeros(len(rows.shards), dtype=np.int64)
    np.maximum.at(lengths, rows.shard, rows.row.astype(np.int64) + 1)
    for name, column in columns.items():
        layout = h5py.VirtualLayout((len(rows.row), *column.shape[1:]), column.dtype)
        for start, stop, shard, row in rows.runs():
            source = h5py.VirtualSource(
                f"shards/{rows.shards[shard]}", name, (int(lengths[shard]), *column.shape[1:]), column.dtype
            )
            layout[start:stop] = source[row : row + stop - start]
        file.create_virtual_dataset(name, layout)


def read_master(path: Path) -> tuple[Key, Manifest]:
    """Return key and manifest of `features.h5`.

    Raises FileNotFoundError where there is none and CacheError where a byte is not as it was written.
    """
    if not is_whole(path):
        raise CacheError(f"damaged master {path}: its bytes do not match their seal; run: make cache-repair")
    try:
        check_heaps(path)
        with h5py.File(path, "r", locking=False) as file:
            columns = {name: file[name][...] for name in ("ids", "sha256", "labels", "splits", "groups")}
            left_out = dict(zip(_text(file["left_out/sha256"]), _text(file["left_out/reason"]), strict=True))
            parts = dict(_read_part(file["rows"][name]) for name in file.get("rows", ()))
            about = json.loads(file.attrs["manifest"])
            key = Key.from_json(file.attrs["key"])
            manifest = Manifest(**columns, parts=parts, left_out=left_out, about=about)
        check_manifest(manifest)
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise CacheError(f"damaged master {path}: it cannot be read ({error}); run: make cache-repair") from None
    return key, manifest


def check_manifest(manifest: Manifest) -> None:
    """Raise ValueError, KeyError or TypeError for a manifest that no Firn has written, whatever its seal says.

    Masters and packs come from colleagues: a shard's name must lead nowhere else, and no index out of its column.
    """
    n, classes = len(manifest.ids), manifest.about["classes"]
    texts = (manifest.ids, manifest.sha256, manifest.splits, manifest.groups)
    if any(column.dtype.kind != "S" or column.shape != (n,) for column in texts) or manifest.labels.shape != (n,):
        raise ValueError("its columns are of different lengths or of the wrong kind")
    for column in texts:
        column.tobytes().decode()
    if not all(isinstance(name, str) for name in classes) or not _within(manifest.labels, len(classes)):
        raise ValueError("a label is outside its classes")
    if (names := findings_of(manifest.about)) and any(set(c) - set("01?") or len(c) != len(names) for c in classes):
        raise ValueError("a class is no row of labels of its findings")
    if "pooled" not in manifest.parts:
        raise ValueError("it lists no rows of pooled features")
    for part, rows in manifest.parts.items():
        if any("/" in name or "\0" in name or name.startswith(".") for name in rows.shards):
            raise ValueError(f"a shard of {part} has a name that leads out of the folder")
        if rows.row.shape != (n,) or rows.shard.shape != (n,) or not _within(rows.shard, len(rows.shards)):
            raise ValueError(f"a row of {part} is outside its shards")


def _within(numbers: NDArray[Any], end: int) -> bool:
    """Tell whether whole numbers are all in [0, end)."""
    return numbers.dtype.kind in "iu" and (not numbers.size or (int(numbers.min()) >= 0 and int(numbers.max()) < end))


def _read_part(group: h5py.Group) -> tuple[str, Rows]:
    return group.attrs["part"], Rows(_text(group["shards"]), group["shard"][...], group["row"][...])


def _text(dataset: h5py.Dataset) -> list[str]:
    values: Sequence[bytes] = dataset[...].tolist()
    return [value.decode() for value in values]
