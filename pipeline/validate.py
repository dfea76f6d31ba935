"""validate: a bundle on a labelled set from elsewhere -> scores at its own thresholds, calibration, page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray

from features.datasets import Dataset
from features.datasets.listing import FileSource
from features.datasets.load import load_to_judge
from features.errors import BadDataset, BadImage, FirnError, command, counted, listed
from features.options import ExtractOptions, FeatureOptions, Taking, make_command, names_in, option
from features.progress import say, shown
from features.storage import artifacts_root, csv_lines, make_folder, write_whole
from models.predictor.build import BundleOptions
from models.runs.options import ModelSelector
from models.validation.class_names import LEFT_OUT, matched_labels
from models.validation.external import ExternalValidation, LabelledSet, subgroup_columns, validated
from models.validation.predictions import Predictions
from pipeline.bundle import bundled, require_one
from pipeline.predict import predictions_table, write_unreadable
from pipeline.render.validation_page import print_validation, summary, validation_page

if TYPE_CHECKING:
    from models.predictor.predictor import Prediction, Predictor


@dataclass(frozen=True)
class ValidateOptions:
    """How the classes of the set are called in the bundle, what is looked at, and where the result goes."""

    map: str = option("", "Classes of the set by other names than the bundle's: mine=its,other=its; mine= is left out.")
    subgroups: str = option("", "Columns of the table that make subgroups; empty is all that can, but other findings.")
    out: str = option("", "The folder to write into; empty is one below artifacts.")


Judged = Annotated[ModelSelector, Taking("model", "dataset", "seed", "root", "target", "labels", dataset="")]
Weights = Annotated[BundleOptions, Taking("weights")]
Machine = Annotated[FeatureOptions, Taking("device")]
Threads = Annotated[ExtractOptions, Taking("workers")]


def validate(what: ValidateOptions, model: Judged, how: Weights, machine: Machine, threads: Threads) -> list[str]:
    """Judge a bundle on a labelled set that it was not made of; return a summary and the path of the page.

    Images that it was trained on are left out, as are unreadable ones, which are listed in unreadable.csv. Nothing of
    the bundle changes: thresholds and calibration are its own. Raises BadBundle, BadDataset; BadImage where nothing can
    be read.
    """
    from models.predictor.loading import load

    dataset, path = _labelled(model), bundled(model, how)
    predictor = load(path, device=machine.device)
    require_one(predictor)
    named = {"labels": model.run.labels, "told": what.map, "model": model.model}
    labels = matched_labels(dataset, predictor.classes, **named)
    columns = subgroup_columns(dataset.columns, labels, dataset.groups, names_in(what.subgroups))
    found, images = _predicted(predictor, dataset, labels, threads.workers)
    rows = _rows(dataset, found)
    judged = _judged(dataset, labels, found, rows, columns)
    result = validated(
        judged,
        predictor.contents,
        dataset=_about(dataset, model, what),
        images=images,
        training_distances=predictor.training_distances,
        remarks=list(_remarks(images, predictor, dataset)),
        seed=model.data.seed,
    )
    folder = Path(what.out) if what.out else artifacts_root() / "validate" / dataset.name / predictor.contents.stem
    _write(result, judged, found, dataset, rows, folder)
    print_validation(result)
    return [summary(result), str(folder / "validation.html")]


def _labelled(model: ModelSelector) -> Dataset:
    """Return the set to judge on. Raises FirnError where no model or no set was named."""
    if not model.model:
        raise FirnError("expected MODEL= to be a bundle (a folder or a .zip), or the folder of a run, got none")
    if not model.data.dataset:
        raise FirnError("expected DATASET= to be the labelled set to judge the model on, got none")
    data = model.data
    dataset = load_to_judge(data.dataset, root=data.root, target=data.target)
    dataset.source.stamps([])  # a pack has no images and says so
    if names := dataset.findings:
        one = f"; one of them by TARGET=, such as {command('validate', MODEL=model.model, TARGET=names[0])}"
        raise BadDataset(
            f"{data.dataset} has {counted(len(names), 'finding')} per image ({listed(names)}), "
            f"and this takes one at a time"
            f"{one if isinstance(dataset.source, FileSource) else ''}"
        )
    for record in dataset.left_out:
        say(str(record))
    return dataset


def _predicted(
    predictor: Predictor, dataset: Dataset, labels: NDArray[np.int64], workers: int
) -> tuple[Prediction, dict[str, int]]:
    """Return the predictions of all images to judge, and how many there are and were left out for which reason."""
    from models.predictor.predictor import joined

    ids = [image for image, label in zip(dataset.ids, labels, strict=True) if label != LEFT_OUT]
    tested: list[bytes] = []  # digests of images that the bundle has seen; threads append
    trained: list[bytes] = []

    def wanted(sha256: bytes) -> bool:
        if predictor.seen is None:
            return True
        if predictor.seen.in_training(sha256):
            trained.append(sha256)
            return False
        if predictor.seen.in_test(sha256):
            tested.append(sha256)
        return True

    pieces, done = [], 0
    with shown(f"validate on {dataset.name}") as progress:
        for piece in predictor.stream_of(dataset.source, ids, workers=workers, wanted=wanted):
            pieces.append(piece)
            done += len(piece.names) + len(piece.left_out)
            progress(done + len(trained), len(ids))
    found = joined(pieces, predictor.classes)
    _require_images(found, len(ids), len(trained), dataset)
    left_out = {"without_class": len(dataset) - len(ids), "unreadable": len(found.left_out), "trained_on": len(trained)}
    return found, {"given": len(dataset), "judged": len(found.names), **left_out, "tested_on": len(tested)}


def _require_images(found: Prediction, asked: int, trained: int, dataset: Dataset) -> None:
    """Raise BadImage or BadDataset where nothing is left to judge."""
    if found.names:
        return
    if found.left_out:
        raise BadImage(f"no image could be read; the first: {next(iter(found.left_out.values()))}")
    why = f"the bundle was trained on all {trained:,} of them" if asked else "MAP= leaves out every class"
    raise BadDataset(f"no image of {dataset.source.where} is left to judge on: {why}; give another DATASET=")


def _rows(dataset: Dataset, found: Prediction) -> NDArray[np.intp]:
    """Return the row of the data set of each image that was predicted."""
    place = {image: row for row, image in enumerate(dataset.ids)}
    return np.array([place[name] for name in found.names], dtype=np.intp)


def _judged(
    dataset: Dataset,
    labels: NDArray[np.int64],
    found: Prediction,
    rows: NDArray[np.intp],
    columns: Mapping[str, NDArray[np.str_]],
) -> LabelledSet:
    return LabelledSet(
        labels[rows],
        found.proba,
        found.calibrated,
        dataset.groups[rows],
        found.distance,
        found.outlier,
        {name: column[rows] for name, column in columns.items()},
        dataset.grouped_by,
    )


def _about(dataset: Dataset, model: ModelSelector, what: ValidateOptions) -> dict[str, Any]:
    """Return what the set is, and the command that judges on it again."""
    data = model.data
    given = {"dataset": data.dataset, **data.more, "labels": "" if model.run.labels == "classes" else model.run.labels}
    return {
        "name": dataset.name,
        "asked": data.dataset,
        "classes": list(dataset.classes),
        "map": what.map,
        "labels": model.run.labels,
        "note": dataset.note,
        "command": make_command(
            "validate", model=model.model, **given, map=what.map, subgroups=what.subgroups, seed=str(data.seed)
        ),
    }


def _remarks(images: Mapping[str, int], predictor: Predictor, dataset: Dataset) -> Iterator[str]:
    """Yield what a reader has to know of the images before any score."""
    if images["trained_on"]:
        yield f"{images['trained_on']:,} images are left out: the bundle was trained on the same bytes"
    if images["tested_on"]:
        yield f"{images['tested_on']:,} images are among the bundle's own test images: on them this is no new test"
    if predictor.seen is None:
        yield "whether the bundle was trained on some of these images is not known; make bundle again tells it"
    if images["without_class"]:
        yield f"{images['without_class']:,} images are left out: MAP= names no class of the bundle for theirs"
    if images["unreadable"]:
        yield f"{images['unreadable']:,} images are left out: they cannot be read (unreadable.csv)"
    if not dataset.grouped_by:
        yield "no groups are known: several images of one patient would count as several patients"


def _write(
    result: ExternalValidation,
    judged: LabelledSet,
    found: Prediction,
    dataset: Dataset,
    rows: NDArray[np.intp],
    folder: Path,
) -> None:
    """Write predictions.csv, unreadable.csv, validation.json and validation.html, the page last."""
    make_folder(folder)
    header, *lines = predictions_table(found, {})
    own = zip(dataset.groups[rows].tolist(), (result.classes[k] for k in judged.y), lines, strict=True)
    table = [["id", "group", "label", *header[1:]], *([line[0], group, label, *line[1:]] for group, label, line in own)]
    write_whole(folder / "predictions.csv", [csv_lines(table)])
    write_unreadable(found, {}, folder)
    text = json.dumps(result.to_json(), indent=1, allow_nan=False, ensure_ascii=False)
    write_whole(folder / "validation.json", [text.encode()])
    fold = np.full(len(found.names), -1)
    parts = [
        Predictions(np.array(found.names), judged.groups, judged.y, p, fold) for p in (found.proba, found.calibrated)
    ]
    write_whole(folder / "validation.html", [validation_page(result, *parts).encode()])
