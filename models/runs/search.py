"""Views and heads within a time budget: a cheap head is tried on every view, expensive ones on the best views only."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from features.errors import CacheError
from features.progress import say
from models.heads import HEADS
from models.runs.compare import area_of
from models.runs.features import Stage
from models.runs.record import load_run
from models.runs.stack import FEWEST, base_runs, train_stack
from models.validation.cross_validation import OutOfTime

SCOUT = "logistic"  # the head that looks at every view
BEST = 3  # views that all other heads look at


class Trial(NamedTuple):
    """One combination to fit."""

    stage: Stage
    blocks: str
    pool: str
    head: str


class Result(NamedTuple):
    """A trial that was fitted, or was there already."""

    trial: Trial
    folder: Path
    area: float  # out-of-fold ROC AUC
    seconds: float


class _Search:
    """What is known so far."""

    def __init__(self, stages: Sequence[Stage], heads: Sequence[str]) -> None:
        self.stages, self.heads = list(stages), heads
        self.results: dict[tuple[str, str, str, str], Result] = {}
        self.left_out = 0

    def run(self, trials: Iterator[Trial]) -> None:
        """Fit every trial that is new and that there is time for; those of heads that took too long before are not."""
        for trial in trials:
            name = (trial.stage.name, trial.blocks, trial.pool, trial.head)
            if name in self.results:
                continue
            if time.monotonic() + self._guess(trial.head) > self.stages[0].until and self.results:
                self.left_out += 1
                continue
            try:
                folder = trial.stage.train(trial.head, trial.blocks, trial.pool, insist=False)
            except OutOfTime:
                self.left_out += 1
                continue
            if folder is not None:
                self.results[name] = _result(trial, folder)

    def _guess(self, head: str) -> float:
        """Return how long the head took at most so far; before its first fit nothing is known."""
        return max((r.seconds for r in self.results.values() if r.trial.head == head), default=0.0)

    def best(self, count: int) -> list[Trial]:
        """Return the best trials of the scout, best first."""
        scouted = [r for r in self.results.values() if r.trial.head == self.scout]
        return [r.trial for r in sorted(scouted, key=lambda r: -r.area)[:count]]

    @property
    def scout(self) -> str:
        """Return the head that looks at every view: logistic, where it was asked for."""
        pooled = [name for name in self.heads if HEADS[name].input == "pooled"]
        if not pooled:
            raise CacheError("BUDGET= searches views with a head on pooled features; add HEADS=logistic, or leave it")
        return SCOUT if SCOUT in pooled else pooled[0]


def search(dataset: str, stages: Sequence[Stage], heads: Sequence[str]) -> list[str]:
    """Try views and heads until the stages' time is up, and stack what was found; return a line per run, best first.

    Rounds: every backbone's last block; more blocks and poolings of the best; backbones joined; all heads on the best
    views. Out-of-fold predictions choose; what a comparison reports is the test images, or the score corrected for
    the choice, so that no reported number saw it. A later search with more time goes on from the runs that are there.
    """
    known, first = _Search(stages, heads), stages[0]
    for trials in (_every(known), _wider(known), _joined(known), _other_heads(known)):
        known.run(trials)
    ranked = sorted(known.results.values(), key=lambda r: -r.area)
    lines = [f"{r.area:.4f} {r.trial.head} on {r.trial.stage.name} {r.folder}" for r in ranked]
    backbones = [stage.name for stage in known.stages]
    stacked = "stack" in heads and first.knows("stack", insist=False)
    made_of = (dataset, first.data, first.run, backbones, heads)
    if stacked and len(base_runs(*made_of, manifest=first.digest)) >= FEWEST:
        folder = train_stack(*made_of, manifest=first.digest, nest=False)  # a second or two
        lines.insert(0, f"{_area(folder):.4f} stack {folder}")
    say(f"{len(ranked)} combinations were tried, {known.left_out} left out for want of time; areas are out of fold")
    return lines


def _every(known: _Search) -> Iterator[Trial]:
    yield from (Trial(stage, "1", "avg", known.scout) for stage in known.stages)


def _wider(known: _Search) -> Iterator[Trial]:
    """Yield more blocks and other poolings, of the best backbones first."""
    for trial in known.best(len(known.stages)):
        yield trial._replace(blocks="2")
        yield from (trial._replace(pool=name) for name in trial.stage.pools())
        yield from (trial._replace(blocks=blocks, pool="both") for blocks in ("2", "all"))


def _joined(known: _Search) -> Iterator[Trial]:
    """Yield pairs of the best single backbones, and all of them, side by side."""
    best = {trial.stage.name: trial.stage for trial in known.best(len(known.results)) if "+" not in trial.stage.name}
    several = [list(pair) for pair in combinations(list(best.values())[:BEST], 2)]
    several += [list(best.values())] if len(best) > 2 else []
    for stages in several:
        first = stages[0]
        entries = [entry for one in stages for entry in one.entries]
        stage = Stage(entries, first.data, first.run, until=first.until, device=first.device)
        known.stages.append(stage)
        yield from (Trial(stage, blocks, "avg", known.scout) for blocks in ("1", "2"))


def _other_heads(known: _Search) -> Iterator[Trial]:
    """Yield the other heads, one after the other on the best views."""
    best = known.best(BEST)
    for name in known.heads:
        if HEADS[name].input == "pooled" and name != known.scout:
            yield from (trial._replace(head=name) for trial in best)
    single = {trial.stage.name: trial for trial in known.best(len(known.results)) if "+" not in trial.stage.name}
    for name in known.heads:
        if HEADS[name].input == "maps":
            with_maps = [trial for trial in single.values() if trial.stage.maps()]
            yield from (trial._replace(head=name) for trial in with_maps[:BEST])


def _result(trial: Trial, folder: Path) -> Result:
    seconds = load_run(folder).record.seconds
    return Result(trial, folder, _area(folder), seconds["oof"] + seconds["fit"])


def _area(folder: Path) -> float:
    held = load_run(folder).predictions.part(test=False)
    area = area_of(held)
    return -math.inf if math.isnan(area) else area
