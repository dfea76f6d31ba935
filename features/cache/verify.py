"""Verification of an entry: every byte of master and shards against its seal, every shard against its name."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import h5py

from features.cache.entry import Entry
from features.cache.index import Manifest
from features.cache.key import Key
from features.cache.sealed import digest_of, is_whole
from features.errors import CacheError


class Damage(NamedTuple):
    """One file that is not what was written."""

    path: Path
    reason: str
    images: list[str]  # whose rows it held, as far as the master tells


def verify(entry: Entry) -> list[Damage]:
    """Read every byte of an entry; return what is damaged or lost."""
    try:
        manifest = entry.manifest()
        found = [] if manifest else [Damage(entry.master, "is missing", [])]
    except CacheError as error:
        manifest, found = None, [Damage(entry.master, str(error), [])]
    names = sorted(p.name for p in entry.shards.glob("*.h5"))
    found += [Damage(entry.shards / n, reason, _images(manifest, n)) for n in names if (reason := _fault(entry, n))]
    needed = {name: rows for rows in (manifest.parts.values() if manifest else ()) for name in rows.shards}
    lost = sorted(name for name in set(needed) - set(names) if _images(manifest, name))
    return found + [Damage(entry.shards / name, "is missing", _images(manifest, name)) for name in lost]


def _fault(entry: Entry, name: str) -> str:
    """Say what is wrong with a shard; empty where nothing is."""
    path = entry.shards / name
    try:
        if not is_whole(path):
            return "its bytes do not match their seal"
        if not name.endswith(f"-{digest_of(path)}.h5"):
            return "its name is not that of its content"
    except (OSError, CacheError) as error:
        return f"cannot be read ({error})"
    return "" if _key_in(path) == entry.key else "belongs to another key"


def _images(manifest: Manifest | None, shard: str) -> list[str]:
    """Return the images whose rows lie in a shard."""
    if manifest is None:
        return []
    ids: list[str] = []
    for rows in manifest.parts.values():
        if shard in rows.shards:
            ids += [i.decode() for i in manifest.ids[rows.shard == rows.shards.index(shard)].tolist()]
    return ids


def _key_in(path: Path) -> Key | None:
    """Return the key stored in a master or shard; None where it does not read."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            return Key.from_json(str(file.attrs["key"]))
    except (OSError, KeyError, ValueError, TypeError, RuntimeError):
        return None


def find_entries(root: Path) -> list[Entry]:
    """Return every entry below the cache folder of a data set, also those whose master is damaged or missing."""
    found = []
    for folder in sorted(p for p in root.glob("*") if p.is_dir()):
        files = [folder / "features.h5", *sorted((folder / "shards").glob("*.h5"))]
        keys = (key for path in files if path.exists() and (key := _key_in(path)))
        if key := next((k for k in keys if k.folder() == folder.name), None):
            found.append(Entry(folder, key))
    return found
