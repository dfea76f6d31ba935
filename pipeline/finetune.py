"""finetune: the last blocks of a backbone, trained from cached maps; a run beside those of the heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from features.backbones.build import load_backbone
from features.backbones.weights import thawed_root
from features.datasets import load_dataset
from features.devices import checked
from features.request import resolve
from features.views import View
from models.finetuning.checkpoints import load_network, save_network
from models.finetuning.cross_validation import CLASSIFIER, NETWORK, Fit, Fitted, crossfit, fit_all
from models.finetuning.settings import RECIPES, choose_settings
from models.finetuning.train import best_epoch
from models.runs.features import Ask, is_current
from models.runs.finetune import Thaw, Thawing
from models.runs.record import FINETUNED, save_run
from models.validation.cross_validation import FOLDS, choose_protocol, learned


def finetune(
    dataset: str,
    backbone: str,
    *,
    blocks: str = "1",
    recipe: str = "adamw",
    views: int = 1,
    flip: str = "none",
    labels: str = "classes",
    protocol: str = "split",
    seed: int = 0,
    features: Mapping[str, str] | None = None,
    **given: Any,
) -> list[str]:
    """Train the last blocks of each backbone under a protocol; return one line per run.

    `features` is what `resolve` takes besides (weights, preprocess, precision_, device_), `given` replaces settings of
    the recipe. A run that is there is not trained again; one that was interrupted goes on from its last epoch.
    """
    ask = Ask(dataset, labels, protocol, seed)
    wanted = asked_thaw(blocks, recipe, views, flip, seed, given)
    return [
        f"ready: finetuned on {done.stage.name} {done.described} {done.folder()}; backbone {write_backbone(done)}"
        for done in finetuned(ask, backbone, features or {}, wanted)
    ]


def asked_thaw(
    blocks: str, recipe: str, views: int, flip: str, seed: int, given: Mapping[str, Any]
) -> Callable[[str], Thaw]:
    """Return what makes a Thaw from a precision; raises for what makes no sense before anything is extracted."""

    def thaw(precision: str) -> Thaw:
        return Thaw(blocks, choose_settings(recipe, precision=precision, seed=seed, **given), views, flip)

    thaw("float32")
    return thaw


def finetuned(ask: Ask, backbone: str, features: Mapping[str, str], thaw: Callable[[str], Thaw]) -> Iterator[Thawing]:
    """Yield each backbone of a data set with its run trained and saved, unless it is there already."""
    rules = choose_protocol(ask.protocol)
    for thawing in _thawings(ask, backbone, features, thaw):
        if not is_current(thawing.folder(), thawing.identity()):
            with thawing.crossfit(rules.repeats * FOLDS + 1) as run:
                _save(thawing, crossfit(run, rules))
        yield thawing


def thawed_once(
    ask: Ask, backbone: str, features: Mapping[str, str], thaw: Callable[[str], Thaw]
) -> tuple[Thawing, Fit, View]:
    """Thaw one backbone on all images to learn from, without folds; return what it says of the test images too."""
    (thawing,) = _thawings(ask, backbone, features, thaw)
    train = learned(thawing.view.splits, choose_protocol(ask.protocol))
    with thawing.crossfit(1) as run:
        fit = fit_all(run, np.flatnonzero(train), np.flatnonzero(~train))
    return thawing, fit, thawing.view.take(~train)


def _thawings(ask: Ask, backbone: str, features: Mapping[str, str], thaw: Callable[[str], Thaw]) -> Iterator[Thawing]:
    """Yield the backbones of a data set, each ready to be thawed; `thaw` makes what was asked for from a precision."""
    images = load_dataset(ask.dataset, seed=ask.seed)
    for request in resolve(images, backbone, **features):
        checked(request.device)
        yield Thawing(request, ask, thaw(request.entry.key.precision))


def _save(thawing: Thawing, found: Fitted) -> None:
    """Save the run: predictions, facts, and the history of every training."""
    histories = [[list(map(_finite, epoch)) for epoch in history] for history in found.histories]
    trained = [epoch for history in found.histories for epoch in history]
    held = found.predictions.part(test=False)
    repeats = len(held.ids) // len(np.unique(held.ids))
    own = {
        "blocks": thawing.blocks,
        "asked_blocks": thawing.thaw.blocks,
        "pool": "avg",
        "view": thawing.described,
        "head": FINETUNED,
        "about": f"thawed {'+'.join(thawing.blocks)}: {RECIPES[thawing.thaw.settings.recipe].about}",
        "chosen": {"epochs": [best_epoch(history) + 1 for history in found.histories]},
        "folds": (int(found.predictions.fold.max()) + 1) // repeats,
        "repeats": repeats,
        "seconds": found.seconds,
        "features": int(thawing.view.X.shape[1]),
        "images_per_second": sum(e.images for e in trained) / sum(e.seconds for e in trained),
        "thaw": {"views": thawing.thaw.views, "flip": thawing.thaw.flip, **thawing.thaw.settings.as_dict()},
        "history": histories,
        "identity": thawing.identity(),
    }
    save_run(thawing.folder(), thawing.stage.facts(thawing.view) | own, found.predictions)


def _finite(value: float) -> float | None:
    """Return None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value


def write_backbone(thawing: Thawing) -> str:
    """Write the thawed network as a backbone of its own, for `BACKBONE=<name>@<data set>`; return that name."""
    recipe = thawing.request.recipe
    tensors, about = load_network(thawing.folder() / NETWORK)
    tail = {name: tensor for name, tensor in tensors.items() if not name.startswith(CLASSIFIER)}
    name = f"{recipe.name}@{thawing.request.dataset.name}"
    save_network(thawed_root() / f"{name}.safetensors", load_backbone(recipe).state_dict() | tail, about)
    return name
