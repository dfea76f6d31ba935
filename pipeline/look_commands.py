"""The verbs that look: at a data set before its extraction, at its results afterwards; as the command line has them."""

from __future__ import annotations

from collections.abc import Callable

import typer

from pipeline import options as o


def doctor(
    dataset: o.Dataset = o.PNEUMONIA,
    backbone: o.Backbone = o.RESNET18,
    maps: o.Maps = "",
    preprocess: o.Preprocess = "",
    precision: o.Precision = "auto",
    device: o.Device = "auto",
    weights: o.Weights = "",
    seed: o.Seed = 0,
) -> None:
    """Before hours are spent: what the images are, what the network will see, time, disk, and a verdict."""
    from pipeline import doctor as verb

    recipe = {"preprocess": preprocess, "precision": precision, "device": device, "weights": weights}
    lines, ready = verb.doctor(dataset, backbone, maps=maps, seed=seed, **recipe)
    typer.echo("\n".join(lines))
    if not ready:
        raise typer.Exit(2)


def report(
    dataset: o.Dataset = o.PNEUMONIA,
    backbone: o.Backbone = "",
    labels: o.Labels = "classes",
    protocol: o.Protocol = "split",
    weights: o.Weights = "",
    seed: o.Seed = 0,
) -> None:
    """The HTML page of a comparison with images of the most confident errors, class maps and the audit."""
    from pipeline import report as verb

    typer.echo(verb.report(dataset, backbone=backbone, labels=labels, protocol=protocol, weights=weights, seed=seed))


def explain(
    dataset: o.Dataset = o.PNEUMONIA,
    backbone: o.Backbone = "",
    heads: o.Explained = "",
    labels: o.Labels = "classes",
    protocol: o.Protocol = "split",
    per_row: o.PerRow = 6,
    weights: o.Weights = "",
) -> None:
    """Contact sheet of what a run got right and wrong, with class maps laid over the images."""
    from pipeline import explain as verb

    lines = verb.explain(
        dataset, backbone, heads=heads, labels=labels, protocol=protocol, per_row=per_row, weights=weights
    )
    typer.echo("\n".join(lines))


LOOK_VERBS: tuple[Callable[..., None], ...] = (doctor, report, explain)
