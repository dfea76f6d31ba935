"""The verbs of the cache on the command line: parse, call the verb, print; nothing else."""

from __future__ import annotations

from collections.abc import Callable

import typer

from pipeline import options as o


def cache_ls(dataset: o.Dataset = "") -> None:
    """Every cache entry: images, parts, bytes, state, when last used."""
    from pipeline import cache as verb

    verb.print_entries(verb.list_entries(dataset))


def cache_verify(dataset: o.Dataset = "") -> None:
    """Read every byte of the cache, or of a pack, and list what is damaged; exit code 2 if anything is."""
    from pipeline import cache as verb

    lines, well = verb.verify_entries(dataset)
    typer.echo("\n".join(lines))
    raise typer.Exit(0 if well else 2)


def cache_repair(dataset: o.Dataset = o.PNEUMONIA, device: o.Device = "auto", workers: o.Workers = 0) -> None:
    """Take out damaged files and compute just those again."""
    from pipeline import cache as verb

    typer.echo("\n".join(verb.repair(dataset, device_=device, workers=workers)))


def cache_why(
    dataset: o.Dataset = o.PNEUMONIA,
    backbone: o.Backbone = o.RESNET18,
    preprocess: o.Preprocess = "",
    precision: o.Precision = "auto",
    device: o.Device = "auto",
    weights: o.Weights = "",
) -> None:
    """Say in words whether features are ready and, if not, what changed."""
    from pipeline import cache as verb

    recipe = {"preprocess": preprocess, "precision_": precision, "device_": device, "weights": weights}
    typer.echo("\n".join(verb.why(dataset, backbone, **recipe)))


def cache_gc(
    dataset: o.Dataset = o.PNEUMONIA,
    backbone: o.Backbone = "",
    preprocess: o.Preprocess = "",
    precision: o.Precision = "auto",
    device: o.Device = "auto",
    weights: o.Weights = "",
    yes: o.Yes = False,
) -> None:
    """List what the data set does not need of its cache any more; --yes removes it."""
    from pipeline import cache as verb

    recipe = {"preprocess": preprocess, "precision_": precision, "device_": device, "weights": weights}
    typer.echo("\n".join(verb.collect(dataset, backbone, yes=yes, **recipe)))


def cache_pack(
    dataset: o.Dataset = o.PNEUMONIA,
    backbone: o.Backbone = o.RESNET18,
    out: o.Out = "",
    maps: o.Maps = "",
    preprocess: o.Preprocess = "",
    precision: o.Precision = "auto",
    device: o.Device = "auto",
    weights: o.Weights = "",
    seed: o.Seed = 0,
) -> None:
    """Write features into one HDF5 file that serves train-heads and compare without the images."""
    from pipeline import cache as verb

    recipe = {"preprocess": preprocess, "precision_": precision, "device_": device, "weights": weights}
    typer.echo("\n".join(verb.pack(dataset, backbone, out=out, maps=maps, seed=seed, **recipe)))


CACHE_VERBS: tuple[Callable[..., None], ...] = (cache_ls, cache_verify, cache_repair, cache_why, cache_gc, cache_pack)
