"""methods.md: how a study was made, with every number filled in, and the items of guidelines that it answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from features.datasets.dataset import SPLITS
from models.runs.headline import cautions, headline, missed
from models.runs.record import RunRecord
from models.runs.results import ComparisonResult
from models.runs.summary import plural

# Items of TRIPOD+AI (Collins et al. 2024, BMJ 385:e078378) and of CLAIM's 2024 update (Tejani et al. 2024, Radiology:
# Artificial Intelligence 6:e240300) by their numbers there: what of this file answers each.
ANSWERED = (
    ("20a", "35", "images and patients in each split", "Data"),
    ("7, 9b, 12b", "9", "preprocessing and features, exactly", "Features"),
    ("10", "21", "number of images and patients, with the rule for a validation's size", "Results"),
    ("12a", "19, 20", "partitions, and what is kept together", "Data"),
    ("12c", "22, 24, 25", "kind of model, hyperparameters, training", "Models"),
    ("12c", "26, 27", "choice of the final model, ensembles", "Models"),
    ("12e", "28, 29, 32", "measures, intervals, tests; on which images", "Statistics"),
    ("12g, 15", "", "probabilities, operating points", "Statistics"),
    ("18f", "23", "software with versions; the commands that make it again", "Again"),
    ("21", "", "images of each class in each split", "Data"),
    ("22", "43", "the model itself: make bundle", "Again"),
    ("23a", "37, 38", "performance with intervals, calibration, subgroups where there are columns", "Results"),
    ("12d, 23b", "", "differences between sites, where there is a column", "Results"),
    ("", "31, 39", "class activation maps, most confident errors: make report", "Again"),
)
OF_AUTHORS = (
    ("1, 2", "1, 2", "title and abstract"),
    ("3a to 3c, 4", "3, 4, 6", "background, rationale, objectives"),
    ("5a, 5b", "5, 7, 13", "where, when and how the images were taken, prospectively or not"),
    ("6a to 6c", "8, 10, 11", "setting, eligibility, treatments, selection, de-identification"),
    ("8a to 8c, 9a, 9c", "14 to 18", "reference standard: who labelled, blinded to what, how far readers agreed"),
    ("11", "12", "missing data before the images came here"),
    ("13, 14", "30", "class imbalance and fairness: why subgroups were chosen; robustness"),
    ("12f, 16, 24", "33", "images from elsewhere, recalibration: make validate"),
    (
        "17, 18a to 18e, 19",
        "34, 42, 44",
        "ethics, funding, conflicts, registration, protocol, data, public involvement",
    ),
    ("20b, 20c", "36", "age, sex and other characteristics of the patients"),
    ("25, 26, 27a to 27c", "40, 41", "interpretation, limitations, use in practice"),
)


def methods(results: ComparisonResult) -> str:
    """Return the text in Markdown; `results` fill every number in it."""
    sections = (
        ("Data", _data(results)),
        ("Features", _features(results)),
        ("Models", _models(results)),
        ("Statistics", _statistics(results)),
        ("Results", _results(results)),
        ("Again", _again(results)),
        ("Items of reporting guidelines", _items()),
    )
    body = "\n".join(f"## {title}\n\n" + "\n\n".join(paragraphs) + "\n" for title, paragraphs in sections)
    data = results.settings.get("title") or results.dataset.dataset
    return f"# Methods: {data}\n\nWritten from the results; to be shortened, and checked against the study.\n\n{body}"


def _data(results: ComparisonResult) -> Iterator[str]:
    data = results.dataset
    splits = [_split(data, name) for name in SPLITS if name in data.counts]
    note = f" ({data.note.rstrip('.')})" if data.note else ""
    yield f"The data set {data.dataset}{note} held {'; '.join(splits)}."
    grouped = (
        f"Images of one {data.grouped_by} were kept in one split and one fold."
        if data.grouped_by
        else "No patients are known, so that each image counted as independent of the others."
    )
    labels = "" if data.labels == "classes" else f" Labels were the coarser view “{data.labels}”."
    yield f"Splits: {data.split_by}, seed {data.seed}. {grouped}{labels}"


def _split(data: RunRecord, name: str) -> str:
    counts = data.counts[name]
    groups = f" of {data.groups[name]:,} {plural(data.grouped_by)}" if data.grouped_by and name in data.groups else ""
    classes = ", ".join(f"{n:,} {label}" for label, n in counts.items())
    return f"{sum(counts.values()):,} images{groups} in the {name} split ({classes})"


def _features(results: ComparisonResult) -> Iterator[str]:
    keys = {key.digest(): key for row in results.runs for key in row.record.keys}
    alike: dict[tuple[str, str, str], list[str]] = {}
    for key in keys.values():
        named = f"{key.backbone} (weights with SHA-256 {key.weights[:16]}…)"
        alike.setdefault((str(key.preprocess), key.precision, key.stored), []).append(named)
    for (seen, precision, stored), backbones in alike.items():
        yield (
            f"{', '.join(backbones)} saw each image as: {seen}; arithmetic {precision}, features stored as {stored}."
        )
    chosen = results.chosen.record
    if chosen.bases:
        yield f"The chosen model combines the predictions of {len(chosen.bases)} others and sees no features itself."
    else:
        yield f"The chosen model saw {chosen.view} of {chosen.backbone}: {chosen.features:,} features an image."


def _models(results: ComparisonResult) -> Iterator[str]:
    runs, chosen = results.runs, results.chosen.record
    yield f"{len(runs)} {'models were' if len(runs) > 1 else 'model was'} trained: {', '.join(_abouts(results))}."
    settings = ", ".join(
        f"{name} {_value(value)}" for name, value in chosen.chosen.items() if not isinstance(value, dict)
    )
    picked = f", with {settings} chosen inside the training images" if settings else ""
    yield f"The chosen one, {results.chosen.name}, is {chosen.about}{picked}; seed {chosen.seed}."
    yield f"{results.protocol[0]} {results.protocol[1]}"


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _abouts(results: ComparisonResult) -> list[str]:
    heads = [(row.record.head, row.record.about) for row in results.runs]
    return [f"{heads.count(each)} × {each[0]} ({each[1]})" for each in dict.fromkeys(heads)]


def _statistics(results: ComparisonResult) -> Iterator[str]:
    yield " ".join(results.protocol[2:])
    yield (
        "References: DeLong et al. 1988 (Biometrics 44:837), Obuchowski 1997 (Biometrics 53:567) for the ROC AUC and "
        "its tests; Youden 1950 (Cancer 3:32) for the operating point; Dunnett 1955 (JASA 50:1096) for simultaneous "
        "tests; Vickers & Elkin 2006 (Med Decis Making 26:565) for net benefit; Van Calster et al. 2019 (BMC Medicine "
        "17:230) for calibration; Bates, Hastie & Tibshirani 2021 (arXiv:2104.00673) for intervals out of fold; "
        "Collins, Ogundimu & Altman 2016 (Stat Med 35:214) and Riley et al. 2021 (Stat Med 40:4230) for the size of a "
        "validation."
    )


def _results(results: ComparisonResult) -> Iterator[str]:
    yield f"{headline(results)} {missed(results)}"
    remarks = [*cautions(results), *results.examination.remarks]
    if remarks:
        yield "\n".join(f"- {remark}" for remark in remarks)


def _again(results: ComparisonResult) -> Iterator[str]:
    versions = {name: version for row in results.runs for name, version in row.record.versions.items()}
    libraries = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    seed, manifest = results.settings["seed"], results.dataset.manifest
    yield f"Firn {results.firn}; {libraries}. Bootstrap seed {seed}. Digest of the images: {manifest}."
    yield "\n".join(
        f"    {command}" for command in [*results.commands, results.commands[-1].replace("compare", "figures", 1)]
    )


def _items() -> Iterator[str]:
    yield (
        "TRIPOD+AI: Collins et al. 2024, BMJ 385:e078378. CLAIM, 2024 update: Tejani et al. 2024, "
        "Radiology: Artificial Intelligence 6:e240300. Numbers are those of the checklists."
    )
    yield "Answered here:"
    yield _table(("TRIPOD+AI", "CLAIM", "item", "section"), ANSWERED)
    yield "Only the authors can answer:"
    yield _table(("TRIPOD+AI", "CLAIM", "item"), OF_AUTHORS)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *([cell or "–" for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
