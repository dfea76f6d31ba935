"""The page: one file that needs no network. The template escapes every name; scripts run only by their digest."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from features.datasets.dataset import SPLITS
from features.options import in_a_file, make_command
from features.storage import csv_lines, write_whole
from models.audit import CHECKS
from models.runs.compare import runs_by_name
from models.runs.costs import costs
from models.runs.examination import at_stated, first_repeat, grouped_run
from models.runs.findings_results import FindingsResult
from models.runs.headline import cautions, missed, technical
from models.runs.record import Run, RunRecord
from models.runs.results import ComparisonResult, RunResult
from models.runs.scores import shown
from models.runs.summary import PARTIAL, plural
from models.validation.predictions import label_cells
from pipeline.render import page_figures as figures
from pipeline.render.audit_page import findings_folder, load_findings, summary
from pipeline.render.forest import forest, forest_scores, subgroups_csv
from pipeline.render.glossary import GLOSSARY, anchor, sorted_terms
from pipeline.render.page_figures import CURVES, operating_table, sides, training_figures
from pipeline.render.plots import draw_plots, learning_figure, load_learning
from pipeline.render.ranking import ranking_columns, ranking_rows
from pipeline.render.tables import ranking_csv, ranking_latex
from pipeline.render.templates import JPEG, environment

GALLERY = "gallery.json"  # beside the page: `report` writes it, and `compare` shows it again
GALLERY_SCHEMA = 3
Content = Mapping[str, Any]


class Extras(NamedTuple):
    """None where there is none, or where it is of other images or of another run."""

    learning: Content | None = None
    gallery: Content | None = None
    audit: Content | None = None
    no_gallery: str = ""  # why, where it was asked for


NOTHING = Extras()


def load_extras(folder: Path, results: ComparisonResult, chosen: Run) -> Extras:
    """Return what is at hand for the comparison in `folder`, whose chosen run is `chosen`."""
    data = results.dataset
    return Extras(
        load_learning(folder, data.manifest),
        kept_gallery(folder, results, chosen),
        load_findings(data.dataset, data.labels, data.manifest),
    )


def kept_gallery(folder: Path, results: ComparisonResult | FindingsResult, chosen: Run) -> Content | None:
    """Return the gallery that `report` wrote beside a page; None where there is none, or it is of another run."""
    try:
        content: Content = json.loads((folder / GALLERY).read_text(encoding="utf-8"))
        facts = (results.chosen.name, chosen.record.identity, results.dataset.manifest)
        same = facts == tuple(content[name] for name in ("run", "identity", "manifest"))
        images = [tile for line in content["lines"] for tile in line["images"]] if same else []
        same &= content["schema"] == GALLERY_SCHEMA
        sound = content["ramp"].startswith(JPEG) and all(
            tile["image"].startswith(JPEG) and tile["map"].startswith(JPEG[: len(tile["map"])]) for tile in images
        )
        return content if same and sound else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def audit_of(content: Content | None) -> dict[str, Any] | None:
    """Return what the page says of an audit: the sentences, a row for each check that found something, where it is."""
    if content is None:
        return None
    rows = [
        (CHECKS[name].title, CHECKS[name].severity, count, content["examples"][name][0])
        for name, count in content["counts"].items()
        if count and name in CHECKS
    ]
    place = "/".join(findings_folder(content["dataset"], content["labels"]).parts[-2:])
    return {"summary": summary(content), "rows": rows, "place": f"{place}/audit.html"}


def commands(results: ComparisonResult, extras: Extras) -> Sequence[str]:
    """Return the commands that make the same page again."""
    more = [content["command"] for content in (extras.audit, extras.learning) if content and content.get("command")]
    return [*results.commands, *more, report_command(results)]


def report_command(results: ComparisonResult | FindingsResult) -> str:
    """Return the command that makes the page with everything on it."""
    return "make report" + results.commands[-1].removeprefix("make compare")


def audit_command(results: ComparisonResult) -> str:
    """Return the command that makes the audit that is missing."""
    key = results.chosen.record.keys[0]
    data = results.dataset
    labels = data.labels if data.labels != "classes" else ""
    pixels = {"preprocess": key.preprocess_mode, "precision": key.precision}
    return make_command("audit", data.data, labels=labels, backbone=key.backbone, **pixels)


FOLDER = Path(__file__).parent
MOST = 20  # runs in the ranking at first sight, and in the curves
BY_GROUP = {  # scores that stand by image and by patient, by "two classes"
    True: ("roc_auc", "pr_auc", "sensitivity", "specificity", "mcc", "brier"),
    False: ("roc_auc", "pr_auc", "balanced_accuracy", "accuracy", "mcc", "brier"),
}
LINE = {"slope": "Slope", "intercept": "Intercept"}
PRESETS = {"youden": "Youden", "sensitivity>=0.95": "sensitivity ≥ 0.95"}


def render_page(results: ComparisonResult, runs: Sequence[Run], extras: Extras = NOTHING) -> str:
    """Return the HTML of the comparison; `results` is what compare_runs returned for `runs`.

    `extras` is what `load_extras` returned: learning curves, gallery and audit, as far as there are any.
    """
    return render("page.html.j2", results=results, **_context(results, runs, extras))


def render(template: str, **context: Any) -> str:
    """Return a page from a template of this folder, in the style and with the script that draws `data` of the context.

    Every name in the context is escaped; the page makes no request and runs no script but its own.
    """
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    pages = environment()
    pages.filters |= {"plural": plural, "lower_first": lambda text: text[:1].lower() + text[1:]}
    pages.globals |= {"word": _word, "meaning": GLOSSARY.__getitem__, "of_some_folds": PARTIAL}
    pages.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    scripts = {"plotly": _one_newline(get_plotlyjs()), "script": (FOLDER / "page.js").read_text(encoding="utf-8")}
    return pages.get_template(template).render(
        policy=_policy(scripts.values()),
        style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        **{name: Markup(text) for name, text in scripts.items()},
        **context,
    )


def _word(term: str, text: str = "") -> str:
    """Return a link to the word on the page. KeyError for one that the page does not explain."""
    from markupsafe import Markup

    return Markup('<a class="word" href="#word-{}" title="{}">{}</a>').format(
        anchor(term), GLOSSARY[term], text or term
    )


def _one_newline(text: str) -> str:
    """Return `text` as a browser reads it, which takes every line end for a line feed."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _policy(scripts: Any) -> str:
    """Return a content security policy: no request at all, and no script but these."""
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"


def _context(results: ComparisonResult, runs: Sequence[Run], extras: Extras) -> dict[str, Any]:
    """Return every name in the template, section by section."""
    return {
        **_in_short(results),
        **_ranked(results),
        **_costs(results),
        **_of_chosen(results),
        **_made(results, extras),
        "learning": extras.learning,
        "gallery": extras.gallery,
        "no_gallery": extras.no_gallery,
        "audit": audit_of(extras.audit),
        "thawed": any(row.record.history for row in results.runs),
        "data": _drawn(results, runs, extras.learning),
    }


def _in_short(results: ComparisonResult) -> dict[str, Any]:
    """Return what is said first, and the words that the whole page uses."""
    return {
        "tested": results.tested,
        "binary": results.dataset.positive is not None,
        "where": "on the test images" if results.tested else "out of fold",
        "unit": results.dataset.grouped_by or "image",
        "title": results.settings.get("title", ""),
        "missed": missed(results),
        "technical": technical(results),
        "cautions": list(cautions(results)),
        "facts": _facts(results),
        "glossary": [(term, anchor(term), GLOSSARY[term]) for term in sorted_terms()],
    }


def _ranked(results: ComparisonResult) -> dict[str, Any]:
    """Return the ranking, as a table, as files, and as the legend of the curves."""
    return {
        "downloads": _downloads(results),
        "columns": ranking_columns(results),
        "against": 2 if results.tested else 1,  # the column after which the comparison with the chosen run stands
        "rows": ranking_rows(results),
        "legend": [(row.name, figures.line_of(rank), rank <= figures.OTHERS) for rank, row in enumerate(results.runs)],
        "most": MOST,
    }


def _of_chosen(results: ComparisonResult) -> dict[str, Any]:
    """Return what is said of the chosen run alone."""
    return {
        "chosen": results.chosen,
        "presets": PRESETS,
        "confusion": shares_of_rows(results.chosen.confusion),
        "examination": results.examination,
        "forest": forest(results),
        "forest_scores": forest_scores(results),
        "by_image": [(results.metrics[name]["label"], name) for name in BY_GROUP[results.dataset.positive is not None]],
        "labels": {name: row["label"] for name, row in results.metrics.items()} | LINE,
        "prevalence": (results.examination.prevalence["stated"] or [0, 0])[1],
    }


def _made(results: ComparisonResult, extras: Extras) -> dict[str, Any]:
    """Return what the results were made of, and the commands that make them again."""
    again = commands(results, extras)
    return {
        "card": _card(results.dataset),
        "versions": {"firn": results.firn} | _versions(results.runs),
        "again": again,
        "in_a_file": in_a_file(again, "again.toml"),
        "report_command": report_command(results),
        "audit_command": audit_command(results),
    }


def _facts(results: ComparisonResult) -> list[tuple[str, int]]:
    """Return what stands in the tiles: how much was looked at, by what it is."""
    unit, counts, card = results.dataset.grouped_by, results.images, _card(results.dataset)
    facts = [
        ("Test images" if results.tested else "Images, predicted out of fold", counts["test"] or counts["validation"])
    ]
    facts += [(f"Their {plural(unit)}", counts["groups"])] if unit and "groups" in counts else []
    facts += [("Images in all", sum(card["images"]))] if results.tested else []
    return [*facts, ("Classes", len(results.dataset.classes)), ("Runs compared", len(results.runs))]


def _costs(results: ComparisonResult) -> dict[str, Any]:
    """Return what the section of costs shows."""
    spent = costs([row.record for row in results.runs])
    rows = [(r.validation_rank, r.name, cost, r.images_per_second) for r, cost in zip(results.runs, spent, strict=True)]
    return {
        "costs": rows,
        "stacked": any(cost.members for cost in spent),
        "numbered": len(results.runs) > figures.LABELLED,
    }


def _downloads(results: ComparisonResult) -> list[tuple[str, str, str]]:
    """Return the files that the page itself hands out: name, kind and content in base 64."""
    files = (("ranking.csv", "text/csv"), ("ranking.tex", "text/plain"))
    return [
        (name, kind, base64.b64encode(content).decode())
        for (name, kind), content in zip(files, _ranking(results), strict=True)
    ]


def _ranking(results: ComparisonResult) -> tuple[bytes, bytes]:
    """Return ranking.csv and ranking.tex."""
    return b"".join(ranking_csv(results)), ranking_latex(results).encode()


def _drawn(results: ComparisonResult, runs: Sequence[Run], learning: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what the page's script works on: the figures, and the operating points of two classes."""
    by_name = runs_by_name(runs)
    classes, chosen = results.dataset.classes, results.chosen
    names = [row.name for row in results.runs]
    parts = [sides(shown(by_name[name]), classes) for name in names]
    bootstrap = {name: results.settings[name] for name in ("n_bootstrap", "level", "seed")}
    drawn = {kind: figures.curve_figure(kind, names[:MOST], parts[:MOST], **bootstrap) for kind in CURVES}
    run = by_name[chosen.name]
    once = sides(first_repeat(run, shown(run)), classes)  # each image once, where images are counted
    stated, prevalence = at_stated(run, results.examination)
    trusted = sides(first_repeat(run, stated), classes)
    drawn |= {
        "reliability": figures.reliability_figure(trusted, prevalence),
        "decision": figures.decision_figure(trusted, prevalence, level=results.settings["level"]),
        "cost": figures.cost_figure(results.runs),
        **({"learning": learning_figure(learning)} if learning else {}),
        **training_figures(results.runs),
    }
    if len(parts[0]) > 1:
        return {"figures": drawn, "operating": None}
    thresholds = {name: row["threshold"] for name, row in chosen.thresholds.items()} | {"half": 0.5}
    drawn["scores"] = figures.score_figure(once[0], classes[0])
    return {"figures": drawn, "operating": operating_table(once[0], thresholds)}


def shares_of_rows(confusion: Sequence[Sequence[int]]) -> list[list[tuple[int, float]]]:
    """Return each count of a confusion matrix with its share of the row."""
    return [[(count, count / max(sum(row), 1)) for count in row] for row in confusion]


def _card(data: RunRecord) -> dict[str, Any]:
    """Return the images of each class in each split, with their share of the largest number, and the sums."""
    counts = data.counts
    splits = [split for split in SPLITS if split in counts]
    most = max(n for by_class in counts.values() for n in by_class.values())
    table = {name: [counts[split].get(name, 0) for split in splits] for name in data.classes}
    return {
        "splits": splits,
        "classes": [(name, [(n, n / most) for n in row]) for name, row in table.items()],
        "images": [sum(counts[split].values()) for split in splits],
        "groups": [data.groups.get(split) for split in splits],
    }


def _versions(rows: Sequence[RunResult]) -> dict[str, str]:
    """Return each library's version, several where runs differ."""
    known: dict[str, dict[str, None]] = {}
    for row in rows:
        for name, version in row.record.versions.items():
            known.setdefault(name, {})[str(version)] = None
    return {name: ", ".join(found) for name, found in sorted(known.items())}


def write_report(results: ComparisonResult, runs: Sequence[Run], folder: Path, *, no_gallery: str = "") -> Path:
    """Write results.json, the tables, {roc,pr}.{svg,png} and report.html into `folder`; return the page's path.

    The tables are ranking.csv and .tex, predictions.csv, subgroups.csv where columns make any, and
    predictions-by-group.csv of the chosen run where groups (patients) have several images.

    `results` is what compare_runs returned for `runs`. What other verbs have found of the same images is on the page
    too (`load_extras`); `no_gallery` says why there is no gallery, where one was asked for. OSError (disk full,
    read-only) passes through; a file is as before or whole.
    """
    text = json.dumps(results.to_json(), indent=1, allow_nan=False, ensure_ascii=False)
    write_whole(folder / "results.json", [text.encode()])
    write_whole(folder / "predictions.csv", predictions_csv(runs))
    for name, content in zip(("ranking.csv", "ranking.tex"), _ranking(results), strict=True):
        write_whole(folder / name, [content])
    chosen = runs_by_name(runs)[results.chosen.name]
    _write_examined(folder, results, chosen)
    for name, content in draw_plots(results, runs).items():
        write_whole(folder / name, [content])
    extras = load_extras(folder, results, chosen)._replace(no_gallery=no_gallery)
    page = folder / "report.html"
    write_whole(page, [render_page(results, runs, extras).encode()])
    return page


def _write_examined(folder: Path, results: ComparisonResult, chosen: Run) -> None:
    """Write the tables of the chosen run; those of an earlier comparison that are of nothing now go."""
    grouped = grouped_run(chosen, str(results.examination.asked["aggregate"]))
    for name, lines in (
        ("subgroups.csv", subgroups_csv(results) if results.examination.subgroups else None),
        ("predictions-by-group.csv", predictions_csv([grouped[0]]) if grouped else None),
    ):
        if lines is not None:
            write_whole(folder / name, lines)
        else:
            (folder / name).unlink(missing_ok=True)


def predictions_csv(runs: Sequence[Run]) -> Iterator[bytes]:
    """Yield a header, then one line per image (or group) of each run, probabilities with all their digits."""
    classes, several = runs[0].record.classes, runs[0].record.several
    labels = [f"label_{name}" for name in classes] if several else ["label"]
    yield csv_lines([["id", "group", "split", "fold", *labels, *(f"p_{name}" for name in classes), "run"]])
    for name, run in runs_by_name(runs).items():
        columns = zip(*(column.tolist() for column in run.predictions), strict=True)
        yield csv_lines(
            [
                *(image, group, *(("test", "") if fold < 0 else ("train", fold))),
                *(label_cells(label) if several else [classes[label]]),
                *proba,
                name,
            ]
            for image, group, label, proba, fold in columns
        )
