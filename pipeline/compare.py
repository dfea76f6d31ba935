"""compare: all runs of a data set -> ranked table, results, curves and the HTML page; or any two of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from features.datasets.columns import further_columns
from features.errors import FirnError, unknown
from features.options import DATA, Taking, option, typed
from features.storage import artifacts_root
from models.runs.compare import compare_runs, runs_by_name
from models.runs.current import say_if_stale
from models.runs.examination import ExaminationOptions, examined
from models.runs.findings import compare_findings
from models.runs.options import RUN, ModelSelector, require_one_finding
from models.runs.pair import compare_two
from models.runs.record import Run, load_record, load_run
from pipeline.render.findings_report import print_findings, write_findings
from pipeline.render.html_page import write_report
from pipeline.render.pair_table import print_pair, verdict_of_pair
from pipeline.render.terminal import print_table, terminal


@dataclass(frozen=True)
class MarginOptions:
    """Against which margin runs may be called equivalent."""

    margin: float = option(
        0.0, "A difference in ROC AUC too small to matter, such as 0.02; 0 claims nothing.", min=0, max=0.5
    )


@dataclass(frozen=True)
class FindingsOptions:
    """What is told of runs of several findings."""

    micro: bool = option(False, "Of several findings also the areas over all pairs of an image and a finding.")


@dataclass(frozen=True)
class PageOptions:
    """What stands on the page beside what was found."""

    title: str = option("", "What stands on top of the page, such as the name of a study; empty is the data set's.")


@dataclass(frozen=True)
class PairOptions:
    """Two runs alone."""

    a: str = option("", "The name or folder of a run that is compared with B alone.")
    b: str = option("", "The name or folder of the other run.")

    def __post_init__(self) -> None:
        """Refuse one without the other."""
        if bool(self.a) != bool(self.b):
            raise FirnError("expected A= and B= together, each the name of a run as compare prints it, or its folder")


Compared = Annotated[ModelSelector, Taking(*DATA, "backbone", *RUN)]


def compare(
    runs: Compared,
    how: ExaminationOptions,
    pair: PairOptions,
    against: MarginOptions,
    findings: FindingsOptions,
    page: PageOptions,
) -> list[str]:
    """Compare all runs of a data set under one protocol, or those of the given backbones; return the page's path.

    The choice is made by out-of-fold predictions; test images are only reported. Of the chosen run there are scores by
    subgroup, for each further column of the data set's table, and by patient. Of two runs that are named the
    differences are printed instead. Raises CacheError where there is no run, BadDataset for a table that is not of
    these images.
    """
    out = terminal()
    if pair.a:
        two = compare_two(*_named(pair, runs), seed=runs.data.seed, margin=against.margin)
        print_pair(two, out)
        return [verdict_of_pair(two)]
    found = runs.load_all(several=True)
    folder = artifacts_root() / "compare" / found[0].record.root.name
    if found[0].record.several:
        refuse_of_classes(how, against, page)
        several = compare_findings(found, seed=runs.data.seed, pooled=findings.micro)
        print_findings(several, out)
        return [str(write_findings(several, found, folder))]
    refuse_of_findings(findings)
    columns = further_columns(runs.data.load(), how.columns)
    result = compare_runs(found, how, columns, seed=runs.data.seed, margin=against.margin, title=page.title)
    print_table(result, out)
    return [str(write_report(result, found, folder))]


def refuse_of_classes(how: ExaminationOptions, against: MarginOptions, page: PageOptions) -> None:
    """Raise FirnError for an option that has no part in a comparison of runs of several findings."""
    given = {**examined(how), **({"margin": against.margin} if against.margin else {})}
    given |= {"title": page.title} if page.title else {}
    if given:
        name, value = next(iter(given.items()))
        raise FirnError(
            f"{name.upper()}={typed(value)} is of runs of classes, and these are of several findings; leave it away, "
            "or take one finding alone by LABELS=finding:NAME"
        )


def refuse_of_findings(findings: FindingsOptions) -> None:
    """Raise FirnError for an option that has no part in a comparison of runs of classes."""
    if findings.micro:
        raise FirnError("MICRO=1 is of several findings per image, and these runs are of classes; leave it away")


def _named(pair: PairOptions, runs: ModelSelector) -> list[Run]:
    """Return the two runs, by their folders or by the names that the comparison of the data set gives them."""
    known: dict[str, Run] = {}
    if any(load_record(Path(name)) is None for name in (pair.a, pair.b)):
        every = runs.load_all()
        known = runs_by_name(every)
    found = [known[name] if name in known else _in_folder(name, known) for name in (pair.a, pair.b)]
    for run in found:
        require_one_finding(run)
    return found


def _in_folder(name: str, known: Mapping[str, Run]) -> Run:
    """Return the run in a folder, and say where its data are not those of today. UnknownName for no such folder."""
    if load_record(Path(name)) is None:
        raise unknown("run", name, known)
    run = load_run(Path(name))
    say_if_stale(run)
    return run
