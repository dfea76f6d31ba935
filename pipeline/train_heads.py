"""train-heads: cached features -> heads, with out-of-fold and test predictions."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.cache.master import Manifest
from features.datasets import load_dataset
from features.errors import BadDataset, CacheError, unknown
from features.files import slug
from features.views import Cached, View, choose_blocks, load_manifest, made_by, map_view, pooled_view
from models.folds import grouped_folds
from models.heads import HEADS, choose_heads, make_head, save_head
from models.predictions import Predictions
from pipeline.progress import say, shown
from pipeline.request import open_features
from pipeline.runs import load_facts, runs_root, save_run

__all__ = ["train_heads"]

_FOLDS = 5
_FORMAT = 1  # raised when a head's recipe changes, so that older runs are trained again


def train_heads(
    dataset: str,
    backbone: str,
    *,
    heads: str = "all",
    blocks: str = "1",
    pool: str = "avg",
    labels: str = "classes",
    preprocess: str = "",
    precision: str = "auto",
    device: str = "auto",
    weights: str = "",
    seed: int = 0,
) -> list[str]:
    """Train heads on the cached features of one or several backbones, or on a pack; return one line per run.

    Each head is fitted on four fifths of the training pictures' groups to predict the fifth, five times, and once on
    all of them to predict the test pictures. Runs that are there already are not trained again.
    """
    names = choose_heads(heads)
    pictures = load_dataset(dataset, seed=seed)
    lines = []
    recipe = {"weights": weights, "preprocess": preprocess, "precision_": precision, "device_": device}
    for entry in open_features(pictures, backbone, **recipe):
        stage = _Stage(entry, dataset, labels, choose_blocks(entry.key.blocks, blocks), pool, seed)
        trained = ((name, stage.train(name, insist=heads != "all")) for name in names)
        lines += [f"ready: {name} on {entry.key.backbone} {folder}" for name, folder in trained if folder]
    return lines


class _Stage:
    """The features of one entry under one view of the labels; views are read when a head first needs them."""

    def __init__(self, entry: Cached, asked: str, labels: str, blocks: tuple[str, ...], pool: str, seed: int) -> None:
        self._entry, self._asked, self._labels = entry, asked, labels
        self._blocks, self._pool, self._seed = blocks, pool, seed
        self._manifest = load_manifest(entry)
        self._classes, self._merged = _label_view(self._manifest, labels)
        self._views: dict[str, View] = {}

    def train(self, name: str, *, insist: bool) -> Path | None:
        """Train one head unless its run is there; None where it cannot run on what was extracted."""
        source = HEADS[name].input
        blocks = self._blocks if source == "pooled" else self._map_blocks(insist)
        if not blocks:
            block = self._entry.key.blocks[-1]
            say(f"{name} is left out: it needs feature maps; run: make {made_by(self._entry)} MAPS={block}")
            return None
        described = f"{'+'.join(blocks)} {self._pool if source == 'pooled' else 'maps'}"
        dataset = str(self._manifest.about["dataset"])
        folder = runs_root(dataset, self._labels) / self._entry.key.folder() / slug(described) / name
        identity = self._identity(name, blocks, source)
        if (facts := load_facts(folder)) and facts.get("identity") == identity:
            return folder
        view = self._view(source, blocks)
        predictions, head, seconds = _fit(name, view, self._seed, f"{name} on {self._entry.key.backbone} {described}")
        facts = self._facts(name, blocks, described, view, head.chosen_, seconds) | {"identity": identity}
        save_head(folder, name, head)
        save_run(folder, facts, predictions)
        return folder

    def _map_blocks(self, insist: bool) -> tuple[str, ...]:
        """Return the last block whose maps are cached; without any, an error for a head that was asked for by name."""
        cached = [block for block in self._entry.key.blocks if f"maps/{block}" in self._manifest.parts]
        if not cached and insist:
            block = self._entry.key.blocks[-1]
            raise CacheError(f"no feature maps at {self._entry.folder}; run: make {made_by(self._entry)} MAPS={block}")
        return tuple(cached[-1:])

    def _view(self, source: str, blocks: tuple[str, ...]) -> View:
        if source not in self._views:
            raw = map_view(self._entry, blocks[-1]) if source == "maps" else None
            view = raw or pooled_view(self._entry, blocks, self._pool)
            self._views[source] = view._replace(y=self._merged[view.y])
        return self._views[source]

    def _identity(self, name: str, blocks: tuple[str, ...], source: str) -> str:
        """Return a digest of all that a run depends on; a run with another one is out of date."""
        parts = [_FORMAT, name, blocks, self._pool if source == "pooled" else source, self._labels, self._seed, _FOLDS]
        return hashlib.sha256(f"{parts}{self._manifest_digest()}{self._entry.key.digest()}".encode()).hexdigest()

    def _manifest_digest(self) -> str:
        """Return a digest of names, contents, labels, splits and groups, in the order of names."""
        m = self._manifest
        order = np.argsort(m.ids, kind="stable")
        hasher = hashlib.sha256(repr(self._classes).encode())
        for column in (m.ids, m.sha256, m.labels, m.splits, m.groups):
            hasher.update(repr(column.dtype).encode() + np.ascontiguousarray(column[order]).tobytes())
        return hasher.hexdigest()

    def _facts(
        self,
        name: str,
        blocks: tuple[str, ...],
        described: str,
        view: View,
        chosen: Mapping[str, Any],
        seconds: Mapping[str, float],
    ) -> dict[str, Any]:
        about = self._manifest.about
        counts = {
            str(s): {c: int(((view.splits == s) & (view.y == k)).sum()) for k, c in enumerate(self._classes)}
            for s in np.unique(view.splits)
        }
        versions = {n: version(n) for n in ("numpy", "scipy", "scikit-learn", "lightgbm")}
        return {
            "dataset": about["dataset"],
            "asked": self._asked,
            "labels": self._labels,
            "classes": list(self._classes),
            "backbone": self._entry.key.backbone,
            "entry": self._entry.key.folder(),
            "key": asdict(self._entry.key),
            "blocks": list(blocks),
            "pool": self._pool,
            "view": described,
            "head": name,
            "about": HEADS[name].about,
            "chosen": dict(chosen),
            "seed": self._seed,
            "folds": _FOLDS,
            "seconds": dict(seconds),
            "features": int(view.X.shape[1]),
            "manifest": self._manifest_digest(),
            "grouped_by": about["grouped_by"],
            "split_by": about["split_by"],
            "note": about["note"],
            "counts": counts,
            "groups": {str(s): len(np.unique(view.groups[view.splits == s])) for s in np.unique(view.splits)},
            "versions": {**about["versions"], **versions},
        }


def _label_view(manifest: Manifest, labels: str) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the classes under a view of the labels, and the new label of every old one."""
    classes = [str(c) for c in manifest.about["classes"]]
    if labels == "classes":
        return tuple(classes), np.arange(len(classes))
    views = manifest.about["label_views"]
    if labels not in views:
        raise unknown("view of the labels", labels, ["classes", *views])
    merged = [views[labels][c] for c in classes]
    names = tuple(dict.fromkeys(merged))
    return names, np.array([names.index(m) for m in merged])


def _fit(name: str, view: View, seed: int, described: str) -> tuple[Predictions, Any, dict[str, float]]:
    """Return out-of-fold and test predictions, the head fitted on all training pictures, and the time it took."""
    train = view.splits != "test"
    dev, test = view.take(train), view.take(~train)
    if len(np.unique(dev.y)) < len(np.unique(view.y)):
        raise BadDataset("a class has no training picture; give every class pictures outside the test split")
    folds = grouped_folds(dev.y, dev.groups, _FOLDS, seed=seed)
    steps = int(folds.max()) + 2
    proba = np.zeros((len(dev.y), int(view.y.max()) + 1))
    with shown(described, "fits") as progress:
        start = time.perf_counter()
        for fold in range(steps - 1):
            held = folds == fold
            head = make_head(name, seed=seed).fit(dev.X[~held], dev.y[~held], dev.groups[~held])
            proba[held] = head.predict_proba(dev.X[held])
            progress(fold + 1, steps)
        middle = time.perf_counter()
        head = make_head(name, seed=seed).fit(dev.X, dev.y, dev.groups)
        end = time.perf_counter()
        tested = head.predict_proba(test.X) if len(test.y) else np.zeros((0, proba.shape[1]))
        progress(steps, steps)
    seconds = {"oof": middle - start, "fit": end - middle, "predict": time.perf_counter() - end}
    predictions = Predictions(
        np.concatenate([dev.ids, test.ids]),
        np.concatenate([dev.groups, test.groups]),
        np.concatenate([dev.y, test.y]),
        np.concatenate([proba, tested]),
        np.concatenate([folds, np.full(len(test.y), -1)]),
    )
    return predictions, head, seconds
