"""The verbs as a user calls them: every option by its own name, defaults for the rest."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from features.options import DatasetOptions, FeatureOptions, replaced
from models.finetuning.settings import FinetuneOptions, Settings
from models.runs.options import ModelSelector, RunOptions
from pipeline.cli import call, load_verb

PLACES = {"transfer": ("source", "target", "backbone")}


def verb(name: str, *places: str, **options: Any) -> Any:
    """Run a verb; the first options may be given by place, by default the data set and the backbone."""
    return call(load_verb(name), dict(zip(PLACES.get(name, ("dataset", "backbone")), places, strict=False)) | options)


def first(name: str, *places: str, **options: Any) -> str:
    """Run a verb and return the first line that it prints, such as the path of a page."""
    return str(verb(name, *places, **options)[0])


def judged(name: str, *places: str, **options: Any) -> tuple[list[str], bool]:
    """Run a verb that judges; return its lines, and whether its exit code was 0."""
    lines, code = verb(name, *places, **options)
    return lines, code == 0


extract, train_heads, finetune = (partial(verb, name) for name in ("extract", "train-heads", "finetune"))
transfer, explain, learning_curve = (partial(verb, name) for name in ("transfer", "explain", "learning-curve"))
collect, why, pack, repair = (partial(verb, f"cache-{name}") for name in ("gc", "why", "pack", "repair"))
compare, report, audit = (partial(first, name) for name in ("compare", "report", "audit"))
doctor, verify_entries = (partial(judged, name) for name in ("doctor", "cache-verify"))


def predict(images: str | Path, model: ModelSelector, **options: Any) -> list[str]:
    """Predict new images by a model."""
    return list(verb("predict", images=str(images), **_flat(model), **options))


def bundle(model: ModelSelector, *, out: str | Path) -> str:
    """Write a bundle; return the line that tells of it."""
    return first("bundle", **_flat(model), out=str(out))


def export(model: ModelSelector, format_: str = "onnx", **options: Any) -> list[str]:
    """Export a model."""
    return list(verb("export", **_flat(model), format=format_, **options))


def reproduce(model: ModelSelector) -> tuple[list[str], bool]:
    """Make a run again; return the lines, and whether it came out."""
    flat = _flat(model)
    return judged("reproduce", run=flat.pop("model"), **flat)


def _flat(model: ModelSelector) -> dict[str, str]:
    own = {"model": model.model, "dataset": model.data.dataset, "heads": model.heads, "backbone": model.backbone}
    return own | vars(model.run)


def asked(dataset: str | Path = "pneumonia", backbone: str = "", **options: Any) -> FeatureOptions:
    """Return feature options from their own names."""
    return replaced(FeatureOptions(), dataset=str(dataset), backbone=backbone, **options)


def selected(model: str | Path = "", dataset: str = "pneumonia", **more: str) -> ModelSelector:
    """Return which runs are meant."""
    run = RunOptions(**{name: more.pop(name) for name in ("labels", "protocol") if name in more})
    return ModelSelector(str(model), DatasetOptions(dataset), run=run, **more)


def choose_settings(recipe: str, *, batch: int | None = None, **given: Any) -> Settings:
    """Return the settings that options make; what no option says may be given too."""
    own = {name: given.pop(name) for name in ("decay", "patience", "probe") if name in given}
    options = FinetuneOptions(recipe=recipe, batch_size=batch, **given)
    settings = options.settings(precision="float32", seed=0)
    return replaced(settings, **own)
