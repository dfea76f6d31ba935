"""reproduce: a recorded run made again from its receipt, and a verdict on whether its numbers came out again."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from features.backbones.registry import domains
from features.backbones.weights import thawed_root
from features.cache.key import Key
from features.datasets import load_dataset
from features.datasets.packed import Packed
from features.devices import device, precision
from features.errors import CacheError
from features.progress import say
from features.storage import artifacts_root, make_folder
from features.views import POOLS
from models.heads import HEADS
from models.metrics import METRICS
from models.runs.record import FINETUNED, Run, load_run, load_runs, runs_root
from models.runs.scores import shown
from pipeline.bundle import Sought

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

    CacheError where what comes out is another run: the images, or Firn's recipes, have changed.
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


class Budget(NamedTuple):
    """How far the numbers of a run may lie from those of the same run on another machine."""

    proba: float  # mean distance of probabilities
    auc: float  # distance of the ROC AUC


# By device and arithmetic of the forward pass. On one machine and its versions the same numbers come out, on a CPU to
# the last bit; other processors sum in another order, and a head may choose another strength for it. A GPU multiplies
# float32 in convolutions as TF32. A thawed network is trained through all of that, epoch by epoch.
BUDGETS = {
    ("cpu", "float32"): Budget(0.002, 0.002),
    ("cpu", "bfloat16"): Budget(0.01, 0.005),
    ("cpu", "float16"): Budget(0.01, 0.005),
    ("cuda", "float32"): Budget(0.01, 0.005),
    ("cuda", "bfloat16"): Budget(0.02, 0.01),
    ("cuda", "float16"): Budget(0.01, 0.005),
}
TRAINED = 5  # times as much for networks that were thawed
_SAME = 1e-9


def reproduce(sought: Sought, *, device_: str = "auto", weights: str = "") -> tuple[list[str], bool]:
    """Make a run again in a temporary folder; return lines that end in a verdict, and whether it came out again.

    Features are extracted anew, folds, heads, thawed networks and stacks follow the recorded settings. Raises
    CacheError, BadDataset or BadWeights where what it was made of is not there.
    """
    run, where = sought.run(), device(device_)
    bases = bases_of(run)
    names = list(dict.fromkeys(name for base in bases for name in base.facts["backbone"].split("+")))
    make_folder(artifacts_root())
    place = tempfile.TemporaryDirectory(prefix=".reproduce-", dir=artifacts_root())
    with place as folder, elsewhere(Path(folder), names):
        again = make_again(run, bases, device=device_, weights=weights)
    return compared(run, again, budget_of(run, bases, where))


def budget_of(run: Run, bases: list[Run], where: str) -> tuple[str, Budget]:
    """Return the budget of a run, of a stack the widest of its runs, in words and numbers."""
    kind = where.partition(":")[0]
    arithmetic = {str(key["precision"]) for base in bases for key in base.facts["keys"]}
    rows = [BUDGETS[kind, name if name != "auto" else precision("auto", where)] for name in arithmetic]
    trained = TRAINED if any(base.facts["head"] == FINETUNED for base in bases) else 1
    widest = Budget(*(trained * max(values) for values in zip(*rows, strict=True)))
    return f"{kind} in {'/'.join(sorted(arithmetic))}{', thawed' if trained > 1 else ''}", widest


def compared(run: Run, again: Run, budget: tuple[str, Budget]) -> tuple[list[str], bool]:
    """Return what differs between a run and itself made again, and whether it is within the budget."""
    lines = [f"{run.name}, {run.folder}", *_differences(run, again)]
    ours, theirs = run.predictions, again.predictions
    if not all(np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in ("ids", "y", "fold")):
        return [*lines, "verdict: DIFFERS: other images, labels or folds were predicted"], False
    apart = np.abs(ours.proba - theirs.proba)
    before, now = (METRICS["roc_auc"](part.y, part.proba) for part in (shown(run), shown(again)))
    words, limit = budget
    lines.append(f"{len(apart):,} predictions: mean distance {apart.mean():.2g}, largest {apart.max(initial=0):.2g}")
    lines.append(f"ROC AUC {before:.6f}, now {now:.6f}")
    lines.append(f"budget for {words}: mean distance {limit.proba:g}, ROC AUC {limit.auc:g}")
    if apart.max(initial=0) <= _SAME:
        return [*lines, "verdict: the same numbers"], True
    moved = 0.0 if np.isnan(before) and np.isnan(now) else abs(before - now)
    within = bool(apart.mean() <= limit.proba and moved <= limit.auc)
    return [*lines, f"verdict: {'within the budget' if within else 'DIFFERS by more than the budget'}"], within


def _differences(run: Run, again: Run) -> Iterator[str]:
    """Yield what is otherwise than it was: images, features, what was chosen, versions."""
    if run.facts["manifest"] != again.facts["manifest"]:
        yield "images, labels, splits or groups have changed since"
    for old, new in zip(run.facts["keys"], again.facts["keys"], strict=False):
        yield from Key.from_json(json.dumps(old)).differences(Key.from_json(json.dumps(new)))
    old_choice, new_choice = (json.dumps(r.facts["chosen"], sort_keys=True) for r in (run, again))
    if old_choice != new_choice and len(old_choice) < 200:
        yield f"chosen was {old_choice}, now {new_choice}"
    before, now = run.facts["versions"], again.facts["versions"]
    for name in before.keys() & now.keys():
        if before[name] != now[name]:
            yield f"{name} was {before[name]}, now {now[name]}"
