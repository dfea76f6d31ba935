"""export: a bundle -> one graph from pixels to probabilities, checked on images, with a model card beside it."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from features.datasets import load_dataset
from features.datasets.image_list import find_images
from features.datasets.load import at_hand
from features.errors import BadBundle, BadDataset, FirnError, counted, unknown
from features.images import Geometry
from features.options import Taking, option
from features.progress import say
from features.storage import artifacts_root, make_folder, slug, write_whole
from models.predictor.archive import opened
from models.predictor.build import BundleOptions
from models.predictor.export import FORMATS, NAMES, Trial, check_export
from models.predictor.loading import draw_images
from models.predictor.manifest import Contents
from models.runs.options import ModelSelector
from pipeline.bundle import bundled, require_one
from pipeline.render.model_card import Exported, render_card

MOST = 48  # images that it is checked on


@dataclass(frozen=True)
class ExportOptions:
    """In which format, and what the export is checked on."""

    format: str = option("onnx", "onnx (the extra onnx) or program (torch.export).")
    images: str = option("", "Images that the export is checked on; empty is test images of the set.")
    out: str = option("", "The file to write; empty is one below artifacts/exports.")

    def __post_init__(self) -> None:
        """Refuse a format that is in no table, and a file name of another one."""
        if self.format not in FORMATS:
            raise unknown("format", self.format, FORMATS)
        suffix = FORMATS[self.format].suffix
        if self.out and Path(self.out).suffix != suffix:
            raise FirnError(f"expected OUT= to end in {suffix} for FORMAT={self.format}, got {Path(self.out).name}")


def export(model: ModelSelector, to: ExportOptions, how: Annotated[BundleOptions, Taking("weights")]) -> list[str]:
    """Write a bundle in one of FORMATS, with its card (.md) and facts (.json); return a summary and the path.

    It is opened in the runtime that it is for and compared on images: those of `images`, else test images of the
    data set, else drawn ones. Raises FirnError where it differs by more than `Agreement.check` allows.
    """
    from models.predictor.loading import load

    model.say_unused()
    row, path = FORMATS[to.format], bundled(model, how)
    target = Path(to.out) if to.out else artifacts_root() / "exports" / f"{_stem(path)}{row.suffix}"
    predictor = load(path, device="cpu")
    require_one(predictor)
    module, side = _module(path), predictor.geometry.size
    make_folder(target.parent)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent) as beside:
        unproven = Path(beside) / target.name
        row.write(module, side, unproven)
        trial = _trial(to.images, predictor.contents, model.bundle)
        found = check_export(row.open(unproven), module, predictor, trial)
        if found.doubt:
            say(f"warning: {found.doubt}")
        words = ". ".join(filter(None, [found.words, found.doubt]))
        card = _card(predictor.contents, Exported(target.name, row.about, side, NAMES, words))
        os.replace(unproven, target)
    write_whole(target.with_suffix(".md"), [card.encode()])
    write_whole(target.with_suffix(".json"), [_facts(predictor.contents, predictor.geometry).encode()])
    return [f"ready: {predictor.contents.name} as {to.format}; {found.words}", str(target)]


def _stem(model: Path) -> str:
    return slug(model.name if model.is_dir() else model.stem)


def _module(model: Path) -> Any:
    from models.predictor.export import Portable
    from models.predictor.loading import read_bundle

    with opened(model) as folder:
        return Portable(read_bundle(folder))


def _card(contents: Contents, exported: Exported) -> str:
    """Return the model card. BadBundle where what a stranger's bundle says of itself is no such thing."""
    try:
        return render_card(contents, exported)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise BadBundle(f"the card in {contents.name} does not read ({error}); make it anew (make bundle)") from None


def _trial(images: str, contents: Contents, given: Path | None) -> Trial:
    """Return the images to check with; a bundle that was `given` names no path and starts no download."""
    if images:
        paths = [one.path for one in find_images(images).images]
        at = np.unique(np.linspace(0, len(paths) - 1, min(MOST, len(paths))).astype(int))
        return Trial(f"{counted(len(at), 'image')} of {images}", [paths[i].read_bytes() for i in at])
    data, drawn = contents.card.get("data"), draw_images(seed=1)
    asked = str(data.get("asked", "")) if isinstance(data, dict) else ""
    try:
        dataset = load_dataset(asked) if given is None else at_hand(asked)
        if dataset is None:
            raise BadDataset("a bundle that is given leads to no path and no download; IMAGES= gives others")
        rows = np.flatnonzero(dataset.splits == "test") if "test" in dataset.splits else np.arange(len(dataset))
        at = rows[np.unique(np.linspace(0, len(rows) - 1, min(MOST, len(rows))).astype(int))]
        read = [dataset.source.read(dataset.ids[i]) for i in at]
    except FirnError as error:
        say(f"the export is checked on drawn images: {error}")
        return Trial(f"{len(drawn)} drawn images", [*drawn], drawn=True)
    return Trial(f"{counted(len(read), 'image')} of {dataset.name}", [*read])


def _facts(contents: Contents, geometry: Geometry) -> str:
    """Return what a program needs to use the graph."""
    content = {
        "name": contents.name,
        "classes": list(contents.classes),
        "input": {"name": NAMES[0], "shape": ["batch", 3, geometry.size, geometry.size], "dtype": "float32"},
        "outputs": {name: ["batch", len(contents.classes)] for name in NAMES[1]},
        "pixels": f"0..255; grey three times over; {geometry.describe()}",
        "points": {name: point.threshold for name, point in contents.points.items()},
        "not": "a medical device",
    }
    return json.dumps(content, indent=1, ensure_ascii=False)
