"""cache-gc: what a data set does not need of its cache any more; told first, removed only when told to."""

from __future__ import annotations

from features.backbones import BACKBONES, weights
from features.cache import Digests, Entry
from features.cache.entry import cache_root
from features.cache.gc import Survey, abandoned, remove, survey
from features.cache.verify import find_entries
from features.datasets import Dataset, load_dataset
from features.errors import BadWeights
from features.request import names_in, resolve
from features.storage import artifacts_root
from pipeline.cache import megabytes

__all__ = ["collect"]


def collect(dataset: str, backbone: str = "", *, yes: bool = False, **recipe: str) -> list[str]:
    """Return what may go of the cache of a data set, one line each; with `yes` remove it.

    That is: what dead writers left behind, shards whose pictures are gone, and entries of the backbones (those given,
    else all) that today's weights, preprocessing and precision would not use. Never pictures, never what a living
    writer holds.
    """
    pictures = load_dataset(dataset)
    found = _survey(pictures, names_in(backbone), recipe)
    verb = "removed" if yes else "would remove"
    waste = remove(found.waste) if yes else found.waste
    lines = [f"{verb}: {item.path}, {megabytes(item.size)}: {item.why}" for item in waste]
    lines += [f"kept: {line}" for line in found.kept]
    total = f"{len(waste)} files and folders, {megabytes(sum(item.size for item in waste))}"
    if not waste:
        return [*lines, f"nothing to remove of {pictures.name}"]
    return [*lines, f"removed {total}" if yes else f"would remove {total}; to do so add YES=1"]


def _survey(pictures: Dataset, backbones: list[str], recipe: dict[str, str]) -> Survey:
    """Look through everything that the cache has of a data set."""
    root = cache_root(pictures.name)
    memo = Digests.load(root / "digests.h5")
    digests = Digests.of(pictures.ids, pictures.source.stamps(pictures.ids), memo)
    waste, kept = abandoned(root) + abandoned(artifacts_root() / "cache"), []
    by_backbone: dict[str, list[Entry]] = {}
    for entry in find_entries(root):
        by_backbone.setdefault(entry.key.backbone, []).append(entry)
    for name, found in by_backbone.items():
        if backbones and name not in backbones:
            continue
        try:
            asked = _asked(pictures, name, recipe)
        except BadWeights as error:
            kept += [f"{entry.folder}: {error}" for entry in found]
            continue
        for entry in found:
            part = survey(entry, pictures, digests, asked.key)
            waste, kept = waste + part.waste, kept + part.kept
    return Survey(waste, kept)


def _asked(pictures: Dataset, backbone: str, recipe: dict[str, str]) -> Entry:
    """Return the entry that a run would use today. BadWeights where that cannot be told without a download."""
    row = BACKBONES.get(backbone)
    if row is None or weights.find(backbone, row.file, recipe.get("weights") or None) is None:
        raise BadWeights(f"no weights of {backbone} here, so it cannot be told whether a run would use it")
    return resolve(pictures, backbone, **recipe)[0].entry
