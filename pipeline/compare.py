"""compare: all runs of a data set -> ranked table, results, curves and the HTML page."""

from __future__ import annotations

from features.datasets import load_dataset
from features.errors import CacheError
from features.files import artifacts_root
from models.validation import choose_protocol
from pipeline.comparison import compare_runs
from pipeline.report import print_table, write_report
from pipeline.request import names_in
from pipeline.runs import load_runs, runs_root

__all__ = ["compare"]


def compare(
    dataset: str, *, backbone: str = "", labels: str = "classes", protocol: str = "split", seed: int = 0
) -> str:
    """Compare all runs of a data set under one protocol, or those of the given backbones; return the page's path.

    The choice is made by out-of-fold predictions; test pictures are only reported. Raises CacheError where there is
    no run.
    """
    from rich.console import Console

    name = load_dataset(dataset, seed=seed).name
    choose_protocol(protocol)
    wanted = {part for term in names_in(backbone) for part in term.split("+")}
    every = load_runs(name, labels, protocol)
    runs = [run for run in every if not wanted or set(run.facts["backbone"].split("+")) <= wanted]
    if not runs:
        how = f" PROTOCOL={protocol}" if protocol != "split" else ""
        raise CacheError(f"no trained heads of {name} yet; run: make train-heads DATASET={dataset}{how}")
    results = compare_runs(runs, seed=seed)
    out = Console()
    print_table(results, out if out.is_terminal else Console(width=100))
    return str(write_report(results, runs, artifacts_root() / "compare" / runs_root(name, labels, protocol).name))
