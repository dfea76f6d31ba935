"""The table RECIPES: how a thawed network is trained; and the settings of one training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from features.errors import FirnError, unknown

if TYPE_CHECKING:
    import torch

NORMS = {
    "frozen": "batch normalisation keeps the statistics of the pretraining",
    "adapt": "batch normalisation takes the statistics of each batch and learns new ones",
}
CLASS_WEIGHTS = ("none", "balanced")
AVERAGES = ("none", "ema")  # an exponential moving average of the weights


@dataclass(frozen=True)
class TrainingRecipe:
    """One row of RECIPES."""

    about: str
    optimiser: Callable[[Sequence[Mapping[str, Any]], float], torch.optim.Optimizer]  # parameter groups, rate
    multiplier: Callable[[float, int], float]  # (epochs done, of how many) -> what the rate is multiplied by
    rate: float
    decay: float
    epochs: int
    patience: int  # epochs without a better validation AUC before training ends
    probe: bool  # start from the linear probe of the frozen features
    average: str  # one of AVERAGES
    mixup: float  # of the boundary's maps, the parameter of the Beta distribution
    dropout: float  # share of the boundary's channels that an image loses


def _adamw(groups: Sequence[Mapping[str, Any]], rate: float) -> torch.optim.Optimizer:
    import torch

    return torch.optim.AdamW([dict(group) for group in groups], lr=rate, fused=True)


def _sgd(groups: Sequence[Mapping[str, Any]], rate: float) -> torch.optim.Optimizer:
    import torch

    return torch.optim.SGD([dict(group) for group in groups], lr=rate, momentum=0.9)


def _cosine(epoch: float, epochs: int) -> float:
    """Rise linearly through the first tenth (Goyal et al. 2017), then fall as a cosine to zero."""
    warm = max(1.0, epochs / 10) if epochs > 1 else 0.0
    if epoch < warm:
        return max(epoch / warm, 0.01)
    return 0.5 * (1 + math.cos(math.pi * (epoch - warm) / max(epochs - warm, 1e-9)))


def _steps(epoch: float, epochs: int) -> float:
    """Fall to a tenth every ten epochs, as StepLR(10, 0.1) does."""
    return float(0.1 ** (int(epoch) // 10))


RECIPES: dict[str, TrainingRecipe] = {
    # Beginning from the linear probe keeps the pretrained features from being distorted while the classifier is still
    # random (Kumar et al. 2022, arXiv:2202.10054).
    "adamw": TrainingRecipe(
        "AdamW, cosine decay after a warm-up, from the linear probe, moving average of the weights",
        _adamw,
        _cosine,
        rate=2e-4,
        decay=0.05,
        epochs=8,
        patience=3,
        probe=True,
        average="ema",
        mixup=0.2,
        dropout=0.1,
    ),
    "article": TrainingRecipe(
        "SGD 0.9, StepLR(10, 0.1), from a random classifier: the seed article's recipe",
        _sgd,
        _steps,
        rate=0.01,
        decay=0.0,
        epochs=100,
        patience=15,
        probe=False,
        average="none",
        mixup=0.0,
        dropout=0.0,
    ),
}


@dataclass(frozen=True)
class Settings:
    """Everything that changes what a training gives, besides the data."""

    recipe: str = "adamw"  # a row of RECIPES
    rate: float = 2e-4
    decay: float = 0.05
    epochs: int = 8
    patience: int = 3
    probe: bool = True
    average: str = "ema"  # one of AVERAGES
    mixup: float = 0.2
    dropout: float = 0.1
    batch: int = 64
    norm: str = "frozen"  # a row of NORMS
    class_weights: str = "none"  # one of CLASS_WEIGHTS
    precision: str = "float32"
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return the settings ready for JSON."""
        return asdict(self)


def choose_settings(recipe: str, **given: Any) -> Settings:
    """Return the settings of a recipe, with those of `given` that are not None in place of the recipe's own.

    Raises UnknownName for names that are in no table, FirnError for numbers that make no sense.
    """
    tables = {"norm": NORMS, "class_weights": CLASS_WEIGHTS, "average": AVERAGES}
    for what, name, table in [("recipe", recipe, RECIPES), *((w, given.get(w), t) for w, t in tables.items())]:
        if name is not None and name not in table:
            raise unknown(what.replace("_", " "), name, table)
    row = RECIPES[recipe]
    own = {name: getattr(row, name) for name in Settings.__dataclass_fields__ if hasattr(row, name)}
    settings = replace(Settings(recipe), **own | {name: value for name, value in given.items() if value is not None})
    if settings.epochs < 1 or settings.batch < 2 or not settings.rate > 0:
        raise FirnError(
            f"expected 1 epoch, 2 images a batch and a rate above 0 at least, got EPOCHS={settings.epochs}, "
            f"BATCH_SIZE={settings.batch}, RATE={settings.rate:g}"
        )
    if not 0 <= settings.dropout < 1 or settings.mixup < 0:
        raise FirnError(f"expected 0 <= DROPOUT < 1 and MIXUP >= 0, got {settings.dropout:g} and {settings.mixup:g}")
    return settings
