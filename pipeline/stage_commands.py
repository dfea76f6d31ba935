"""The commands of the two stages and their comparison: parse, call the verb, print; nothing else."""

from __future__ import annotations

from collections.abc import Callable

import typer

from pipeline import options as o


def extract(
    dataset: o.Dataset = o.PNEUMONIA,
    backbone: o.Backbone = o.RESNET18,
    maps: o.Maps = "",
    preprocess: o.Preprocess = "",
    precision: o.Precision = "auto",
    device: o.Device = "auto",
    weights: o.Weights = "",
    batch_size: o.BatchSize = 0,
    workers: o.Workers = 0,
    seed: o.Seed = 0,
    strict: o.Strict = False,
    engine: o.Engine = "local",
) -> None:
    """Stage one: images -> cached features."""
    from pipeline import extract as verb

    lines = verb.extract(
        dataset,
        backbone,
        maps=maps,
        preprocess=preprocess,
        precision=precision,
        device=device,
        weights=weights,
        batch_size=batch_size,
        workers=workers,
        seed=seed,
        strict=strict,
        engine=engine,
    )
    typer.echo("\n".join(lines))


def audit(
    dataset: o.Dataset = o.PNEUMONIA,
    backbone: o.CachedBackbone = "",
    labels: o.Labels = "classes",
    preprocess: o.Preprocess = "",
    precision: o.Precision = "auto",
    device: o.Device = "auto",
    weights: o.Weights = "",
    seed: o.Seed = 0,
) -> None:
    """Duplicates, leaks between splits, doubtful labels, odd images; the score with and without the leaks."""
    from pipeline import audit as verb

    recipe = {"preprocess": preprocess, "precision": precision, "device": device, "weights": weights}
    typer.echo(verb.audit(dataset, backbone, labels=labels, seed=seed, **recipe))


def train_heads(
    dataset: o.Dataset = o.PNEUMONIA,
    backbone: o.CachedBackbone = "",
    heads: o.Heads = "all",
    blocks: o.Blocks = "1",
    pool: o.Pool = "avg",
    labels: o.Labels = "classes",
    protocol: o.Protocol = "split",
    budget: o.Budget = 0.0,
    preprocess: o.Preprocess = "",
    precision: o.Precision = "auto",
    device: o.Device = "auto",
    weights: o.Weights = "",
    seed: o.Seed = 0,
    engine: o.Engine = "local",
) -> None:
    """Stage two: cached features -> heads and their predictions."""
    from pipeline import train_heads as verb

    lines = verb.train_heads(
        dataset,
        backbone,
        heads=heads,
        blocks=blocks,
        pool=pool,
        labels=labels,
        protocol=protocol,
        budget=budget,
        preprocess=preprocess,
        precision=precision,
        device=device,
        weights=weights,
        seed=seed,
        engine=engine,
    )
    typer.echo("\n".join(lines))


def compare(
    dataset: o.Dataset = o.PNEUMONIA,
    backbone: o.Backbone = "",
    labels: o.Labels = "classes",
    protocol: o.Protocol = "split",
    seed: o.Seed = 0,
) -> None:
    """All heads on all cached backbones: ranked table, results.json, predictions.csv, curves, HTML page."""
    from pipeline import compare as verb

    typer.echo(verb.compare(dataset, backbone=backbone, labels=labels, protocol=protocol, seed=seed))


def learning_curve(
    dataset: o.Dataset = o.PNEUMONIA,
    backbone: o.CachedBackbone = "",
    heads: o.Heads = "logistic",
    blocks: o.Blocks = "1",
    pool: o.Pool = "avg",
    labels: o.Labels = "classes",
    preprocess: o.Preprocess = "",
    precision: o.Precision = "auto",
    device: o.Device = "auto",
    weights: o.Weights = "",
    seed: o.Seed = 0,
) -> None:
    """ROC AUC against the number of training patients: would more of them help?"""
    from pipeline import learning_curve as verb

    lines = verb.learning_curve(
        dataset,
        backbone,
        heads=heads,
        blocks=blocks,
        pool=pool,
        labels=labels,
        preprocess=preprocess,
        precision=precision,
        device=device,
        weights=weights,
        seed=seed,
    )
    typer.echo("\n".join(lines))


STAGE_VERBS: tuple[Callable[..., None], ...] = (extract, audit, train_heads, compare, learning_curve)
