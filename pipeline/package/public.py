"""Firn from Python: the functions that its commands are made of. docs/python.md shows how they go together.

run             a command by its name, with its options as keywords
load_features   cached features as arrays and as a data frame
add_run         a scikit-learn classifier, cross-validated and put into the comparison
load_results    a comparison as a data frame
load_bundle     a bundle -> a predictor of files and arrays
load_dataset    images, labels, groups and splits; `score` and METRICS: scores with intervals
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from features.backbones import BACKBONES
from features.datasets import DATASETS, load_dataset
from features.errors import FirnError
from features.options import typed
from features.version import firn_version
from models.heads import HEADS, make_head
from models.metrics import METRICS, score
from models.runs import frames
from models.runs.estimators import add_run
from models.runs.frames import Features, load_results
from models.runs.record import Run, load_run
from pipeline.cli import completed
from pipeline.cli import run_verb as run

if TYPE_CHECKING:
    from models.predictor.predictor import Predictor

__all__ = [
    "BACKBONES",
    "DATASETS",
    "HEADS",
    "METRICS",
    "Features",
    "FirnError",
    "Run",
    "__version__",
    "add_run",
    "load_bundle",
    "load_dataset",
    "load_features",
    "load_results",
    "load_run",
    "make_head",
    "run",
    "score",
]

__version__ = firn_version()


P = ParamSpec("P")
T = TypeVar("T")


def _completing(function: Callable[P, T]) -> Callable[P, T]:
    """Return a function whose errors suggest commands with all that it was asked for, as those of commands do."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except FirnError as error:
            asked = signature(function).bind(*args, **kwargs).arguments
            given = {name.upper(): typed(value) for name, value in (asked | asked.pop("more", {})).items()}
            error.args = (completed(str(error), given),)
            raise

    return call


load_features = _completing(frames.load_features)


def load_bundle(path: str | Path, *, device: str = "auto") -> Predictor:
    """Return the predictor in a bundle, a folder or a .zip, once it has reproduced its golden samples.

    It takes files, encoded bytes and arrays of pixels (H, W) or (H, W, 3), one or several, and returns a `Prediction`
    with names, proba (n, K), calibrated, decision, labels, distance and outlier. Raises BadBundle, BadWeights.
    """
    from models.predictor.loading import load

    return load(path, device=device)
