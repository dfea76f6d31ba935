"""A comparison in words: the sentence on top, and how the numbers were made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from models.runs.results import ComparisonResult, RunResult, Score

VERDICTS = (
    ("tie", "not distinguishable from it"),
    ("higher", "better on the test images, which had no part in the choice"),
    ("cannot be tested", "not to be tested against it on these images"),
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


def summary(results: ComparisonResult) -> str:
    """Return one sentence: what was chosen, how good it is, and how many others are as good as far as one can tell."""
    chosen, others = results.runs[0], results.runs[1:]
    if chosen.test is not None:
        area = with_interval(chosen.test["roc_auc"])
        return f"{chosen.name} is chosen by validation, test ROC AUC {area}; {_others(others)}."
    area = f"cross-validated ROC AUC {with_interval(chosen.validation['roc_auc'])}"
    if not others:
        return f"{chosen.name} is the only run, {area}; there are no test images to confirm it."
    corrected = f"{with_interval(results.corrected or {})} when corrected for the choice"
    return f"{chosen.name} is the best of {len(others) + 1} runs, {area}, {corrected}; {_others(others)}."


def _others(others: Sequence[RunResult]) -> str:
    if not others:
        return "it is the only run"
    verdicts = [row.against_chosen.verdict for row in others if row.against_chosen]
    said = [
        f"{_of(verdicts.count(verdict), len(others))} {words}" for verdict, words in VERDICTS if verdict in verdicts
    ]
    return ", ".join(said) or f"{_of(len(others), len(others))} worse"


def _of(part: int, whole: int) -> str:
    if whole == 1:
        return "the other run is"
    return f"all {whole} others are" if part == whole else f"{part} of {whole} others {'is' if part == 1 else 'are'}"


def protocol(results: ComparisonResult) -> list[str]:
    """Return in five plain sentences how the numbers were made."""
    data, tested = results.dataset, bool(results.images["test"])
    unit = data.grouped_by or "image"
    folds = " or ".join(str(k) for k in sorted({row.record.folds for row in results.runs}))
    apart = f" and no {unit} in two folds" if data.grouped_by else ""
    repeats = results.chosen.record.repeats
    again = f", {repeats} times over with other folds" if repeats > 1 else ""
    images = "training images" if data.protocol == "split" else "images, of all splits,"
    return [
        f"Each head was trained {folds} times, each time on all but one of {folds} folds of the {images} "
        f"with classes balanced over the folds{apart}{again}; its predictions for the images left out give the "
        "validation scores. Whatever a head has to choose it chose inside the images that it was trained on."
        + _of_thawed(results.runs, unit)
        + _of_stacks(results.runs),
        f"The run with the highest validation ROC AUC was chosen; {CHOSEN[tested]}.",
        _decisions(results),
        _intervals(results.settings, unit, data.positive is not None),
        _comparison(results.settings, data.positive is not None, tested),
    ]


def _of_stacks(rows: Sequence[RunResult]) -> str:
    if not any(row.record.bases for row in rows):
        return ""
    return (
        " A stack learned its weights for a fold from the predictions for the other folds, made by heads that had seen "
        "that fold: its validation score is a little flattering."
    )


def _of_thawed(rows: Sequence[RunResult], unit: str) -> str:
    if not any(row.record.finetuning for row in rows):
        return ""
    return f" Fine-tuned networks stopped early by a tenth of the {plural(unit)} that they were trained on, likewise."


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


def _intervals(settings: Mapping[str, Any], unit: str, binary: bool) -> str:
    return (
        f"Intervals hold with {100 * settings['level']:g} % confidence: "
        f"{'DeLong for the ROC AUC, and for all else ' if binary else ''}the bootstrap with "
        f"{settings['n_bootstrap']:,} draws of whole {plural(unit)}, seed {settings['seed']}. Out of fold, areas count "
        "pairs within folds, and intervals are those of the models of the folds on new "
        f"{plural(unit)}, not of training again on others (Bates et al. 2021)."
    )


def _comparison(settings: Mapping[str, Any], binary: bool, tested: bool) -> str:
    return (
        f"Every other run was compared with the chosen one on the same {'test' if tested else 'held-out'} images by "
        f"{'the paired test of DeLong' if binary else 'the paired bootstrap'}, in simultaneous tests against "
        f"{'the chosen run (Dunnett)' if tested else 'all others, for these images chose it (Tukey)'}; “not "
        f"distinguishable” means a corrected p of {settings['alpha']} or more, not that two runs are equal."
    )
