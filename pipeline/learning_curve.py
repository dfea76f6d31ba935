"""learning-curve: would more patients help? AUC against the number of training patients, from the cache."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from features.datasets import load_dataset
from features.progress import shown
from features.request import names_in, open_features
from features.storage import artifacts_root, write_whole
from models.heads import HEADS, choose_heads, make_head
from models.metrics import score
from models.runs.features import Ask, Stage
from models.runs.record import runs_root
from models.runs.scores import LEVEL, as_dict
from models.runs.summary import make_command, plural, with_interval
from models.validation import learning_curve as learning
from models.validation.learning_curve import Point
from pipeline.render.plots import FILE, draw_learning


def learning_curve(
    dataset: str,
    backbone: str,
    *,
    heads: str = "logistic",
    blocks: str = "1",
    pool: str = "avg",
    labels: str = "classes",
    preprocess: str = "",
    precision: str = "auto",
    device: str = "auto",
    weights: str = "",
    seed: int = 0,
    n_bootstrap: int = 1000,
) -> list[str]:
    """Fit heads on growing parts of the training patients; print a table, write JSON and plots; return their paths.

    Test images have no part in it: it is made to decide whether to collect more.
    """
    from rich.console import Console

    images = load_dataset(dataset, seed=seed)
    recipe = {"weights": weights, "preprocess": preprocess, "precision_": precision, "device_": device}
    curves = []
    for term in names_in(backbone) or [""]:
        stage = Stage(open_features(images, term.replace("+", " "), **recipe), Ask(dataset, labels, seed=seed))
        for name in choose_heads(heads):
            if HEADS[name].input != "runs":
                described, view = stage.view(name, blocks, pool)
                dev = view.take(view.splits != "test")
                make, words = partial(make_head, name, seed=seed), f"learning curve of {name} on {described}"
                with shown(words, "fits") as progress:
                    points = learning.learning_curve(make, dev, seed=seed, progress=progress)
                curves.append(_curve(f"{name} on {described}", points, seed, n_bootstrap))
    folder = artifacts_root() / "compare" / runs_root(images.name, labels).name
    unit = images.grouped_by or "image"
    settings = {
        "DATASET": dataset,
        "BACKBONE": backbone,
        "HEADS": heads,
        "BLOCKS": blocks,
        "POOL": pool,
        "LABELS": labels,
    }
    settings |= {"PREPROCESS": preprocess, "PRECISION": precision, "SEED": str(seed)}
    command = make_command("learning-curve", *((name, value) for name, value in settings.items() if value))
    for curve in curves:
        Console().print(_lines(curve, unit), markup=False, highlight=False)
    return _written(
        folder, {"manifest": stage.digest, "unit": unit, "seed": seed, "curves": curves, "command": command}
    )


def _curve(name: str, points: Sequence[Point], seed: int, n_bootstrap: int) -> dict[str, Any]:
    rows = []
    for point in points:
        p = point.predictions
        area = score(p.y, p.proba, p.groups, n_bootstrap=n_bootstrap, level=LEVEL, seed=seed)["roc_auc"]
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
