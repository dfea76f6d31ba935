"""cache-verify and cache-repair: prove entries right, mend them."""

from __future__ import annotations

from pathlib import Path

from features.backbones import load_recipe
from features.cache import Entry
from features.cache.entry import cache_root
from features.cache.gc import bytes_below
from features.cache.pack import is_pack, open_pack
from features.cache.verify import Damage, find_entries, verify
from features.datasets import load_dataset
from features.devices import device
from features.errors import CacheError
from features.extraction.engine import fill
from features.progress import say
from features.request import Request
from features.storage import artifacts_root

__all__ = ["find", "megabytes", "place", "repair", "verify_entries"]


def find(dataset: str) -> list[Entry]:
    """Return the entries of one data set, or of all."""
    root = artifacts_root() / "cache"
    roots = [cache_root(load_dataset(dataset).name)] if dataset else sorted(p for p in root.glob("*") if p.is_dir())
    return [entry for folder in roots for entry in find_entries(folder)]


def place(entry: Entry) -> str:
    """Return an entry's name in lists: data set and folder."""
    return f"{entry.folder.parent.name}/{entry.folder.name}"


def megabytes(size: int) -> str:
    """Return bytes in words."""
    return f"{size / 1e6:,.1f} MB"


def verify_entries(dataset: str = "") -> tuple[list[str], bool]:
    """Read every byte of all entries, those of a data set, or a pack; return what to tell, and whether all is well."""
    if is_pack(dataset):
        return _verify_pack(Path(dataset))
    lines, well = [], True
    for entry in find(dataset):
        damages = verify(entry)
        lines.append(
            f"{'damaged' if damages else 'whole'}: {place(entry)}, {megabytes(bytes_below(entry.folder))} read"
        )
        lines += [_told(damage) for damage in damages]
        well &= not damages
    if not well:
        lines.append("run: make cache-repair")
    return lines or ["the cache is empty"], well


def _verify_pack(path: Path) -> tuple[list[str], bool]:
    """Check the seal of a pack; where it is broken, say what a reader would meet."""
    pack = open_pack(path)
    if pack.whole():
        return [f"whole: {path}, {megabytes(bytes_below(path))} read"], True
    return [f"damaged: {path}, its bytes do not match their seal; fetch it again or run: make cache-pack"], False


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
    pictures.source.stamps([])  # a pack has no pictures and says so before anything is taken out
    lines = []
    for entry in find_entries(cache_root(pictures.name)):
        damages = verify(entry)
        blocks = tuple(block for block in entry.key.blocks if entry.files(f"maps/{block}"))
        if not damages:
            lines.append(f"whole: {entry.folder.name}")
            continue
        way = entry.key.preprocess.partition(":")[0]
        recipe = load_recipe(entry.key.backbone)
        for_thawing = entry.key.blocks != tuple(recipe.blocks)
        asked = recipe.key(preprocess=way, precision=entry.key.precision, stored=entry.key.stored)
        if asked != entry.key and not for_thawing:
            raise CacheError(
                f"{entry.folder} was filled with other weights or preprocessing than {recipe.name} has now; "
                f"give those weights back (FIRN_WEIGHTS), or remove the folder and run: make extract"
            )
        for damage in damages:
            say(f"taking out {damage.path}: {damage.reason}")
            damage.path.unlink(missing_ok=True)
        if for_thawing:
            lines.append(f"taken out: {entry.folder.name}, {len(damages)} files; make finetune computes them again")
            continue
        fill([(Request(pictures, recipe, way, device(device_), entry), blocks)], workers=workers)
        lines.append(f"repaired: {entry.folder.name}, {len(damages)} files")
    return lines or [f"no entries of {pictures.name}"]
