"""The verb: all runs of a data set -> the page, with images of what the chosen run got wrong."""

from __future__ import annotations

import json

from features.datasets import load_dataset
from features.errors import FirnError
from features.progress import say
from features.storage import artifacts_root, write_whole
from models.runs.compare import choose_runs, compare_runs
from models.runs.record import runs_root
from pipeline.render.html_page import GALLERY, write_report


def report(
    dataset: str,
    *,
    backbone: str = "",
    labels: str = "classes",
    protocol: str = "split",
    seed: int = 0,
    weights: str = "",
) -> str:
    """Compare as `compare` does and write the page with a gallery of errors; return the page's path.

    Where images or their maps are missing the page says which command brings them. Raises CacheError where there is
    no run.
    """
    from pipeline.render.gallery import make_gallery

    images = load_dataset(dataset, seed=seed)
    runs = choose_runs(images.name, dataset, backbone=backbone, labels=labels, protocol=protocol)
    results = compare_runs(runs, seed=seed)
    folder, why_not = artifacts_root() / "compare" / runs_root(images.name, labels, protocol).name, ""
    try:
        gallery = make_gallery(results, runs, images, weights)
        write_whole(folder / GALLERY, [json.dumps(gallery, indent=1).encode()])
    except FirnError as error:
        why_not = str(error)
        say(f"no gallery: {why_not}")
    return str(write_report(results, runs, folder, no_gallery=why_not))
