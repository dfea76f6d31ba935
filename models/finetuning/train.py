"""One training of a fine-tuned network: epochs, early stopping by validation, weight averaging, and resuming."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from features.errors import FirnError
from models.finetuning.batches import Batch, Inputs, batches, epoch_plan, for_device, numbers
from models.finetuning.checkpoints import load_checkpoint, remove_checkpoint, save_checkpoint
from models.finetuning.network import Ensemble, FinetunedNetwork, arithmetic, parameter_groups, products, set_mode
from models.finetuning.settings import RECIPES, Settings
from models.heads.linear import probabilities
from models.metrics import METRICS

SATURATED = 0.995  # validation AUC: above, differences are noise, and the log loss says which epoch is better
_TRIED = 4  # steps that are timed beforehand, less the first


class Epoch(NamedTuple):
    """One line of a training's history."""

    epoch: int  # from 1
    loss: float  # mean over the training images
    roc_auc: float  # of the images held out for early stopping; NaN where a class is not among them
    watched_loss: float  # their log loss
    seconds: float
    images: int  # gone through in training


class Task(NamedTuple):
    """What one training works on."""

    inputs: Inputs
    y: NDArray[np.int64]  # (n,) for every row of the inputs
    rows: NDArray[np.intp]  # to learn from
    watched: NDArray[np.intp]  # held out for early stopping
    draw: int  # tells this training's random numbers from those of others of the same seed


class _State:
    """Everything that changes from step to step."""

    def __init__(self, network: FinetunedNetwork, settings: Settings) -> None:
        recipe = RECIPES[settings.recipe]
        self.network = network
        self.average = copy.deepcopy(network).requires_grad_(False) if settings.average == "ema" else None
        self._averaged, self._latest = _floats(self.average or network), _floats(network)
        self.optimiser = recipe.optimiser(parameter_groups(network, settings.decay, settings.last), settings.rate)
        self.best = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        self.history: list[Epoch] = []
        self.steps = 0

    @torch.no_grad()
    def follow(self, keep: float) -> None:
        """Move averaged weights and statistics, if any, towards the network's (exponential moving average)."""
        if self.average:
            torch._foreach_lerp_(self._averaged, self._latest, 1 - keep)

    @property
    def judged(self) -> FinetunedNetwork:
        """Return the network that is evaluated and kept."""
        return self.average or self.network

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """Return all tensors by part; those of the optimiser as "<parameter>.<name>"."""
        moments = {
            f"{i}.{name}": value
            for i, state in self.optimiser.state_dict()["state"].items()
            for name, value in state.items()
            if isinstance(value, Tensor)
        }
        average = self.average.state_dict() if self.average else {}
        return {"network": self.network.state_dict(), "average": average, "best": self.best, "optimiser": moments}

    def restore(self, parts: dict[str, dict[str, Tensor]], values: dict[str, Any]) -> None:
        """Take over what `parts` and the values beside it were."""
        self.network.load_state_dict(parts["network"])
        if self.average:
            self.average.load_state_dict(parts["average"])
        self.best, self.steps = parts["best"], values["steps"]
        self.history = [Epoch(*line) for line in values["history"]]
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["optimiser"].items():
            number, _, moment = name.partition(".")
            like = parameters[int(number)]
            if tensor.shape == like.shape:  # in the parameter's memory format: a fused optimiser goes by memory
                tensor = torch.empty_like(like).copy_(tensor)
            moments.setdefault(int(number), {})[moment] = tensor
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": moments, "param_groups": groups})


def train(
    network: FinetunedNetwork,
    task: Task,
    settings: Settings,
    *,
    device: str = "cpu",
    checkpoint: Path | None = None,
    identity: str = "",
    tell: Callable[[Epoch], None] = lambda epoch: None,
    step: Callable[[int, int], None] = lambda done, total: None,
) -> list[Epoch]:
    """Train `network` in place; it ends with the weights of the best epoch (see `best_epoch`).

    `checkpoint` is written after each epoch and taken up where it has the same `identity`; on a CPU the result is bit
    for bit that of an undisturbed training. `step` is told how many batches are done, and of how many at most. Raises
    FirnError where the loss is not finite any more.
    """
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    state = _State(network, settings)
    if checkpoint and (found := load_checkpoint(checkpoint, identity)):
        state.restore(*found)
        for line in state.history:
            tell(line)
    while not _over(state.history, settings):
        epoch = _epoch(state, task, settings, device, step)
        state.history.append(epoch)
        if best_epoch(state.history) == len(state.history) - 1:
            state.best = {name: tensor.clone() for name, tensor in state.judged.state_dict().items()}
        if checkpoint:
            values = {"steps": state.steps, "history": [list(line) for line in state.history]}
            save_checkpoint(checkpoint, identity, state.parts(), values)
        tell(epoch)
    network.load_state_dict(state.best)
    set_mode(network, training=False, norm=settings.norm)
    if checkpoint:
        remove_checkpoint(checkpoint)
    return state.history


def _floats(network: FinetunedNetwork) -> list[Tensor]:
    """Return the tensors of a network that can be averaged; they share its memory."""
    return [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]


def _over(history: Sequence[Epoch], settings: Settings) -> bool:
    if len(history) >= settings.epochs:
        return True
    return bool(history) and len(history) - 1 - best_epoch(history) >= settings.patience


def best_epoch(history: Sequence[Epoch]) -> int:
    """Return the place of the epoch of highest AUC; of equals, above SATURATED and without any AUC, of least loss."""

    def key(i: int) -> tuple[float, float]:
        area = history[i].roc_auc
        return (-math.inf if math.isnan(area) else min(area, SATURATED), -history[i].watched_loss)

    return max(range(len(history)), key=key)


def _epoch(state: _State, task: Task, settings: Settings, device: str, step: Callable[[int, int], None]) -> Epoch:
    """Go once through the training images, then evaluate."""
    number, start = len(state.history), time.perf_counter()
    plan = _plan(state.network, task, settings, number)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for done, loss in enumerate(_steps(state, task, settings, plan, device)):
        total += loss.detach().double() * len(plan[done].rows)
        step(number * len(plan) + done + 1, settings.epochs * len(plan))
    mean = float(total) / len(task.rows)
    logits = predict_logits(state.judged, task.inputs, task.watched, settings, device=device)
    if not math.isfinite(mean) or not np.isfinite(logits).all():  # what the last step did is in the logits alone
        what = "loss is" if not math.isfinite(mean) else "logits are"
        lower = min(settings.rate / 10, RECIPES[settings.recipe].rate)
        raise FirnError(f"the {what} not finite any more in epoch {number + 1}; run again with RATE={lower:g}")
    proba, y = probabilities(logits), task.y[task.watched]
    watched_loss = float(-np.log(np.clip(proba[np.arange(len(y)), y], 1e-15, None)).mean())
    area = METRICS["roc_auc"](y, proba)
    return Epoch(number + 1, mean, float(area), watched_loss, time.perf_counter() - start, len(task.rows))


def _plan(network: FinetunedNetwork, task: Task, settings: Settings, epoch: int) -> list[Batch]:
    """Return the batches of an epoch (from 0); dropout is of cached maps' own channels, of images' pooled features."""
    inputs, drawn = task.inputs, None
    if inputs.pixels and settings.varied:
        drawn = numbers(len(inputs.ids), seed=settings.seed, training=task.draw, epoch=epoch)
    of_maps = not inputs.pixels
    return epoch_plan(
        task.rows,
        batch=settings.batch,
        views=inputs.views,
        channels=inputs.shape[0] if of_maps else network.classifier.in_features,
        mixup=settings.mixup,
        dropout=settings.dropout,
        rng=np.random.default_rng([settings.seed, task.draw, epoch]),
        drawn=drawn,
    )


def _steps(state: _State, task: Task, settings: Settings, plan: Sequence[Batch], device: str) -> Generator[Tensor]:
    """Take a step of the optimiser for each batch; yield its mean loss."""
    set_mode(state.network, training=True, norm=settings.norm)
    weights = _class_weights(task.y[task.rows], int(task.y.max()) + 1, settings.class_weights).to(device)
    keep, number = settings.keep or math.exp(-2 / len(plan)), len(state.history)
    for done, (batch, rows) in enumerate(batches(task.inputs, plan, device)):
        rate = settings.rate * RECIPES[settings.recipe].multiplier(number + done / len(plan), settings.epochs)
        for group in state.optimiser.param_groups:
            group["lr"] = rate * group["scale"]
        loss = _loss(state.network, task, batch, rows, weights, settings, device)
        state.optimiser.zero_grad(set_to_none=True)
        with products(settings.precision, device):
            loss.backward()  # type: ignore[no-untyped-call]
        state.optimiser.step()
        state.steps += 1
        state.follow(min(keep, (1 + state.steps) / (10 + state.steps)))
        yield loss


def _loss(
    network: FinetunedNetwork,
    task: Task,
    batch: Batch,
    rows: Tensor,
    weights: Tensor,
    settings: Settings,
    device: str,
) -> Tensor:
    """Return the mean loss of a batch, whose images are varied, mixed and robbed of channels as it says."""
    X, y = _entered(task.inputs, batch, rows, settings, device), _sent(task.y[batch.rows], device)
    partner = None if batch.partner is None else _sent(batch.partner, device)
    kept = None if batch.kept is None else _sent(batch.kept, device)
    if kept is not None and not task.inputs.pixels:
        X = X * (kept / kept.float().mean(1, keepdim=True).clamp_min(1e-3))[..., None, None].to(X.dtype)
        kept = None
    if partner is not None:
        X = torch.lerp(X[partner], X, batch.mixed)
    with arithmetic(settings.precision, device):
        logits = network(X, None if kept is None else kept / (1 - settings.dropout))
    loss = cross_entropy(logits, y, weight=weights)
    if partner is not None:
        loss = batch.mixed * loss + (1 - batch.mixed) * cross_entropy(logits, y[partner], weight=weights)
    return loss


def _entered(inputs: Inputs, batch: Batch, rows: Tensor, settings: Settings, device: str) -> Tensor:
    """Return rows as the network takes them, float32 on the device, channels last; images are varied there."""
    tensor = rows.to(device, non_blocking=True)
    if not inputs.pixels:
        return tensor.float().contiguous(memory_format=torch.channels_last)
    drawn = None if batch.drawn is None else _sent(batch.drawn, device)
    return inputs.pixels(tensor, drawn, settings.augment, settings.flip)


def _sent(array: NDArray[Any], device: str) -> Tensor:
    """Return an array on the device; a GPU gets it while it still works on what came before."""
    return for_device(array, device).to(device, non_blocking=True)


def trained_per_second(network: FinetunedNetwork, task: Task, settings: Settings, *, device: str = "cpu") -> float:
    """Return how many images a second a training goes through on this machine, by a few steps of a copy."""
    state = _State(copy.deepcopy(network).to(device=device, memory_format=torch.channels_last), settings)  # type: ignore[call-overload]
    plan = _plan(state.network, task, settings, 0)[:_TRIED]
    steps, images, seconds = _steps(state, task, settings, plan, device), 0, 0.0
    for done, batch in enumerate(plan):
        start = time.perf_counter()
        next(steps).item()  # waits for the device
        if done or len(plan) == 1:  # the first step finds kernels and memory
            images, seconds = images + len(batch.rows), seconds + time.perf_counter() - start
    steps.close()
    return images / seconds


def _class_weights(y: NDArray[np.int64], k: int, how: str) -> Tensor:
    """Return a weight for each class, (K,): 1, or inversely proportional to its images."""
    if how == "none":
        return torch.ones(k)
    counts = np.maximum(np.bincount(y, minlength=k), 1)
    return torch.tensor(len(y) / (k * counts), dtype=torch.float32)


def predict(
    network: FinetunedNetwork, inputs: Inputs, rows: NDArray[np.intp], settings: Settings, *, device: str = "cpu"
) -> NDArray[np.float64]:
    """Return the probabilities of the first view of images `rows`, (len(rows), K)."""
    return probabilities(predict_logits(network, inputs, rows, settings, device=device))


@torch.inference_mode()
def predict_logits(
    network: FinetunedNetwork, inputs: Inputs, rows: NDArray[np.intp], settings: Settings, *, device: str = "cpu"
) -> NDArray[np.float64]:
    """Return the logits of the first view of images `rows`, (len(rows), K), the mean with their mirror images'."""
    set_mode(network, training=False, norm=settings.norm)
    judged = Ensemble([network], mirrored=settings.mirrored and inputs.pixels is not None)
    pieces = [rows[i : i + 2 * settings.batch] for i in range(0, len(rows), 2 * settings.batch)]
    plan = (Batch(piece, np.zeros(len(piece), np.intp)) for piece in pieces)
    logits = [torch.empty((0, network.classifier.out_features), dtype=torch.float64, device=device)]
    for batch, read in batches(inputs, plan, device):
        X = _entered(inputs, batch, read, settings, device)
        with arithmetic(settings.precision, device):
            logits.append(judged(X).double())  # stays there: a GPU is not waited for at each batch
    found: NDArray[np.float64] = torch.cat(logits).cpu().numpy()
    return found
