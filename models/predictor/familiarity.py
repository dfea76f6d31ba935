"""What the training pictures of a run look like to its networks, learned from the cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.backbones.tails import PICTURES
from features.cache import open_entry
from features.cache.key import Key
from features.cache.reader import rows_view
from features.datasets import load_dataset
from features.datasets.packed import Packed
from features.errors import CacheError
from features.views import Cached
from models.predictor.manifest import Contents
from models.predictor.ood import MOST, Novelty, fit_novelty
from models.runs.record import Run

__all__ = ["learn_outliers"]


def learn_outliers(contents: Contents, run: Run, cut: Mapping[int, Key]) -> tuple[list[list[Any]], Novelty | None]:
    """Return which pooled blocks are looked at, [network, block] each, and what the training pictures are like there.

    Of a single model the last block of each of its networks, of a thawed one the block where it was cut (`cut` has
    the key of that entry), of a stack the networks of the part it listens to most. None where nothing is frozen: of
    what a whole thawed network sees in its training pictures nothing is cached. Raises CacheError where features are
    not cached any more.
    """
    sources = []
    for place in contents.parts[0].networks:
        network = contents.networks[place]
        if network.after == PICTURES:
            return [], None
        key = cut.get(place, network.key)
        sources.append((place, key, network.after or key.blocks[-1]))
    X, y, groups = _features(run, [(key, block) for _, key, block in sources])
    return [[place, block] for place, _, block in sources], fit_novelty(X, y, groups, seed=int(run.facts["seed"]))


def _features(
    run: Run, sources: list[tuple[Key, str]]
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.str_]]:
    """Return the mean-pooled blocks side by side of pictures that were learned from, their labels and groups."""
    held = run.predictions.part(test=False)
    ids, first = np.unique(held.ids, return_index=True)
    if len(ids) > MOST:
        drawn = np.sort(np.random.default_rng(int(run.facts["seed"])).choice(len(ids), MOST, replace=False))
        ids, first = ids[drawn], first[drawn]
    columns = []
    for key, block in sources:
        view = rows_view(_cached(run, key), [block])
        order = np.argsort(view.ids, kind="stable")
        at = order[np.minimum(np.searchsorted(view.ids[order], ids), len(order) - 1)]
        if not np.array_equal(view.ids[at], ids):
            raise CacheError(f"{run.name} is of other pictures than are now in the cache; run: {_again(run)}")
        with view.X as rows:
            columns.append(rows[at])
    return np.concatenate(columns, axis=1), held.y[first], held.groups[first]


def _cached(run: Run, key: Key) -> Cached:
    """Return the entry of a key, or the pack that the run was trained on."""
    entry = open_entry(run.facts["dataset"], key)
    if entry.manifest() is not None:
        return entry
    source = load_dataset(run.facts["asked"], seed=int(run.facts["seed"])).source
    if isinstance(source, Packed) and source.pack.key == key:
        return source.pack
    raise CacheError(f"no features at {entry.folder}, of which the outliers are learned; run: {_again(run)}")


def _again(run: Run) -> str:
    return f'make extract train-heads DATASET={run.facts["asked"]} BACKBONE="{run.facts["backbone"]}"'
