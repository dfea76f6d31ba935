"""A pack: the rows of one entry in one self-contained, sealed HDF5 file, to hand to somebody without the images.

The layout is that of the master with the arrays themselves in place of virtual datasets, and that of a shard in that
a checksum covers each block of rows: whatever reads a shard reads a pack.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from features.cache.entry import Entry
from features.cache.index import MOST_CLASSES, Manifest, Rows, check_manifest
from features.cache.key import Key
from features.cache.reader import FeatureRows
from features.cache.sealed import USER_BLOCK, Sparse, check_heaps, is_whole, reserve, seal
from features.cache.shard import Shard, block_rows, checksums
from features.errors import CacheError
from features.storage import remove_leftovers, whole

SUFFIXES = (".h5", ".hdf5")
_MEND = "cache-pack where the images are, or fetch the file again"
_TEXTS: Final = ("ids", "sha256", "splits", "groups")
_ABOUT = (
    "Firn pack: row i of every dataset is the image ids[i]; pooled/<block>/{avg,max} and maps/<block> are features; "
    "labels index the attribute classes; checksums/<dataset> are xxh3-64 of each block of rows_per_checksum rows"
)


@dataclass(frozen=True)
class Pack:
    """A pack: what an entry is to views, in one file."""

    path: Path
    key: Key
    about: str  # the manifest's JSON

    @property
    def folder(self) -> Path:
        """Return where a person would look: the file."""
        return self.path

    def shard(self, _: str = "") -> Shard:
        """Return the pack open for reading rows. CacheError, saying how to get another one, where it is damaged."""
        return Shard(self.path, mend=_MEND)

    def manifest(self) -> Manifest:
        """Return one line per image; every value has passed its checksum. CacheError where it is damaged."""
        with self.shard() as shard:
            n = len(shard)
            columns: dict[str, Any] = {name: _all_of(shard, name) for name in (*_TEXTS, "labels")}
            parts = ["pooled", *(name for name in shard.names() if name.startswith("maps/"))]
            rows = Rows([self.path.name], np.zeros(n, np.int32), np.arange(n, dtype=np.int32))
            try:
                for name in _TEXTS:
                    np.char.decode(columns[name], "utf-8")
                left_out = zip(_text(shard, "left_out/sha256"), _text(shard, "left_out/reason"), strict=True)
                about = json.loads(self.about)
                found = Manifest(**columns, parts=dict.fromkeys(parts, rows), left_out=dict(left_out), about=about)
                check_manifest(found)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise CacheError(f"damaged {self.path}: {error}; run: {_MEND}") from None
        return found

    def whole(self) -> bool:
        """Tell whether every byte of the file is as it was written."""
        return is_whole(self.path)


def is_pack(place: str) -> bool:
    """Tell whether a data set given by the user is an HDF5 file."""
    return place.lower().endswith(SUFFIXES) and os.path.isfile(place)  # noqa: PTH113 - is_file() raises at a long name


def open_pack(path: Path) -> Pack:
    """Return a pack after checking what it says of itself. CacheError for another kind of file and for damage."""
    try:
        check_heaps(path)
        with h5py.File(path, "r", locking=False) as file:
            attributes = {name: str(value) for name, value in file.attrs.items() if isinstance(value, str)}
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise CacheError(f"{path} does not open as HDF5 ({error}); run: {_MEND}") from None
    if attributes.get("part") != "pack":
        raise CacheError(f"{path} is no pack of features; cache-pack makes one where the images are")
    if _own_digest(attributes) != attributes.get("digest"):
        raise CacheError(f"damaged {path}: its attributes do not match their digest; run: {_MEND}")
    try:
        return Pack(path, Key.from_json(attributes["key"]), attributes["manifest"])
    except (ValueError, KeyError, TypeError) as error:
        raise CacheError(f"damaged {path}: its key does not read ({error}); run: {_MEND}") from None


def _own_digest(attributes: dict[str, str]) -> str:
    """Return the sha256 of the attributes that matter to a reader."""
    return hashlib.sha256(
        "\n".join(attributes.get(n, "") for n in ("key", "manifest")).encode("utf-8", "surrogateescape")
    ).hexdigest()


def write_pack(
    entry: Entry,
    path: Path,
    parts: Sequence[str] = ("pooled",),
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
    """Write the given parts of an entry to `path`, absent or whole, and return the manifest that went into it.

    Rows stream through about 16 MB of memory; every one passes its checksum on the way. Raises CacheError where the
    entry lacks a part or is damaged, OSError (disk full) with `path` as it was.
    """
    manifest = _checked(entry, parts)
    arrays = {name: rows for part in parts for name, rows in _arrays(entry, manifest.parts[part]).items()}
    sparse, places = _frame(entry.key, manifest, {name: (rows.shape, rows.dtype) for name, rows in arrays.items()})
    remove_leftovers(path.parent)
    done, total = 0, sum(rows.nbytes for rows in arrays.values())
    with whole(path) as descriptor:
        for at, piece in sparse.writes:
            _put(descriptor, at, piece)
        for name, rows in arrays.items():
            sums, offset = [], places[name]
            with rows:
                for _, some in rows.pieces():
                    sums.append(checksums(some))
                    offset += _put(descriptor, offset, some)
                    progress(done := done + some.nbytes, total)
            _put(descriptor, places[f"checksums/{name}"], np.concatenate(sums))
        with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as image, memoryview(image)[USER_BLOCK:] as body:
            head = seal(xxhash.xxh3_128_hexdigest(body))
        _put(descriptor, 0, head)
    return manifest


def _checked(entry: Entry, parts: Sequence[str]) -> Manifest:
    """Return the manifest of an entry that has images and all the parts."""
    manifest = entry.manifest()
    lacking = [part for part in parts if manifest is None or part not in manifest.parts]
    if manifest is None or lacking or not len(manifest.ids):
        raise CacheError(f"{entry.folder} has no {', '.join(lacking) or 'images'} to pack; run: make extract")
    return manifest


def _arrays(entry: Entry, rows: Rows) -> dict[str, FeatureRows]:
    """Return the arrays of a part, as stored and in the order of the manifest."""
    with entry.shard(rows.shards[0]) as shard:
        return {name: FeatureRows(entry, rows, [name]) for name in shard.names()}


def _frame(
    key: Key, manifest: Manifest, shapes: dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]]
) -> tuple[Sparse, dict[str, int]]:
    """Return the HDF5 file without the features, and where these and their checksums belong in it."""
    sparse = Sparse()
    with h5py.File(sparse, "w", userblock_size=USER_BLOCK, libver=("v110", "v110")) as file:
        attributes = {
            "part": "pack",
            "key": key.to_json(),
            "manifest": json.dumps(dict(manifest.about), sort_keys=True),
        }
        for name, value in {"about": _ABOUT, **attributes, "digest": _own_digest(attributes)}.items():
            file.attrs[name] = value
        if len(manifest.about["classes"]) <= MOST_CLASSES:
            file.attrs["classes"] = [str(c) for c in manifest.about["classes"]]
        file.attrs["key_sha256"] = key.digest()
        for name, array in _small(manifest).items():
            file[name] = array
            _note_checksums(file, name, array.dtype, array.shape)[...] = checksums(array)
        places = {}
        for name, (shape, dtype) in shapes.items():
            places[name] = reserve(file, name, shape, dtype).id.get_offset()
            places[f"checksums/{name}"] = _note_checksums(file, name, dtype, shape).id.get_offset()
    return sparse, places


def _small(manifest: Manifest) -> dict[str, NDArray[Any]]:
    """Return the columns that stand beside the features."""
    texts = {name: getattr(manifest, name) for name in _TEXTS}
    texts["left_out/sha256"] = np.array(list(manifest.left_out), dtype="S64")
    texts["left_out/reason"] = np.array([reason.encode() for reason in manifest.left_out.values()] or [], dtype="S")
    fixed = {n: t.astype(h5py.string_dtype("utf-8", max(1, t.dtype.itemsize))) for n, t in texts.items()}
    return {**fixed, "labels": manifest.labels}


def _note_checksums(file: h5py.File, name: str, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> h5py.Dataset:
    """Make the dataset of checksums of an array, one for each block of rows."""
    rows = block_rows(int(dtype.itemsize * np.prod(shape[1:], dtype=np.int64)))
    made = reserve(file, f"checksums/{name}", (-(-shape[0] // rows),), np.dtype(np.uint64))
    made.attrs["rows_per_checksum"] = rows
    return made


def _put(descriptor: int, at: int, data: bytes | NDArray[np.generic]) -> int:
    """Write every byte at a place in the file; return how many."""
    view = np.ascontiguousarray(data).data.cast("B") if isinstance(data, np.ndarray) else memoryview(data)
    done = 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], at + done)
    return done


def _all_of(shard: Shard, name: str) -> NDArray[np.generic]:
    return shard.read(name, 0, shard.column(name).shape[0])


def _text(shard: Shard, name: str) -> list[str]:
    values: list[bytes] = _all_of(shard, name).tolist()
    return [value.decode() for value in values]
