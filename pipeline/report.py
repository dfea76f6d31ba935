"""report: all runs of a data set -> the page, with images of what the chosen run got wrong."""

from __future__ import annotations

import json
from typing import Annotated

from features.datasets.columns import further_columns
from features.errors import FirnError
from features.options import FeatureOptions, Taking
from features.progress import say
from features.storage import artifacts_root, write_whole
from models.runs.compare import compare_runs
from models.runs.examination import ExaminationOptions
from models.runs.findings import compare_findings
from models.runs.findings_results import FindingsResult
from models.runs.results import ComparisonResult
from pipeline.compare import (
    Compared,
    FindingsOptions,
    MarginOptions,
    PageOptions,
    refuse_of_classes,
    refuse_of_findings,
)
from pipeline.render.findings_report import write_findings
from pipeline.render.html_page import GALLERY, write_report


def report(
    runs: Compared,
    how: ExaminationOptions,
    against: MarginOptions,
    findings: FindingsOptions,
    page: PageOptions,
    features: Annotated[FeatureOptions, Taking("weights")],
) -> list[str]:
    """Compare as `compare` does and write the page with a gallery of errors; return the page's path.

    Where images or their maps are missing the page says which command brings them. Raises CacheError where there is
    no run.
    """
    from pipeline.render.gallery import make_gallery

    found, dataset = runs.load_all(several=True), runs.data.load()
    folder = artifacts_root() / "compare" / found[0].record.root.name
    result: ComparisonResult | FindingsResult
    if found[0].record.several:
        refuse_of_classes(how, against, page)
        result = compare_findings(found, seed=runs.data.seed, pooled=findings.micro)
    else:
        refuse_of_findings(findings)
        columns = further_columns(dataset, how.columns)
        result = compare_runs(found, how, columns, seed=runs.data.seed, margin=against.margin, title=page.title)
    why_not = ""
    try:
        gallery = make_gallery(result, found, dataset, features.weights)
        write_whole(folder / GALLERY, [json.dumps(gallery, indent=1).encode()])
    except FirnError as error:
        why_not = str(error)
        say(f"no gallery: {why_not}")
    if isinstance(result, FindingsResult):
        return [str(write_findings(result, found, folder, no_gallery=why_not))]
    return [str(write_report(result, found, folder, no_gallery=why_not))]
