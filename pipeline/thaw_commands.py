"""The commands that thaw: finetune and transfer. They parse and call their verbs, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from pipeline import options as o


def finetune(
    dataset: o.Dataset = o.PNEUMONIA,
    backbone: o.Backbone = o.RESNET18,
    blocks: o.Thawed = "1",
    recipe: o.TrainingRecipe = "adamw",
    views: o.Views = 1,
    flip: o.Flip = "none",
    epochs: o.Epochs = None,
    rate: o.Rate = None,
    batch_size: o.ThawBatch = None,
    norm: o.Norm = None,
    mixup: o.Mixup = None,
    dropout: o.Dropout = None,
    class_weights: o.ClassWeights = None,
    average: o.Average = None,
    labels: o.Labels = "classes",
    protocol: o.Protocol = "split",
    preprocess: o.Preprocess = "",
    precision: o.Precision = "auto",
    device: o.Device = "auto",
    weights: o.Weights = "",
    seed: o.Seed = 0,
) -> None:
    """Thaw: train the last blocks and a classifier from cached maps, as one more run of the comparison."""
    from pipeline import finetune as verb

    features = {"preprocess": preprocess, "precision_": precision, "device_": device, "weights": weights}
    settings: dict[str, Any] = {
        "epochs": epochs,
        "rate": rate,
        "batch": batch_size,
        "norm": norm,
        "mixup": mixup,
        "dropout": dropout,
    }
    lines = verb.finetune(
        dataset,
        backbone,
        blocks=blocks,
        recipe=recipe,
        views=views,
        flip=flip,
        labels=labels,
        protocol=protocol,
        seed=seed,
        features=features,
        class_weights=class_weights,
        average=average,
        **settings,
    )
    typer.echo("\n".join(lines))


def transfer(
    source: o.Source = o.PNEUMONIA,
    target: o.Target = "cervical",
    backbone: o.Backbone = o.RESNET18,
    shared: o.Shared = "",
    heads: o.Heads = "logistic lda knn",
    thaw: o.ThawTarget = False,
    blocks: o.Thawed = "1",
    recipe: o.TrainingRecipe = "adamw",
    views: o.Views = 1,
    flip: o.Flip = "none",
    epochs: o.Epochs = None,
    rate: o.Rate = None,
    batch_size: o.ThawBatch = None,
    norm: o.Norm = None,
    mixup: o.Mixup = None,
    dropout: o.Dropout = None,
    class_weights: o.ClassWeights = None,
    average: o.Average = None,
    labels: o.Labels = "classes",
    protocol: o.Protocol = "cv",
    preprocess: o.Preprocess = "",
    precision: o.Precision = "auto",
    device: o.Device = "auto",
    seed: o.Seed = 0,
) -> None:
    """Does a detour help? Thaw on a source domain, then compare on the target with the direct way, paired."""
    from pipeline import transfer as verb

    features = {"preprocess": preprocess, "precision_": precision, "device_": device}
    settings: dict[str, Any] = {
        "epochs": epochs,
        "rate": rate,
        "batch": batch_size,
        "norm": norm,
        "mixup": mixup,
        "dropout": dropout,
    }
    lines = verb.transfer(
        source,
        target,
        backbone,
        shared=shared,
        heads=heads,
        thaw=thaw,
        blocks=blocks,
        recipe=recipe,
        views=views,
        flip=flip,
        labels=labels,
        protocol=protocol,
        seed=seed,
        features=features,
        class_weights=class_weights,
        average=average,
        **settings,
    )
    typer.echo("\n".join(lines))


THAW_VERBS: tuple[Callable[..., None], ...] = (finetune, transfer)
