"""The page: one file that needs no network. The template escapes every name; scripts run only by their digest."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from features.datasets.dataset import SPLITS
from models.runs.compare import run_names
from models.runs.record import Run
from models.runs.scores import shown
from models.runs.summary import plural
from models.validation.predictions import Predictions
from pipeline.render import figures
from pipeline.render.curves import CURVES, operating_table, sides
from pipeline.render.extras import NOTHING, Extras, audit_command, audit_of, commands, report_command
from pipeline.render.learning import learning_figure
from pipeline.render.ranking import ranking_columns, ranking_rows
from pipeline.render.training import training_figures

__all__ = ["render_page"]

FOLDER = Path(__file__).parent
TILES = {True: ("roc_auc", "sensitivity", "specificity"), False: ("roc_auc", "balanced_accuracy", "accuracy")}
MOST = 20  # runs in the ranking at first sight, and in the curves
PRESETS = {"youden": "Youden", "sensitivity>=0.95": "sensitivity ≥ 0.95"}


def render_page(results: Mapping[str, Any], runs: Sequence[Run], extras: Extras = NOTHING) -> str:
    """Return the HTML of the comparison; `results` is what compare_runs returned for `runs`.

    `extras` is what `load_extras` returned: learning curves, gallery and audit, as far as there are any.
    """
    import jinja2
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plural"] = plural
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    scripts = {"plotly": _one_newline(get_plotlyjs()), "script": (FOLDER / "page.js").read_text(encoding="utf-8")}
    return environment.get_template("page.html.j2").render(
        results=results,
        policy=_policy(scripts.values()),
        style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        **{name: Markup(text) for name, text in scripts.items()},
        **_context(results, runs, extras),
    )


def _one_newline(text: str) -> str:
    """Return `text` as a browser reads it, which takes every line end for a line feed."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _policy(scripts: Any) -> str:
    """Return a content security policy: no request at all, and no script but these."""
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"


def _context(results: Mapping[str, Any], runs: Sequence[Run], extras: Extras) -> dict[str, Any]:
    chosen, data = results["runs"][0], results["dataset"]
    tested, binary = chosen["test"] is not None, data["positive"] is not None
    scores = chosen["test"] or chosen["validation"]
    return {
        "chosen": chosen,
        "tested": tested,
        "binary": binary,
        "where": "on the test pictures" if tested else "out of fold",
        "unit": data["grouped_by"] or "picture",
        "tiles": [(results["metrics"][name]["label"], scores[name]) for name in TILES[binary]],
        "columns": ranking_columns(results),
        "against": 2 if tested else 1,  # the column after which the comparison with the chosen run stands
        "rows": ranking_rows(results),
        "legend": [
            (row["name"], figures.line_of(rank), rank <= figures.OTHERS) for rank, row in enumerate(results["runs"])
        ],
        "most": MOST,
        "presets": PRESETS,
        "confusion": _shares(chosen["confusion"]),
        "card": _card(data),
        "versions": _versions(results["runs"]),
        "learning": extras.learning,
        "gallery": extras.gallery,
        "no_gallery": extras.no_gallery,
        "audit": audit_of(extras.audit),
        "again": commands(results, extras),
        "report_command": report_command(results),
        "audit_command": audit_command(results),
        "thawed": any(row["history"] for row in results["runs"]),
        "data": _drawn(results, runs, extras.learning),
    }


def _drawn(results: Mapping[str, Any], runs: Sequence[Run], learning: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what the page's script works on: the figures, and the operating points of two classes."""
    by_name = dict(zip(run_names(runs), runs, strict=True))
    classes, chosen = results["dataset"]["classes"], results["runs"][0]
    names = [row["name"] for row in results["runs"]]
    parts = [sides(shown(by_name[name]), classes) for name in names]
    bootstrap = {name: results["settings"][name] for name in ("n_bootstrap", "level", "seed")}
    drawn = {kind: figures.curve_figure(kind, names[:MOST], parts[:MOST], **bootstrap) for kind in CURVES}
    once = sides(_first_repeat(by_name[chosen["name"]]), classes)  # each picture once, where pictures are counted
    drawn |= {
        "reliability": figures.reliability_figure(once),
        "decision": figures.decision_figure(once),
        "cost": figures.cost_figure(results["runs"]),
        **({"learning": learning_figure(learning)} if learning else {}),
        **training_figures(results["runs"]),
    }
    if len(parts[0]) > 1:
        return {"figures": drawn, "operating": None}
    thresholds = {name: row["threshold"] for name, row in chosen["thresholds"].items()} | {"half": 0.5}
    drawn["scores"] = figures.score_figure(once[0], classes[0])
    return {"figures": drawn, "operating": operating_table(once[0], thresholds)}


def _first_repeat(run: Run) -> Predictions:
    """Return the predictions that are shown, each picture once: of the first repeat of a repeated cross-validation."""
    part = shown(run)
    return Predictions(*(column[part.fold < run.facts["folds"]] for column in part))


def _shares(confusion: Sequence[Sequence[int]]) -> list[list[tuple[int, float]]]:
    """Return each count of a confusion matrix with its share of the row."""
    return [[(count, count / max(sum(row), 1)) for count in row] for row in confusion]


def _card(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pictures of each class in each split, with their share of the largest number, and the sums."""
    counts = data["counts"]
    splits = [split for split in SPLITS if split in counts]
    most = max(n for by_class in counts.values() for n in by_class.values())
    table = {name: [counts[split].get(name, 0) for split in splits] for name in data["classes"]}
    return {
        "splits": splits,
        "classes": [(name, [(n, n / most) for n in row]) for name, row in table.items()],
        "pictures": [sum(counts[split].values()) for split in splits],
        "groups": [data["groups"].get(split) for split in splits],
    }


def _versions(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return each library's version, several where runs differ."""
    known: dict[str, dict[str, None]] = {}
    for row in rows:
        for name, version in row["versions"].items():
            known.setdefault(name, {})[str(version)] = None
    return {name: ", ".join(found) for name, found in sorted(known.items())}
