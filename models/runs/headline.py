"""A comparison in plain words for any reader: how good the best model is and on whom, what it misses, cautions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from models.runs.record import RunRecord
from models.runs.results import UNDECIDED, ComparisonResult, Score, Verdict
from models.runs.summary import plural

VERDICTS = (
    (UNDECIDED, "show", "shows", UNDECIDED),
    ("higher", "are", "is", "better on the test images, which had no part in the choice"),
    ("cannot be tested", "are", "is", "not to be tested against it on these images"),
)
EXTREME = 0.05  # a threshold nearer than this to 0 or 1
MISLED = 0.5  # log odds by which probabilities are too high or too low; a factor of 1.6 in odds
MANY = 20  # runs, from which on the correction for so many comparisons is worth a word
NAMED = 3  # classes that a sentence names


def headline(results: ComparisonResult) -> str:
    """Return one sentence: what the best model tells apart, how well, on whom, and how many others are as good."""
    others, score = results.runs[1:], results.chosen.shown["roc_auc"]
    best = "The best model" if others else "The only model"
    area = f"{'AUC' if results.dataset.positive else 'a mean AUC of'} {in_words(score)}"
    if results.tested:
        return f"{best} {_separates(results)} with {area} on {of_images(results)}{others_in_words(others)}."
    corrected = f", {in_words(results.corrected)} when corrected for the choice" if results.corrected else ""
    unseen = "that it had not learned from (cross-validation; there are no test images)"
    on = f"on {of_images(results)} {unseen}{others_in_words(others)}"
    return f"{best} {_separates(results)} with {area}{corrected}, {on}."


def in_words(score: Score) -> str:
    """Return "0.97 (95 % CI 0.95 to 0.98)", what rounds to 1 with a third digit; words for what cannot be told."""
    value, low, high = (score.get(name) for name in ("value", "low", "high"))
    if value is None:
        return "that these images cannot tell"
    if low is None or high is None:
        return f"{_short(value)} (no interval holds on so few images)"
    return f"{_short(value)} (95 % CI {_short(low)} to {_short(high)})"


def _short(value: float) -> str:
    return f"{value:.3f}" if 0.985 <= value < 1 else f"{value:.2f}"


def _separates(results: ComparisonResult) -> str:
    data = results.dataset
    if data.positive:
        return f"separates {spoken(data.positive)} from {spoken(data.classes[0])}"
    unseen = _unseen(results)
    seen = [name for name in data.classes if name not in unseen]
    named = f" ({', '.join(map(spoken, seen))})" if len(seen) <= NAMED else ""
    return f"tells {len(seen)} classes apart{named}"


def _unseen(results: ComparisonResult) -> list[str]:
    """Return the classes that no scored image is of, where scores are of two others at least."""
    unseen = [row["name"] for row in results.classes if not row["images"]]
    return unseen if len(results.classes) - len(unseen) > 1 else []


def spoken(name: str) -> str:
    """Return a class as it stands in a sentence: PNEUMONIA as pneumonia, short names such as NSCLC as they are."""
    words = name.replace("_", " ")
    return words.lower() if words.isupper() and len(words) > 5 else words


class Judged(Protocol):
    """A comparison of runs on the same images."""

    @property
    def dataset(self) -> RunRecord:
        """Return a record for what all runs have in common."""

    @property
    def images(self) -> Mapping[str, int]:
        """Return how many images validation and test are of, and of how many groups those are that scores are of."""

    @property
    def tested(self) -> bool:
        """Return whether there are test images."""


def of_images(results: Judged) -> str:
    """Return "624 test images of 402 patients"."""
    unit, counts = results.dataset.grouped_by, results.images
    test, held = counts["test"], counts["validation"]
    images = f"{test:,} test {'images' if test != 1 else 'image'}" if results.tested else f"{held:,} images"
    groups = counts.get("groups")
    if not unit or not groups:
        return images
    return f"{images} of {groups:,} {plural(unit) if groups > 1 else unit}"


def technical(results: ComparisonResult) -> str:
    """Return what the best model is, in the names that commands take, and how it was chosen."""
    others = len(results.runs) - 1
    chosen = f"{results.chosen.name}, chosen by validation from {others + 1} runs" if others else results.chosen.name
    return f"{chosen}. The choice looked at no test image." if others and results.tested else f"{chosen}."


class Compared(Protocol):
    """A run that was compared with the chosen one."""

    @property
    def against_chosen(self) -> Verdict | None:
        """Return the paired test against the chosen run."""


def others_in_words(others: Sequence[Compared]) -> str:
    """Say how many of the other runs are as good as the chosen one, as far as the images can tell; empty for none."""
    verdicts = [row.against_chosen.verdict for row in others if row.against_chosen]
    said = [
        _of(verdicts.count(verdict), len(others), several, one) + f" {words}"
        for verdict, several, one, words in VERDICTS
        if verdict in verdicts
    ]
    worse = [_of(len(others), len(others), "are", "is") + " worse"] if others else []
    return "".join(f"; {words}" for words in said or worse)


def _of(part: int, whole: int, several: str, one: str) -> str:
    if whole == 1:
        return f"the other run {one}"
    return (
        f"all {whole} others {several}"
        if part == whole
        else f"{part} of {whole} others {one if part == 1 else several}"
    )


def missed(results: ComparisonResult) -> str:
    """Return in one sentence what the best model gets wrong at the operating point that decides, of 100 images."""
    data, chosen = results.dataset, results.chosen
    if data.positive and chosen.threshold is not None:
        lost, alarms = (wrong(chosen.shown[name]) for name in ("sensitivity", "specificity"))
        other, sought = map(spoken, data.classes)
        return (
            f"At its threshold ({sought} is called from a probability of {chosen.threshold:.3g} up) it would miss "
            f"{lost} images of {sought}, and raise a false alarm in {alarms} images of {other}."
        )
    worst = min((row for row in results.classes if row["images"]), key=lambda row: row["recall"], default=None)
    overall = f"It would call {wrong(chosen.shown['balanced_accuracy'])} images something else than they are"
    if worst is None:
        return f"{overall}."
    least = _hundredths(1 - worst["recall"])
    hardest = f"of {spoken(worst['name'])}, the class it knows least, {least} of 100"
    return f"{overall}, if every class were as common; {hardest}."


def wrong(score: Score) -> str:
    """Return how many of 100 are wrong where `score` is the share that is right, "4 of 100 (95 % CI 2 to 7)"."""
    value, low, high = (score[name] for name in ("value", "low", "high"))
    if value is None:
        return "an unknown number of 100"
    if low is None or high is None:
        return f"{_hundredths(1 - value)} of 100 (no interval holds on so few images)"
    digits = 0 if low <= 0.95 else 1  # 1.5 is not 1
    return f"{_hundredths(1 - value)} of 100 (95 % CI {100 * (1 - high):.{digits}f} to {100 * (1 - low):.{digits}f})"


def _hundredths(share: float) -> str:
    return "fewer than 1" if 0 < share < 0.005 else f"{100 * share:.0f}"


def cautions(results: ComparisonResult) -> Iterator[str]:
    """Yield what to be wary of before any figure is quoted."""
    data = results.dataset
    yield from leak(results)
    if unseen := _unseen(results):
        names = " or ".join(f"“{name}”" for name in unseen)
        yield f"No test image is of {names}: no score tells how well such images are recognised."
    held, found = results.chosen.validation["roc_auc"], results.chosen.shown["roc_auc"]
    if results.tested and (held["low"] or 0) > (1 if found["high"] is None else found["high"]):
        yield (
            f"Worse on test images: AUC {in_words(found)}, where validation had {in_words(held)}. Test images "
            "differ from those that the model learned from, and images from elsewhere may differ more."
        )
    if (at := results.chosen.threshold) is not None and not EXTREME <= at <= 1 - EXTREME:
        yield (
            f"Extreme threshold: decisions turn at a probability of {at:.3g}, nearer than {EXTREME:g} to an end of the "
            "scale, where small changes of the images (another scanner) move many of them. Calibrate before use."
        )
    yield from _shifted(results)
    if data.positive_is_guess:
        yield (
            f"Which class is the finding is guessed: “{data.positive}” counts as positive, for no name says so; "
            "POSITIVE= chooses, and sensitivity and specificity change places."
        )
    if len(results.runs) > MANY:
        yield (
            f"{len(results.runs)} runs are compared at once, and the tests are corrected for so many: the more runs, "
            "the likelier that a real difference is told as no detectable one."
        )


def leak(results: Judged) -> Iterator[str]:
    """Say that groups of the test images were learned from, where the split that came with the images has it so."""
    if both := results.images.get("learned_too"):
        unit, groups = results.dataset.grouped_by or "group", results.images["groups"]
        yield (
            f"Leak: of the {groups:,} {plural(unit)} of the test images {both:,} have images among those that were "
            "learned from too: scores on test images flatter."
        )


def _shifted(results: ComparisonResult) -> Iterator[str]:
    """Say where probabilities are too high or too low on the whole, by the calibration intercept."""
    where = "the test images" if results.tested else "images that were held out"
    line = results.calibration["none"].get("intercept", {})
    value, low, high = (line.get(name) or 0.0 for name in ("value", "low", "high"))
    if low * high > 0 and abs(value) >= MISLED:
        yield (
            f"Probabilities of “{results.dataset.positive}” are too {'high' if value < 0 else 'low'} on {where} "
            f"(calibration intercept {value:.1f}, 0 where they fit): they put images in order, and are no risks."
        )
