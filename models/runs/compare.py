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
from features.request import names_in
from models.metrics import METRICS, PairedTest, bootstrap_test, delong_test, holm, score_of_the_chosen
from models.runs.record import Run, load_runs
from models.runs.scores import LEVEL, as_dict, by_class, calibrations, number, scored, shown
from models.runs.summary import commands, key_digest, protocol, summary
from models.validation.cross_validation import choose_protocol
from models.validation.predictions import Predictions


def rank(run: Run) -> tuple[float, float, str]:
    """Return what sorts the best validation first, as in a comparison: area, log loss of equals, name."""
    held = run.predictions.part(test=False)
    area, loss = (float(METRICS[name](held.y, held.proba)) for name in ("roc_auc", "log_loss"))
    return (-area, loss, run.name)


def choose(runs: Sequence[Run]) -> Run:
    """Return the run of best validation of one or more."""
    return min(runs, key=rank)


CHOICE = "roc_auc"  # the metric by which validation chooses
ALPHA = 0.05  # of the corrected tests


def against_the_first(parts: Sequence[Predictions], *, seed: int, n_bootstrap: int) -> list[dict[str, Any] | None]:
    """Compare the first predictions with each of the others, corrected by Holm; None for the first."""
    test = partial(paired, parts[0], seed=seed, n_bootstrap=n_bootstrap)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return [None, *verdicts(list(threads.map(test, parts[1:])))]


def verdicts(tests: Sequence[PairedTest]) -> list[dict[str, Any]]:
    """Return differences and verdicts of several tests, corrected together by Holm, ready for JSON."""
    adjusted = holm([test.p_value for test in tests]).tolist()
    return [_verdict(test, p) for test, p in zip(tests, adjusted, strict=True)]


def paired(chosen: Predictions, other: Predictions, *, seed: int, n_bootstrap: int) -> PairedTest:
    """Test the difference other - chosen in ROC AUC, on the same images."""
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


def _verdict(test: PairedTest, adjusted: float) -> dict[str, Any]:
    distinguishable = bool(adjusted < ALPHA)  # NaN, where the images cannot tell, is not
    side = "higher" if test.difference.value > 0 else "lower"
    return {
        "difference": as_dict(test.difference),
        "p_value": number(test.p_value),
        "p_adjusted": number(adjusted),
        "distinguishable": distinguishable,
        "verdict": side if distinguishable else "tie",
    }


FACTS = (
    "head",
    "about",
    "backbone",
    "entry",
    "blocks",
    "asked_blocks",
    "pool",
    "view",
    "chosen",
    "seed",
    "folds",
    "repeats",
    "seconds",
    "features",
)
TELLING = {"entry": "{}", "seed": "seed {}"}  # facts that tell apart runs of the same name


def choose_runs(name: str, asked: str, *, backbone: str, labels: str, protocol: str) -> list[Run]:
    """Return all runs of the data set `name` under one protocol, or those of the given backbones.

    Raises CacheError, with the command for the data set as it was `asked` for, where there is none.
    """
    choose_protocol(protocol)
    wanted = {part for term in names_in(backbone) for part in term.split("+")}
    every = load_runs(name, labels, protocol)
    runs = [run for run in every if not wanted or set(run.facts["backbone"].split("+")) <= wanted]
    if not runs:
        how = f" PROTOCOL={protocol}" if protocol != "split" else ""
        raise CacheError(f"no trained heads of {name} yet; run: make train-heads DATASET={asked}{how}")
    return runs


def compare_runs(runs: Sequence[Run], *, seed: int = 0, n_bootstrap: int = 2000) -> dict[str, Any]:
    """Return the results of several runs on one data set, best validation first, ready for JSON (NaN as None).

    The run of highest out-of-fold ROC AUC is chosen; on the test images (out of fold where there are none) every
    other one is compared with it by the paired DeLong test (two classes) or the paired bootstrap over groups (more),
    with Holm's correction; without test images its score is also corrected for having been chosen. Decisions are
    the most probable class, or with two classes the out-of-fold Youden threshold. Raises CacheError for no runs, and
    for runs that did not see the same images.
    """
    names = run_names(runs)
    _check_same_images(runs, names)
    draws: dict[str, Any] = {"seed": seed, "n_bootstrap": n_bootstrap}
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        rows = list(threads.map(partial(_row, **draws), runs, names))
    order = sorted(range(len(rows)), key=lambda i: _choice_key(rows[i]))
    ranked = [rows[i] | {"validation_rank": rank} for rank, i in enumerate(order, start=1)]
    verdicts = against_the_first([shown(runs[i]) for i in order], **draws)
    for row, verdict in zip(ranked, verdicts, strict=True):
        row["against_chosen"] = verdict
    results = {
        "schema": 2,
        "dataset": _dataset(runs[0]),
        "classes": by_class(runs[order[0]], ranked[0], **draws),
        "chosen": ranked[0]["name"],
        "corrected": _corrected([runs[i] for i in order], ranked[0], seed),
        "calibration": calibrations(runs[order[0]], **draws),
        "settings": {"choice": CHOICE, "level": LEVEL, "alpha": ALPHA, **draws},
        "metrics": {name: {"label": metric.label, "direction": metric.direction} for name, metric in METRICS.items()},
        "runs": ranked,
        "commands": commands(ranked, runs[0].facts, seed),
    }
    return results | {"summary": summary(results), "protocol": protocol(results)}


def _corrected(runs: Sequence[Run], chosen: Mapping[str, Any], seed: int) -> dict[str, float | None] | None:
    """Return the chosen run's score corrected for the choice, where no test images say what it is worth."""
    if chosen["test"] is not None or len(runs) < 2:
        return None
    parts = [shown(run) for run in runs]
    found = score_of_the_chosen(parts[0].y, [part.proba for part in parts], parts[0].groups, metric=CHOICE, seed=seed)
    return as_dict(found)


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


def _check_same_images(runs: Sequence[Run], names: Sequence[str]) -> None:
    """Raise CacheError unless there are runs, and all saw the same images with the same labels, splits and groups."""
    if not runs:
        raise CacheError("there is no run to compare; run: make train-heads")
    first, dataset = runs[0], runs[0].facts["dataset"]
    for run, name in zip(runs, names, strict=True):
        if not _same_images(first, run):
            backbones = " ".join(dict.fromkeys(r.facts["backbone"] for r in (first, run)))
            raise CacheError(
                f"{names[0]} and {name} were trained on different images, labels or splits and cannot be compared; "
                f'run: make extract train-heads DATASET={dataset} BACKBONE="{backbones}"'
            )
        if not (run.predictions.fold >= 0).any():
            raise CacheError(f"{name} has no out-of-fold predictions; run: make train-heads DATASET={dataset}")


def _same_images(first: Run, run: Run) -> bool:
    facts = all(first.facts[key] == run.facts[key] for key in ("manifest", "classes", "labels", "protocol"))
    ours, others = first.predictions, run.predictions
    return facts and all(
        np.array_equal(a, b) for a, b in ((ours.ids, others.ids), (ours.y, others.y), (ours.fold < 0, others.fold < 0))
    )


def _dataset(run: Run) -> dict[str, Any]:
    facts = run.facts
    keys = ("labels", "classes", "protocol", "counts", "groups", "grouped_by", "split_by", "note", "manifest")
    binary = len(facts["classes"]) == 2
    test = int((run.predictions.fold < 0).sum())
    return {
        "name": facts["dataset"],
        **{key: facts[key] for key in keys},
        "positive": facts["classes"][1] if binary else None,
        "images": {"validation": (len(run.predictions.fold) - test) // facts["repeats"], "test": test},
    }


def _row(run: Run, name: str, *, seed: int, n_bootstrap: int) -> dict[str, Any]:
    """Return all that can be said of one run by itself."""
    return {
        "name": name,
        **{key: run.facts[key] for key in FACTS},
        "bases": list(run.facts.get("bases", ())),
        "thaw": run.facts.get("thaw"),
        "history": run.facts.get("history", []),
        "images_per_second": run.images_per_second,
        "keys": [dict(key) for key in run.facts["keys"]],
        "key_digests": [key_digest(key) for key in run.facts["keys"]],
        "versions": dict(run.facts["versions"]),
        **scored(run, seed=seed, n_bootstrap=n_bootstrap),
    }


def _choice_key(row: Mapping[str, Any]) -> tuple[float, float, str]:
    """Return what sorts the best validation first: the area, the log loss of equals, then the name."""
    area, loss = (row["validation"][name]["value"] for name in (CHOICE, "log_loss"))
    return (math.inf if area is None else -area, math.inf if loss is None else loss, row["name"])
