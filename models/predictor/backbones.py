"""Pixels -> what the models of a bundle see: cached features computed anew, rounded as the cache rounds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from features.backbones import BackboneSpec, make_spec, spec_of_digest
from features.backbones.build import IMAGES, truncated
from features.errors import BadBundle
from features.extraction.forward import Forward, to_arrays
from features.extraction.workers import WorkerPool
from features.images import PREPROCESS, Geometry
from models.predictor.manifest import Network

Array = NDArray[Any]
Features = Mapping[str, Array]  # pooled/<block>/{avg,max} (n, C), maps/<block> (n, C, H, W), or PIXELS (n, 3, S, S)
PIXELS = "pixels"  # what a network sees that is fine-tuned from its first layer on


class Lane(Protocol):
    """One network of a bundle."""

    @property
    def geometry(self) -> Geometry:
        """Return how images come in."""

    def __call__(self, pixels: Array) -> Features:
        """Return what is seen in pixels (n, 1 or 3, S, S) on the scale 0..255."""


def load_spec_of(network: Network, folder: Path) -> BackboneSpec:
    """Return the spec of a network, with weights from the bundle's folder or found by their digest.

    Raises BadWeights where they are not to be found; BadBundle where the bundle's key says something else than this
    version of torchvision, for then its images would come in otherwise than they did in training.
    """
    key = network.key
    name = key.backbone
    spec = make_spec(name, folder / network.file) if network.file else spec_of_digest(name, key.weights)
    found = spec.key(preprocess=way_of(key.preprocess), precision=key.precision, stored=key.stored)
    if found != key:
        raise BadBundle(
            f"{name} is not what it was when the bundle was made: {'; '.join(key.differences(found))}; "
            "install the versions that bundle.json names"
        )
    return spec


def way_of(line: str) -> str:
    """Return the row of PREPROCESS that a key's line begins with. Raises BadBundle."""
    way = line.partition(":")[0]
    if way not in PREPROCESS:
        raise BadBundle(f"unknown preprocess {way[:40]!r} in a bundle; get it anew, or make it anew (make bundle)")
    return way


def make_lane(network: Network, spec: BackboneSpec, maps: Sequence[str], *, device: str, batch_size: int) -> Lane:
    """Return the lane of a network that also gives the maps of some blocks."""
    if network.after == IMAGES:
        return _Plain(network, spec)
    return _Frozen(network, spec, maps, device, batch_size)


class _Frozen:
    """A frozen network, whole or up to where it was fine-tuned; run as in extraction: rows are the cache's rows."""

    def __init__(self, network: Network, spec: BackboneSpec, maps: Sequence[str], device: str, batch_size: int) -> None:
        self.geometry = spec.geometry(way_of(network.key.preprocess))
        part = truncated(spec, network.after) if network.after else spec
        own = [network.after] if network.after else []
        if unknown := set(maps) - set(part.blocks):
            raise BadBundle(f"{spec.name} has no block {sorted(unknown)[0]!r}; known: {', '.join(part.blocks)}")
        key = network.key
        self._forward = Forward(
            part,
            maps=list(dict.fromkeys([*own, *maps])),
            device=device,
            precision=key.precision,
            stored=key.stored,
            batch_size=batch_size,
        )
        self._crew = WorkerPool(device)

    def __call__(self, pixels: Array) -> Features:
        size = self._forward.batch_size
        pieces = list(self._crew.each(self._run, (pixels[i : i + size] for i in range(0, len(pixels), size))))
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def _run(self, pixels: Array) -> Features:
        return to_arrays(self._forward(pixels))


class _Plain:
    """Nothing frozen: the images themselves, normalised as `features.extraction.prefetch.ImageStream` does."""

    def __init__(self, network: Network, spec: BackboneSpec) -> None:
        self.geometry = spec.geometry(way_of(network.key.preprocess))
        self._spec = spec

    def __call__(self, pixels: Array) -> Features:
        return {PIXELS: self._spec.normalised(pixels)}
