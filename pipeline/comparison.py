"""From runs to results: scores with intervals, a choice made by validation, and who is not distinguishable from it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from features.errors import CacheError
from models.metrics import METRICS, Interval, PairedTest, bootstrap_test, delong_test, holm, operating_points, score
from models.predictions import Predictions
from pipeline.account import commands, key_digest, protocol, summary
from pipeline.runs import Run

__all__ = ["compare_runs", "run_names", "shown"]

CHOICE = "roc_auc"  # the metric by which validation chooses
LEVEL = 0.95
ALPHA = 0.05  # of the corrected tests
FACTS = (
    "head",
    "about",
    "backbone",
    "entry",
    "blocks",
    "pool",
    "view",
    "chosen",
    "seed",
    "folds",
    "seconds",
    "features",
)
TELLING = {"entry": "{}", "seed": "seed {}"}  # facts that tell apart runs of the same name


def compare_runs(runs: Sequence[Run], *, seed: int = 0, n_bootstrap: int = 2000) -> dict[str, Any]:
    """Return the results of several runs on one data set, best validation first, ready for JSON (NaN as None).

    The run of highest out-of-fold ROC AUC is chosen; on the test pictures every other one is compared with it by the
    paired DeLong test (two classes) or the paired bootstrap over groups (more), with Holm's correction. Decisions are
    the most probable class, or with two classes the out-of-fold Youden threshold. Raises CacheError for no runs, and
    for runs that did not see the same pictures.
    """
    names = run_names(runs)
    _check_same_pictures(runs, names)
    scored = partial(_scored, seed=seed, n_bootstrap=n_bootstrap)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        rows = list(threads.map(scored, runs, names))
    order = sorted(range(len(rows)), key=lambda i: _choice_key(rows[i]))
    ranked = [rows[i] | {"validation_rank": rank} for rank, i in enumerate(order, start=1)]
    tested = [runs[i].predictions.part(test=True) for i in order]
    for row, comparison in zip(ranked, _comparisons(tested, seed, n_bootstrap), strict=True):
        row["against_chosen"] = comparison
    results = {
        "schema": 1,
        "dataset": _dataset(runs[0]),
        "classes": _by_class(runs[order[0]], ranked[0], seed, n_bootstrap),
        "chosen": ranked[0]["name"],
        "settings": {"choice": CHOICE, "level": LEVEL, "alpha": ALPHA, "n_bootstrap": n_bootstrap, "seed": seed},
        "metrics": {name: {"label": metric.label, "direction": metric.direction} for name, metric in METRICS.items()},
        "runs": ranked,
        "commands": commands(ranked, runs[0].facts, seed),
    }
    return results | {"summary": summary(results), "protocol": protocol(results)}


def run_names(runs: Sequence[Run]) -> list[str]:
    """Return a different name for each run: what tells it from runs of the same name is added in brackets."""
    names = [run.name for run in runs]
    for fact, words in TELLING.items():
        names = _told_apart(names, [words.format(run.facts[fact]) for run in runs])
    return _told_apart(names, [f"#{i}" for i in range(1, len(names) + 1)])


def _told_apart(names: list[str], tells: list[str]) -> list[str]:
    """Return the names, each with its tell where others of that name have another."""
    known: dict[str, set[str]] = {}
    for name, tell in zip(names, tells, strict=True):
        known.setdefault(name, set()).add(tell)
    return [f"{name} [{tell}]" if len(known[name]) > 1 else name for name, tell in zip(names, tells, strict=True)]


def shown(run: Run) -> Predictions:
    """Return the predictions that tables and curves are about: on test pictures, out of fold where there are none."""
    test = run.predictions.part(test=True)
    return test if len(test.y) else run.predictions.part(test=False)


def _check_same_pictures(runs: Sequence[Run], names: Sequence[str]) -> None:
    """Raise CacheError unless there are runs, and all saw the same pictures with the same labels, splits and groups."""
    if not runs:
        raise CacheError("there is no run to compare; run: make train-heads")
    first, dataset = runs[0], runs[0].facts["dataset"]
    for run, name in zip(runs, names, strict=True):
        if not _same_pictures(first, run):
            backbones = " ".join(dict.fromkeys(r.facts["backbone"] for r in (first, run)))
            raise CacheError(
                f"{names[0]} and {name} were trained on different pictures, labels or splits and cannot be compared; "
                f'run: make extract train-heads DATASET={dataset} BACKBONE="{backbones}"'
            )
        if not (run.predictions.fold >= 0).any():
            raise CacheError(f"{name} has no out-of-fold predictions; run: make train-heads DATASET={dataset}")


def _same_pictures(first: Run, run: Run) -> bool:
    facts = all(first.facts[key] == run.facts[key] for key in ("manifest", "classes", "labels"))
    ours, others = first.predictions, run.predictions
    return facts and all(
        np.array_equal(a, b) for a, b in ((ours.ids, others.ids), (ours.y, others.y), (ours.fold < 0, others.fold < 0))
    )


def _dataset(run: Run) -> dict[str, Any]:
    facts = run.facts
    keys = ("labels", "classes", "counts", "groups", "grouped_by", "split_by", "note", "manifest")
    binary = len(facts["classes"]) == 2
    test = int((run.predictions.fold < 0).sum())
    return {
        "name": facts["dataset"],
        **{key: facts[key] for key in keys},
        "positive": facts["classes"][1] if binary else None,
        "pictures": {"validation": len(run.predictions.fold) - test, "test": test},
    }


def _scored(run: Run, name: str, *, seed: int, n_bootstrap: int) -> dict[str, Any]:
    """Return all that can be said of one run by itself."""
    held, tested = (run.predictions.part(test=test) for test in (False, True))
    points = _thresholds(held)
    decision = points.get("youden")
    scores = partial(_scores, seed=seed, n_bootstrap=n_bootstrap)
    at_threshold = {at: scores(tested, at) for at in {decision, *points.values()}}
    return {
        "name": name,
        **{key: run.facts[key] for key in FACTS},
        "key": dict(run.facts["key"]),
        "key_digest": key_digest(run.facts["key"]),
        "versions": dict(run.facts["versions"]),
        "threshold": decision,
        "validation": scores(held, decision),
        "test": at_threshold[decision],
        "confusion": _confusion(tested if len(tested.y) else held, decision),
        "thresholds": {key: _at_threshold(at_threshold[at], at) for key, at in points.items()},
    }


def _thresholds(held: Predictions) -> dict[str, float]:
    """Return the thresholds that out-of-fold predictions choose; none for more than two classes."""
    if held.proba.shape[1] != 2:
        return {}
    return {name: at for name, at in operating_points(held.y, held.proba[:, 1]).items() if not math.isnan(at)}


def _scores(part: Predictions, threshold: float | None, *, seed: int, n_bootstrap: int) -> dict[str, Any] | None:
    """Return every metric with its interval, None without pictures."""
    if not len(part.y):
        return None
    scores = score(
        part.y, part.proba, part.groups, threshold=threshold, n_bootstrap=n_bootstrap, level=LEVEL, seed=seed
    )
    return {name: _interval(row) for name, row in scores.items()}


def _at_threshold(scores: Mapping[str, Any] | None, threshold: float) -> dict[str, Any]:
    kept = {name: scores[name] if scores else None for name in ("sensitivity", "specificity")}
    return {"threshold": threshold, **kept}


def _confusion(part: Predictions, threshold: float | None) -> list[list[int]]:
    """Return the pictures of each true class (rows) decided as each class (columns)."""
    k = part.proba.shape[1]
    decided = part.proba.argmax(axis=1) if threshold is None else (part.proba[:, 1] >= threshold).astype(np.int64)
    counts: list[list[int]] = np.bincount(part.y * k + decided, minlength=k * k).reshape(k, k).tolist()
    return counts


def _by_class(run: Run, row: Mapping[str, Any], seed: int, n_bootstrap: int) -> list[dict[str, Any]]:
    """Return what the chosen run makes of each class against the rest; nothing for two classes."""
    part, counts = shown(run), np.array(row["confusion"])
    if part.proba.shape[1] == 2:
        return []
    classes = []
    for k, name in enumerate(run.facts["classes"]):
        proba = np.stack([1 - part.proba[:, k], part.proba[:, k]], axis=1)
        area = _scores(
            part._replace(y=(part.y == k).astype(np.int64), proba=proba), None, seed=seed, n_bootstrap=n_bootstrap
        )
        right, true, decided = int(counts[k, k]), int(counts[k].sum()), int(counts[:, k].sum())
        classes.append(
            {
                "name": name,
                "pictures": true,
                **{metric: area[metric] for metric in ("roc_auc", "pr_auc") if area},
                "recall": right / true if true else None,
                "precision": right / decided if decided else None,
            }
        )
    return classes


def _choice_key(row: Mapping[str, Any]) -> tuple[float, float, str]:
    """Return what sorts the best validation first: the area, the log loss of equals, then the name."""
    area, loss = (row["validation"][name]["value"] for name in (CHOICE, "log_loss"))
    return (math.inf if area is None else -area, math.inf if loss is None else loss, row["name"])


def _comparisons(tested: list[Predictions], seed: int, n_bootstrap: int) -> list[dict[str, Any] | None]:
    """Compare the first predictions with each of the others; None for the first, and for all without pictures."""
    if not len(tested[0].y):
        return [None] * len(tested)
    paired = partial(_paired, tested[0], seed=seed, n_bootstrap=n_bootstrap)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        tests = list(threads.map(paired, tested[1:]))
    adjusted = holm([test.p_value for test in tests]).tolist()
    return [None, *(_comparison(test, p) for test, p in zip(tests, adjusted, strict=True))]


def _paired(chosen: Predictions, other: Predictions, *, seed: int, n_bootstrap: int) -> PairedTest:
    """Test the difference other - chosen in ROC AUC."""
    if chosen.proba.shape[1] == 2:
        return delong_test(chosen.y, other.proba[:, 1], chosen.proba[:, 1], chosen.groups, level=LEVEL)
    return bootstrap_test(
        CHOICE,
        chosen.y,
        other.proba,
        chosen.proba,
        chosen.groups,
        n_bootstrap=n_bootstrap,
        level=LEVEL,
        seed=seed,
    )


def _comparison(test: PairedTest, adjusted: float) -> dict[str, Any]:
    distinguishable = bool(adjusted < ALPHA)  # NaN, where the pictures cannot tell, is not
    side = "higher" if test.difference.value > 0 else "lower"
    return {
        "difference": _interval(test.difference),
        "p_value": _number(test.p_value),
        "p_adjusted": _number(adjusted),
        "distinguishable": distinguishable,
        "verdict": side if distinguishable else "tie",
    }


def _interval(interval: Interval) -> dict[str, float | None]:
    return {name: _number(value) for name, value in interval._asdict().items()}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
