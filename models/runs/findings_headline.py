"""A comparison of several findings in plain words for any reader: what is found how well, what is missed, cautions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from models.metrics.sample_size import FEWEST_OF_CLASS
from models.runs.findings_results import FindingResult, FindingsResult
from models.runs.headline import NAMED, in_words, leak, of_images, others_in_words, spoken, wrong


def headline(results: FindingsResult) -> str:
    """Return one sentence: how well the best model finds what, on whom, and how many others are as good."""
    others, names, counted = results.runs[1:], results.dataset.classes, len(results.chosen.counted)
    named = f" ({', '.join(map(spoken, names))})" if len(names) <= NAMED + 1 else ""
    part = "" if counted == len(names) else f", over {counted} of them,"
    unseen = "" if results.tested else " that it had not learned from (cross-validation; there are no test images)"
    return (
        f"The {'best' if others else 'only'} model finds {len(names)} findings{named} with a mean AUC{part} of "
        f"{in_words(results.chosen.shown['roc_auc'])} on {of_images(results)}{unseen}{others_in_words(others)}."
    )


def extremes(results: FindingsResult) -> str:
    """Return in one sentence which finding the best model knows best, and which least."""
    rows = _ordered(results.chosen.findings, "roc_auc")
    if len(rows) < 2:
        return ""
    least, best = (f"{spoken(row.name)}, AUC {in_words(row.scores['roc_auc'])}" for row in (rows[0], rows[-1]))
    return f"It knows best {best}, and least {least}."


def missed(results: FindingsResult) -> str:
    """Return in one sentence what the best model misses at the thresholds that decide, and its false alarms, of 100."""
    lost, alarms = (_ordered(results.chosen.findings, name) for name in ("sensitivity", "specificity"))
    if not lost or not alarms:
        return "What it would miss these images cannot tell."
    told = [f"{wrong(row.scores['sensitivity'])} images with {spoken(row.name)}" for row in lost[: NAMED + 1]]
    more = len(lost) - len(told)
    rest = f"; fewer of the other {more}" if more > 1 else "; fewer of the other one" if more else ""
    most = alarms[0]
    return (
        f"At its thresholds, one for each finding, it would miss {_listed(told)}{rest}. Most false alarms are of "
        f"{spoken(most.name)}: {wrong(most.scores['specificity'])} images without it."
    )


def cautions(results: FindingsResult) -> Iterator[str]:
    """Yield what to be wary of before any figure is quoted."""
    yield from leak(results)
    rows = [(row.name, min(row.present, row.images - row.present)) for row in results.chosen.findings]
    if scarce := [f"{spoken(name)} ({count:,})" for name, count in rows if count < FEWEST_OF_CLASS]:
        yield (
            f"Few images with, or without: {', '.join(scarce)}. The rule is {FEWEST_OF_CLASS} of each (Collins et al. "
            "2016); figures of these findings may change with other ones."
        )


def technical(results: FindingsResult) -> str:
    """Return what the best model is, in the names that commands take, and how it was chosen."""
    count = len(results.runs)
    return f"{results.chosen.name}{f', chosen by validation from {count} runs' if count > 1 else ''}."


def _ordered(rows: Sequence[FindingResult], name: str) -> list[FindingResult]:
    """Return the findings of which the images tell a score, the lowest first."""
    known = [(row.scores[name]["value"], at) for at, row in enumerate(rows)]
    return [rows[at] for _, at in sorted((value, at) for value, at in known if value is not None)]


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
