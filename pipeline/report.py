"""report: all runs of a data set -> the page, with images of what the chosen run got wrong."""

from __future__ import annotations

import json
from typing import Annotated

from features.datasets.columns import further_columns
from features.datasets.findings import ONE
from features.errors import FirnError
from features.options import FeatureOptions, Taking, make_command
from features.progress import say
from features.storage import artifacts_root, write_whole
from models.runs.compare import compare_runs
from models.runs.examination import ExaminationOptions
from pipeline.compare import Compared, MarginOptions, PageOptions, findings_page
from pipeline.render.html_page import GALLERY, write_report


def report(
    runs: Compared,
    how: ExaminationOptions,
    against: MarginOptions,
    page: PageOptions,
    features: Annotated[FeatureOptions, Taking("weights")],
) -> list[str]:
    """Compare as `compare` does and write the page with a gallery of errors; return the page's path.

    Where images or their maps are missing the page says which command brings them. Raises CacheError where there is
    no run.
    """
    from rich.console import Console

    from pipeline.render.gallery import make_gallery

    found = runs.load_all(several=True)
    if found[0].record.several:
        labels = f"{ONE}{found[0].record.classes[0]}"
        again = make_command("extract train-heads report", runs.data, backbone=runs.backbone, labels=labels)
        say(f"no images of errors: they are of one finding at a time; run: {again}")
        folder = artifacts_root() / "compare" / found[0].record.root.name
        return [str(findings_page(found, runs.data.seed, folder, Console(width=100)))]
    dataset = runs.data.load()
    columns = further_columns(dataset, how.columns)
    result = compare_runs(found, how, columns, seed=runs.data.seed, margin=against.margin, title=page.title)
    folder, why_not = artifacts_root() / "compare" / found[0].record.root.name, ""
    try:
        gallery = make_gallery(result, found, dataset, features.weights)
        write_whole(folder / GALLERY, [json.dumps(gallery, indent=1).encode()])
    except FirnError as error:
        why_not = str(error)
        say(f"no gallery: {why_not}")
    return [str(write_report(result, found, folder, no_gallery=why_not))]
