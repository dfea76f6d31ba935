"""The command line: `python -m pipeline VERB`. Parses, calls the verb, prints its result; nothing else."""

from __future__ import annotations

import errno
import os
import sys

import typer

from features.errors import FirnError
from pipeline import options as o
from pipeline.cache_commands import CACHE_VERBS
from pipeline.look_commands import LOOK_VERBS
from pipeline.predictor_commands import PREDICTOR_VERBS
from pipeline.thaw_commands import THAW_VERBS

# Idle OpenMP threads sleep instead of spinning: decoders, network and others on the machine share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(
    help="Two-stage transfer learning for medical images: extract once, train heads in seconds, compare honestly.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.command()
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
    """Stage one: pictures -> cached features."""
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


@app.command()
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
    """Duplicates, leaks between splits, doubtful labels, odd pictures; the score with and without the leaks."""
    from pipeline import audit as verb

    recipe = {"preprocess": preprocess, "precision": precision, "device": device, "weights": weights}
    typer.echo(verb.audit(dataset, backbone, labels=labels, seed=seed, **recipe))


@app.command()
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
    )
    typer.echo("\n".join(lines))


for verb_of_thawing in THAW_VERBS:
    app.command()(verb_of_thawing)


@app.command()
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


@app.command()
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


@app.command()
def explain(
    dataset: o.Dataset = o.PNEUMONIA,
    backbone: o.Backbone = "",
    heads: o.Explained = "",
    labels: o.Labels = "classes",
    protocol: o.Protocol = "split",
    per_row: o.PerRow = 6,
    weights: o.Weights = "",
) -> None:
    """Contact sheet of what a run got right and wrong, with class maps laid over the pictures."""
    from pipeline import explain as verb

    lines = verb.explain(
        dataset, backbone, heads=heads, labels=labels, protocol=protocol, per_row=per_row, weights=weights
    )
    typer.echo("\n".join(lines))


for other_verb in (*LOOK_VERBS, *PREDICTOR_VERBS, *CACHE_VERBS):
    app.command()(other_verb)


def main() -> int:
    """Run a verb; a user's mistake is one line on stderr and exit code 2, Ctrl-C is 130."""
    try:
        code = app(standalone_mode=False)  # typer turns Ctrl-C into 130, older versions into Abort
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except FirnError as error:
        return _fail(f"error: {error}", 2)
    except OSError as error:
        return _fail(f"error: {_explained(error)}", 2)
    except Exception as error:
        return _usage(error)
    if code == 130:
        return _fail("interrupted; what was done is kept, the same command goes on from there", code)
    return code if isinstance(code, int) else 0


def _fail(line: str, code: int) -> int:
    from pipeline.account import printable

    sys.stderr.write("\n".join(map(printable, line.split("\n"))) + "\n")
    return code


def _explained(error: OSError) -> str:
    """Return what the operating system refused, and what to do."""
    what = f"{error.filename or ''}: {error.strerror or error}".removeprefix(": ")
    advice = {
        errno.ENOSPC: "the disk is full; free some space and run the same command again, what was done is kept",
        errno.EFBIG: "a file-size limit is set; lift it (ulimit -f) and run the same command again",
        errno.EROFS: "the folder is read-only; set FIRN_ARTIFACTS to one that can be written",
        errno.EACCES: "permission is missing; set FIRN_ARTIFACTS to a folder that can be written",
        errno.EDQUOT: "the quota is used up; free some space and run the same command again, what was done is kept",
    }
    return f"{what} ({advice[error.errno]})" if error.errno in advice else what


def _usage(error: Exception) -> int:
    """Print click's own usage errors; anything else is a fault of the program and keeps its traceback."""
    show = getattr(error, "show", None)
    if show is None:
        raise error
    show()
    return int(getattr(error, "exit_code", 2))


if __name__ == "__main__":
    sys.exit(main())
