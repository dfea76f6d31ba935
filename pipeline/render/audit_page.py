"""What an audit found: the summary in the terminal, the table as CSV, and the page with the images."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.datasets.dataset import Source
from features.errors import BadImage
from features.progress import printable
from features.storage import artifacts_root, csv_lines
from models.audit import CHECKS, Finding
from models.runs.record import runs_root
from models.runs.summary import with_interval
from pipeline.render.templates import environment, jpeg_url
from pipeline.render.terminal import terminal

if TYPE_CHECKING:
    from rich.table import Table

_SHOWN = 24  # findings of each check whose images are on the page
_SIDE = 160  # pixels of an image on the page


def findings_folder(dataset: str, labels: str) -> Path:
    """Return the folder of the audit of a data set under one view of its labels."""
    return artifacts_root() / "audit" / runs_root(dataset, labels).name


def load_findings(dataset: str, labels: str, manifest: str) -> dict[str, Any] | None:
    """Return what an audit of the same images, labels and splits found; None without any."""
    try:
        content: dict[str, Any] = json.loads((findings_folder(dataset, labels) / "audit.json").read_text("utf-8"))
        return content if content["manifest"] == manifest else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def findings_csv(findings: Iterable[Finding]) -> bytes:
    """Return a header and a line per finding."""
    return csv_lines([Finding._fields, *findings])


def print_findings(results: Mapping[str, Any]) -> None:
    """Print what was found, check by check, then what was not, and what it does to the score; fits 100 columns."""
    out = terminal()
    if any(results["counts"].values()):
        out.print(_table(results))
    for line in summary(results):
        out.print(printable(line), markup=False, highlight=False, soft_wrap=True)


def _table(results: Mapping[str, Any]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title in ("check", "severity"):
        table.add_column(title, no_wrap=True)
    table.add_column("found", justify="right", no_wrap=True)
    table.add_column("for example", overflow="fold")
    for name, count in results["counts"].items():
        if count:
            check, example = CHECKS[name], results["examples"][name][0]
            cells = (check.title, check.severity, f"{count:,}", _in_words(example))
            table.add_row(*(Text(printable(cell)) for cell in cells), style="bold" if check.severity == "high" else "")
    return table


def _in_words(example: Mapping[str, str]) -> str:
    images = " = ".join(filter(None, (example["image"], example["other"])))
    return f"{images} ({example['value']})" if example["value"] else images


def summary(results: Mapping[str, Any]) -> list[str]:
    """Return the sentences below the table."""
    images = ", ".join(f"{count:,} {split}" for split, count in results["images"].items())
    nothing = [CHECKS[name].title for name, count in results["counts"].items() if not count]
    lines = [f"{results['dataset']} with {results['backbone']}: {images} images."]
    if nothing:
        lines.append(f"Nothing found of: {'; '.join(nothing)}.")
    lines += [f"Left out: {CHECKS[name].title} ({why})." for name, why in results["left_out"].items()]
    if not results["grouped_by"]:
        lines.append("No groups are known: two images of one patient in two splits cannot be noticed.")
    if (accuracy := results["out_of_fold_accuracy"]) is not None and results["counts"].get("label-error"):
        lines.append(f"The head that doubts labels agrees with {accuracy:.1%} of them out of fold.")
    return lines + _score(results["test_roc_auc"])


def _score(scores: Mapping[str, Any] | None) -> list[str]:
    if scores is None:
        return []
    everything = f"Test ROC AUC of the logistic head {with_interval(scores['everything'])}"
    if not scores["leaked"]:
        return [f"{everything}; no test image is known from training."]
    kept = scores["images"] - scores["leaked"]
    return [
        f"{everything} on all {scores['images']:,} test images, {with_interval(scores['clean'])} on the {kept:,} "
        f"without the {scores['leaked']:,} known from training."
    ]


def findings_page(results: Mapping[str, Any], found: Mapping[str, Sequence[Finding]], source: Source | None) -> str:
    """Return one HTML file that needs no network: the summary, and of each check the first findings with images.

    `source` gives the images, None where there are none. The template escapes every name.
    """
    sections = [
        (CHECKS[name], len(each), [(finding, _images(finding, source)) for finding in each[:_SHOWN]])
        for name, each in found.items()
        if each
    ]
    template = environment().get_template("audit_page.html.j2")
    return template.render(results=results, summary=summary(results), sections=sections)


def _images(finding: Finding, source: Source | None) -> list[str]:
    """Return the finding's images as data URLs; none for those that cannot be read."""
    from features.images import decode

    urls = []
    for name in filter(None, (finding.image, finding.other)):
        try:
            plane = decode(source.read(name), name=name)[0] if source else None
        except (BadImage, OSError):
            continue
        if plane is not None:
            urls.append(jpeg_url(plane, _SIDE, quality=80))
    return urls
