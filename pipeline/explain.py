"""explain: a contact sheet of what a run got right and wrong, with class maps laid over each image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from features.backbones import load_spec
from features.datasets import Dataset
from features.errors import CacheError, FirnError, counted, unknown
from features.options import DATA, FeatureOptions, Taking, names_in, option
from features.progress import say
from features.storage import artifacts_root, slug, write_whole
from models.explain.run_maps import EXPLAINERS, Case, Evidence, can_be_explained, evidence_of, image_seen
from models.heads import HEADS
from models.runs.compare import choose
from models.runs.options import RUN, ModelSelector
from models.runs.outcomes import Part, asked_in, origin, outcomes, parts_of, predicted_in
from models.runs.record import FINETUNED, Run
from pipeline.render.contact_sheet import Sheet, Strip, Tile, draw_sheet, map_ends

CAUTION = (
    "Grad-CAM averages gradients over the image: compare positions inside an image, never images; before a whole "
    "block its level can run against the decision."
)
MOST_HIGHEST = 3  # positions of the highest evidence that are told of each image


@dataclass(frozen=True)
class SheetOptions:
    """How the contact sheet is drawn."""

    per_row: int = option(6, "Images in a line of the sheet.", min=2)


Explained = Annotated[ModelSelector, Taking(*DATA, "backbone", "heads", *RUN)]


def explain(runs: Explained, sheet: SheetOptions, features: Annotated[FeatureOptions, Taking("weights")]) -> list[str]:
    """Draw a sheet for the run chosen by validation, or for the best of each head that is named; return a line each.

    Raises FirnError for heads without class maps, CacheError where no run, or no maps of its images, are there.
    """
    named, dataset = _named(runs.heads), runs.data.load()
    dataset.source.stamps([])  # a pack has no images and says so
    able = [run for run in runs.load_all(several=True) if can_be_explained(run.record)]
    chosen = []
    for some in named:
        fitting = [run for run in able if run.record.head in some]
        if not fitting:
            asked = replace(runs, heads=" ".join(some) if len(some) == 1 else "")
            words = f"no run of {runs.data.dataset} that class maps explain, of {' '.join(some)}"
            raise CacheError(f"{words}; run: {asked.command()}")
        chosen.append(choose(fitting))
    return [_shown(run, dataset, sheet.per_row, features.weights) for run in chosen]


def _named(heads: str) -> list[tuple[str, ...]]:
    """Return the heads of each sheet: one sheet of any that can be explained, or one for each that was named."""
    names = names_in(heads)
    for name in names:
        if name not in (*HEADS, FINETUNED):
            raise unknown("head", name, [*HEADS, FINETUNED])
        if name not in EXPLAINERS:
            raise FirnError(f'{name} has no class maps; heads that have: HEADS="{" ".join(EXPLAINERS)}"')
    return [(name,) for name in names] or [tuple(EXPLAINERS)]


def _shown(run: Run, dataset: Dataset, per_row: int, weights: str) -> str:
    """Write the sheet of one run and the JSON beside it; return a line with their paths."""
    parts, classes = parts_of(run, outcomes, per_row), run.record.classes
    ids = np.concatenate([part.found.ids[part.at] for part in parts])
    spec = load_spec(run.record.backbone, weights or None)
    case = Case(run, dataset, spec, ids, asked_in(parts, len(classes)))
    evidence = evidence_of(case, predicted_in(parts, run))
    geometry = spec.geometry(run.record.keys[0].preprocess_mode)
    seen = [image_seen(case, i, evidence.sha256[i], geometry) for i in range(len(ids))]
    root = run.record.root
    stem = slug("-".join(run.folder.relative_to(root).parts))
    png = artifacts_root() / "explain" / root.name / f"{stem}.png"
    write_whole(png, [draw_sheet(_sheet(run, parts, evidence, seen, per_row))])
    content = _told(run, parts, evidence, geometry.size)
    write_whole(png.with_suffix(".json"), [json.dumps(content, indent=1).encode()])
    if parts[0].found.seen:
        say(origin(parts[0].found))
    return f"ready: {run.name} explained on {counted(len(ids), 'image')} {png.with_suffix('.json')} {png}"


def _sheet(run: Run, parts: Sequence[Part], evidence: Evidence, seen: Sequence[NDArray[np.uint8]], most: int) -> Sheet:
    strips, i = [], 0
    for part in parts:
        for line in part.lines:
            tiles = []
            for place in line.at:
                maps = [values[i] for values in evidence.maps.values()]
                wrong = bool(part.found.y[place] != part.found.called[place])
                tiles.append(Tile(seen[i], maps, _caption(part, place), wrong))
                i += 1
            strips.append(Strip(line.words, tiles))
    against, unit, favour = map_ends(run.record.classes, several=run.record.several)
    ends = (against, f"{unit}; one scale for the sheet", favour)
    return Sheet(f"{run.record.dataset}: {run.name}", _notes(run, parts, evidence), strips, most, ends)


def _caption(part: Part, place: int) -> tuple[str, str]:
    """Return the file's name, and the probability with the true class."""
    found, classes = part.found, part.classes
    called = 1 if len(classes) == 2 else int(found.called[place])
    chance = f"{found.proba[place, called]:.3f}"
    return str(found.ids[place]).rpartition("/")[2], f"{chance}, {classes[found.y[place]]}"


def _notes(run: Run, parts: Sequence[Part], evidence: Evidence) -> list[str]:
    """Return the lines below the title: whose images these are, how was decided, what is seen."""
    classes, (first, *others), found = run.record.classes, evidence.maps, parts[0].found
    rule, named = "called the most probable class", "what it was called"
    if run.record.several:
        rule, named = "each finding called from its own out-of-fold Youden threshold up", "the finding"
    elif found.threshold is not None:
        named = classes[1]
        rule = f"called {named} from a probability of {found.threshold:.3f} up (out-of-fold Youden threshold)"
    exact = "their mean is the logit of the image" if evidence.exact else "the strongest positions count most"
    kinds = [f"{first}, the votes of its positions ({exact})", *others]
    notes = [
        origin(found),
        f"The most confident first, {rule}. Below each its probability of {named}, and what it is.",
        f"Downwards: the image; {'; '.join(kinds)}.",
    ]
    return notes + ([CAUTION] if any("Grad-CAM" in kind for kind in others) else [])


def _told(run: Run, parts: Sequence[Part], evidence: Evidence, size: int) -> dict[str, Any]:
    """Return what the sheet shows, for JSON."""
    several, told = run.record.several, []
    (kind, shown), *_ = evidence.maps.items()
    rows = [(part, line, place) for part in parts for line in part.lines for place in line.at]
    for i, (part, line, place) in enumerate(rows):
        found, classes = part.found, part.classes
        told.append(
            {
                "id": str(found.ids[place]),
                "line": line.name,
                "is": classes[found.y[place]],
                "called": classes[found.called[place]],
                "proba": dict(zip(classes, found.proba[place].tolist(), strict=True)),
                "mean": float(shown[i].mean()),
                "highest": _highest(shown[i], size),
            }
        )
    thresholds = {part.classes[1]: part.found.threshold for part in parts} if several else parts[0].found.threshold
    return {
        "schema": 1,
        "run": run.name,
        "folder": str(run.folder),
        **{n: getattr(run.record, n) for n in ("dataset", "labels", "protocol", "classes", "manifest", "identity")},
        "threshold": thresholds,
        "seen_in_training": parts[0].found.seen,
        "exact": evidence.exact,
        "map": {"kind": kind, "shape": list(shown.shape[1:]), "side": size},
        "notes": _notes(run, parts, evidence),
        "images": told,
    }


def _highest(values: NDArray[np.float64], size: int) -> list[dict[str, float]]:
    """Return the middles of the positions of highest evidence, in pixels of the image as the network saw it."""
    height, width = values.shape
    best = np.argsort(-values, axis=None, kind="stable")[:MOST_HIGHEST]
    return [
        {
            "x": (int(flat) % width + 0.5) * size / width,
            "y": (int(flat) // width + 0.5) * size / height,
            "value": float(values.flat[flat]),
        }
        for flat in best
    ]
