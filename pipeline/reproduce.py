"""reproduce: a recorded run made again from its receipt, and a verdict on whether its numbers came out again."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from features.cache.key import Key
from features.devices import device, precision
from features.storage import artifacts_root, make_folder
from models.metrics import METRICS
from models.runs.record import FINETUNED, Run
from models.runs.scores import shown
from pipeline.bundle import Sought
from pipeline.receipt import bases_of, elsewhere, make_again

__all__ = ["BUDGETS", "Budget", "reproduce"]


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
        return [*lines, "verdict: DIFFERS: other pictures, labels or folds were predicted"], False
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
    """Yield what is otherwise than it was: pictures, features, what was chosen, versions."""
    if run.facts["manifest"] != again.facts["manifest"]:
        yield "pictures, labels, splits or groups have changed since"
    for old, new in zip(run.facts["keys"], again.facts["keys"], strict=False):
        yield from Key.from_json(json.dumps(old)).differences(Key.from_json(json.dumps(new)))
    old_choice, new_choice = (json.dumps(r.facts["chosen"], sort_keys=True) for r in (run, again))
    if old_choice != new_choice and len(old_choice) < 200:
        yield f"chosen was {old_choice}, now {new_choice}"
    before, now = run.facts["versions"], again.facts["versions"]
    for name in before.keys() & now.keys():
        if before[name] != now[name]:
            yield f"{name} was {before[name]}, now {now[name]}"
