"""The gallery of the report: the most confident errors of the chosen run, beside their class activation maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.backbones import load_spec
from features.datasets import Dataset
from features.errors import CacheError, FirnError
from features.options import make_command
from models.explain.run_maps import EXPLAINERS, Case, Evidence, can_be_explained, digests_of, evidence_of
from models.explain.run_maps import image_seen as seen_by_network
from models.runs.compare import in_order, runs_by_name
from models.runs.findings_results import FindingsResult
from models.runs.outcomes import Outcome, Part, asked_in, errors, origin, parts_of, predicted_in
from models.runs.record import Run
from models.runs.results import ComparisonResult
from pipeline.render.contact_sheet import map_ends, overlaid, ramp
from pipeline.render.html_page import GALLERY_SCHEMA
from pipeline.render.templates import jpeg_url

MOST = 24  # images
MOST_OF_FINDING = 6
SIDE = 224  # pixels at most; with their maps 24 such images take half a megabyte
QUALITY = 82  # of JPEG

Pixels = NDArray[np.uint8]


class _Mapped(NamedTuple):
    """The run that the class maps are of: the chosen one, or the best that has any."""

    case: Case
    name: str
    evidence: Evidence | None
    why_not: str  # where there is no evidence


def make_gallery(
    results: ComparisonResult | FindingsResult, runs: Sequence[Run], dataset: Dataset, weights: str = ""
) -> dict[str, Any]:
    """Return what the page shows, ready for JSON: {"run", "identity", "manifest", "notes", "ends", "ramp", "lines"}.

    A line has a title and its images, the most confident error first, as data URLs with and without the class map; of
    several findings each has a line, with some that were found and the errors. Without cached maps there are images
    alone, and a note says which command adds the maps. Raises BadDataset where the data set came without images,
    CacheError where they are others now, BadWeights, BadImage.
    """
    dataset.source.stamps([])  # a pack has no images and says so
    named = runs_by_name(runs)
    run = named[results.chosen.name]
    parts = parts_of(run, errors, MOST_OF_FINDING if run.record.several else MOST)
    mapped = _mapped(_case(run, dataset, parts, weights), named, parts, weights)
    case, evidence = mapped.case, mapped.evidence
    geometry = case.spec.geometry(case.run.record.keys[0].preprocess_mode)
    digests = evidence.sha256 if evidence else digests_of(case)
    images = [seen_by_network(case, i, sha256, geometry) for i, sha256 in enumerate(digests)]
    shown = next(iter(evidence.maps.values())) if evidence else None
    scale = float(np.quantile(np.abs(shown), 0.99)) or 1.0 if shown is not None and shown.size else 1.0
    places = [(part, place) for part in parts for place in part.at.tolist()]
    tiles = (_tile(*places[i], image, shown[i] if shown is not None else None, scale) for i, image in enumerate(images))
    return {
        "schema": GALLERY_SCHEMA,
        "run": results.chosen.name,
        "identity": run.record.identity,
        "manifest": run.record.manifest,
        "notes": _notes(parts, mapped, results.chosen.name),
        "ends": _ends(run, scale) if evidence else None,
        "ramp": _data_url(ramp()),
        "lines": [_line(line, tiles) for part in parts for line in part.lines],
    }


def _case(run: Run, dataset: Dataset, parts: Sequence[Part], weights: str) -> Case:
    spec = load_spec(run.record.keys[0].backbone, weights or None)
    ids = np.concatenate([part.found.ids[part.at] for part in parts])
    return Case(run, dataset, spec, ids, asked_in(parts, len(run.record.classes)))


def _mapped(case: Case, named: Mapping[str, Run], parts: Sequence[Part], weights: str) -> _Mapped:
    """Return the class maps of the decisions, of the run itself or else of the best run that has any."""
    able = {name: run for name, run in named.items() if can_be_explained(run.record)}
    own = [name for name, run in able.items() if run is case.run]
    if not able:
        command = make_command("train-heads", case.run.record.data, heads="logistic lda")
        return _Mapped(
            case, "", None, f"no run has class activation maps; heads that have are {' '.join(EXPLAINERS)}: {command}"
        )
    name = own[0] if own else list(able)[in_order(list(able.values()))[0]]
    try:
        spec = load_spec(able[name].record.backbone, weights or None)
        other = replace(case, run=able[name], spec=spec)
        return _Mapped(other, name, evidence_of(other, predicted_in(parts, able[name])), "")
    except (CacheError, FirnError) as error:
        return _Mapped(case, "", None, str(error))


def _line(line: Outcome, tiles: Iterator[dict[str, Any]]) -> dict[str, Any]:
    return {"title": line.words, "images": [next(tiles) for _ in line.at]}


def _tile(part: Part, place: int, image: Pixels, values: NDArray[np.float64] | None, scale: float) -> dict[str, Any]:
    found, classes = part.found, part.classes
    called = int(found.called[place])
    return {
        "id": str(found.ids[place]),
        "is": classes[found.y[place]],
        "called": classes[called],
        "chance": float(found.proba[place, called]),
        "words": _words(part, place),
        "image": _data_url(image),
        "map": _data_url(overlaid(image, values, scale)) if values is not None else "",
    }


def _words(part: Part, place: int) -> str:
    """Return what an image is, what it was called, by which probability and which rule."""
    found, classes = part.found, part.classes
    true, called = classes[found.y[place]], int(found.called[place])
    said = f"Is {true}, called {classes[called]}: "
    if found.threshold is None:
        chances = f"P({classes[called]}) = {found.proba[place, called]:.3f} is the highest of {len(classes)} classes"
        return f"{said}{chances}, P({true}) = {found.proba[place, found.y[place]]:.3f}."
    side = "at or above" if called else "below"
    return f"{said}P({classes[1]}) = {found.proba[place, 1]:.3f}, {side} the threshold of {found.threshold:.3f}."


def _data_url(square: Pixels) -> str:
    """Return an image (S, S, 3) as a small JPEG, grey where it is grey."""
    from PIL import Image

    grey = bool((square[..., :1] == square[..., 1:]).all())
    return jpeg_url(Image.fromarray(square[..., 0] if grey else square), SIDE, QUALITY)


def _ends(run: Run, scale: float) -> dict[str, str]:
    """Return what the colours mean."""
    against, unit, favour = map_ends(run.record.classes, several=run.record.several)
    return {"against": against, "for": favour, "scale": f"±{scale:.3g}", "unit": unit}


def _notes(parts: Sequence[Part], mapped: _Mapped, chosen: str) -> list[str]:
    found, (first, *_) = parts[0].found, parts
    which = "The most confident errors of the chosen run first, called the most probable class"
    if first.finding is not None:
        which = "Of each finding two images in which the chosen run found it, then its most confident errors"
    elif found.threshold is not None:
        which = f"The most confident errors of the chosen run first, called {first.classes[1]} from a probability of "
        which += f"{found.threshold:.3f} up"
    beside = " Beside each its class activation map: where in it the evidence lies, as the model sees it."
    notes = [f"{origin(found)} {which}, as the network saw them."]
    if mapped.evidence is None:
        return [*notes, f"Without class activation maps: {mapped.why_not}."]
    notes[0] += beside
    if mapped.name != chosen:
        notes.append(f"The chosen run has no class activation maps; these are of {mapped.name}, the best run that has.")
    if mapped.evidence.exact:
        notes.append("The mean of a map is the logit that the image was given.")
    return notes
