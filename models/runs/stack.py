"""The stack: one more run, made of the predictions of other runs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.errors import CacheError
from features.views import View
from models.heads import HEADS, save_head
from models.runs.features import SHARED, Ask, fitted, is_current, run_facts
from models.runs.record import FINETUNED, Run, load_runs, runs_root, save_run
from models.validation.predictions import Predictions

FEWEST = 2


def train_stack(dataset: str, ask: Ask, backbones: Sequence[str], heads: Sequence[str]) -> Path:
    """Combine all runs of some backbones and heads, unless that run is there; return its folder.

    The vote on an image is learned from the other folds' out-of-fold predictions, and at last from all of them for
    the test images. Raises CacheError for fewer than two runs.
    """
    runs = base_runs(dataset, ask, backbones, heads)
    if len(runs) < FEWEST:
        raise CacheError(
            f"a stack needs {FEWEST} trained heads at least, and {dataset} has {len(runs)} that fit together; "
            f'run: make train-heads DATASET={ask.dataset} HEADS="logistic lightgbm stack"'
        )
    named = sorted({name for run in runs for name in run.facts["backbone"].split("+")})
    identity = hashlib.sha256(f"{[run.facts['identity'] for run in runs]}{ask.seed}".encode()).hexdigest()
    folder = runs_root(dataset, ask.labels, ask.protocol) / "+".join(named) / f"of-{len(runs)}-runs" / "stack"
    if is_current(folder, identity):
        return folder
    views = _views(runs)
    found = fitted("stack", views, ask, f"stack of {len(runs)} runs")
    weights = dict(zip((run.name for run in runs), found.head.chosen_["weights"], strict=True))
    found.head.chosen_ = {"weights": {name: w for name, w in weights.items() if w > 0}}
    facts = {name: runs[0].facts[name] for name in (*SHARED, "versions")}
    keys = {key["weights"]: key for run in runs for key in run.facts["keys"]}
    own = {
        "backbone": "+".join(named),
        "entry": "+".join(named),
        "keys": list(keys.values()),
        "blocks": [],
        "asked_blocks": "",
        "pool": "",
        "view": f"{len(runs)} runs",
        "bases": [str(run.folder.relative_to(runs_root(dataset, ask.labels, ask.protocol))) for run in runs],
        "identity": identity,
    }
    save_head(folder, "stack", found.head)
    save_run(folder, facts | own | run_facts("stack", views[0], found), found.predictions)
    return folder


def base_runs(dataset: str, ask: Ask, backbones: Sequence[str], heads: Sequence[str]) -> list[Run]:
    """Return the runs that can be combined: of these backbones and heads, on the same images and folds.

    With all heads come the fine-tuned networks.
    """
    known = {name for term in backbones for name in term.split("+")}
    every = {name for name, row in HEADS.items() if row.input != "runs"}
    wanted = {*heads, FINETUNED} if every <= {*heads} else {*heads}
    runs = [
        run
        for run in load_runs(dataset, ask.labels, ask.protocol)
        if not run.facts.get("bases")
        and set(run.facts["backbone"].split("+")) <= known
        and run.facts["head"] in wanted
        and run.facts["seed"] == ask.seed
    ]
    newest = max(runs, key=lambda run: (run.folder / "run.json").stat().st_mtime, default=None)
    return [run for run in runs if newest is not None and _fits(newest, run)]


def _fits(first: Run, run: Run) -> bool:
    pairs = ((getattr(first.predictions, name), getattr(run.predictions, name)) for name in ("ids", "y", "fold"))
    return first.facts["manifest"] == run.facts["manifest"] and all(np.array_equal(a, b) for a, b in pairs)


def _views(runs: Sequence[Run]) -> list[View]:
    """Return for each repeat a view whose X is what the runs predicted, (n, M, K)."""
    first, repeats = runs[0].predictions, int(runs[0].facts["repeats"])
    X = np.stack([run.predictions.proba for run in runs], axis=1)
    test = np.flatnonzero(first.fold < 0)
    held = np.array_split(np.flatnonzero(first.fold >= 0), repeats)
    return [_view(first, X, np.concatenate([rows, test])) for rows in held]


def _view(predictions: Predictions, X: NDArray[Any], rows: NDArray[np.intp]) -> View:
    splits = np.where(predictions.fold[rows] < 0, "test", "train")
    return View(X[rows], predictions.y[rows], predictions.ids[rows], predictions.groups[rows], splits)
