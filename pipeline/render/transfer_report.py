"""The transfer report in Markdown, which reads well in a terminal too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from features.progress import printable
from models.runs.results import UNDECIDED, DetourRow, DetourStep, TransferResult
from models.runs.summary import with_interval

WORDS = {
    "higher": "helps",
    "lower": "hurts",
    UNDECIDED: UNDECIDED,
    "within seeds": "within seeds",
    "cannot be tested": "untestable",
}


def detour_lines(results: TransferResult) -> list[str]:
    """Return the lines: verdict first, then the table of heads, the steps on the way, and the domain distances."""
    target, folds = results.target, f"{results.folds} grouped folds, drawn {results.repeats} times"
    where = f"out of fold, {folds}" if results.protocol == "cv" else "on the test images"
    lines = [
        f"# {' → '.join(['ImageNet', *results.passed, target])}, {results.backbone}",
        "",
        _verdict(results),
        "",
        f"Scores on {target} ({results.images:,} images of {results.groups:,} groups), {where}; intervals "
        f"are {100 * results.level:.0f} % by group, differences paired, their intervals and p simultaneous for "
        f"the heads shown.{_seeds(results)}",
        "",
        *_heads(results),
        "",
        "On the way:",
        "",
        *(_step(step) for step in results.steps),
        "",
        f"Distance to {target} in the features of {results.backbone} as it came from ImageNet:",
        "",
        *_table(
            ("domain", "told apart, ROC AUC", "Fréchet", "by chance", "CKA before/after the detour"),
            [_distance(row) for row in results.distances],
        ),
        "",
        "Told apart: 0.5 is one domain, 1 another. Fréchet: 1 is a shift as large as an image's typical distance from "
        f"the mean of its set. CKA: how alike {target}'s features are before and after, 1 unchanged.",
    ]
    return [printable(line) for line in lines]


def _verdict(results: TransferResult) -> str:
    """Return one sentence about the first head, and one that counts the others."""
    first, rows = results.rows[0], results.rows
    said = {
        "higher": "helped",
        "lower": "hurt",
        UNDECIDED: "made no difference that these images can tell",
        "within seeds": "made a difference that other seeds may turn round",
        "cannot be tested": "cannot be tested on these images",
    }[first.test.verdict]
    counts = {word: sum(row.test.verdict == word for row in rows) for word in WORDS}
    heads = f"{len(rows)} head{'s' if len(rows) > 1 else ''}"
    alike = counts[UNDECIDED] + counts["within seeds"]
    tally = f"Of {heads} it helped {counts['higher']}, hurt {counts['lower']}, and {alike} cannot be told apart."
    return (
        f"**The detour over {' and '.join(results.passed)} {said}**: {first.head} on {results.target} went "
        f"from {with_interval(first.direct['roc_auc'])} to {with_interval(first.detour['roc_auc'])}, difference "
        f"{_signed(first.test.difference)}, p {_p(first.test.p_adjusted)}. {tally}"
    )


def _seeds(results: TransferResult) -> str:
    """Return what the seeds were varied of; nothing where there was one."""
    told = [row.over_seeds["seeds"] for row in results.rows if row.over_seeds]
    if not told:
        return ""
    return (
        f" Over {max(told):.0f} seeds of each head (of its folds, where it draws nothing at random), the networks on "
        "the way trained once: the mean difference, with Student's interval; it must exclude 0 as well."
    )


def _heads(results: TransferResult) -> list[str]:
    """Return the table of the heads, with a column of the difference over seeds where there were several."""
    seeds = bool(_seeds(results))
    scores = ("head", "ROC AUC, direct", "ROC AUC, detour", "difference", "p", *(["over seeds"] if seeds else []))
    return _table((*scores, "the detour", "bal. acc., direct", "detour"), [_row(row, seeds) for row in results.rows])


def _row(row: DetourRow, seeds: bool) -> list[str]:
    ways = [row.direct, row.detour]
    return [
        row.head,
        *(with_interval(way["roc_auc"]) for way in ways),
        _signed(row.test.difference),
        _p(row.test.p_adjusted),
        *([_signed(row.over_seeds) if row.over_seeds else "–"] if seeds else []),
        WORDS[row.test.verdict],
        *(with_interval(way["balanced_accuracy"]) for way in ways),
    ]


def _step(step: DetourStep) -> str:
    area = step.roc_auc
    there = f"test ROC AUC there {with_interval(area)}" if area else "no test images there"
    return (
        f"* fine-tuned {step.blocks} on {step.dataset} → `{step.backbone}`: best epoch {step.epochs}, "
        f"{step.seconds:.0f} s, {there}"
    )


def _distance(row: Mapping[str, Any]) -> list[str]:
    plain = ["–" if row[name] is None else f"{row[name]:.2f}" for name in ("frechet", "floor", "cka")]
    return [row["domain"], with_interval(row["auc"]), *plain]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table with columns of equal width."""
    widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in (head, *rows)
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def _signed(interval: Mapping[str, float | None]) -> str:
    value, low, high = (interval[name] for name in ("value", "low", "high"))
    if value is None:
        return "–"
    return f"{value:+.3f}" if low is None or high is None else f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"
