"""A run: one head (or fine-tuned network) trained on one view, with its predictions and how they came about."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.errors import CacheError
from features.storage import artifacts_root, slug, write_whole
from models.validation.predictions import Predictions, load_predictions, save_predictions

FINETUNED = "finetuned"  # what stands for the head in a run of a thawed network
_NEWEST = {"keys", "protocol", "repeats", "asked_blocks"}  # facts that older forms of run.json lack


@dataclass(frozen=True)
class Run:
    """One line of the comparison. `facts` is what `run.json` holds:

    dataset, asked (the data set as it was typed), labels ("classes" or the name of a label view), classes, protocol,
    backbone (several joined by +), entry (folder names likewise), keys (the fields of each cache key), blocks,
    asked_blocks, pool, view (one line), head, about (what the head is), chosen (what the inner folds chose), bases
    (of a stack: the folders of its runs), seed, folds, repeats, seconds {"oof": ..., "fit": ...}, features (d),
    manifest (digest of ids, contents, labels, splits, groups), grouped_by, split_by, note, counts
    {split: {class: images}}, groups {split: number}, versions. A fine-tuned network also has images_per_second
    (gone through in training), thaw (its settings) and history (of each fold and of all images: the epochs, each
    epoch, loss, roc_auc, watched_loss, seconds, images).
    """

    folder: Path
    facts: Mapping[str, Any]
    predictions: Predictions

    @property
    def images_per_second(self) -> float:
        """Return how many images the trainings went through in a second; those of a head go through each once."""
        if known := self.facts.get("images_per_second"):
            return float(known)
        folds, seconds = int(self.facts["folds"]), self.facts["seconds"]
        held = int((self.predictions.fold >= 0).sum())
        trained = held * (folds - 1) + held / int(self.facts["repeats"])
        return trained / max(float(seconds["oof"] + seconds["fit"]), 1e-9)

    @property
    def name(self) -> str:
        """Return the run's name in tables: head, backbone and view, or what it combines."""
        if self.facts.get("bases"):
            return f"{self.facts['head']} of {self.facts['view']}"
        return f"{self.facts['head']} on {self.facts['backbone']} {self.facts['view']}"


def runs_root(dataset: str, labels: str = "classes", protocol: str = "split") -> Path:
    """Return the folder of all runs of a data set under one view of its labels and one protocol."""
    parts = [dataset, *([labels] if labels != "classes" else []), *([protocol] if protocol != "split" else [])]
    return artifacts_root() / "heads" / "-".join(slug(part) for part in parts)


def save_run(folder: Path, facts: Mapping[str, Any], predictions: Predictions) -> Run:
    """Write predictions first and `run.json` last: a run with `run.json` is whole."""
    save_predictions(folder / "predictions.csv", predictions, tuple(facts["classes"]))
    write_whole(folder / "run.json", [json.dumps(facts, indent=1).encode()])
    return Run(folder, facts, predictions)


def load_facts(folder: Path) -> dict[str, Any] | None:
    """Return `run.json` of a folder, or None where there is no whole run, or one of an older form."""
    try:
        facts = json.loads((folder / "run.json").read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(facts, dict) or not facts.keys() >= _NEWEST:
        return None
    if "pictures_per_second" in facts:  # its name until November 2026
        facts["images_per_second"] = facts.pop("pictures_per_second")
    return facts


def load_run(folder: Path) -> Run:
    """Return a whole run. CacheError where it does not read."""
    facts = load_facts(folder)
    if facts is None:
        raise CacheError(f"no whole run in {folder}; run: make train-heads")
    return Run(folder, facts, load_predictions(folder / "predictions.csv", tuple(facts["classes"])))


def load_runs(dataset: str, labels: str = "classes", protocol: str = "split") -> list[Run]:
    """Return all whole runs of a data set, sorted by folder; those of an older form are passed over."""
    folders = (path.parent for path in sorted(runs_root(dataset, labels, protocol).rglob("run.json")))
    return [load_run(folder) for folder in folders if load_facts(folder) is not None]
