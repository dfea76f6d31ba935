"""Any two runs against each other on the images that both were judged on: differences with intervals and p-values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from features.errors import CacheError
from features.options import make_command
from models.metrics import METRICS, PairedTest, bootstrap_test, claim, delong_test
from models.runs.compare import check_same_images, run_names
from models.runs.record import Run
from models.runs.scores import LEVEL, applied_thresholds, shown
from models.validation.predictions import Predictions

COMPARED = ("roc_auc", "pr_auc", "balanced_accuracy", "sensitivity", "specificity", "brier")


@dataclass(frozen=True)
class Difference:
    """One metric of two runs, a - b."""

    a: float
    b: float
    test: PairedTest


@dataclass(frozen=True)
class TwoRuns:
    """What can be said of two runs on the same images; every test is one alone, corrected for nothing."""

    names: tuple[str, str]
    protocol: str
    tested: bool  # on test images; else out of fold
    images: int
    groups: int
    grouped_by: str
    differences: Mapping[str, Difference]
    claim: str  # of the ROC AUC of a, against a stated margin


def compare_two(a: Run, b: Run, *, seed: int = 0, n_bootstrap: int = 2000, margin: float = 0.0) -> TwoRuns:
    """Compare two runs on the images that both were judged on, paired and by group, each at its own threshold.

    The ROC AUC of two classes by DeLong's test (Obuchowski's for groups), all else by the paired bootstrap. Raises
    CacheError for runs of two data sets or labels, under two protocols, or of different images.
    """
    first, second = run_names([a, b])
    _require_one_task(a, b)
    check_same_images([a, b], [first, second])
    ours, theirs = shown(a), shown(b)
    folds = np.stack([ours.fold, theirs.fold])
    thresholds = tuple(applied_thresholds(run).get("youden") for run in (a, b))
    given: dict[str, Any] = {"thresholds": thresholds, "n_bootstrap": n_bootstrap, "seed": seed, "level": LEVEL}
    differences = {}
    for name in COMPARED:
        test = bootstrap_test(name, ours.y, ours.proba, theirs.proba, ours.groups, folds=folds, **given)
        if name == "roc_auc" and ours.proba.shape[1] == 2:
            scores = ours.proba[:, 1], theirs.proba[:, 1]
            test = delong_test(ours.y, *scores, ours.groups, folds=folds, level=LEVEL)
        values = (_value(name, part, at) for part, at in zip((ours, theirs), thresholds, strict=True))
        differences[name] = Difference(next(values), next(values), test)
    return TwoRuns(
        (first, second),
        a.record.protocol,
        bool((ours.fold < 0).all()),
        len(np.unique(ours.ids)),
        len(np.unique(ours.groups)),
        a.record.grouped_by or "",
        differences,
        claim(differences["roc_auc"].test.difference, margin) if margin else "",
    )


def _require_one_task(a: Run, b: Run) -> None:
    """Raise CacheError for runs of two data sets, of other labels, or under two protocols: of other images."""
    first, second = run_names([a, b])
    if a.record.dataset != b.record.dataset:
        raise CacheError(
            f"{first} is of {a.record.asked} and {second} of {b.record.asked}; expected two runs of one data set, "
            f"which are named by: {make_command('compare', a.record.data)}"
        )
    for name in ("labels", "protocol"):
        ours, theirs = getattr(a.record, name), getattr(b.record, name)
        if ours != theirs:
            again = make_command("train-heads", b.record.data, **{name: ours})
            raise CacheError(
                f"{first} was judged under {name.upper()}={ours} and {second} under {theirs}, which are not the same "
                f"images; run: {again}"
            )


def _value(metric: str, part: Predictions, threshold: Any) -> float:
    """Return a metric as a table has it: areas by fold, decisions at the run's own threshold."""
    return METRICS[metric](part.y, part.proba, folds=part.fold, threshold=threshold)
