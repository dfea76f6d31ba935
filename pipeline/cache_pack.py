"""cache-pack: one entry -> one self-contained HDF5 file, to hand to somebody without the pictures."""

from __future__ import annotations

from pathlib import Path

from features.cache.gc import bytes_below
from features.cache.pack import SUFFIXES, write_pack
from features.datasets import load_dataset
from features.errors import CacheError
from features.progress import shown
from features.request import Request, resolve
from features.storage import artifacts_root
from features.views import choose_blocks
from pipeline.cache import megabytes

__all__ = ["pack"]


def pack(dataset: str, backbone: str, *, out: str = "", maps: str = "", seed: int = 0, **recipe: str) -> list[str]:
    """Pack the ready entries of one or several backbones; return one line per file.

    Files go to `out` (one backbone only) or into artifacts/packs. Raises CacheError, saying why, for what is not
    ready, and for a place that belongs to the cache itself.
    """
    requests = resolve(load_dataset(dataset, seed=seed), backbone, **recipe)
    if out and len(requests) > 1:
        raise CacheError(f"OUT= takes one backbone, and {len(requests)} are asked for; leave OUT= away")
    return [_packed(request, _checked(Path(out)) if out else _default(request), maps) for request in requests]


def _packed(request: Request, path: Path, maps: str) -> str:
    blocks = choose_blocks(list(request.recipe.blocks), maps) if maps else ()
    parts = ("pooled", *(f"maps/{block}" for block in blocks))
    entry = request.ready(parts)
    with shown(f"pack {request.dataset.name} with {request.recipe.name}", "bytes") as progress:
        manifest = write_pack(entry, path, parts, progress=progress)
    return f"packed: {len(manifest.ids):,} pictures, {', '.join(parts)}, {megabytes(bytes_below(path))} {path}"


def _default(request: Request) -> Path:
    return artifacts_root() / "packs" / f"{request.dataset.name}-{request.entry.folder.name}{SUFFIXES[0]}"


def _checked(path: Path) -> Path:
    """Return a place for a pack that is neither a folder, nor in the cache, nor under a name that no reader expects."""
    if path.suffix.lower() not in SUFFIXES or path.is_dir():
        raise CacheError(f"OUT={path} is no place for a pack; give a file name that ends in {' or '.join(SUFFIXES)}")
    if path.resolve().is_relative_to((artifacts_root() / "cache").resolve()):
        raise CacheError(f"OUT={path} lies in the cache itself; give another folder")
    return path
