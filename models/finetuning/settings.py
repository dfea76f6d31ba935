"""The table RECIPES: how a fine-tuned network is trained; and the settings of one training."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from features.errors import FirnError, unknown
from features.options import option

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


FLIPS = {"none": {}, "mirror": {"flip": True}, "any": {"flip": True, "turns": True}}


@dataclass(frozen=True)
class FinetuneOptions:
    """What is fine-tuned, and how; None and empty leave the choice to the recipe."""

    blocks: str = option("1", "What is trained: a number of last blocks, names, a module, or all.")
    recipe: str = option("adamw", "adamw (cosine decay), or article (SGD 0.9 with StepLR(10, 0.1)).")
    views: int = option(1, "Cached views per image (shift, turn, zoom, brightness), one an epoch.")
    flip: str = option("none", "none, mirror (left and right), any (quarter turns too): in the views.")
    epochs: int | None = option(None, "Most epochs; the recipe's own without.")
    rate: float | None = option(None, "Learning rate; the recipe's own without.")
    batch_size: int | None = option(None, "Images per step; 64 without.")
    norm: str | None = option(None, "Batch normalisation: frozen, or adapt (to the new images).")
    mixup: float | None = option(None, "Mixup of cached maps, the Beta parameter; 0 is none.")
    dropout: float | None = option(None, "Share of the maps' channels that an image loses.")
    class_weights: str | None = option(None, "none or balanced.")
    average: str | None = option(None, "none, or ema: a moving average of the weights is what is kept.")

    def __post_init__(self) -> None:
        """Raise UnknownName for names that are in no table, FirnError for numbers that make no sense."""
        tables: dict[str, Collection[str]] = {"recipe": RECIPES, "flip": FLIPS, "norm": NORMS}
        tables |= {"class_weights": CLASS_WEIGHTS, "average": AVERAGES}
        for name, table in tables.items():
            if (value := getattr(self, name)) is not None and value not in table:
                raise unknown(name.replace("_", " "), value, table)
        if self.views < 1:
            raise FirnError(f"expected VIEWS=1 or more, got {self.views}")
        if self.flip != "none" and self.views == 1:
            raise FirnError(f"FLIP={self.flip} needs views to show it in; add VIEWS=4")
        _check(self.settings(precision="float32", seed=0))

    def settings(self, *, precision: str, seed: int) -> Settings:
        """Return the settings of the recipe, with what was asked for in place of the recipe's own."""
        row = RECIPES[self.recipe]
        own = {name: getattr(row, name) for name in Settings.__dataclass_fields__ if hasattr(row, name)}
        names = ("epochs", "rate", "norm", "mixup", "dropout", "class_weights", "average")
        asked = {name: getattr(self, name) for name in names} | {"batch": self.batch_size}
        given = {name: value for name, value in asked.items() if value is not None}
        return replace(Settings(self.recipe, precision=precision, seed=seed), **own | given)

    def described(self, blocks: Sequence[str], settings: Settings) -> str:
        """Return what is special about a run, in words: the blocks, the views, whatever is not the recipe's own."""
        row = RECIPES[self.recipe]
        usual = {name: getattr(row, name, default) for name, default in Settings().as_dict().items()}
        kept = ("recipe", "seed", "precision")  # named otherwise, or in the cache key
        changed = {n: v for n, v in settings.as_dict().items() if n not in kept and v != usual[n]}
        words = [
            "+".join(blocks),
            *([self.recipe] if self.recipe != Settings().recipe else []),
            *([f"{self.views} views"] if self.views > 1 else []),
            *([f"flip {self.flip}"] if self.flip != "none" else []),
            *(f"{name.replace('_', ' ')} {value}" for name, value in changed.items()),
        ]
        return ", ".join(words)


def _check(settings: Settings) -> None:
    """Raise FirnError for numbers that make no sense."""
    if settings.epochs < 1 or settings.batch < 2 or not settings.rate > 0:
        raise FirnError(
            f"expected 1 epoch, 2 images a batch and a rate above 0 at least, got EPOCHS={settings.epochs}, "
            f"BATCH_SIZE={settings.batch}, RATE={settings.rate:g}"
        )
    if not 0 <= settings.dropout < 1 or settings.mixup < 0:
        raise FirnError(f"expected 0 <= DROPOUT < 1 and MIXUP >= 0, got {settings.dropout:g} and {settings.mixup:g}")
