"""A classifier of scikit-learn in the comparison: cross-validated as heads are, on the same folds and images."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from features.errors import FirnError
from features.progress import shown
from features.storage import slug
from features.views import View
from models.heads import HEADS
from models.heads.head import Array, Head
from models.runs.features import facts_of
from models.runs.frames import Features
from models.runs.record import FINETUNED, load_record, save_run
from models.validation.cross_validation import fit

_TO_ONE = 1e-3  # how far a sum of probabilities may be off


def add_run(features: Features, estimator: Any, *, name: str) -> Path:
    """Cross-validate a classifier on features and add it to the comparison under a `name`; return the run's folder.

    `estimator` has scikit-learn's fit, predict_proba and get_params; it is cloned, fitted on four fifths of the groups
    to predict the fifth, five times over (or as the protocol says), and on all images to learn from to predict the test
    images. What it chooses by itself, such as a grid search, it chooses within those; such a choice knows no groups.
    Only predictions are kept, so that the run is compared but neither bundled nor explained; a run of that name on
    that view is replaced. Raises FirnError for a name of Firn's own heads, for no probabilities, and as `fit`.
    """
    from sklearn.base import clone

    if slug(name) in (*HEADS, FINETUNED) or not name.strip():
        raise FirnError(f"expected name= to tell the run from Firn's own heads ({', '.join(HEADS)}), got {name!r}")
    if not hasattr(estimator, "predict_proba"):
        raise FirnError(
            f"expected a classifier with predict_proba, got {type(estimator).__name__}; "
            "sklearn.calibration.CalibratedClassifierCV gives probabilities to one that has none"
        )
    stage, view = features.stage, _view(features)
    described = stage.view("logistic", features.blocks, features.pool)[0].removeprefix(f"{stage.name} ")
    folder = stage.folder(described, slug(name))
    if (there := load_record(folder)) is not None and there.head != name:
        raise FirnError(f"expected name= to differ by more than signs from {there.head!r}, which {folder} holds")
    about = " ".join(repr(estimator).split())
    with shown(f"{name} on {stage.name} {described}", "fits") as progress:
        found = fit(
            lambda: _Estimator(clone(estimator), len(features.classes)),
            [view],
            stage.run.rules,
            seed=stage.data.seed,
            progress=progress,
        )
    keys = [entry.key.digest() for entry in stage.entries]
    record = stage.record(
        view,
        blocks=tuple(dict.fromkeys(column.rsplit("/", 2)[0] for column in features.columns)),
        asked_blocks=features.blocks,
        pool=features.pool,
        view=described,
        identity=hashlib.sha256(f"{name}{about}{described}{stage.digest}{keys}{stage.run}".encode()).hexdigest(),
        **facts_of(name, view, found, about=about),
    )
    save_run(folder, record, found.predictions)
    return folder


def _view(features: Features) -> View:
    """Return all images as a view. Raises FirnError for a part of them, which no other run is of."""
    _, whole = features.stage.view("logistic", features.blocks, features.pool)
    if len(whole.ids) != len(features.ids):
        raise FirnError(
            f"expected all {len(whole.ids):,} images, got {len(features.ids):,}; give what load_features returned"
        )
    return View(features.X, features.y, features.ids, features.groups, features.splits)


class _Estimator(Head):
    """A clone of an estimator as a head."""

    def __init__(self, estimator: Any, classes: int) -> None:
        super().__init__()
        self.estimator, self.classes_ = estimator, np.arange(classes)

    def fit(self, X: Array, y: NDArray[np.int64], groups: NDArray[np.str_] | None = None) -> Self:
        self.estimator.fit(X, y)
        return self

    def predict_proba(self, X: Array) -> NDArray[np.float64]:
        proba = np.zeros((len(X), len(self.classes_)))
        proba[:, self.estimator.classes_] = self.estimator.predict_proba(X)  # a fold may lack a class
        if not ((np.abs(proba.sum(axis=1) - 1) < _TO_ONE).all() and (proba >= 0).all()):
            raise FirnError(f"{type(self.estimator).__name__} gives probabilities that do not sum to 1, or below 0")
        return proba
