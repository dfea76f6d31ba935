"""bundle: a run -> one folder or .zip that predicts on any machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from features.datasets.findings import ONE
from features.errors import BadBundle, CacheError, FirnError, command, counted
from features.options import make_command, option
from features.progress import say
from features.storage import artifacts_root, slug
from models.predictor.archive import BUNDLE
from models.predictor.build import BundleOptions, write_bundle
from models.predictor.manifest import load_contents
from models.runs.options import ModelSelector
from models.runs.record import Run

if TYPE_CHECKING:
    from models.predictor.predictor import Predictor

_CLOSE = 0.05  # mean distance of probabilities: a run in half precision may have been made on another processor
_CHECKED = 8  # test images on which a new bundle has to say what the run said


@dataclass(frozen=True)
class OutOptions:
    """Where the result goes."""

    out: str = option("", "The file or folder to write, or a name that ends in .zip; empty is one below artifacts.")


def bundle(model: ModelSelector, how: BundleOptions, to: OutOptions) -> list[str]:
    """Write the bundle of a run, check that it predicts what the run predicted, and return a line with its path.

    Raises CacheError, BadWeights or BadDataset where what the run was made of is not there any more.
    """
    from models.predictor.loading import load

    model.say_unused()
    run = model.load(several=True)
    target = write_bundle(run, Path(to.out) if to.out else _place(run), how)
    predictor = load(target, device="cpu")
    say(f"next: {command('predict', MODEL=target, IMAGES='path/to/images')}")
    return [f"ready: {run.name}, {_agreement(run, predictor)}: {target}"]


def bundled(model: ModelSelector, how: BundleOptions, *, several: bool = False) -> Path:
    """Return a bundle: the one that was named, or that of a run, which is made where it is not there yet.

    `several` tells whether the caller knows several findings per image.
    """
    if model.bundle:
        return model.bundle
    run = model.load(several=several)
    place = _place(run)
    if not _is_current(place, run, how):
        say(f"making the bundle of {run.name}")
        write_bundle(run, place, how)
    return place


def require_one(predictor: Predictor) -> None:
    """Raise FirnError for a bundle of several findings, where these are not known."""
    if predictor.several:
        names, data = predictor.classes, predictor.contents.card.get("data")
        asked = data.get("asked") if isinstance(data, dict) else None
        again = command("bundle", DATASET=asked or "path/to/its/images", LABELS=f"{ONE}{names[0]}")
        raise FirnError(
            f"{predictor.contents.name} is of {counted(len(names), 'finding')} per image, "
            f"and this takes one at a time; run: {again}"
        )


def _place(run: Run) -> Path:
    name = slug(f"{run.name}-{run.record.identity[:8]}")
    return artifacts_root() / "bundles" / run.record.root.name / name


def _is_current(place: Path, run: Run, how: BundleOptions) -> bool:
    if not (place / BUNDLE).is_file():
        return False
    try:
        card = load_contents(place).card
    except BadBundle:
        return False
    return bool(card["run"].get("identity") == run.record.identity and card.get("made") == how.as_dict())


def _agreement(run: Run, predictor: Predictor) -> str:
    """Return how well a bundle gives test images the run's own probabilities. CacheError where it does not."""
    test = run.predictions.part(test=True)
    some = np.unique(np.linspace(0, len(test.ids) - 1, min(_CHECKED, len(test.ids))).astype(int))
    if not len(some):
        return "no test images to try it on"
    try:
        source = run.record.data.load().source
        data = [source.read(image) for image in test.ids[some].tolist()]
    except FirnError as error:
        return f"not tried on test images ({error})"
    apart = np.abs(predictor(data).proba - test.proba[some])
    by = float(apart.max())
    if not apart.mean() <= _CLOSE:
        raise CacheError(
            f"the bundle of {run.name} differs by {by:.2g} from what the run said of its test images: images or "
            f"weights have changed since; run: {make_command('extract train-heads', run.record.data)}"
        )
    return f"{len(some)} test images agree within {by:.1g}"
