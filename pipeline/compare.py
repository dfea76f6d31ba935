"""compare: all runs of a data set -> ranked table, results, curves and the HTML page."""

from __future__ import annotations

from typing import Annotated

from features.options import DATA, Taking
from features.storage import artifacts_root
from models.runs.compare import compare_runs
from models.runs.options import RUN, ModelSelector
from pipeline.render.html_page import write_report
from pipeline.render.terminal import print_table

Compared = Annotated[ModelSelector, Taking(*DATA, "backbone", *RUN)]


def compare(runs: Compared) -> list[str]:
    """Compare all runs of a data set under one protocol, or those of the given backbones; return the page's path.

    The choice is made by out-of-fold predictions; test images are only reported. Raises CacheError where there is
    no run.
    """
    from rich.console import Console

    found = runs.load_all()
    result = compare_runs(found, seed=runs.data.seed)
    out = Console()
    print_table(result, out if out.is_terminal else Console(width=100))
    return [str(write_report(result, found, artifacts_root() / "compare" / found[0].record.root.name))]
