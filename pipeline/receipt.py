"""From the facts of a run to the same run made anew, in a folder of its own."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from features.backbones.registry import domains
from features.backbones.weights import thawed_root
from features.cache.key import Key
from features.datasets import load_dataset
from features.datasets.packed import Packed
from features.errors import CacheError
from features.pooling import POOLS
from features.progress import say
from models.heads import HEADS
from models.runs.record import FINETUNED, Run, load_run, load_runs, runs_root

__all__ = ["elsewhere", "make_again"]

_OTHERWISE_GIVEN = ("recipe", "views", "flip", "precision", "seed")  # of a thaw's settings


@contextmanager
def elsewhere(folder: Path, backbones: Sequence[str]) -> Iterator[None]:
    """Let all that Firn writes go below `folder`; backbones that were thawed here are taken along."""
    for name in backbones:
        if domains(name):
            (folder / "backbones").mkdir(parents=True, exist_ok=True)
            shutil.copy(thawed_root() / f"{name}.safetensors", folder / "backbones")
    before = os.environ.get("FIRN_ARTIFACTS")
    os.environ["FIRN_ARTIFACTS"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("FIRN_ARTIFACTS")
        if before is not None:
            os.environ["FIRN_ARTIFACTS"] = before


def bases_of(run: Run) -> list[Run]:
    """Return the runs that a stack combines, else the run itself; those on maps of later blocks come last.

    A head on maps takes the last block whose maps are cached, so these must not be there yet when it is trained.
    """
    root = runs_root(*(run.facts[name] for name in ("dataset", "labels", "protocol")))
    runs = [load_run(root / base) for base in run.facts.get("bases", ())] or [run]
    return sorted(runs, key=lambda base: [_key(base).blocks.index(block) for block in _maps(base)][-1:])


def make_again(run: Run, bases: Sequence[Run], *, device: str = "auto", weights: str = "") -> Run:
    """Extract and train as the facts say, wherever artifacts go now, and return the new run.

    CacheError where what comes out is another run: the pictures, or Firn's recipes, have changed.
    """
    for base in bases:
        say(f"again: {base.name}")
        features = {"preprocess": _way(base), "device": device, "weights": weights, "precision": _key(base).precision}
        _MAKERS.get(base.facts["head"], _headed)(base.facts, features, _maps(base))
    if run.facts.get("bases"):
        _stacked(run.facts)
    names = ("head", "backbone", "view", "pool")
    for found in load_runs(*(run.facts[name] for name in ("dataset", "labels", "protocol"))):
        if all(found.facts[name] == run.facts[name] for name in names):
            return found
    raise CacheError(f"making {run.name} again gave no run of that name; its recipe has changed since")


def _key(run: Run) -> Key:
    return Key.from_json(json.dumps(run.facts["keys"][0]))


def _way(run: Run) -> str:
    return _key(run).preprocess.partition(":")[0]


def _maps(run: Run) -> list[str]:
    """Return the blocks whose maps a run needs in the cache."""
    head, pool = run.facts["head"], run.facts["pool"]
    needed = head != FINETUNED and (HEADS[head].input == "maps" or POOLS[pool].of_maps is not None)
    return list(dict.fromkeys(run.facts["blocks"])) if needed else []


def _headed(facts: Mapping[str, Any], features: Mapping[str, Any], maps: Sequence[str]) -> None:
    from pipeline.extract import extract
    from pipeline.train_heads import train_heads

    dataset, backbone, seed = facts["asked"], facts["backbone"], int(facts["seed"])
    if not isinstance(load_dataset(dataset, seed=seed).source, Packed):
        extract(dataset, backbone, maps=" ".join(maps), seed=seed, **features)
    train_heads(
        dataset,
        backbone,
        heads=facts["head"],
        blocks=facts["asked_blocks"],
        pool=facts["pool"] or "avg",
        labels=facts["labels"],
        protocol=facts["protocol"],
        seed=seed,
        **features,
    )


def _thawed(facts: Mapping[str, Any], features: Mapping[str, Any], maps: Sequence[str]) -> None:
    from pipeline.finetune import finetune

    renamed = {"precision": "precision_", "device": "device_"}
    thaw = facts["thaw"]
    finetune(
        facts["asked"],
        facts["backbone"],
        blocks=facts["asked_blocks"],
        recipe=thaw["recipe"],
        views=thaw["views"],
        flip=thaw["flip"],
        labels=facts["labels"],
        protocol=facts["protocol"],
        seed=int(facts["seed"]),
        features={renamed.get(name, name): value for name, value in features.items()},
        **{name: value for name, value in thaw.items() if name not in _OTHERWISE_GIVEN},
    )


_MAKERS = {FINETUNED: _thawed}  # heads that are not trained by train-heads


def _stacked(facts: Mapping[str, Any]) -> None:
    from models.runs.features import Ask
    from models.runs.stack import train_stack

    ask = Ask(facts["asked"], facts["labels"], facts["protocol"], int(facts["seed"]))
    train_stack(facts["dataset"], ask, facts["backbone"].split("+"), tuple(HEADS))
