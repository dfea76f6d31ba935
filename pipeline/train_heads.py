"""train-heads: cached features -> heads, with out-of-fold and test predictions."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from features.errors import ConstantFeatures, FirnError, unknown
from features.options import FeatureOptions, option
from features.progress import LONG, duration, heard, say
from features.request import open_features
from models.heads import HEADS
from models.runs.durations import Training, guess
from models.runs.features import Stage
from models.runs.on_ray import Order, train_on_ray
from models.runs.options import HeadOptions, RunOptions, SeedOptions
from models.runs.search import search
from models.runs.stack import train_stack

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class TrainOptions:
    """How the training of heads is organised."""

    budget: float = option(0.0, "Seconds for a search over views and heads; 0 is no search.", min=0)
    engine: str = option("local", "local, or ray: runs side by side on a machine or a cluster ($RAY_ADDRESS).")

    def __post_init__(self) -> None:
        """Raise UnknownName for an unknown engine, FirnError where Ray has nothing to share out."""
        if self.engine not in ENGINES:
            raise unknown("engine", self.engine, ENGINES)
        if self.budget and self.engine == "ray":
            raise FirnError("BUDGET= learns from each run which one to try next; leave ENGINE= away, or BUDGET=")


def train_heads(
    features: FeatureOptions, view: HeadOptions, run: RunOptions, how: TrainOptions, spread: SeedOptions
) -> list[str]:
    """Train heads on the cached features of one or several backbones, or on a pack; return one line per run.

    Each head is fitted on four fifths of the training images' groups to predict the fifth, five times, and once on
    all of them to predict the test images; `protocol` "cv" takes all images instead, three times over. Runs that
    are there already are not trained again. Backbones joined by + are one view. With a `budget` in seconds views and
    heads are searched; blocks and pool are then the search's own. The `engine` "ray" trains runs side by side.
    With several `seeds` runs but stacks are trained so often, and how far their scores spread is recorded.
    """
    if how.budget and spread.seeds > 1:
        raise FirnError("SEEDS= trains each run several times, BUDGET= as many runs as it can; leave one of them away")
    until = time.monotonic() + how.budget if how.budget else math.inf
    dataset, names = features.data.load(), _of_features(view.names)
    entries = [open_features(dataset, features, term) for term in features.terms]
    stages = [Stage(some, features.data, run, until=until, device=features.device) for some in entries]
    if how.budget:
        return search(dataset.name, stages, view.names)
    with heard():  # what is left out is said below
        each = [(stage, term, name) for stage, term in zip(stages, features.terms, strict=True) for name in names]
        lacking = [
            one for one in each if one[0].lacks(one[2], view.blocks, view.pool, insist=view.insist, seeds=spread.seeds)
        ]
    if how.engine == "ray":
        train_on_ray([Order(term, name, features, view, run, spread.seeds) for _, term, name in lacking])
    else:
        _say_before([Training(name, stage.name, len(dataset)) for stage, _, name in lacking])
    lines = []
    for stage in stages:
        lines += _trained(stage, names, view, spread.seeds)
    bases = names or _of_features(tuple(HEADS))  # alone, a stack combines all heads that are there
    stacks = [name for name in view.names if HEADS[name].input == "runs" and stages[0].knows(name, insist=view.insist)]
    made_of = (dataset.name, features.data, run, [stage.name for stage in stages], bases)
    return lines + [f"ready: {name} {train_stack(*made_of, manifest=stages[0].digest)}" for name in stacks]


def _say_before(trainings: Sequence[Training]) -> None:
    """Say how long it takes, where that is long and such heads were trained before."""
    found = guess(trainings)
    if found.seconds > LONG:
        but = f"; of {', '.join(found.unknown)} nothing is known yet" if found.unknown else ""
        some = f"{found.known} training{'s' * (found.known > 1)}"
        say(f"{some}: about {duration(found.seconds)}, by earlier runs of these heads{but}")


def _trained(stage: Stage, names: Sequence[str], view: HeadOptions, seeds: int) -> list[str]:
    """Train heads on one view; one that constant features stop is told, and the others are trained."""
    lines, stopped = [], list[ConstantFeatures]()
    for name in names:
        try:
            folder = stage.train(name, view.blocks, view.pool, insist=view.insist, seeds=seeds)
        except ConstantFeatures as error:
            say(f"{name} on {stage.name} is left out: {error}")
            stopped.append(error)
            continue
        lines += [f"ready: {name} on {stage.name} {folder}"] if folder else []
    if stopped and not lines:
        raise stopped[0]
    return lines


def _of_features(names: Sequence[str]) -> list[str]:
    return [name for name in names if HEADS[name].input != "runs"]
