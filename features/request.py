"""One backbone on one data set, as asked for: its spec, its cache entry, the entry's state; no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from features.backbones import BackboneSpec, load_spec
from features.cache import Digests, Entry, State, open_entry
from features.cache.entry import cache_root, note_use
from features.cache.pack import Pack
from features.cache.verify import find_entries
from features.datasets import Dataset
from features.datasets.packed import Packed
from features.devices import checked, choose_device, choose_precision
from features.errors import CacheError, FirnError, unknown
from features.images import PREPROCESS
from features.options import DEFAULT_BACKBONE, FeatureOptions, make_command, names_in, replaced
from features.views import Cached

DEFAULT_PREPROCESS = "squash"


@dataclass(frozen=True)
class Request:
    """One backbone on one data set, as asked for."""

    dataset: Dataset
    spec: BackboneSpec
    preprocess: str
    device: str
    entry: Entry
    options: FeatureOptions

    def state(self, parts: tuple[str, ...] = ("pooled",)) -> State:
        """Return what the cache has of it; reads no image."""
        return self.entry.state(self.dataset, self.digests(), parts)

    def digests(self) -> Digests:
        """Return the digests of all images that are as they were when last read."""
        memo = Digests.load(cache_root(self.dataset.name) / "digests.h5")
        return Digests.of(self.dataset.ids, self.dataset.source.stamps(self.dataset.ids), memo)

    def command(self, *blocks: str) -> str:
        """Return the command that fills the entry, and keeps the maps of some blocks."""
        return make_command("extract", self.options, backbone=self.spec.name, maps=" ".join(blocks))

    def ready(self, parts: tuple[str, ...] = ("pooled",)) -> Entry:
        """Return the entry. CacheError, saying why and what to type, unless it is ready."""
        state = self.state(parts)
        if state.word == "ready":
            return self.entry
        near = self.why() if state.word == "missing" else ""
        place = f"{self.dataset.name} with {self.spec.name}"
        maps = (part.removeprefix("maps/") for part in parts if part.startswith("maps/"))
        raise CacheError(f"features of {place} are {state.word}: {state.why}{near}; run: {self.command(*maps)}")

    def why(self) -> str:
        """Say how the request differs from the nearest entry of the same backbone, if there is one."""
        for nearest in self.nearest():
            if nearest.key.backbone == self.spec.name:
                differences = "; ".join(nearest.key.differences(self.entry.key))
                return f" (the nearest entry is {nearest.folder.name}: {differences})"
        return ""

    def nearest(self) -> list[Entry]:
        """Return the other entries of the data set, those of the same backbone and the fewest differences first."""
        others = [e for e in find_entries(cache_root(self.dataset.name)) if e.key != self.entry.key]
        mine = self.entry.key
        return sorted(others, key=lambda e: (e.key.backbone != mine.backbone, len(e.key.differences(mine))))


def resolve(dataset: Dataset, options: FeatureOptions) -> list[Request]:
    """Return one request per backbone. Raises UnknownName, BadWeights or FirnError for what does not fit."""
    dataset.source.stamps([])  # a pack has no images and says so before anything is made ready
    names = names_in(options.backbone.replace("+", " ")) or ([DEFAULT_BACKBONE] if not options.backbone else [])
    if not names:
        raise FirnError(f"expected BACKBONE= to name a backbone, got {options.backbone!r}")
    if options.weights and len(names) > 1:
        raise FirnError(f"WEIGHTS= fits one backbone, and {len(names)} are asked for: {', '.join(names)}")
    if (way := options.preprocess or DEFAULT_PREPROCESS) not in PREPROCESS:
        raise unknown("preprocess", way, PREPROCESS)
    where = choose_device(options.device)
    specs = [load_spec(name, options.weights or None) for name in names]
    keys = [r.key(preprocess=way, precision=choose_precision(options.precision, where, r.largest)) for r in specs]
    return [
        Request(dataset, spec, way, where, open_entry(dataset.name, key), options)
        for spec, key in zip(specs, keys, strict=True)
    ]


def open_features(dataset: Dataset, options: FeatureOptions, term: str | None = None) -> list[Cached]:
    """Return the features that stage two reads: a pack, or the ready entry of each backbone, of those in `term` alone.

    Raises CacheError, saying why and what to type, where features are not ready; FirnError for a GPU that was named
    and is not there, before anything is said of the entry that it would have made.
    """
    if options.device not in ("auto", "cpu"):
        checked(choose_device(options.device))
    asked = options if term is None else replaced(options, backbone=term.replace("+", " "))
    return _OPENERS.get(type(dataset.source), _from_cache)(dataset, asked)


def _from_cache(dataset: Dataset, options: FeatureOptions) -> list[Cached]:
    found = [request.ready() for request in resolve(dataset, options)]
    for entry in found:
        note_use(entry)
    return [*found]


def _from_pack(dataset: Dataset, options: FeatureOptions) -> list[Cached]:
    """Return the pack behind a data set; what was asked for by name must be what was packed."""
    assert isinstance(dataset.source, Packed)
    pack: Pack = dataset.source.pack
    asked = {
        "BACKBONE": (options.backbone, pack.key.backbone),
        "PREPROCESS": (options.preprocess, pack.key.preprocess_mode),
        "PRECISION": (options.precision, "auto" if options.precision == "auto" else pack.key.precision),
        "WEIGHTS": (options.weights, "the weights that it was made with"),
    }
    for name, (wanted, packed) in asked.items():
        if wanted and wanted != packed:
            raise CacheError(f"{pack.path} holds features of {packed}, not {wanted}; leave {name}= away")
    return [pack]


_OPENERS: dict[type, Callable[[Dataset, FeatureOptions], list[Cached]]] = {Packed: _from_pack}
