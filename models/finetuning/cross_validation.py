"""Out-of-fold and test predictions of fine-tuned networks: one training per fold, or per run, or one on all images."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from features.backbones import BackboneSpec
from features.backbones.build import load_tail
from features.errors import BadDataset
from features.storage import make_folder, write_whole
from features.views import View
from models.finetuning.batches import Inputs
from models.finetuning.checkpoints import is_network, load_network, save_network
from models.finetuning.network import Ensemble, FinetunedNetwork, start_from_probe
from models.finetuning.settings import Settings, first_folds
from models.finetuning.train import Epoch, Task, best_epoch, predict_logits, train, trained_per_second
from models.folds import held_out
from models.heads import make_head
from models.heads.linear import probabilities
from models.validation.cross_validation import Protocol, arranged, folds_of, learned
from models.validation.predictions import Predictions

NETWORK = "network.safetensors"  # in the folder of a run; of several the first, the others are numbered from 2
_NUMBERED = re.compile(rf"{NETWORK.partition('.')[0]}(-\d+)?\.safetensors")
CLASSIFIER = "firn.classifier"  # under which name the classifier's tensors are there
WATCHED = 10  # one of so many groups of the images to learn from is held out for early stopping


@dataclass
class Left:
    """What is still to be done."""

    trainings: int = 0  # the one under way among them
    at_first: int = 0

    def batches(self, done: int, total: int) -> tuple[int, int]:
        """Return how many batches of all trainings are done, and of how many, from those of the one under way."""
        return (self.at_first - self.trainings) * total + done, self.at_first * total


@dataclass(frozen=True)
class Crossfit:
    """What all trainings of one run have in common."""

    view: View  # pooled features of the last block, for the probe; labels, groups and splits of every image
    inputs: Inputs  # rows in the order of the view
    make: Callable[[], FinetunedNetwork]  # a new network with the pretrained weights
    settings: Settings
    seed: int  # of the folds; that of a training is in its settings
    networks: str  # a row of NETWORKS, or of how many folds
    device: str
    folder: Path  # of the run
    fits: Path  # where trainings are kept, which runs of other `networks` share
    identity: str  # digest of all that a training depends on
    about: Mapping[str, Any]  # the configuration, kept with the network
    tell: Callable[[str, Epoch, float], None]  # which training, its epoch, seconds left in all
    step: Callable[[int, int], None]  # batches done of all trainings, of how many at most
    expect: Callable[[int, float], None]  # trainings to do, images a second
    left: Left = field(default_factory=Left)


class Fit(NamedTuple):
    """One training: what it says of images, and how it went."""

    logits: NDArray[np.float64]  # (m, K) for the images asked for
    history: list[Epoch]
    seconds: float
    predict: float  # seconds

    @property
    def proba(self) -> NDArray[np.float64]:
        """Return the probabilities, (m, K)."""
        return probabilities(self.logits)


class Fitted(NamedTuple):
    """All trainings of a run."""

    predictions: Predictions
    histories: list[list[Epoch]]  # of each fold, then of the training on all where there is one
    seconds: dict[str, float]  # oof, fit, predict
    names: list[str]  # of the trainings whose networks are the run


def crossfit(run: Crossfit, protocol: Protocol) -> Fitted:
    """Train for every fold, and once on all or for the first folds alone where `run.networks` says so.

    Folds are those of the heads. Early stopping looks at a tenth of the groups inside the images that a training
    learns from, never at the fold that it predicts. Test images are predicted by the mean of the logits of the first
    repeat's networks, or by the one network. A training that is done is not done again. Raises BadDataset where a
    class cannot be held out, or where networks of some folds alone have no test images to be compared on.
    """
    learns = learned(run.view.splits, protocol)
    rows, test = np.flatnonzero(learns), np.flatnonzero(~learns)
    dev, tested = run.view.take(rows), run.view.take(test)
    plan = _plan(run, dev, protocol, len(test))
    names = [[_name(fold) for fold in _numbers(folds)] for folds in plan]
    _prepare(run, [*(name for some in names for name in some), *(["all"] if run.networks == "all" else [])], rows)
    total = int(plan[-1].max()) + 1
    fits = [[_fit_fold(run, rows, folds == fold, test, fold, total) for fold in _numbers(folds)] for folds in plan]
    whole = [fit_all(run, rows, test)] if run.networks == "all" else []
    every, judged = [fit for some in fits for fit in some], whole or fits[0]
    votes = np.mean([fit.logits[len(fit.logits) - len(test) :] for fit in judged], axis=0)
    seconds = {"oof": sum(f.seconds for f in every), "fit": sum(f.seconds for f in whole)}
    seconds |= {"predict": sum(f.predict for f in judged)}
    found = arranged(*_held(dev, plan, fits), tested, probabilities(votes))
    return Fitted(found, [fit.history for fit in (*every, *whole)], seconds, ["all"] if whole else names[0])


def _plan(run: Crossfit, dev: View, protocol: Protocol, test: int) -> list[NDArray[np.int64]]:
    """Return the fold of each row in each repeat; -1 where only the first folds have a network, and it is of others."""
    plan, first = folds_of(dev.y, dev.groups, protocol, seed=run.seed), first_folds(run.networks)
    if not first:
        return plan
    if not test:
        raise BadDataset(f"NETWORKS={run.networks} is compared on test images, and there are none; take NETWORKS=mean")
    if first > (last := int(plan[0].max())):
        raise BadDataset(f"NETWORKS={run.networks} of {last + 1} folds is NETWORKS=mean; take that, or {last} at most")
    return [np.where(plan[0] < first, plan[0], -1)]


def _held(
    dev: View, plan: Sequence[NDArray[np.int64]], fits: Sequence[Sequence[Fit]]
) -> tuple[View, list[NDArray[np.int64]], NDArray[np.float64]]:
    """Return the rows that are held out in some training, their folds, and what is said of them."""
    held = np.zeros((len(plan), len(dev.y), fits[0][0].logits.shape[1]))
    for repeat, (folds, some) in enumerate(zip(plan, fits, strict=True)):
        for fold, fit in zip(_numbers(folds), some, strict=True):
            held[repeat, folds == fold] = fit.proba[: (folds == fold).sum()]
    shown = plan[0] >= 0
    return dev.take(shown), [folds[shown] for folds in plan], held[:, shown]


def _fit_fold(
    run: Crossfit, rows: NDArray[np.intp], own: NDArray[np.bool_], test: NDArray[np.intp], fold: int, total: int
) -> Fit:
    """Train on all rows but a fold's own; predict those, then the test images."""
    asked = np.concatenate([rows[own], test])
    return _fit(run, _name(fold), rows[~own], asked, draw=fold + 1, total=total)


def _numbers(folds: NDArray[np.int64]) -> list[int]:
    return [int(fold) for fold in np.unique(folds) if fold >= 0]


def _name(fold: int) -> str:
    return f"fold-{fold}"


def _prepare(run: Crossfit, names: Sequence[str], rows: NDArray[np.intp]) -> None:
    """Count the trainings that are to be done, and say beforehand how fast they will be."""
    todo = [name for name in names if _read(run, name) is None]
    run.left.trainings = run.left.at_first = len(todo)
    if todo:
        task = Task(run.inputs, run.view.y, rows, rows[:1], 0)
        run.expect(len(todo), trained_per_second(run.make(), task, run.settings, device=run.device))


def fit_all(run: Crossfit, rows: NDArray[np.intp], test: NDArray[np.intp]) -> Fit:
    """Train on all images to learn from; predict the test images."""
    return _fit(run, "all", rows, test, draw=0, total=0)


def fit_once(run: Crossfit, rows: NDArray[np.intp], test: NDArray[np.intp]) -> Fit:
    """Train on all images to learn from, without folds, and keep the network in the folder of the run."""
    _prepare(run, ["all"], rows)
    fit = fit_all(run, rows, test)
    keep_networks(run, ["all"])
    return fit


def _fit(run: Crossfit, name: str, rows: NDArray[np.intp], asked: NDArray[np.intp], *, draw: int, total: int) -> Fit:
    """Do one training, or read what it gave when it was done before."""
    if found := _read(run, name):
        return found
    start = time.perf_counter()
    watch = held_out(run.view.y[rows], run.view.groups[rows], k=WATCHED, seed=run.settings.seed)
    task = Task(run.inputs, run.view.y, rows[~watch], rows[watch], draw)
    network = run.make()
    if run.settings.probe:
        learner: Any = make_head("logistic", seed=run.settings.seed, device=run.device)
        learner.fit(run.view.X[task.rows], run.view.y[task.rows], run.view.groups[task.rows])
        start_from_probe(network, learner.coef_, learner.intercept_)
    label = f"fold {draw} of {total}" if draw else "all images"
    history = train(
        network,
        task,
        run.settings,
        device=run.device,
        checkpoint=run.fits / f"{name}.checkpoint",
        identity=run.identity,
        tell=lambda epoch: run.tell(label, epoch, _seconds_left(run, epoch)),
        step=lambda done, total: run.step(*run.left.batches(done, total)),
    )
    seconds, middle = time.perf_counter() - start, time.perf_counter()
    logits = predict_logits(network, run.inputs, asked, run.settings, device=run.device)
    fit = Fit(logits, history, seconds, time.perf_counter() - middle)
    save_network(_network(run, name), named(network), {**run.about, "epoch": best_epoch(history) + 1})
    _write(run, name, fit)
    run.left.trainings -= 1
    return fit


def _seconds_left(run: Crossfit, epoch: Epoch) -> float:
    """Return how long it takes at most, if all epochs are like the last one and no training ends early."""
    return epoch.seconds * (run.left.trainings * run.settings.epochs - epoch.epoch)


def _network(run: Crossfit, name: str) -> Path:
    return run.fits / f"{name}-{NETWORK}"


def keep_networks(run: Crossfit, names: Sequence[str]) -> None:
    """Put the networks of some trainings into the folder of the run, and no other ones."""
    make_folder(run.folder)
    for path in network_files(run.folder):
        path.unlink()
    for number, name in enumerate(names, start=1):
        _link(_network(run, name), _numbered(run.folder, number))


def _link(path: Path, target: Path) -> None:
    """Give a file a second name; on a disk that has no links copy it."""
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        beside.unlink()
    try:
        os.link(path, beside)
    except OSError:
        shutil.copyfile(path, beside)
    os.replace(beside, target)


def _numbered(folder: Path, number: int) -> Path:
    return folder / (NETWORK if number == 1 else NETWORK.replace(".", f"-{number}."))


def network_files(folder: Path, count: int = 0) -> list[Path]:
    """Return the files of a run's networks in their order: `count`, missing ones too, or those that are there."""
    if count:
        return [_numbered(folder, number) for number in range(1, count + 1)]
    there = [path for path in folder.glob(NETWORK.replace(".", "*.")) if _NUMBERED.fullmatch(path.name)]
    return sorted(there, key=lambda path: int(re.sub(r"\D", "", path.name) or 1))


def load_ensemble(folder: Path, spec: BackboneSpec, count: int = 0) -> tuple[Ensemble, dict[str, Any]]:
    """Return the networks of a run as one, in eval mode, and their configuration.

    OSError and SafetensorError pass through; FileNotFoundError where there is none, or not one of `count`.
    """
    networks: list[FinetunedNetwork] = []
    about: dict[str, Any] = {}
    for path in network_files(folder, count) or [folder / NETWORK]:
        tensors, about = load_network(path)
        classes, width = tensors[f"{CLASSIFIER}.weight"].shape
        network = FinetunedNetwork(load_tail(spec, about["after"]), width, classes)
        network.classifier.load_state_dict({name: tensors.pop(f"{CLASSIFIER}.{name}") for name in ("weight", "bias")})
        network.tail.load_state_dict(tensors)
        networks.append(network)
    return Ensemble(networks, mirrored=is_mirrored(about)).eval(), about


def is_mirrored(about: Mapping[str, Any]) -> bool:
    """Tell from a network's configuration whether images are judged together with their mirror images."""
    return bool(about["settings"].get("flip", "none") != "none")


def named(network: FinetunedNetwork) -> dict[str, Tensor]:
    """Return the tensors of the tail under torchvision's names, and those of the classifier."""
    tail = network.tail.state_dict()
    return {**tail, **{f"{CLASSIFIER}.{name}": tensor for name, tensor in network.classifier.state_dict().items()}}


def _write(run: Crossfit, name: str, fit: Fit) -> None:
    from safetensors.numpy import save

    values = {"history": [list(line) for line in fit.history], "seconds": fit.seconds, "predict": fit.predict}
    about = {"identity": run.identity, "values": json.dumps(values)}
    logits = {"logits": np.ascontiguousarray(fit.logits)}
    write_whole(run.fits / f"{name}.safetensors", [save(logits, metadata=about)])


def _read(run: Crossfit, name: str) -> Fit | None:
    """Return what `_write` wrote for the same identity; None without, for another one, or for a broken file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(run.fits / f"{name}.safetensors", "numpy") as file:
            about = file.metadata()
            if about["identity"] != run.identity or not is_network(_network(run, name)):
                return None
            values = json.loads(about["values"])
            history = [Epoch(*line) for line in values["history"]]
            return Fit(file.get_tensor("logits"), history, values["seconds"], values["predict"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
