"""predict: images -> predictions.csv by a bundle, and images under class maps where that is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.datasets.image_list import Listed, find_images
from features.datasets.load import name_of_path
from features.errors import BadImage, FirnError, counted, unknown
from features.images import pixels
from features.options import ExtractOptions, FeatureOptions, Taking, option
from features.progress import printable, say, shown
from features.storage import artifacts_root, csv_lines, make_folder, slug, write_whole
from models.explain.class_maps import asked_maps
from models.metrics import at_prevalence, probabilities_by_group
from models.predictor.build import BundleOptions
from models.runs.examination import ExaminationOptions, stated_shares
from models.runs.options import ModelSelector
from models.runs.outcomes import asked_of
from pipeline.bundle import bundled

if TYPE_CHECKING:
    from models.predictor.predictor import Prediction, Predictor

POINTS = ("youden", "sensitivity>=0.95")
GROUPS, OVERLAYS = "predictions-by-group.csv", "overlays"  # beside predictions.csv
_TOLD = 20  # unreadable files on the terminal


@dataclass(frozen=True)
class PredictOptions:
    """Which images, and what is made of them."""

    images: str = option("", "A folder of images, one image, or a CSV with a column of paths.")
    point: str = option("", "youden (if empty), sensitivity>=0.95, or a probability of the positive class.")
    overlays: bool = option(False, "Also write every image with its class activation map laid over it.")
    out: str = option("", "The folder to write into; empty is one below artifacts.")

    def __post_init__(self) -> None:
        """Refuse no images, and what is no operating point, before any work."""
        if not self.images:
            raise FirnError("expected IMAGES= to be a folder, one image or a CSV with a column of paths, got none")
        if self.point and self.point not in POINTS and not _is_share(self.point):
            raise unknown("operating point", self.point, [*POINTS, "a number from 0 to 1"])


def _is_share(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


How = Annotated[ExaminationOptions, Taking("aggregate", "prevalence")]
Weights = Annotated[BundleOptions, Taking("weights")]
Machine = Annotated[FeatureOptions, Taking("device")]
Threads = Annotated[ExtractOptions, Taking("workers")]


def predict(
    what: PredictOptions, model: ModelSelector, how: Weights, machine: Machine, threads: Threads, asked: How
) -> list[str]:
    """Predict the images of a folder, a file or a CSV; return a summary and the path of predictions.csv.

    Unreadable files are left out and listed in unreadable.csv; with `overlays` there is an image beside its class
    activation map for each. A CSV with a column of groups (patients) has them in predictions-by-group.csv too. With a
    prevalence, there are probabilities for it beside those of training. Raises BadBundle, BadDataset; BadImage where
    nothing can be read; FirnError for a model without maps, and for a prevalence of other classes.
    """
    from models.predictor.loading import load

    model.say_unused()
    found_, path = find_images(what.images), bundled(model, how, several=True)
    for record in found_.left_out:
        say(str(record))
    listed = found_.images
    predictor = load(path, device=machine.device, explained=what.overlays)
    _check_asked(predictor, asked, grouped=any(one.group for one in listed))
    place = artifacts_root() / "predict" / name_of_path(Path(what.images)) / predictor.contents.stem
    folder = Path(what.out) if what.out else place
    make_folder(folder)
    found = _predicted(predictor, listed, what.point, threads.workers)
    if not found.names:
        raise BadImage(f"no image could be read; the first: {next(iter(found.left_out.values()))}")
    _remove_earlier(folder)
    names = {str(one.path): one.name for one in listed}
    stated = _stated(found.calibrated, predictor, asked.prevalence)
    _write_tables(found, names, folder, stated)
    lines = [_summary(found, predictor, what.point, path), _of_prevalence(found, stated)]
    lines.append(_write_groups(found, predictor, listed, asked.aggregate, what.point, folder))
    if what.overlays:
        lines.append(_write_overlays(predictor, found, names, folder / OVERLAYS))
    return [*filter(None, lines), str(folder / "predictions.csv")]


def _check_asked(predictor: Predictor, asked: ExaminationOptions, *, grouped: bool) -> None:
    """Raise FirnError for a mistake in what is asked for, before any work."""
    if predictor.several and asked.prevalence:
        raise FirnError(
            f"PREVALENCE= is of classes, and {predictor.contents.name} is of several findings; leave it away"
        )
    even = np.full((1, len(predictor.classes)), 1 / len(predictor.classes))
    _stated(even, predictor, asked.prevalence)
    if grouped:
        probabilities_by_group(even, [""], asked.aggregate)


def _remove_earlier(folder: Path) -> None:
    """Remove what an earlier prediction wrote into the folder and this one may not: groups and overlays."""
    for path in (folder / GROUPS, *(folder / OVERLAYS).glob("[0-9]" * 5 + "-*.png")):
        path.unlink(missing_ok=True)


class Stated(NamedTuple):
    """Probabilities at a stated prevalence."""

    shares: NDArray[np.float64]  # (K,) of the classes
    trained: NDArray[np.float64]  # (K,) in training
    proba: NDArray[np.float64]  # (n, K)


def _trained(predictor: Predictor) -> NDArray[np.float64]:
    """Return the share of each class among the training images, (K,). Raises FirnError where a bundle does not say."""
    given = predictor.contents.card.get("trained_shares")
    shares = [x for x in given if isinstance(x, float) and 0 < x < 1] if isinstance(given, list) else []
    if not len(shares) == len(predictor.classes) or abs(sum(shares) - 1) > 1e-6:
        raise FirnError(
            f"{predictor.contents.name} does not say which share of its training images was of each class, which "
            "PREVALENCE= needs; make its bundle anew (make bundle)"
        )
    return np.asarray(shares, dtype=np.float64)


def _stated(proba: NDArray[np.float64], predictor: Predictor, prevalence: str) -> Stated | None:
    """Return calibrated probabilities (n, K) as they are at another prevalence; None where none was asked for."""
    if not prevalence:
        return None
    trained = _trained(predictor)
    shares = stated_shares(prevalence, proba, trained)
    return None if shares is None else Stated(shares, trained, at_prevalence(proba, trained, shares))


def _write_groups(
    found: Prediction, predictor: Predictor, listed: Sequence[Listed], how: str, point: str, folder: Path
) -> str:
    """Write predictions-by-group.csv where a table told the groups (patients); return what it says in one line."""
    told = {str(one.path): one.group or one.name for one in listed}
    if not any(one.group for one in listed):
        return ""
    if predictor.several:
        return f"no {GROUPS}: it is of classes, and this model is of several findings"
    names, proba, images = probabilities_by_group(found.proba, [told[path] for path in found.names], how)
    threshold, classes = threshold_of_groups(predictor, how, point), found.classes
    decided = len(classes) > 2 or threshold is not None
    called = proba.argmax(axis=1) if threshold is None else (proba[:, 1] >= threshold).astype(np.int64)
    header = [["group", "images", *(f"p_{name}" for name in classes), *(["decision"] if decided else [])]]
    lines = (
        [name, n, *row, *([classes[k]] if decided else [])]
        for name, n, row, k in zip(names.tolist(), images.tolist(), proba.tolist(), called.tolist(), strict=True)
    )
    write_whole(folder / GROUPS, [csv_lines([*header, *lines])])
    counts = np.bincount(called, minlength=len(classes)).tolist()
    words = ", ".join(f"{n:,} {name}" for n, name in zip(counts, classes, strict=True))
    rule = "the most probable class" if threshold is None else f"{classes[1]} from {threshold:.6g} up"
    undecided = "no decision: the model was trained on groups of one image each; POINT=0.5 decides"
    many = f"{len(names):,} group{'s' * (len(names) != 1)}"
    return printable(f"{many} by {how}: " + (f"{words}; {rule}" if decided else undecided))


def threshold_of_groups(predictor: Predictor, how: str, point: str) -> float | None:
    """Return the threshold of a group's probability: the number given, else what training chose by group, if it did."""
    if len(predictor.classes) != 2 or (point and point not in POINTS):
        return predictor.threshold(point)
    points = predictor.contents.card.get("points_by_group")
    found = points.get(how) if isinstance(points, dict) else None
    value = found.get(point or POINTS[0]) if isinstance(found, dict) else None
    return value if isinstance(value, float) and np.isfinite(value) else None


def _write_tables(found: Prediction, names: dict[str, str], folder: Path, stated: Stated | None) -> None:
    """Write predictions.csv and unreadable.csv, and name the first files that could not be read."""
    write_whole(folder / "predictions.csv", [csv_lines(predictions_table(found, names, stated))])
    write_unreadable(found, names, folder)


def write_unreadable(found: Prediction, names: dict[str, str], folder: Path) -> None:
    """Write unreadable.csv, and name the first files that could not be read."""
    unreadable = [(names.get(path, path), why.removeprefix(f"{path}: ")) for path, why in found.left_out.items()]
    write_whole(folder / "unreadable.csv", [csv_lines([("path", "reason"), *unreadable])])
    for name, why in unreadable[:_TOLD]:
        say(printable(f"left out {name}: {why}"))


def _predicted(predictor: Predictor, listed: Sequence[Listed], point: str, workers: int) -> Prediction:
    from models.predictor.predictor import joined

    paths = list(dict.fromkeys(str(one.path) for one in listed))
    pieces, done = [], 0
    with shown("predict") as progress:
        for piece in predictor.stream(paths, point=point, workers=workers):
            pieces.append(piece)
            done += len(piece.names) + len(piece.left_out)
            progress(done, len(paths))
    return joined(pieces, predictor.classes, several=predictor.several)


def predictions_table(found: Prediction, names: dict[str, str], stated: Stated | None = None) -> Iterator[list[object]]:
    """Yield the header and a line for each image, probabilities with all their digits."""
    classes, columns = found.classes, [found.proba, found.calibrated]
    header = ["path", *(f"p_{name}" for name in classes), *(f"calibrated_{name}" for name in classes)]
    if stated is not None:
        header += [f"prevalence_{share:.4g}_{name}" for share, name in zip(stated.shares, classes, strict=True)]
        columns.append(stated.proba)
    yield [*header, "decision", "outlier", "distance"]
    numbers = np.concatenate(columns, axis=1).tolist()
    rest = zip(found.labels, found.outlier.tolist(), found.distance.tolist(), strict=True)
    for name, row, (label, outlier, distance) in zip(found.names, numbers, rest, strict=True):
        far = "" if np.isnan(distance) else f"{distance:.4f}"
        yield [names.get(name, name), *row, label, "yes" if outlier else "no", far]


def _of_prevalence(found: Prediction, stated: Stated | None) -> str:
    """Say at which prevalence probabilities are, beside that of training; decisions do not move with it."""
    if stated is None:
        return ""
    shares = zip(found.classes, stated.shares, stated.trained, strict=True)
    words = ", ".join(f"{share:.3g} {name} (in training {trained:.3g})" for name, share, trained in shares)
    return printable(
        f"columns prevalence_*: calibrated probabilities at {words}; decisions stay at the operating point"
    )


def _summary(found: Prediction, predictor: Predictor, point: str, model: Path) -> str:
    several = predictor.several
    counts = found.decision.sum(axis=0) if several else np.bincount(found.decision, minlength=len(found.classes))
    decided = ", ".join(f"{n:,} {name}" for n, name in zip(counts.tolist(), found.classes, strict=True))
    threshold = predictor.threshold(point)
    rule = f"each finding from its own threshold up ({point or POINTS[0]})" if several else "the most probable class"
    if threshold is not None:
        named = point or next(iter(predictor.points), "0.5")
        rule = f"{found.classes[1]} from {threshold:.6g} up ({named})"
    odd = f"{int(found.outlier.sum()):,} unlike the training images, {len(found.left_out):,} unreadable"
    many = f"{len(found.names):,} image{'s' * (len(found.names) != 1)}"
    return printable(f"{many}: {decided}; {odd}; {rule}; by {predictor.contents.name} in {model}")


def _write_overlays(predictor: Predictor, found: Prediction, names: dict[str, str], folder: Path) -> str:
    """Write each image beside itself under its class activation map, all with one scale; say where and what they are.

    Of several findings it is under that of each one which is present, in the order of their names, with which the
    file's ends. A legend with the scale is below each.
    """
    from pipeline.render.contact_sheet import map_ends

    if found.votes is None:
        return ""
    several, maps = predictor.several, found.votes
    if not several:
        maps = asked_maps(maps, asked_of(found.decision, len(found.classes)))[:, None]
    scale = float(np.quantile(np.abs(maps), 0.99)) or 1.0
    ends = map_ends(found.classes, several=several)
    with shown("overlays") as progress:
        for i, path in enumerate(found.names):
            square = np.rint(pixels(Path(path).read_bytes(), predictor.geometry, name=path)).astype(np.uint8)
            image = np.broadcast_to(square.transpose(1, 2, 0), (*square.shape[1:], 3)).copy()
            present = np.flatnonzero(found.decision[i]).tolist() if several else [0]
            words = [slug(names.get(path, path))[-80:], *(slug(found.classes[k]) for k in present if several)]
            png = _png(_beside(image, maps[i, present], ends, scale))
            write_whole(folder / f"{i:05d}-{'-'.join(words)[:200]}.png", [png])
            progress(i + 1, len(found.names))
    return printable(
        f"{counted(len(found.names), 'image')} beside their class activation maps in {folder}: blue {ends[0]}, "
        f"orange {ends[2]}, strongest at ±{scale:.3g} {ends[1]}"
    )


def _beside(
    image: NDArray[np.uint8], maps: NDArray[np.float64], ends: tuple[str, str, str], scale: float
) -> NDArray[np.uint8]:
    """Return an image (S, S, 3) beside itself under each of some maps (m, H, W), twice as wide as itself at least."""
    from pipeline.render.contact_sheet import legend_strip, overlaid

    panels = [image, *(overlaid(image, values, scale) for values in maps)]
    panels += [np.zeros_like(image)] * (not len(maps))
    return np.concatenate([np.concatenate(panels, axis=1), legend_strip(ends, scale, len(panels) * len(image))])


def _png(image: NDArray[Any]) -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, format="png")
    return file.getvalue()
