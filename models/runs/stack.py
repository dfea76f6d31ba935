"""The stack: one more run, made of the predictions of other runs."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from features.errors import CacheError
from features.options import DatasetOptions, make_command
from features.version import firn_version
from features.views import View
from models.heads import HEADS, make_head, save_head
from models.heads.stacking import vote_out_of_fold
from models.runs.features import facts_of, is_current
from models.runs.nesting import pair_predictions
from models.runs.options import RunOptions
from models.runs.record import FINETUNED, Run, RunRecord, load_runs, save_run
from models.validation.cross_validation import Fitted

FEWEST = 2
_FORMAT = 2  # raised when the same runs give another stack


def train_stack(
    dataset: str,
    data: DatasetOptions,
    run: RunOptions,
    backbones: Sequence[str],
    heads: Sequence[str],
    *,
    manifest: str = "",
    nest: bool = True,
) -> Path:
    """Combine all runs of some backbones and heads, unless that run is there; return its folder.

    `manifest` is the digest of the data set as it is now, of which they are to be; without, they are of the newest's.

    The vote on the images of a fold is learned from what heads that have not seen it say of the other folds, which
    takes `pair_predictions`, and at last from all out-of-fold predictions for the test images. Without `nest`, and for
    runs that have none, out-of-fold predictions take their place, of heads that had seen the fold. Raises CacheError
    for fewer than two runs.
    """
    runs = base_runs(dataset, data, run, backbones, heads, manifest=manifest)
    if len(runs) < FEWEST:
        again = make_command("train-heads", data, run, heads="logistic lightgbm stack")
        raise CacheError(
            f"a stack needs {FEWEST} trained heads at least, and {dataset} has {len(runs)} that fit together; "
            f"run: {again}"
        )
    named = sorted({name for run in runs for name in run.record.backbone.split("+")})
    parts = [_FORMAT, [run.record.identity for run in runs], data.seed]
    identity, nested = (hashlib.sha256(repr([*parts, way]).encode()).hexdigest() for way in (nest, True))
    folder = runs[0].record.root / "+".join(named) / f"of-{len(runs)}-runs" / "stack"
    if is_current(folder, identity) or is_current(folder, nested):
        return folder
    found, count = _fitted(runs, data, nest)
    weights = dict(zip((run.name for run in runs), found.head.chosen_["weights"], strict=True))
    heard = {name: w for name, w in weights.items() if w > 0}
    found.head.chosen_ = {"weights": heard, "runs_of_no_weight": len(weights) - len(heard)}
    save_head(folder, "stack", found.head)
    facts = {**facts_of("stack", _seen(runs), found), "nested": count}
    save_run(folder, _record(runs, "+".join(named), identity, facts), found.predictions)
    return folder


def _fitted(runs: Sequence[Run], data: DatasetOptions, nest: bool) -> tuple[Fitted, int]:
    """Return the weights with out-of-fold and test predictions, and how many of the runs are nested."""
    start, seen = time.perf_counter(), _seen(runs)
    proba, fold, k = np.zeros_like(runs[0].predictions.proba), runs[0].predictions.fold, runs[0].record.folds
    pairs = [pair_predictions(run, data) if nest else None for run in runs]
    for repeat in np.unique(fold[fold >= 0] // k).tolist():
        at = np.flatnonzero(fold // k == repeat)
        own = [None if found is None else found[at] for found in pairs]
        proba[at] = vote_out_of_fold(seen.X[at], own, seen.y[at], fold[at] % k)
    middle = time.perf_counter()
    head = make_head("stack").fit(seen.X[fold >= 0], seen.y[fold >= 0])
    end = time.perf_counter()
    proba[fold < 0] = head.predict_proba(seen.X[fold < 0])
    seconds = {"oof": middle - start, "fit": end - middle, "predict": time.perf_counter() - end}
    return Fitted(runs[0].predictions._replace(proba=proba), head, seconds), sum(p is not None for p in pairs)


def _seen(runs: Sequence[Run]) -> View:
    """Return what the runs predicted as a view: X is (n, M, K), the rows of all repeats, then the test images."""
    first = runs[0].predictions
    X = np.stack([run.predictions.proba for run in runs], axis=1)
    return View(X, first.y, first.ids, first.groups, np.where(first.fold < 0, "test", "train"))


def _record(runs: Sequence[Run], named: str, identity: str, facts: Mapping[str, Any]) -> RunRecord:
    """Return the record of a stack: what its runs have in common, what is its own, and the seconds of all."""
    own: dict[str, Any] = {
        "backbone": named,
        "entry": named,
        "keys": tuple({key.weights: key for run in runs for key in run.record.keys}.values()),
        "blocks": (),
        "asked_blocks": "",
        "pool": "",
        "view": f"{len(runs)} runs",
        "bases": tuple(str(run.folder.relative_to(run.record.root)) for run in runs),
        "identity": identity,
        "images_per_second": None,
        "finetuning": None,
        "history": (),
        "spread": None,
        "firn": firn_version(),
    }
    seconds = {part: own_ + sum(run.record.seconds[part] for run in runs) for part, own_ in facts["seconds"].items()}
    return replace(runs[0].record, **own, **{**facts, "seconds": seconds})


def base_runs(
    dataset: str,
    data: DatasetOptions,
    run: RunOptions,
    backbones: Sequence[str],
    heads: Sequence[str],
    *,
    manifest: str = "",
) -> list[Run]:
    """Return the runs that can be combined: of these backbones and heads, on the same images and folds.

    Those of other images, labels or splits than a data set of the digest `manifest` cannot.

    With all heads come the fine-tuned networks.
    """
    known = {name for term in backbones for name in term.split("+")}
    every = {name for name, row in HEADS.items() if row.input != "runs"}
    wanted = {*heads, FINETUNED} if every <= {*heads} else {*heads}
    runs = [
        one
        for one in load_runs(dataset, *run.scheme)
        if not one.record.bases
        and set(one.record.backbone.split("+")) <= known
        and one.record.head in wanted
        and one.record.seed == data.seed
        and one.record.manifest == (manifest or one.record.manifest)
        and not one.record.partial
    ]
    newest = max(runs, key=lambda one: (one.folder / "run.json").stat().st_mtime, default=None)
    return [one for one in runs if newest is not None and _fits(newest, one)]


def _fits(first: Run, run: Run) -> bool:
    pairs = ((getattr(first.predictions, name), getattr(run.predictions, name)) for name in ("ids", "y", "fold"))
    return first.record.manifest == run.record.manifest and all(np.array_equal(a, b) for a, b in pairs)
