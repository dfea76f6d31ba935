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
FLIPS = {"none": {}, "mirror": {"flip": True}, "any": {"flip": True, "turns": True}}
NETWORKS = {
    "mean": "a network for each fold; the mean of their logits is the run",
    "all": "a network for each fold, which validates, and one on all images, which is the run",
    "one": "one network, trained on four of the five folds and validated on the fifth",
    "2": "the networks of the first two folds, validated on these; 3, 4, ... likewise",
}


def first_folds(networks: str) -> int:
    """Return of how many folds, from the first on, `NETWORKS=` wants a network; 0 for all."""
    return int(networks) if networks.isdecimal() else int(networks == "one")


@dataclass(frozen=True)
class Amplitudes:
    """One row of AUGMENTATIONS: how far an image is varied at most; each image draws its own, anew in every epoch."""

    degrees: float = 0.0  # turned, either way
    scale: float = 0.0  # enlarged or shrunk, share of the side
    shift: float = 0.0  # in each direction, share of the side
    brightness: float = 0.0  # added, share of the whole scale
    contrast: float = 0.0  # stretched about the image's mean, share
    gamma: float = 0.0  # logarithm of the exponent


AUGMENTATIONS = {
    "none": Amplitudes(),
    "shape": Amplitudes(degrees=10, scale=0.1, shift=0.05),
    "strong": Amplitudes(degrees=10, scale=0.1, shift=0.05, brightness=0.15, contrast=0.25, gamma=0.25),
}


@dataclass(frozen=True)
class TrainingRecipe:
    """One row of RECIPES."""

    about: str
    optimiser: Callable[[Sequence[Mapping[str, Any]], float], torch.optim.Optimizer]  # parameter groups, rate
    multiplier: Callable[[float, int], float]  # (epochs done, of how many) -> what the rate is multiplied by
    rate: float
    decay: float
    epochs: int
    patience: int  # epochs without a better validation before training ends
    probe: bool  # start from the linear probe of the frozen features
    average: str  # one of AVERAGES
    mixup: float  # of what comes in, the parameter of the Beta distribution
    dropout: float  # share of channels that an image loses: of cached maps, of images' last mean
    batch: int = 64
    augment: str = "none"  # a row of AUGMENTATIONS
    flip: str = "none"  # a row of FLIPS: of images, not of cached maps
    keep: float = 0.0  # share of the average that a step keeps; 0 is what forgets half in a third of an epoch
    last: float = 1.0  # what the rate of the classifier is multiplied by


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


def _one_cycle(epoch: float, epochs: int) -> float:
    """Rise as a cosine from 1/25 through 0.3 of the training, then fall to 1/250,000 (Smith 2018), as OneCycleLR."""
    done, risen = epoch / epochs, 0.3
    low, high, at = (0.04, 1.0, done / risen) if done < risen else (1.0, 4e-6, (done - risen) / (1 - risen))
    return high + (low - high) * 0.5 * (1 + math.cos(math.pi * at))


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
    "strong": TrainingRecipe(
        "AdamW, one cycle, images turned, scaled, shifted, mirrored and lit anew in every epoch, moving average of the "
        "weights, mirror images averaged",
        _adamw,
        _one_cycle,
        rate=3e-4,
        decay=0.01,
        epochs=20,
        patience=20,
        probe=False,
        average="ema",
        mixup=0.0,
        dropout=0.5,
        batch=32,
        augment="strong",
        flip="mirror",
        keep=0.998,
        last=10.0,
    ),
    "article": TrainingRecipe(
        "SGD 0.9, StepLR(10, 0.1), from a random classifier: a published recipe",
        _sgd,
        _steps,
        rate=0.01,
        decay=0.0,
        epochs=200,
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
    augment: str = "none"  # a row of AUGMENTATIONS
    flip: str = "none"  # a row of FLIPS
    keep: float = 0.0
    last: float = 1.0
    norm: str = "frozen"  # a row of NORMS
    class_weights: str = "none"  # one of CLASS_WEIGHTS
    precision: str = "float32"
    seed: int = 0

    @property
    def varied(self) -> bool:
        """Return whether images are varied anew in every epoch."""
        return self.augment != "none" or self.flip != "none"

    @property
    def mirrored(self) -> bool:
        """Return whether images are judged together with their mirror images."""
        return self.flip != "none"

    def as_dict(self) -> dict[str, Any]:
        """Return the settings ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class FinetuneOptions:
    """What is fine-tuned, and how; None and empty leave the choice to the recipe."""

    blocks: str = option("1", "What is trained: a number of last blocks, names, a module, or all.")
    recipe: str = option("", "strong (images, augmented), adamw (cached maps), article (SGD); empty: by BLOCKS=.")
    augment: str = option("", "Of images: strong (shape and light), shape, none; empty is the recipe's own.")
    views: int = option(1, "Cached views per image (shift, turn, zoom, brightness), one an epoch.")
    flip: str = option("", "none, mirror (left and right), any (quarter turns too); empty is the recipe's own.")
    networks: str = option(
        "mean", "mean (of the folds' networks), all (one more, on all images), one, 2, ... (first folds)."
    )
    epochs: int | None = option(None, "Most epochs; the recipe's own without.")
    rate: float | None = option(None, "Learning rate; the recipe's own without.")
    batch_size: int | None = option(None, "Images per step; the recipe's own without.")
    norm: str | None = option(None, "Batch normalisation: frozen, or adapt (to the new images).")
    mixup: float | None = option(None, "Mixup of images or cached maps, the Beta parameter; 0 is none.")
    dropout: float | None = option(None, "Share of channels that an image loses.")
    class_weights: str | None = option(None, "none or balanced.")
    average: str | None = option(None, "none, or ema: a moving average of the weights is what is kept.")

    def __post_init__(self) -> None:
        """Raise UnknownName for names that are in no table, FirnError for numbers that make no sense."""
        tables: dict[str, Collection[str]] = {"recipe": RECIPES, "augment": AUGMENTATIONS, "flip": FLIPS, "norm": NORMS}
        tables |= {"class_weights": CLASS_WEIGHTS, "average": AVERAGES}
        if number := int(self.networks) if self.networks.isdecimal() else 0:
            object.__setattr__(self, "networks", "one" if number == 1 else str(number))
        else:
            tables["networks"] = NETWORKS
        for name, table in tables.items():
            if (value := getattr(self, name)) and value not in table:
                raise unknown(name.replace("_", " "), value, table)
        _check_views(self)
        _check(self.settings(precision="float32", seed=0))

    @property
    def named(self) -> str:
        """Return the row of RECIPES: what was asked for, or what fits what is trained."""
        return self.recipe or ("strong" if self.blocks == "all" and self.views == 1 else "adamw")

    def settings(self, *, precision: str, seed: int) -> Settings:
        """Return the settings of the recipe, with what was asked for in place of the recipe's own."""
        row = RECIPES[self.named]
        own = {name: getattr(row, name) for name in Settings.__dataclass_fields__ if hasattr(row, name)}
        names = ("epochs", "rate", "norm", "mixup", "dropout", "class_weights", "average")
        asked = {name: getattr(self, name) for name in names} | {"batch": self.batch_size}
        asked |= {"augment": self.augment or None, "flip": self.flip or None}
        given = own | {name: value for name, value in asked.items() if value is not None}
        given["patience"] = max(given["patience"], given["epochs"]) if row.patience == row.epochs else row.patience
        if self.views > 1 or not (self.blocks == "all" or given["augment"] != "none"):
            given |= {"flip": "none"}  # cached maps are not mirrored, and views are already
        return replace(Settings(self.named, precision=precision, seed=seed), **given)

    def described(self, blocks: Sequence[str], settings: Settings) -> str:
        """Return what is special about a run, in words: the blocks, the views, whatever is not the recipe's own."""
        row = RECIPES[settings.recipe]
        usual = {name: getattr(row, name, default) for name, default in Settings().as_dict().items()}
        kept = ("recipe", "seed", "precision", "patience")  # named otherwise, or in the cache key
        changed = {n: v for n, v in settings.as_dict().items() if n not in kept and v != usual[n]}
        words = [
            "+".join(blocks),
            *([settings.recipe] if settings.recipe != Settings().recipe else []),
            *([f"{self.views} views"] if self.views > 1 else []),
            *([f"flip {self.flip}"] if self.views > 1 and self.flip not in ("", "none") else []),
            *(f"{name.replace('_', ' ')} {value}" for name, value in changed.items()),
            *([f"networks {self.networks}"] if self.networks != "mean" else []),
        ]
        return ", ".join(words)


def _check_views(asked: FinetuneOptions) -> None:
    """Raise FirnError where cached views are asked for with what varies images, or a flip with neither."""
    augment = asked.augment or RECIPES[asked.named].augment
    if asked.views < 1:
        raise FirnError(f"expected VIEWS=1 or more, got {asked.views}")
    if asked.views > 1 and augment != "none":
        raise FirnError(f"VIEWS={asked.views} are of cached maps, AUGMENT={augment} is of images; leave one away")
    if asked.flip not in ("", "none") and asked.views == 1 and augment == "none" and asked.blocks != "all":
        raise FirnError(f"FLIP={asked.flip} needs views to show it in, or images; add VIEWS=4 or AUGMENT=shape")


def _check(settings: Settings) -> None:
    """Raise FirnError for numbers that make no sense."""
    if settings.epochs < 1 or settings.batch < 2 or not settings.rate > 0:
        raise FirnError(
            f"expected 1 epoch, 2 images a batch and a rate above 0 at least, got EPOCHS={settings.epochs}, "
            f"BATCH_SIZE={settings.batch}, RATE={settings.rate:g}"
        )
    if not 0 <= settings.dropout < 1 or settings.mixup < 0:
        raise FirnError(f"expected 0 <= DROPOUT < 1 and MIXUP >= 0, got {settings.dropout:g} and {settings.mixup:g}")
