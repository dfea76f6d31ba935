"""train-heads: cached features -> heads, with out-of-fold and test predictions."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from features.datasets import load_dataset
from features.errors import FirnError, unknown
from features.progress import heard
from features.request import names_in, open_features
from features.views import choose_pool
from models.heads import HEADS, choose_heads
from models.runs.features import Ask, Stage
from models.runs.on_ray import Order, train_on_ray
from models.runs.search import search
from models.runs.stack import train_stack
from models.validation.cross_validation import choose_protocol

ENGINES = ("local", "ray")


def train_heads(
    dataset: str,
    backbone: str,
    *,
    heads: str = "all",
    blocks: str = "1",
    pool: str = "avg",
    labels: str = "classes",
    protocol: str = "split",
    budget: float = 0.0,
    preprocess: str = "",
    precision: str = "auto",
    device: str = "auto",
    weights: str = "",
    seed: int = 0,
    engine: str = "local",
) -> list[str]:
    """Train heads on the cached features of one or several backbones, or on a pack; return one line per run.

    Each head is fitted on four fifths of the training images' groups to predict the fifth, five times, and once on
    all of them to predict the test images; `protocol` "cv" takes all images instead, three times over. Runs that
    are there already are not trained again. Backbones joined by + are one view. With a `budget` in seconds views and
    heads are searched; blocks and pool are then the search's own. The `engine` "ray" trains runs side by side.
    """
    names, begun = choose_heads(heads), time.monotonic()
    _check_engine(engine, budget)
    choose_pool(pool)
    choose_protocol(protocol)
    images = load_dataset(dataset, seed=seed)
    recipe = {"weights": weights, "preprocess": preprocess, "precision_": precision, "device_": device}
    ask = Ask(dataset, labels, protocol, seed, until=begun + budget if budget else math.inf)
    terms = names_in(backbone) or [""]
    stages = [Stage(open_features(images, term.replace("+", " "), **recipe), ask) for term in terms]
    if budget:
        return search(images.name, stages, ask, names)
    insist = heads != "all"
    if engine == "ray":
        with heard():  # what is left out is said below
            pairs = zip(stages, terms, strict=True)
            each = [(stage, term, name) for stage, term in pairs for name in _of_features(names)]
            lacking = [(term, name) for stage, term, name in each if stage.lacks(name, blocks, pool, insist=insist)]
        train_on_ray([Order(term, name, blocks, pool, recipe, ask, insist) for term, name in lacking])
    lines = []
    for stage in stages:
        trained = ((name, stage.train(name, blocks, pool, insist=insist)) for name in _of_features(names))
        lines += [f"ready: {name} on {stage.name} {folder}" for name, folder in trained if folder]
    return lines + _stacked(images.name, ask, [stage.name for stage in stages], names, insist)


def _check_engine(engine: str, budget: float) -> None:
    """Raise UnknownName for an unknown engine, FirnError where Ray has nothing to share out."""
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if budget and engine == "ray":
        raise FirnError("BUDGET= learns from each run which one to try next; leave ENGINE= away, or BUDGET=")


def _of_features(names: Sequence[str]) -> list[str]:
    return [name for name in names if HEADS[name].input != "runs"]


def _stacked(dataset: str, ask: Ask, backbones: Sequence[str], names: Sequence[str], insist: bool) -> list[str]:
    """Train the heads that combine runs; alone, they combine all heads that are there."""
    wanted = [name for name in names if HEADS[name].input == "runs"]
    bases = _of_features(names) or _of_features(tuple(HEADS))
    return [f"ready: {name} {train_stack(dataset, ask, backbones, bases)}" for name in wanted]
