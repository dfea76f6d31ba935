"""Out-of-fold and test predictions of a fine-tuned network: one training per fold, one on all images to learn from."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from features.storage import write_whole
from features.views import View
from models.finetuning.batches import Inputs
from models.finetuning.checkpoints import save_network
from models.finetuning.network import FinetunedNetwork, start_from_probe
from models.finetuning.settings import Settings
from models.finetuning.train import Epoch, Task, best_epoch, predict, train
from models.folds import held_out
from models.heads import make_head
from models.validation.cross_validation import Protocol, arranged, folds_of, learned
from models.validation.predictions import Predictions

NETWORK = "network.safetensors"  # in the folder of a run
CLASSIFIER = "firn.classifier"  # under which name the classifier's tensors are there
WATCHED = 10  # one of so many groups of the images to learn from is held out for early stopping


@dataclass(frozen=True)
class Crossfit:
    """What all trainings of one run have in common."""

    view: View  # pooled features of the last block, for the probe; labels, groups and splits of every image
    inputs: Inputs  # rows in the order of the view
    make: Callable[[], FinetunedNetwork]  # a new network with the pretrained weights
    settings: Settings
    device: str
    folder: Path  # of the run
    identity: str  # digest of all that the run depends on
    about: Mapping[str, Any]  # the configuration, kept with the network
    tell: Callable[[str, Epoch], None]
    step: Callable[[int, int], None]


class Fit(NamedTuple):
    """One training: what it predicts, how it went, and its network where that is kept."""

    proba: NDArray[np.float64]  # (m, K) for the images asked for
    history: list[Epoch]
    seconds: float
    predict: float  # seconds


class Fitted(NamedTuple):
    """All trainings of a run."""

    predictions: Predictions
    histories: list[list[Epoch]]  # of each fold, then of the training on all
    seconds: dict[str, float]  # oof, fit, predict


def crossfit(run: Crossfit, protocol: Protocol) -> Fitted:
    """Train for every fold and once on all; a fold that is done is not done again.

    Folds are those of the heads. Early stopping looks at a tenth of the groups inside the images that a training
    learns from, never at the fold that it predicts. Raises BadDataset where a class cannot be held out.
    """
    rows = np.flatnonzero(learned(run.view.splits, protocol))
    test = np.flatnonzero(~learned(run.view.splits, protocol))
    dev = run.view.take(rows)
    plan = folds_of(dev.y, dev.groups, protocol, seed=run.settings.seed)
    held = np.zeros((len(plan), len(rows), int(run.view.y.max()) + 1))
    histories, oof = [], 0.0
    for repeat, folds in enumerate(plan):
        for fold in np.unique(folds).tolist():
            own = folds == fold
            done = _fit(run, f"fold-{fold}", rows[~own], rows[own], draw=fold + 1, total=int(plan[-1].max()) + 1)
            held[repeat, own] = done.proba
            histories.append(done.history)
            oof += done.seconds
    last = fit_all(run, rows, test)
    seconds = {"oof": oof, "fit": last.seconds, "predict": last.predict}
    return Fitted(arranged(dev, plan, held, run.view.take(test), last.proba), [*histories, last.history], seconds)


def fit_all(run: Crossfit, rows: NDArray[np.intp], test: NDArray[np.intp]) -> Fit:
    """Train on all images to learn from and keep the network; predict the test images."""
    return _fit(run, "all", rows, test, draw=0, total=0)


def _fit(run: Crossfit, name: str, rows: NDArray[np.intp], asked: NDArray[np.intp], *, draw: int, total: int) -> Fit:
    """Do one training, or read what it gave when it was done before."""
    path = run.folder / "fits" / f"{name}.safetensors"
    if found := _read(path, run.identity):
        return found
    start = time.perf_counter()
    watch = held_out(run.view.y[rows], run.view.groups[rows], k=WATCHED, seed=run.settings.seed)
    task = Task(run.inputs, run.view.y, rows[~watch], rows[watch], draw)
    network = run.make()
    if run.settings.probe:
        learner: Any = make_head("logistic", seed=run.settings.seed)
        learner.fit(run.view.X[task.rows], run.view.y[task.rows], run.view.groups[task.rows])
        start_from_probe(network, learner.coef_, learner.intercept_)
    label = f"fold {draw} of {total}" if draw else "all images"
    history = train(
        network,
        task,
        run.settings,
        device=run.device,
        checkpoint=path.with_suffix(".checkpoint"),
        identity=run.identity,
        tell=lambda epoch: run.tell(label, epoch),
        step=run.step,
    )
    seconds, middle = time.perf_counter() - start, time.perf_counter()
    proba = predict(network, run.inputs, asked, run.settings, device=run.device)
    fit = Fit(proba, history, seconds, time.perf_counter() - middle)
    if not draw:
        save_network(run.folder / NETWORK, named(network), {**run.about, "epoch": best_epoch(history) + 1})
    _write(path, run.identity, fit)
    return fit


def named(network: FinetunedNetwork) -> dict[str, Tensor]:
    """Return the tensors of the tail under torchvision's names, and those of the classifier."""
    tail = network.tail.state_dict()
    return {**tail, **{f"{CLASSIFIER}.{name}": tensor for name, tensor in network.classifier.state_dict().items()}}


def _write(path: Path, identity: str, fit: Fit) -> None:
    from safetensors.numpy import save

    values = {"history": [list(line) for line in fit.history], "seconds": fit.seconds, "predict": fit.predict}
    about = {"identity": identity, "values": json.dumps(values)}
    write_whole(path, [save({"proba": np.ascontiguousarray(fit.proba)}, metadata=about)])


def _read(path: Path, identity: str) -> Fit | None:
    """Return what `_write` wrote for the same identity; None without, for another one, or for a broken file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            about = file.metadata()
            if about["identity"] != identity:
                return None
            values = json.loads(about["values"])
            history = [Epoch(*line) for line in values["history"]]
            return Fit(file.get_tensor("proba"), history, values["seconds"], values["predict"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
