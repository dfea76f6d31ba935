"""From what a user typed to data set, recipe and cache entry; no torch where everything is remembered."""

from __future__ import annotations

from dataclasses import dataclass

from features.backbones import Recipe, load_recipe
from features.cache import Digests, Entry, State, entries, open_entry
from features.cache.entry import cache_root
from features.datasets import Dataset
from features.devices import device, precision
from features.errors import CacheError, FirnError, unknown
from features.images import PREPROCESS

__all__ = ["Request", "names_in", "resolve"]

DEFAULT_PREPROCESS = "squash"


@dataclass(frozen=True)
class Request:
    """One backbone on one data set, as asked for."""

    dataset: Dataset
    recipe: Recipe
    preprocess: str
    device: str
    entry: Entry

    def state(self, parts: tuple[str, ...] = ("pooled",)) -> State:
        """Return what the cache has of it; reads no picture."""
        return self.entry.state(self.dataset, self.digests(), parts)

    def digests(self) -> Digests:
        """Return the digests of all pictures that are as they were when last read."""
        memo = Digests.load(cache_root(self.dataset.name) / "digests.h5")
        return Digests.of(self.dataset.ids, self.dataset.source.stamps(self.dataset.ids), memo)

    def command(self, verb: str = "extract") -> str:
        """Return the command that fills the entry."""
        return f"make {verb} DATASET={self.dataset.name} BACKBONE={self.recipe.name}"

    def ready(self, parts: tuple[str, ...] = ("pooled",)) -> Entry:
        """Return the entry. CacheError, saying why and what to type, unless it is ready."""
        state = self.state(parts)
        if state.word == "ready":
            return self.entry
        near = self.why() if state.word == "missing" else ""
        place = f"{self.dataset.name} with {self.recipe.name}"
        raise CacheError(f"features of {place} are {state.word}: {state.why}{near}; run: {self.command()}")

    def why(self) -> str:
        """Say how the request differs from the nearest entry of the same backbone, if there is one."""
        others = [e for e in entries(self.dataset.name) if e.key.backbone == self.recipe.name]
        if not others:
            return ""
        nearest = min(others, key=lambda e: len(e.key.differences(self.entry.key)))
        return f" (the nearest entry is {nearest.folder.name}: {'; '.join(nearest.key.differences(self.entry.key))})"


def names_in(text: str) -> list[str]:
    """Return the names in a list separated by blanks or commas, each once."""
    return list(dict.fromkeys(text.replace(",", " ").split()))


def resolve(
    dataset: Dataset,
    backbones: str,
    *,
    weights: str = "",
    preprocess: str = "",
    precision_: str = "auto",
    device_: str = "auto",
) -> list[Request]:
    """Return one request per backbone. Raises UnknownName, BadWeights or FirnError for what does not fit."""
    names = names_in(backbones)
    if not names:
        raise FirnError("no backbone given; for example BACKBONE=resnet18")
    if weights and len(names) > 1:
        raise FirnError(f"WEIGHTS= fits one backbone, and {len(names)} are asked for: {', '.join(names)}")
    if (way := preprocess or DEFAULT_PREPROCESS) not in PREPROCESS:
        raise unknown("preprocess", way, PREPROCESS)
    where = device(device_)
    arithmetic = precision(precision_, where)
    recipes = [load_recipe(name, weights or None) for name in names]
    return [
        Request(dataset, r, way, where, open_entry(dataset.name, r.key(preprocess=way, precision=arithmetic)))
        for r in recipes
    ]
