"""Synthetic runs: grouped images of two or seven classes, and what several heads would say of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from features.cache.key import Key
from models.runs.record import Run, RunRecord, load_record
from models.validation.predictions import Predictions

KEY = {
    "weights": "ab" * 32,
    "blocks": ("layer3", "layer4"),
    "preprocess": "squash: 224x224 bilinear, antialias; mean [0.5], std [0.25]",
    "precision": "float32",
    "stored": "float16",
    "schema": 1,
}
HEADS = ("logistic", "sgd", "lda", "lightgbm", "knn", "mlp")


def draw_predictions(
    k: int, *, strength: float, train: int = 160, test: int = 80, seed: int = 0, noise: int = 0
) -> Predictions:
    """Return predictions of `k` classes for two images a group.

    `seed` draws the images, `noise` what a head gets wrong. A group is of one class. The images of equal `seed`
    have shared difficulty, so heads make correlated mistakes.
    """
    images, heads = np.random.default_rng(seed), np.random.default_rng([seed, noise])
    n = train + test
    y = np.repeat(images.permutation(np.arange(n // 2) % k), 2)
    hard = images.normal(size=(n // 2, k)).repeat(2, axis=0) + 0.5 * images.normal(size=(n, k))
    logits = strength * np.eye(k)[y] + hard + 0.5 * heads.normal(size=(n, k))
    proba = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    names = np.arange(n) // 2
    fold = np.where(np.arange(n) < train, names % 5, -1)
    split = np.where(fold < 0, "test", "train")
    ids = np.array([f"{s}/patient{g:04d}_{i % 2}.png" for i, (s, g) in enumerate(zip(split, names, strict=True))])
    order = np.argsort(ids, kind="stable")
    groups = np.char.add("patient", names.astype(str))
    return Predictions(ids[order], groups[order], y[order], proba[order], fold[order])


def make_run(
    predictions: Predictions, head: str = "logistic", *, backbone: str = "resnet18", note: str = "", **changed: Any
) -> Run:
    """Return a run with the record that train-heads writes; `changed` fields replace its own."""
    k = predictions.proba.shape[1]
    classes = changed.get("classes") or (["clear", "opacity"] if k == 2 else [f"kind_{i}" for i in range(k)])
    parts = {"train": predictions.part(test=False), "test": predictions.part(test=True)}
    facts = {
        "dataset": "drawn",
        "asked": "drawn",
        "labels": "classes",
        "classes": classes,
        "backbone": backbone,
        "entry": f"{backbone}-0123abcd",
        "keys": (Key(backbone=backbone, **KEY),),
        "protocol": "split",
        "repeats": 1,
        "asked_blocks": "1",
        "blocks": ("layer4",),
        "pool": "avg",
        "view": "layer4 avg",
        "head": head,
        "about": f"what {head} is",
        "chosen": {"strength": 0.01},
        "seed": 0,
        "folds": 5,
        "seconds": {"oof": 2.5, "fit": 0.5, "predict": 0.01},
        "features": 512,
        "manifest": "cd" * 32,
        "grouped_by": "patient",
        "split_by": "publisher",
        "note": note,
        "counts": {s: {c: int((p.y == i).sum()) for i, c in enumerate(classes)} for s, p in parts.items() if len(p.y)},
        "groups": {s: len(np.unique(p.groups)) for s, p in parts.items() if len(p.y)},
        "versions": {"numpy": "2.0", "torch": "2.9"},
    }
    facts |= changed
    facts["classes"] = tuple(facts["classes"])
    return Run(Path("heads") / head, RunRecord(**facts), predictions)


def without_digests(folder: Path) -> None:
    """Make a run's record one of an older Firn, which did not say what its files were."""
    record = load_record(folder)
    assert record is not None and record.files
    (folder / "run.json").write_text(json.dumps(replace(record, files=None).to_json()))


def draw_runs(
    k: int = 2,
    *,
    strengths: Sequence[float] = (1.6, 1.7, 0.4),
    train: int = 160,
    test: int = 80,
    **changed: Any,
) -> list[Run]:
    """Return runs of different heads on the same images; more strength makes a better head."""
    runs = []
    for i, strength in enumerate(strengths):
        predictions = draw_predictions(k, strength=strength, train=train, test=test, noise=i + 1)
        facts = {
            "head": HEADS[i % len(HEADS)],
            "backbone": ("resnet18", "alexnet", "densenet121", "mobilenet_v3_small", "vgg16")[i // len(HEADS)],
            "seconds": {"oof": 0.4 * 3 ** (i % 6), "fit": 0.1 * 3 ** (i % 6), "predict": 0.01},
        }
        runs.append(make_run(predictions, **(facts | changed)))
    return runs
