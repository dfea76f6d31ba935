"""bundle: a run -> one folder or .zip that predicts on any machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from features.datasets import load_dataset
from features.errors import BadBundle, CacheError, FirnError
from features.progress import say
from features.request import names_in
from features.storage import artifacts_root, slug
from models.predictor import Predictor, load
from models.predictor.archive import BUNDLE, is_bundle
from models.predictor.build import Wish, write_bundle
from models.predictor.manifest import load_contents
from models.runs.compare import choose
from models.runs.record import Run, load_facts, load_run, load_runs, runs_root
from models.validation.cross_validation import choose_protocol

_CLOSE = 0.05  # mean distance of probabilities: a run in half precision may have been made on another processor
_CHECKED = 8  # test images on which a new bundle has to say what the run said


class Sought:
    """Which model is meant: a path, or the run that validation chooses."""

    def __init__(
        self,
        model: str = "",
        dataset: str = "pneumonia",
        *,
        backbone: str = "",
        heads: str = "",
        labels: str = "classes",
        protocol: str = "split",
    ) -> None:
        self.model, self.dataset, self.labels, self.protocol = model, dataset, labels, protocol
        self._backbones, self._heads = names_in(backbone), names_in(heads)

    def run(self) -> Run:
        """Return the run in the folder that was named, or the one of best validation. Raises CacheError, BadBundle."""
        if self.model:
            if is_bundle(Path(self.model)):
                raise BadBundle(f"{self.model} is a bundle, and this takes the folder of the run that it was made of")
            if load_facts(Path(self.model)) is None:
                raise BadBundle(
                    f"{self.model} is neither a bundle (a folder with a {BUNDLE}, or a .zip) nor the folder of a run "
                    "(with a run.json, below artifacts/heads); or leave MODEL= away and name the DATASET="
                )
            return load_run(Path(self.model))
        choose_protocol(self.protocol)
        name = load_dataset(self.dataset).name
        runs = [run for run in load_runs(name, self.labels, self.protocol) if self._fits(run)]
        if not runs:
            how = f" PROTOCOL={self.protocol}" if self.protocol != "split" else ""
            raise CacheError(f"no such run of {name} yet; run: make train-heads DATASET={self.dataset}{how}")
        return choose(runs)

    def _fits(self, run: Run) -> bool:
        backbone, head = run.facts["backbone"], run.facts["head"]
        return (not self._backbones or backbone in self._backbones) and (not self._heads or head in self._heads)


def bundle(sought: Sought, wish: Wish, *, out: str = "") -> str:
    """Write the bundle of a run, look whether it says what the run said, and return a line with its path.

    Raises CacheError, BadWeights or BadDataset where what the run was made of is not there any more.
    """
    run = sought.run()
    target = write_bundle(run, Path(out) if out else _place(run), wish)
    predictor = load(target, device_="cpu")
    return f"ready: {run.name}, {_agreement(run, predictor)}: {target}"


def bundled(sought: Sought, wish: Wish | None = None) -> Path:
    """Return a bundle: the one that was named, or that of a run, which is made where it is not there yet."""
    if sought.model and is_bundle(Path(sought.model)):
        return Path(sought.model)
    run, wish = sought.run(), wish or Wish()
    place = _place(run)
    if not _is_current(place, run, wish):
        say(f"making the bundle of {run.name}")
        write_bundle(run, place, wish)
    return place


def _place(run: Run) -> Path:
    root = runs_root(*(run.facts[name] for name in ("dataset", "labels", "protocol")))
    return artifacts_root() / "bundles" / root.name / slug(f"{run.name}-{run.facts['identity'][:8]}")


def _is_current(place: Path, run: Run, wish: Wish) -> bool:
    if not (place / BUNDLE).is_file():
        return False
    try:
        card = load_contents(place).card
    except BadBundle:
        return False
    return bool(card["run"].get("identity") == run.facts["identity"] and card.get("made") == wish.as_dict())


def _agreement(run: Run, predictor: Predictor) -> str:
    """Return how well a bundle gives test images the run's own probabilities. CacheError where it does not."""
    test = run.predictions.part(test=True)
    some = np.unique(np.linspace(0, len(test.ids) - 1, min(_CHECKED, len(test.ids))).astype(int))
    if not len(some):
        return "no test images to try it on"
    try:
        source = load_dataset(run.facts["asked"], seed=int(run.facts["seed"])).source
        data = [source.read(image) for image in test.ids[some].tolist()]
    except FirnError as error:
        return f"not tried on test images ({error})"
    apart = np.abs(predictor(data).proba - test.proba[some])
    by = float(apart.max())
    if not apart.mean() <= _CLOSE:
        raise CacheError(
            f"the bundle of {run.name} differs by {by:.2g} from what the run said of its test images: images or "
            f"weights have changed since; run: make extract train-heads DATASET={run.facts['asked']}"
        )
    return f"{len(some)} test images agree within {by:.1g}"
