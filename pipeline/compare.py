"""compare: all runs of a data set -> ranked table, results, curves and the HTML page."""

from __future__ import annotations

from features.datasets import load_dataset
from features.storage import artifacts_root
from models.runs.compare import choose_runs, compare_runs
from models.runs.record import runs_root
from pipeline.render.html_page import write_report
from pipeline.render.terminal import print_table


def compare(
    dataset: str, *, backbone: str = "", labels: str = "classes", protocol: str = "split", seed: int = 0
) -> str:
    """Compare all runs of a data set under one protocol, or those of the given backbones; return the page's path.

    The choice is made by out-of-fold predictions; test images are only reported. Raises CacheError where there is
    no run.
    """
    from rich.console import Console

    name = load_dataset(dataset, seed=seed).name
    runs = choose_runs(name, dataset, backbone=backbone, labels=labels, protocol=protocol)
    results = compare_runs(runs, seed=seed)
    out = Console()
    print_table(results, out if out.is_terminal else Console(width=100))
    return str(write_report(results, runs, artifacts_root() / "compare" / runs_root(name, labels, protocol).name))
