"""learning-curve: would more patients help? AUC against the number of training patients, from the cache."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from features.errors import FirnError
from features.options import FeatureOptions, Taking, make_command
from features.progress import say, shown
from features.request import open_features
from features.storage import artifacts_root, write_whole
from models.folds import naming
from models.heads import HEADS, make_head
from models.metrics import score
from models.runs.features import Stage
from models.runs.options import HeadOptions, RunOptions
from models.runs.record import runs_root
from models.runs.scores import LEVEL, as_dict
from models.runs.summary import plural, with_interval
from models.validation import learning_curve as learning
from models.validation.learning_curve import Point
from pipeline.render.plots import FILE, SCHEMA, draw_learning

View = Annotated[HeadOptions, Taking(heads="logistic")]
Labels = Annotated[RunOptions, Taking("labels")]
DRAWS = 1000  # of the bootstrap


def learning_curve(features: FeatureOptions, view: View, run: Labels) -> list[str]:
    """Fit heads on growing parts of the training patients; print a table, write JSON and plots; return their paths.

    Test images have no part in it: it is made to decide whether to collect more.
    """
    from rich.console import Console

    names = [name for name in view.names if HEADS[name].input != "runs"]
    if not names:
        raise FirnError(f"expected heads that learn from features, such as HEADS=logistic, got {view.heads}: of runs")
    if view.insist and (without := [name for name in view.names if name not in names]):
        say(f"{' '.join(without)} is left out: it learns from other runs, not from features")
    dataset, seed = features.data.load(), features.data.seed
    curves = []
    for term in features.terms:
        stage = Stage(open_features(dataset, features, term), features.data, run)
        for name in names:
            described, seen = stage.view(name, view.blocks, view.pool)
            dev = seen.take(seen.splits != "test")
            make = partial(make_head, name, seed=seed, device=features.device)
            words = f"learning curve of {name} on {described}"
            with shown(words, "fits") as progress, naming(stage.classes, dataset.grouped_by):
                points = learning.learning_curve(make, dev, seed=seed, progress=progress)
            curves.append(_curve(f"{name} on {described}", points, seed))
    unit = dataset.grouped_by or "image"
    for curve in curves:
        Console().print(_lines(curve, unit), markup=False, highlight=False)
    command = make_command("learning-curve", features, view, run, heads=view.heads, seed=str(seed))
    content = {"schema": SCHEMA, "manifest": stage.digest, "unit": unit, "seed": seed, "curves": curves}
    folder = artifacts_root() / "compare" / runs_root(dataset.name, run.labels).name
    return _written(folder, content | {"command": command})


def _curve(name: str, points: Sequence[Point], seed: int) -> dict[str, Any]:
    rows = []
    for point in points:
        p = point.predictions
        area = score(p.y, p.proba, p.groups, folds=p.fold, n_bootstrap=DRAWS, level=LEVEL, seed=seed)["roc_auc"]
        rows.append({"groups": point.groups, "images": round(point.images, 1), "roc_auc": as_dict(area)})
    return {"name": name, "points": rows}


def _lines(curve: dict[str, Any], unit: str) -> str:
    """Return the curve as text."""
    points, units = curve["points"], plural(unit)
    rows = [
        f"{row['groups']:>7,} {units} {row['images']:>9,.0f} images   ROC AUC {with_interval(row['roc_auc'])}"
        for row in points
    ]
    return "\n".join([curve["name"], *rows])


def _written(folder: Path, content: dict[str, Any]) -> list[str]:
    """Write plots first and the JSON last."""
    files = draw_learning(content) | {FILE: json.dumps(content, indent=1).encode()}
    for name, data in files.items():
        write_whole(folder / name, [data])
    return [str(folder / name) for name in files]
