"""Print the results of finished comparisons as Markdown, for README: `python -m benchmarks.tables pneumonia colon`."""

from __future__ import annotations

import json
import sys

from features.files import artifacts_root


def interval(score: dict[str, float | None]) -> str:
    """Return a value with its interval."""
    low, high = score["low"], score["high"]
    return f"{score['value']:.3f} [{low:.3f}, {high:.3f}]" if low is not None else f"{score['value']:.3f}"


def main() -> None:
    """Print one table per data set."""
    for name in sys.argv[1:]:
        results = json.loads((artifacts_root() / "compare" / name / "results.json").read_text())
        print(f"\n**{name}**\n")
        print(
            "| head | backbone | validation AUC | test ROC AUC | test balanced accuracy | differs from the first | s |"
        )
        print("|---|---|---|---|---|---|---|")
        for run in results["runs"]:
            against = run["against_chosen"]
            verdict = "chosen" if against is None else "no" if not against["distinguishable"] else against["verdict"]
            seconds = sum(run["seconds"].values())
            scores = run["test"]
            print(
                f"| {run['head']} | {run['backbone']} | {run['validation']['roc_auc']['value']:.3f} | "
                f"{interval(scores['roc_auc'])} | {interval(scores['balanced_accuracy'])} | {verdict} | {seconds:.0f} |"
            )


if __name__ == "__main__":
    main()
