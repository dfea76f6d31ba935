"""The stack: one more run, made of the predictions of other runs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.errors import CacheError
from features.options import DatasetOptions, make_command
from features.views import View
from models.heads import HEADS, save_head
from models.runs.features import facts_of, fitted, is_current
from models.runs.options import RunOptions
from models.runs.record import FINETUNED, Run, RunRecord, firn_version, load_runs, save_run
from models.validation.predictions import Predictions

FEWEST = 2


def train_stack(
    dataset: str, data: DatasetOptions, run: RunOptions, backbones: Sequence[str], heads: Sequence[str]
) -> Path:
    """Combine all runs of some backbones and heads, unless that run is there; return its folder.

    The vote on an image is learned from the other folds' out-of-fold predictions, and at last from all of them for
    the test images. Raises CacheError for fewer than two runs.
    """
    runs = base_runs(dataset, data, run, backbones, heads)
    if len(runs) < FEWEST:
        again = make_command("train-heads", data, run, heads="logistic lightgbm stack")
        raise CacheError(
            f"a stack needs {FEWEST} trained heads at least, and {dataset} has {len(runs)} that fit together; "
            f"run: {again}"
        )
    named = sorted({name for run in runs for name in run.record.backbone.split("+")})
    identity = hashlib.sha256(f"{[run.record.identity for run in runs]}{data.seed}".encode()).hexdigest()
    folder = runs[0].record.root / "+".join(named) / f"of-{len(runs)}-runs" / "stack"
    if is_current(folder, identity):
        return folder
    views = _views(runs)
    found = fitted("stack", views, f"stack of {len(runs)} runs", seed=data.seed, protocol=run.rules)
    weights = dict(zip((run.name for run in runs), found.head.chosen_["weights"], strict=True))
    found.head.chosen_ = {"weights": {name: w for name, w in weights.items() if w > 0}}
    save_head(folder, "stack", found.head)
    save_run(folder, _record(runs, "+".join(named), identity, facts_of("stack", views[0], found)), found.predictions)
    return folder


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
        "firn": firn_version(),
    }
    seconds = {part: own_ + sum(run.record.seconds[part] for run in runs) for part, own_ in facts["seconds"].items()}
    return replace(runs[0].record, **own, **{**facts, "seconds": seconds})


def base_runs(
    dataset: str, data: DatasetOptions, run: RunOptions, backbones: Sequence[str], heads: Sequence[str]
) -> list[Run]:
    """Return the runs that can be combined: of these backbones and heads, on the same images and folds.

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
    ]
    newest = max(runs, key=lambda one: (one.folder / "run.json").stat().st_mtime, default=None)
    return [one for one in runs if newest is not None and _fits(newest, one)]


def _fits(first: Run, run: Run) -> bool:
    pairs = ((getattr(first.predictions, name), getattr(run.predictions, name)) for name in ("ids", "y", "fold"))
    return first.record.manifest == run.record.manifest and all(np.array_equal(a, b) for a, b in pairs)


def _views(runs: Sequence[Run]) -> list[View]:
    """Return for each repeat a view whose X is what the runs predicted, (n, M, K)."""
    first, repeats = runs[0].predictions, int(runs[0].record.repeats)
    X = np.stack([run.predictions.proba for run in runs], axis=1)
    test = np.flatnonzero(first.fold < 0)
    held = np.array_split(np.flatnonzero(first.fold >= 0), repeats)
    return [_view(first, X, np.concatenate([rows, test])) for rows in held]


def _view(predictions: Predictions, X: NDArray[Any], rows: NDArray[np.intp]) -> View:
    splits = np.where(predictions.fold[rows] < 0, "test", "train")
    return View(X[rows], predictions.y[rows], predictions.ids[rows], predictions.groups[rows], splits)
