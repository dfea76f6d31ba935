"""reproduce: a recorded run made again from its record, and a verdict on whether the numbers are the same."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np

from features.backbones.registry import domains, file_name
from features.backbones.weights import finetuned_root
from features.datasets.packed import Packed
from features.devices import choose_device, choose_precision
from features.errors import CacheError
from features.options import DATA, ExtractOptions, FeatureOptions, Taking, option, replaced
from features.progress import say
from features.storage import artifacts_root, make_folder
from features.views import POOLS
from models.heads import HEADS
from models.metrics import METRICS
from models.runs.options import RUN, HeadOptions, ModelSelector, RunOptions, SeedOptions
from models.runs.record import FINETUNED, Run, RunRecord, load_record, load_run, load_runs
from models.runs.scores import shown


@contextmanager
def elsewhere(folder: Path, backbones: Sequence[str]) -> Iterator[None]:
    """Let all that Firn writes go below `folder`; backbones that were fine-tuned here are taken along."""
    for name in backbones:
        if domains(name):
            file = f"{file_name(name)}.safetensors"
            (folder / "backbones" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(finetuned_root() / file, folder / "backbones" / file)
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
    runs = [load_run(run.record.root / base) for base in run.record.bases] or [run]
    return sorted(runs, key=lambda base: [base.record.keys[0].blocks.index(block) for block in _maps(base.record)][-1:])


def make_again(run: Run, bases: Sequence[Run], machine: FeatureOptions) -> Run:
    """Extract and train as the records say, wherever artifacts go now, and return the new run.

    CacheError where what comes out is another run: the images, or Firn's recipes, have changed.
    """
    for base in bases:
        say(f"again: {base.name}")
        features = replaced(base.record.feature_options, device=machine.device, weights=machine.weights)
        _MAKERS.get(base.record.head, _headed)(base.record, features)
    if run.record.bases:
        _stacked(run.record)
    name = run.record.data.load().name  # images that have moved are a data set of another name
    for found in load_runs(name, *run.record.scheme):
        if all(getattr(found.record, n) == getattr(run.record, n) for n in ("head", "backbone", "view", "pool")):
            return found
    raise CacheError(f"making {run.name} again gave no run of that name; its recipe has changed since")


def _maps(record: RunRecord) -> list[str]:
    """Return the blocks whose maps a run needs in the cache."""
    head = record.head
    needed = head != FINETUNED and (HEADS[head].input == "maps" or POOLS[record.pool].of_maps is not None)
    return list(dict.fromkeys(record.blocks)) if needed else []


def _headed(record: RunRecord, features: FeatureOptions) -> None:
    from pipeline.extract import extract
    from pipeline.train_heads import TrainOptions, train_heads

    if not isinstance(features.data.load().source, Packed):
        extract(features, ExtractOptions(maps=" ".join(_maps(record))))
    view = HeadOptions(record.head, record.asked_blocks, record.pool or "avg")
    train_heads(features, view, RunOptions(*record.scheme), TrainOptions(), SeedOptions())


def _finetuned(record: RunRecord, features: FeatureOptions) -> None:
    from models.finetuning.settings import FinetuneOptions
    from pipeline.finetune import finetune

    how = dict(record.finetuning or {})
    how["batch_size"] = how.get("batch")
    known = {name: how[name] for name in FinetuneOptions.__dataclass_fields__ if name in how}
    options = FinetuneOptions(blocks=record.asked_blocks, **known)
    finetune(features, options, RunOptions(*record.scheme), SeedOptions())


_MAKERS = {FINETUNED: _finetuned}  # heads that are not trained by train-heads


def _stacked(record: RunRecord) -> None:
    from models.runs.stack import train_stack

    run = RunOptions(*record.scheme)
    train_stack(
        record.data.load().name, record.data, run, record.backbone.split("+"), tuple(HEADS), nest=record.nested > 0
    )


class Budget(NamedTuple):
    """How far the numbers of a run may lie from those of the same run on another machine."""

    proba: float  # mean distance of probabilities
    auc: float  # distance of the ROC AUC


# By device and arithmetic of the forward pass. On one machine and its versions the same numbers come out, on a CPU to
# the last bit; other processors sum in another order, and a head may choose another strength for it. A run of before
# tf32 had a name may be of products that a GPU rounded in float32 too. A fine-tuned network is trained through all of
# that, epoch by epoch.
BUDGETS = {
    ("cpu", "float32"): Budget(0.002, 0.002),
    ("cpu", "bfloat16"): Budget(0.01, 0.005),
    ("cpu", "float16"): Budget(0.01, 0.005),
    ("cuda", "float32"): Budget(0.01, 0.005),
    ("cuda", "tf32"): Budget(0.01, 0.005),
    ("cuda", "bfloat16"): Budget(0.02, 0.01),
    ("cuda", "float16"): Budget(0.01, 0.005),
}
TRAINED = 5  # times as much for networks that were fine-tuned
_SAME = 1e-9


@dataclass(frozen=True)
class RecordedOptions:
    """Which recorded run."""

    run: str = option("", "The folder of a run; empty is the run that validation chooses of DATASET.")


Chosen = Annotated[ModelSelector, Taking(*DATA, "backbone", "heads", *RUN)]
Machine = Annotated[FeatureOptions, Taking("device", "weights")]


def reproduce(recorded: RecordedOptions, model: Chosen, machine: Machine) -> tuple[list[str], int]:
    """Make a run again in a temporary folder; return lines that end in a verdict, and 1 where it is another run.

    Features are extracted anew, folds, heads, fine-tuned networks and stacks follow the recorded settings. Raises
    CacheError, BadDataset or BadWeights where what it was made of is not there.
    """
    if recorded.run and load_record(Path(recorded.run)) is None:
        raise CacheError(f"expected RUN= to be the folder of a run (with a run.json), got {recorded.run}")
    model = replace(model, model=recorded.run)
    model.say_unused()
    run, where = model.load(), choose_device(machine.device)
    bases = bases_of(run)
    names = list(dict.fromkeys(name for base in bases for name in base.record.backbone.split("+")))
    make_folder(artifacts_root())
    place = tempfile.TemporaryDirectory(prefix=".reproduce-", dir=artifacts_root())
    with place as folder, elsewhere(Path(folder), names):
        again = make_again(run, bases, machine)
    lines, well = compared(run, again, budget_of(run, bases, where))
    return lines, 0 if well else 1


def budget_of(run: Run, bases: list[Run], where: str) -> tuple[str, Budget]:
    """Return the budget of a run, of a stack the widest of its runs, in words and numbers."""
    kind = where.partition(":")[0]
    arithmetic = {key.precision for base in bases for key in base.record.keys}
    rows = [BUDGETS[kind, name if name != "auto" else choose_precision("auto", where)] for name in arithmetic]
    trained = TRAINED if any(base.record.head == FINETUNED for base in bases) else 1
    widest = Budget(*(trained * max(values) for values in zip(*rows, strict=True)))
    return f"{kind} in {'/'.join(sorted(arithmetic))}{', fine-tuned' if trained > 1 else ''}", widest


def compared(run: Run, again: Run, budget: tuple[str, Budget]) -> tuple[list[str], bool]:
    """Return what differs between a run and itself made again, and whether it is within the budget."""
    lines = [f"{run.name}, {run.folder}", *_differences(run, again)]
    ours, theirs = run.predictions, again.predictions
    if not all(np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in ("ids", "y", "fold")):
        return [*lines, "verdict: DIFFERS: other images, labels or folds were predicted"], False
    apart = np.abs(ours.proba - theirs.proba)
    before, now = (METRICS["roc_auc"](part.y, part.proba, folds=part.fold) for part in (shown(run), shown(again)))
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
    if run.record.manifest != again.record.manifest:
        yield "images, labels, splits or groups have changed since"
    for old, new in zip(run.record.keys, again.record.keys, strict=False):
        yield from old.differences(new)
    old_choice, new_choice = (json.dumps(r.record.chosen, sort_keys=True) for r in (run, again))
    if old_choice != new_choice and len(old_choice) < 200:
        yield f"chosen was {old_choice}, now {new_choice}"
    before, now = run.record.versions, again.record.versions
    for name in before.keys() & now.keys():
        if before[name] != now[name]:
            yield f"{name} was {before[name]}, now {now[name]}"
