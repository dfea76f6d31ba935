"""The commands that carry a result to new images, as the command line offers them: parse, call the verb, print."""

from __future__ import annotations

from collections.abc import Callable

import typer

from pipeline import options as o


def bundle(
    model: o.Model = "",
    dataset: o.Dataset = o.PNEUMONIA,
    backbone: o.Backbone = "",
    heads: o.Wanted = "",
    labels: o.Labels = "classes",
    protocol: o.Protocol = "split",
    calibration: o.CalibrationOption = "platt",
    weights: o.Weights = "",
    with_weights: o.WithWeights = False,
    out: o.BundleOut = "",
) -> None:
    """A run -> one folder or .zip that predicts on any machine: networks, head, thresholds, golden samples."""
    from models.predictor.build import Wish
    from pipeline import bundle as verb

    sought = verb.Sought(model, dataset, backbone=backbone, heads=heads, labels=labels, protocol=protocol)
    typer.echo(verb.bundle(sought, Wish(calibration, weights, with_weights), out=out))


def predict(
    images: o.Images,
    model: o.Model = "",
    dataset: o.Dataset = o.PNEUMONIA,
    backbone: o.Backbone = "",
    heads: o.Wanted = "",
    labels: o.Labels = "classes",
    protocol: o.Protocol = "split",
    point: o.OperatingPoint = "",
    overlays: o.Overlays = False,
    device: o.Device = "auto",
    workers: o.Workers = 0,
    weights: o.Weights = "",
    out: o.FolderOut = "",
) -> None:
    """New images -> predictions.csv: probabilities, decisions, what looks unlike the training images."""
    from pipeline import predict as verb
    from pipeline.bundle import Sought

    sought = Sought(model, dataset, backbone=backbone, heads=heads, labels=labels, protocol=protocol)
    lines = verb.predict(
        images, sought, point=point, overlays=overlays, device=device, workers=workers, weights=weights, out=out
    )
    typer.echo("\n".join(lines))


def export(
    model: o.Model = "",
    dataset: o.Dataset = o.PNEUMONIA,
    backbone: o.Backbone = "",
    heads: o.Wanted = "",
    labels: o.Labels = "classes",
    protocol: o.Protocol = "split",
    format_: o.FormatOption = "onnx",
    images: o.Trial = "",
    weights: o.Weights = "",
    out: o.FileOut = "",
) -> None:
    """A bundle -> one graph from pixels to probabilities (ONNX, torch.export, TorchScript), with a model card."""
    from pipeline import export as verb
    from pipeline.bundle import Sought

    sought = Sought(model, dataset, backbone=backbone, heads=heads, labels=labels, protocol=protocol)
    typer.echo("\n".join(verb.export(sought, format_, images=images, weights=weights, out=out)))


def reproduce(
    run: o.Recorded = "",
    dataset: o.Dataset = o.PNEUMONIA,
    backbone: o.Backbone = "",
    heads: o.Wanted = "",
    labels: o.Labels = "classes",
    protocol: o.Protocol = "split",
    device: o.Device = "auto",
    weights: o.Weights = "",
) -> None:
    """A recorded run made again from its receipt; exit code 1 where its numbers do not come out again."""
    from pipeline import reproduce as verb
    from pipeline.bundle import Sought

    sought = Sought(run, dataset, backbone=backbone, heads=heads, labels=labels, protocol=protocol)
    lines, well = verb.reproduce(sought, device_=device, weights=weights)
    typer.echo("\n".join(lines))
    raise typer.Exit(0 if well else 1)


PREDICTOR_VERBS: tuple[Callable[..., None], ...] = (bundle, predict, export, reproduce)
