"""From what a user typed to data set, recipe and cache entry; no torch where everything is remembered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from features.backbones import Recipe, load_recipe
from features.cache import Digests, Entry, State, open_entry
from features.cache.entry import cache_root, note_use
from features.cache.pack import Pack
from features.cache.verify import find_entries
from features.datasets import Dataset
from features.datasets.packed import Packed
from features.devices import device, precision
from features.errors import CacheError, FirnError, unknown
from features.images import PREPROCESS
from features.views import Cached

DEFAULT_BACKBONE, DEFAULT_PREPROCESS = "resnet18", "squash"


@dataclass(frozen=True)
class Request:
    """One backbone on one data set, as asked for."""

    dataset: Dataset
    recipe: Recipe
    preprocess: str
    device: str
    entry: Entry

    def state(self, parts: tuple[str, ...] = ("pooled",)) -> State:
        """Return what the cache has of it; reads no image."""
        return self.entry.state(self.dataset, self.digests(), parts)

    def digests(self) -> Digests:
        """Return the digests of all images that are as they were when last read."""
        memo = Digests.load(cache_root(self.dataset.name) / "digests.h5")
        return Digests.of(self.dataset.ids, self.dataset.source.stamps(self.dataset.ids), memo)

    def command(self, verb: str = "extract") -> str:
        """Return the command that fills the entry."""
        key, where = self.entry.key, precision("auto", self.device)
        preprocess = f" PREPROCESS={self.preprocess}" if self.preprocess != DEFAULT_PREPROCESS else ""
        arithmetic = f" PRECISION={key.precision}" if key.precision != where else ""
        return f"make {verb} DATASET={self.dataset.name} BACKBONE={self.recipe.name}{preprocess}{arithmetic}"

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
        for nearest in self.nearest():
            if nearest.key.backbone == self.recipe.name:
                differences = "; ".join(nearest.key.differences(self.entry.key))
                return f" (the nearest entry is {nearest.folder.name}: {differences})"
        return ""

    def nearest(self) -> list[Entry]:
        """Return the other entries of the data set, those of the same backbone and the fewest differences first."""
        others = [e for e in find_entries(cache_root(self.dataset.name)) if e.key != self.entry.key]
        mine = self.entry.key
        return sorted(others, key=lambda e: (e.key.backbone != mine.backbone, len(e.key.differences(mine))))


def names_in(text: str) -> list[str]:
    """Return the names (or names joined by +) in a list separated by blanks or commas, each once."""
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
    dataset.source.stamps([])  # a pack has no images and says so before anything is made ready
    names = names_in(backbones.replace("+", " "))
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


def open_features(dataset: Dataset, backbones: str, **recipe: str) -> list[Cached]:
    """Return the features that stage two reads: a pack, or the ready entry of each backbone (`recipe` as `resolve`).

    Raises CacheError, saying why and what to type, where features are not ready.
    """
    opener = _OPENERS.get(type(dataset.source), _from_cache)
    return opener(dataset, backbones, **recipe)


def _from_cache(dataset: Dataset, backbones: str, **recipe: str) -> list[Cached]:
    found = [request.ready() for request in resolve(dataset, backbones or DEFAULT_BACKBONE, **recipe)]
    for entry in found:
        note_use(entry)
    return [*found]


def _from_pack(
    dataset: Dataset,
    backbones: str,
    *,
    weights: str = "",
    preprocess: str = "",
    precision_: str = "auto",
    device_: str = "auto",
) -> list[Cached]:
    """Return the pack behind a data set; what was asked for by name must be what was packed."""
    source: Any = dataset.source
    pack: Pack = source.pack
    way, arithmetic = pack.key.preprocess.partition(":")[0], pack.key.precision
    asked = {
        "BACKBONE": (backbones, pack.key.backbone),
        "PREPROCESS": (preprocess, way),
        "PRECISION": (precision_, "auto" if precision_ == "auto" else arithmetic),
        "WEIGHTS": (weights, "the weights that it was made with"),
    }
    for name, (wanted, packed) in asked.items():
        if wanted and wanted != packed:
            raise CacheError(f"{pack.path} holds features of {packed}, not {wanted}; leave {name}= away")
    return [pack]


_OPENERS: dict[type, Callable[..., list[Cached]]] = {Packed: _from_pack}
