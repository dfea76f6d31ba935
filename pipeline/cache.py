"""cache: prove entries right, mend them, list them, say why one does not fit."""

from __future__ import annotations

from datetime import datetime

from features.backbones import load_recipe
from features.cache import Entry
from features.cache.entry import cache_root
from features.cache.verify import Damage, bytes_of, find_entries, verify
from features.datasets import load_dataset
from features.devices import device
from features.errors import CacheError
from features.files import artifacts_root
from pipeline.extract import fill
from pipeline.progress import say
from pipeline.request import Request, resolve

__all__ = ["list_entries", "repair", "verify_entries", "why"]


def _entries(dataset: str) -> list[Entry]:
    """Return the entries of one data set, or of all."""
    root = artifacts_root() / "cache"
    roots = [cache_root(load_dataset(dataset).name)] if dataset else sorted(p for p in root.glob("*") if p.is_dir())
    return [entry for folder in roots for entry in find_entries(folder)]


def list_entries(dataset: str = "") -> list[str]:
    """Return one line per entry: data set, folder, rows, bytes, when it was written."""
    lines = []
    for entry in _entries(dataset):
        try:
            manifest = entry.manifest()
            rows = f"{len(manifest.ids):,} of {manifest.about['wanted']:,} pictures" if manifest else "no master yet"
            parts = ", ".join(manifest.parts) if manifest else ""
            when = datetime.fromtimestamp(entry.master.stat().st_mtime).isoformat(" ", "minutes") if manifest else ""
        except CacheError:
            rows, parts, when = "damaged", "", ""
        place = f"{entry.folder.parent.name}/{entry.folder.name}"
        lines.append(f"{place}  {rows}  {parts}  {bytes_of(entry) / 1e6:,.1f} MB  {when}".rstrip())
    return lines or ["the cache is empty"]


def verify_entries(dataset: str = "") -> tuple[list[str], bool]:
    """Read every byte; return one line per entry and per damaged file, and whether all is well."""
    lines, well = [], True
    for entry in _entries(dataset):
        damages = verify(entry)
        place = f"{entry.folder.parent.name}/{entry.folder.name}"
        lines.append(f"{'damaged' if damages else 'whole'}: {place}, {bytes_of(entry) / 1e6:,.1f} MB read")
        lines += [_told(damage) for damage in damages]
        well &= not damages
    if not well:
        lines.append("run: make cache-repair")
    return lines or ["the cache is empty"], well


def _told(damage: Damage) -> str:
    """Return a line for a damaged file with the pictures that it held."""
    if not damage.pictures:
        return f"  {damage.path}: {damage.reason}"
    shown = "\n".join(f"    {picture}" for picture in damage.pictures)
    return f"  {damage.path}: {damage.reason}; it held {len(damage.pictures)} pictures:\n{shown}"


def repair(dataset: str, *, device_: str = "auto", workers: int = 0) -> list[str]:
    """Take out what is damaged in the entries of a data set and compute just that again; return one line per entry.

    Raises CacheError where an entry's backbone has other weights now than when it was filled.
    """
    pictures = load_dataset(dataset)
    lines = []
    for entry in find_entries(cache_root(pictures.name)):
        damages = verify(entry)
        blocks = tuple(block for block in entry.key.blocks if entry.files(f"maps/{block}"))
        if not damages:
            lines.append(f"whole: {entry.folder.name}")
            continue
        way = entry.key.preprocess.partition(":")[0]
        recipe = load_recipe(entry.key.backbone)
        if recipe.key(preprocess=way, precision=entry.key.precision, stored=entry.key.stored) != entry.key:
            raise CacheError(
                f"{entry.folder} was filled with other weights or preprocessing than {recipe.name} has now; "
                f"give those weights back (FIRN_WEIGHTS), or remove the folder and run: make extract"
            )
        for damage in damages:
            say(f"taking out {damage.path}: {damage.reason}")
            damage.path.unlink(missing_ok=True)
        fill([(Request(pictures, recipe, way, device(device_), entry), blocks)], workers=workers)
        lines.append(f"repaired: {entry.folder.name}, {len(damages)} files")
    return lines or [f"no entries of {pictures.name}"]


def why(dataset: str, backbone: str, **recipe: str) -> list[str]:
    """Return the state of each request in words, with what differs from the nearest entry."""
    requests = resolve(load_dataset(dataset), backbone, **recipe)
    lines = []
    for request in requests:
        state = request.state()
        lines.append(
            f"{state.word}: {request.recipe.name}: {state.why}{request.why() if state.word == 'missing' else ''}"
        )
    return lines
