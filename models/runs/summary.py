"""A comparison in words: how the numbers were made, and the commands that make it again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

from features.options import make_command
from features.storage import slug
from features.views import POOLS
from models.runs.record import RunRecord, data_of, finetune_command, pixels_of, scheme_of
from models.runs.results import ComparisonResult, RunResult, Score

PARTIAL = (
    "Networks of some folds only (NETWORKS=one, 2, ...) are validated on these, and stand where their difference from "
    "the best run of all folds on those images puts them."
)
CHOSEN = {  # by whether there are test images
    True: "its validation score is a little flattering for that, while the test images had no part in any choice",
    False: "its own score is a little flattering for that; corrected for the choice means scored, over and over, on "
    "groups that a bootstrap left out of the choice (Tsamardinos et al. 2018)",
}


def plural(noun: str) -> str:
    """Return several of a noun: patients, source patches."""
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def with_interval(score: Score) -> str:
    """Return "0.976 [0.965, 0.985]"; a dash stands for what the images cannot tell."""
    value, low, high = (score.get(name) for name in ("value", "low", "high"))
    if value is None:
        return "–"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def without_interval(score: Score) -> str:
    """Return "0.976"; a dash stands for what the images cannot tell."""
    return "–" if score["value"] is None else f"{score['value']:.3f}"


def protocol(results: ComparisonResult) -> list[str]:
    """Return in five plain sentences how the numbers were made."""
    data, tested = results.dataset, bool(results.images["test"])
    unit = data.grouped_by or "image"
    folds = " or ".join(str(k) for k in sorted({row.record.folds for row in results.runs} - {1} or {1}))
    apart = f" and no {unit} in two folds" if data.grouped_by else ""
    repeats = results.chosen.record.repeats
    again = f", {repeats} times over with other folds" if repeats > 1 else ""
    images = "training images" if data.protocol == "split" else "images, of all splits,"
    return [
        f"Each head was trained {folds} times, each time on all but one of {folds} folds of the {images} "
        f"with classes balanced over the folds{apart}{again}; its predictions for the images left out give the "
        "validation scores. Whatever a head has to choose it chose inside the images that it was trained on."
        + _of_thawed(results.runs, unit)
        + _of_added(results.runs)
        + _of_stacks(results.runs, unit)
        + _of_seeds(results.runs),
        f"The run with the highest validation ROC AUC was chosen; {CHOSEN[tested]}.",
        _decisions(results),
        _intervals(results, unit),
        _comparison(results, tested),
    ]


def _of_stacks(rows: Sequence[RunResult], unit: str) -> str:
    stacks = [row.record for row in rows if row.record.bases]
    if not stacks:
        return ""
    own = " A stack learned its weights for a fold from predictions for the others, by models that had seen neither"
    if left := sum(len(stack.bases) - stack.nested for stack in stacks):
        of = sum(len(stack.bases) for stack in stacks)
        return (
            f"{own}, save {left} of {of} runs in it, which flatters its validation score, most with few {plural(unit)}."
        )
    return f"{own}."


def _of_seeds(rows: Sequence[RunResult]) -> str:
    told = [row.record.spread for row in rows if row.record.spread]
    if not told:
        return ""
    count = max(len(spread["seeds"]) for spread in told)
    return (
        f" {len(told)} of {len(rows)} runs were trained with several seeds, {count} at most, of the training where "
        "that draws at random, else of the folds: what is scored is the run of the first, the SD over seeds beside it."
    )


def _of_added(rows: Sequence[RunResult]) -> str:
    added = [row.name for row in rows if row.record.added]
    return f" Added from Python, and made again there only: {', '.join(added)}." * bool(added)


def _of_thawed(rows: Sequence[RunResult], unit: str) -> str:
    if not any(row.record.finetuning for row in rows):
        return ""
    return (
        f" Fine-tuned networks stopped early by a tenth of the {plural(unit)} that they were trained on, likewise."
        + f" {PARTIAL}" * any(row.record.partial for row in rows)
    )


def _decisions(results: ComparisonResult) -> str:
    positive = results.dataset.positive
    if results.chosen.threshold is None:
        return (
            "Decisions take the most probable class; sensitivity, specificity, F1 and areas are means over the "
            "classes, each against the rest."
        )
    guess = ", which is guessed to be the finding," if results.dataset.positive_is_guess else ""
    return (
        f"Decisions take “{positive}”{guess} from the threshold of highest sensitivity + specificity (Youden) up; that "
        "threshold and the one for a sensitivity of at least 0.95 come from out-of-fold predictions, never from the "
        f"{'test images' if results.images['test'] else 'fold that is scored'}."
    )


def _delong(results: ComparisonResult) -> str:
    """Return whose variance the ROC AUC of two classes has: Obuchowski's where a group has several images."""
    unit = results.dataset.grouped_by or "group"
    return f"DeLong (Obuchowski for several images a {unit})" if results.examination.by_group else "DeLong"


def intervals_of_others(unit: str) -> str:
    """Return how intervals are made but those of the ROC AUC, in words that end in "the bootstrap"."""
    return (
        "Wilson's interval of the effective number of images for shares of images, the influence of each "
        f"{unit} for PR AUC and losses, leaving out one {unit} at a time for calibration slope and intercept, "
        "and for all else the bootstrap"
    )


def _intervals(results: ComparisonResult, unit: str) -> str:
    settings, first = results.settings, f"{_delong(results)} for the ROC AUC, "
    return (
        f"Intervals hold with {100 * settings['level']:g} % confidence: "
        f"{first if results.dataset.positive else ''}{intervals_of_others(unit)} with "
        f"{settings['n_bootstrap']:,} draws of whole {plural(unit)}, seed {settings['seed']}; all but that of "
        "the calibration intercept hold for the mix of classes that these images have. Out of fold, areas count pairs "
        "within folds, and intervals are those of the models of the folds on new "
        f"{plural(unit)}, not of training again on others (Bates et al. 2021)."
    )


def _comparison(results: ComparisonResult, tested: bool) -> str:
    return (
        f"Every other run was compared with the chosen one on the same {'test' if tested else 'held-out'} images by "
        f"{f'the paired test of {_delong(results)}' if results.dataset.positive else 'the paired bootstrap'}, in "
        "simultaneous tests against "
        f"{'the chosen run (Dunnett)' if tested else 'all others, for these images chose it (Tukey)'}; “no "
        f"detectable difference” means a corrected p of {results.settings['alpha']} or more: "
        "that does not show that two runs are equal." + _against(results.settings.get("margin"))
    )


def _against(margin: float | None) -> str:
    if not margin:
        return ""
    return (
        " “Equivalent” and “not worse” are claimed where the whole simultaneous interval of the difference is within "
        f"{margin:g} of 0, or above −{margin:g}: a margin of ROC AUC that was stated (MARGIN=), not found."
    )


K = TypeVar("K")


def commands(
    records: Sequence[RunRecord], seed: int, asked: Mapping[str, str | bool] = MappingProxyType({})
) -> list[str]:
    """Return the commands that make the same runs and the same comparison again.

    `asked` are further variables of the comparison. A stack combines what is there, so that each comes after its own
    runs and before all others. No command makes runs that were added from Python.
    """
    lines, left = [], [record for record in records if not (record.bases or record.added)]
    for stack in sorted((record for record in records if record.bases), key=lambda record: len(record.bases)):
        lines += _single([record for record in left if place_of(record) in stack.bases])
        left = [record for record in left if place_of(record) not in stack.bases]
        backbones = stack.backbone.replace("+", " ")
        how = {"backbone": backbones, "heads": stack.head, "seed": str(stack.seed)}
        lines.append(make_command("train-heads", **data_of(stack), **scheme_of(stack), **how))
    compared = make_command("compare", **data_of(records[0]), **scheme_of(records[0]), seed=str(seed), **asked)
    return [*lines, *_single(left), compared]


def _single(records: Sequence[RunRecord]) -> list[str]:
    """Return the commands that make runs again which are no stacks."""
    heads = [record for record in records if record.finetuning is None]
    networks = dict.fromkeys(finetune_command(record) for record in records if record.finetuning is not None)
    return [*_extractions(heads), *_trainings(heads), *networks]


def place_of(record: RunRecord) -> str:
    """Return the folder of a run below that of all runs, as a stack names it."""
    parts = [slug(record.view), record.head] if record.finetuning is None else [record.head, slug(record.view)]
    return "/".join([record.entry, *parts])


def _extractions(records: Sequence[RunRecord]) -> list[str]:
    """Return one command for all backbones that were extracted in the same way."""
    maps: dict[str, list[str]] = {}
    for r in filter(_on_maps, records):
        maps.setdefault(r.entry, []).extend(b for b in r.blocks if b not in maps.get(r.entry, ()))
    ways = _joined(((tuple(pixels_of(r).items()), " ".join(maps.get(r.entry, ()))), r.backbone) for r in records)
    data = data_of(records[0]) if records else {}
    return [
        make_command("extract", **data, backbone=names.replace("+", " "), **dict(way), maps=kept)
        for (way, kept), names in ways.items()
    ]


def _trainings(records: Sequence[RunRecord]) -> list[str]:
    """Return one command for all heads and backbones that were trained on the same kind of view."""
    heads = _joined(((r.backbone, _view(r)), r.head) for r in records)
    every = _joined(((names, view), backbone) for (backbone, view), names in heads.items())
    data, run = (data_of(records[0]), scheme_of(records[0])) if records else ({}, {})
    return [
        make_command("train-heads", **data, **run, backbone=backbones, heads=names, **dict(view))
        for (names, view), backbones in every.items()
    ]


def _on_maps(record: RunRecord) -> bool:
    return bool(record.view.endswith(" maps") or POOLS[record.pool].of_maps)


def _view(record: RunRecord) -> tuple[tuple[str, str], ...]:
    seeds = [("seeds", str(len(record.spread["seeds"])))] if record.spread else []
    return (("blocks", record.asked_blocks), ("pool", record.pool), *seeds, *pixels_of(record).items())


def _joined(pairs: Iterable[tuple[K, str]]) -> dict[K, str]:
    """Return for each key the different names that came with it, sorted, separated by blanks."""
    names: dict[K, dict[str, None]] = {}
    for key, name in pairs:
        names.setdefault(key, {})[name] = None
    return {key: " ".join(sorted(given)) for key, given in names.items()}
