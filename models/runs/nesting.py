"""The inputs of a stack's weights: what heads say of a fold's images without having seen it, nor another one."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from features.cache.entry import open_entry
from features.cache.pack import is_pack, open_pack
from features.errors import FirnError
from features.options import DatasetOptions
from features.progress import shown
from features.storage import write_whole
from features.views import Cached, View
from models.heads import HEADS, make_head
from models.runs.features import Stage
from models.runs.options import RunOptions
from models.runs.record import Run
from models.validation.cross_validation import folds_of, learned, without_pairs

FILE = "nested.safetensors"
Floats32 = NDArray[np.float32]


def pair_predictions(run: Run, data: DatasetOptions) -> Floats32 | None:
    """Return what a head says of each out-of-fold row without fold f and the row's own, (n, F, K); f in its repeat.

    Rows are those of the run's out-of-fold predictions; [i, f] means nothing where row i is in fold f. Made once and
    kept in the run's folder: k (k - 1) / 2 fits for k folds, on k - 2 of them. None where that cannot be: for
    fine-tuned networks, fewer than four folds, and features that are not in the cache as the run saw them.
    """
    if (found := _read(run)) is None and (view := _view(run, data)) is not None:
        found = _computed(run, view)
        if found is not None:
            _write(run, found)
    return found


def _computed(run: Run, view: View) -> Floats32 | None:
    rules, seed = RunOptions(*run.record.scheme).rules, run.record.seed
    part, held = view.take(learned(view.splits, rules)), run.predictions.part(test=False)
    order, plan = np.argsort(part.ids, kind="stable"), folds_of(part.y, part.groups, rules, seed=seed)
    if not np.array_equal(np.concatenate([folds[order] for folds in plan]), held.fold):
        return None
    device = "cpu" if run.record.device == "cpu" else "auto"
    make, each = partial(make_head, run.record.head, seed=seed, device=device), []
    for folds in plan:
        with shown(f"{run.name}, for a stack", "fits") as progress:
            found = without_pairs(make, part, folds, progress)
        if found is None:
            return None
        each.append(found[:, order].swapaxes(0, 1).astype(np.float32))
    return np.concatenate(each)


def _view(run: Run, data: DatasetOptions) -> View | None:
    """Return the features that a run saw; None where the cache has them no more."""
    record = run.record
    if record.head not in HEADS:
        return None
    entries: list[Cached] = [open_entry(record.dataset, key) for key in record.keys]
    if is_pack(data.dataset):
        entries = [open_pack(Path(data.dataset))]
    if [entry.key for entry in entries] != [*record.keys]:
        return None
    try:
        stage = Stage(entries, record.data, RunOptions(*record.scheme))
        described, view = stage.view(record.head, record.asked_blocks, record.pool)
    except FirnError:
        return None
    return view if stage.digest == record.manifest and described == f"{record.backbone} {record.view}" else None


def _write(run: Run, found: Floats32) -> None:
    from safetensors.numpy import save

    about = {"identity": run.record.identity}
    write_whole(run.folder / FILE, [save({"proba": np.ascontiguousarray(found)}, metadata=about)])


def _read(run: Run) -> Floats32 | None:
    """Return what `_write` wrote for the same run; None without, for another one, or for a broken file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(run.folder / FILE, "numpy") as file:
            same = file.metadata()["identity"] == run.record.identity
            found: Floats32 | None = file.get_tensor("proba") if same else None
            return found
    except (OSError, SafetensorError, KeyError, TypeError):
        return None
