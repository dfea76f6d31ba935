"""Print the results of finished comparisons as Markdown.

    python -m benchmarks.tables [--short] pneumonia cervical-cv ...

A table per comparison, for docs/results.md; with --short a row per comparison, for README.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from features.storage import artifacts_root
from models.runs.results import UNDECIDED


def interval(score: dict[str, float | None]) -> str:
    """Return a value with its interval."""
    low, high = score["low"], score["high"]
    return f"{score['value']:.3f} [{low:.3f}, {high:.3f}]" if low is not None else f"{score['value']:.3f}"


def load(name: str) -> dict[str, Any]:
    """Return the results of a comparison."""
    results: dict[str, Any] = json.loads((artifacts_root() / "compare" / name / "results.json").read_text())
    return results


def judged(run: dict[str, Any]) -> dict[str, Any]:
    """Return the scores on test images, out of fold where there are none."""
    scores: dict[str, Any] = run["test"] or run["validation"]
    return scores


def table(name: str) -> None:
    """Print all runs of a comparison."""
    results = load(name)
    where = "test" if results["runs"][0]["test"] else "cross-validated"
    print(f"\n## {name}\n\n{results['summary']}\n")
    print(f"| run | validation AUC | {where} ROC AUC | {where} balanced accuracy | against the chosen | s |")
    print("|---|---|---|---|---|---|")
    for run in results["runs"]:
        against, scores = run["against_chosen"], judged(run)
        verdict = "chosen" if against is None else against["verdict"]
        seconds = run["seconds"]["oof"] + run["seconds"]["fit"]
        print(
            f"| {run['name']} | {run['validation']['roc_auc']['value']:.4f} | {interval(scores['roc_auc'])} | "
            f"{interval(scores['balanced_accuracy'])} | {verdict} | {seconds:.0f} |"
        )


def short(names: list[str]) -> None:
    """Print a row per comparison."""
    print(
        "| set | runs | chosen by validation | its ROC AUC | no detectable difference from it | highest of all runs |"
    )
    print("|---|---|---|---|---|---|")
    for name in names:
        results = load(name)
        chosen, *others = results["runs"]
        undecided = sum(run["against_chosen"]["verdict"] == UNDECIDED for run in others)
        area = interval(judged(chosen)["roc_auc"])
        if results["corrected"]:
            area += f", corrected for the choice {interval(results['corrected'])}"
        best = max(results["runs"], key=lambda run: judged(run)["roc_auc"]["value"])
        print(
            f"| {name} | {len(results['runs'])} | {chosen['name']} | {area} | {undecided} of {len(others)} | "
            f"{judged(best)['roc_auc']['value']:.3f} ({best['name']}) |"
        )


def main() -> None:
    """Print what was asked for."""
    names = [name for name in sys.argv[1:] if name != "--short"]
    if "--short" in sys.argv:
        short(names)
        return
    for name in names:
        table(name)


if __name__ == "__main__":
    main()
