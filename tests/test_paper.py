"""What leaves the page: the headline, costs, tables, figures and methods; the words that explain them."""

from __future__ import annotations

import base64
import csv
import io
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from runs_for_tests import draw_predictions, draw_runs, make_run

from models.runs.compare import compare_runs
from models.runs.costs import costs
from models.runs.headline import cautions, headline, missed, technical
from models.runs.record import Run
from models.runs.results import ComparisonResult
from models.runs.summary import place_of
from pipeline.render.glossary import GLOSSARY, anchor, sorted_terms
from pipeline.render.html_page import render_page
from pipeline.render.methods import methods
from pipeline.render.page_figures import sides
from pipeline.render.paper import COLUMN, RUNS, _percent, captions, draw_figures
from pipeline.render.tables import latex, paper_tables, ranking_csv

DRAWS = 40
ROOT = Path(__file__).parents[1]
needs_latex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex: no table is compiled")


@pytest.fixture(scope="module")
def two() -> tuple[list[Run], ComparisonResult]:
    runs = draw_runs(2, strengths=(1.6, 1.7, 0.4), classes=["NORMAL", "a_b & 5 % $x$"])
    return runs, compare_runs(runs, n_bootstrap=DRAWS, title="A <study>")


def test_headline_of_two_classes_with_ties(two: tuple[list[Run], ComparisonResult]) -> None:
    _, results = two
    area = results.chosen.shown["roc_auc"]
    numbers = f"AUC {area['value']:.2f} (95 % CI {area['low']:.2f} to {area['high']:.2f})"
    assert headline(results) == (
        f"The best model separates a b & 5 % $x$ from normal with {numbers} on 80 test images of 40 patients; 1 of 2 "
        "others shows no detectable difference."
    )
    assert technical(results).startswith(f"{results.chosen.name}, chosen by validation from 3 runs.")
    found, spared = (results.chosen.shown[name]["value"] for name in ("sensitivity", "specificity"))
    assert found is not None
    assert spared is not None
    assert re.search(
        rf"would miss {100 * (1 - found):.0f} of 100 \(95 % CI \d+ to \d+\) images of .*"
        rf"false alarm in {100 * (1 - spared):.0f} of 100 \(",
        missed(results),
    )


def test_headline_of_more_classes_of_folds_and_of_one_run() -> None:
    seven = compare_runs(draw_runs(7, strengths=(2.0, 1.9)), n_bootstrap=DRAWS)
    assert re.match(r"The best model tells 7 classes apart with a mean AUC of 0\.\d\d \(", headline(seven))
    worst = min(seven.classes, key=lambda row: row["recall"])
    assert f"{worst['name'].replace('_', ' ')}, the class it knows least" in missed(seven)
    folds = compare_runs(draw_runs(2, train=120, test=0), n_bootstrap=DRAWS)
    assert "when corrected for the choice, on 120 images of 60 patients that it had not learned from" in headline(folds)
    alone = compare_runs(draw_runs(2, strengths=(1.5,)), n_bootstrap=DRAWS)
    assert headline(alone).startswith("The only model separates opacity from clear with AUC")
    assert headline(alone).endswith("on 80 test images of 40 patients.")


def test_a_class_without_test_images_is_not_told_apart() -> None:
    runs = draw_runs(3, strengths=(2.0, 1.5))
    kept = [(run.predictions.fold >= 0) | (run.predictions.y != 1) for run in runs]
    some = [replace(run, predictions=run.predictions.take(at)) for run, at in zip(runs, kept, strict=True)]
    found = compare_runs(some, n_bootstrap=DRAWS)
    assert headline(found).startswith("The best model tells 2 classes apart (kind 0, kind 2) with a mean AUC of 0.")
    assert "No test image is of “kind_1”: no score tells how well such images are recognised." in [*cautions(found)]
    assert not any("No test image" in line for line in cautions(compare_runs(runs, n_bootstrap=DRAWS)))


def test_cautions_follow_their_rules(two: tuple[list[Run], ComparisonResult]) -> None:
    _, results = two
    said = " ".join(cautions(results))
    remarks = " ".join(results.examination.remarks)
    assert "Small test set: all figures may change with other patients. The scores rest on patients: 20 of" in remarks
    assert "is guessed" not in said
    unnamed = compare_runs(draw_runs(2, strengths=(1.5,), classes=["a", "b"]), n_bootstrap=DRAWS)
    assert "“b” counts as positive, for no name says so" in " ".join(cautions(unnamed))
    assert "Extreme threshold" not in said
    assert "compared at once" not in said
    assert "Worse on test images" not in said
    flattered = {**results.chosen.validation, "roc_auc": {"value": 0.998, "low": 0.997, "high": 0.999}}
    (first, *_) = cautions(replace(results, runs=(replace(results.chosen, validation=flattered), *results.runs[1:])))
    assert first.startswith("Worse on test images: AUC 0.")
    assert "where validation had 0.998 (95 % CI 0.997 to 0.999)" in first
    extreme = replace(results, runs=(replace(results.chosen, threshold=0.96), *[*results.runs[1:]] * 10))
    said = " ".join(cautions(extreme))
    assert "Extreme threshold: decisions turn at a probability of 0.96" in said
    assert "21 runs are compared at once" in said


def test_patients_of_the_test_images_who_were_learned_from_are_told_of(
    two: tuple[list[Run], ComparisonResult],
) -> None:
    runs, results = two
    assert "Leak" not in " ".join(cautions(results))
    tested, shared = runs[0].predictions.fold < 0, []
    for run in runs:
        groups = run.predictions.groups.copy()
        groups[np.flatnonzero(tested)[0]] = groups[np.flatnonzero(~tested)[0]]
        shared.append(replace(run, predictions=run.predictions._replace(groups=groups)))
    (first, *_) = cautions(compare_runs(shared, n_bootstrap=DRAWS))
    assert re.match(r"Leak: of the \d+ patients of the test images 1 have images among those that were learned", first)
    alone = [replace(run, record=replace(run.record, grouped_by=None)) for run in shared]
    assert "Leak" not in " ".join(cautions(compare_runs(alone, n_bootstrap=DRAWS)))


def test_shifted_probabilities_are_told(two: tuple[list[Run], ComparisonResult]) -> None:
    """A calibration intercept far from 0, and not one that is near."""
    _, results = two
    shifted = {"none": {"intercept": {"value": -1.2, "low": -1.6, "high": -0.8}}}
    said = " ".join(cautions(replace(results, calibration=shifted)))
    assert f"of “{results.dataset.positive}” are too high on the test images (calibration intercept -1.2" in said
    near = {"none": {"intercept": {"value": -0.4, "low": -0.6, "high": -0.2}}}
    assert "Probabilities" not in " ".join(cautions(replace(results, calibration=near)))


def test_a_stack_costs_what_its_members_do() -> None:
    a, b, c = (run.record for run in draw_runs(2))
    inner = replace(a, head="stack", view="x", bases=(place_of(a), place_of(b)))
    outer = replace(a, head="stack", view="y", bases=(place_of(inner), place_of(b), "elsewhere/a/b"))
    own = [record.seconds["oof"] + record.seconds["fit"] for record in (a, b)]
    found = costs([a, b, c, inner, outer])
    assert [cost.members for cost in found] == [0, 0, 0, 2, 4]
    assert [cost.unknown for cost in found] == [0, 0, 0, 0, 1]
    assert found[3].seconds == pytest.approx(2 * own[0] + own[1])
    assert found[4].seconds == pytest.approx(3 * own[0] + own[1]), "a member that two share counts once"


def test_the_roc_curve_has_its_own_steps_and_its_band_a_width() -> None:
    part = draw_predictions(2, strength=1.0).part(test=True)
    (side,) = sides(part, ["clear", "opacity"])
    x, y = side.steps("roc")
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    rates = {
        (float((side.score[side.y == 0] >= t).mean()), float((side.score[side.y == 1] >= t).mean())) for t in side.score
    }
    assert set(zip(x[1:].tolist(), y[1:].tolist(), strict=True)) <= rates
    assert ((np.diff(x) == 0) | (np.diff(y) == 0)).all()
    sure = side._replace(score=side.y * 0.8 + 0.1)
    band = sure.band("roc", n_bootstrap=DRAWS)
    assert band.value.min() == 1 and (band.low > 0).all() and (band.low < 1).all()


def test_tables_read_back(two: tuple[list[Run], ComparisonResult]) -> None:
    _, results = two
    rows = list(csv.DictReader(io.StringIO(b"".join(ranking_csv(results)).decode())))
    assert [row["run"] for row in rows] == [row.name for row in results.runs]
    assert [float(row["test_roc_auc_low"]) for row in rows] == [row.shown["roc_auc"]["low"] for row in results.runs]
    assert [float(row["seconds"]) for row in rows] == [
        row.record.seconds["oof"] + row.record.seconds["fit"] for row in results.runs
    ]
    for name, table in paper_tables(results).items():
        assert {len(row) for row in table.rows} == {len(table.header)}
        text = table.latex(name)
        body = text.partition("\\midrule\n")[2].partition("\\bottomrule")[0].strip().splitlines()
        assert len(body) == len(table.rows)
        assert all(len(re.findall(r"(?<!\\)&", line)) == len(table.header) - 1 for line in body)
    assert latex("a_b & 5 % $x$") == r"a\_b \& 5 \% \$x\$"


@needs_latex
def test_latex_compiles(two: tuple[list[Run], ComparisonResult], tmp_path: Path) -> None:
    runs, results = two
    tables = "\n".join(table.latex(name) for name, table in paper_tables(results).items())
    names = [name for name, content in draw_figures(results, runs) if (tmp_path / name).write_bytes(content)]
    figures = "\n".join(rf"\includegraphics{{{name}}}" for name in names if name.endswith(".pdf"))
    packages = r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs,graphicx}"
    (tmp_path / "paper.tex").write_text(rf"{packages}\begin{{document}}{tables}{figures}\end{{document}}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "paper.pdf").stat().st_size > 20_000


def test_figures_are_a_column_wide_with_their_fonts(two: tuple[list[Run], ComparisonResult]) -> None:
    runs, results = two
    files = dict(draw_figures(results, runs))
    names = ["roc", "pr", "calibration", "decision-curve", "confusion-matrix", "ranking"]
    assert list(files) == [f"{name}.{suffix}" for name in names for suffix in ("pdf", "svg", "png")]
    for name in names:
        pdf = files[f"{name}.pdf"]
        box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+) ([\d.]+) ?\]", pdf)
        assert box is not None
        assert float(box[1]) == pytest.approx(72 * COLUMN, abs=0.1)
        assert b"/FontFile2" in pdf
        assert b"/Type3" not in pdf
        assert files[f"{name}.png"][:4] == b"\x89PNG"
        assert b"<script" not in files[f"{name}.svg"]
    assert captions(results, names).count("\n") == len(names)
    many = replace(results, runs=(*results.runs, *[results.runs[1]] * RUNS))
    assert f"The first {RUNS} of {RUNS + len(results.runs)} runs, best" in captions(many, ["ranking"])


def test_a_share_is_none_or_all_only_where_it_is() -> None:
    assert [_percent(share) for share in (0, 0.0026, 0.0051, 0.43, 0.9949, 0.9974, 1)] == [
        "0 %",
        "< 1 %",
        "1 %",
        "43 %",
        "99 %",
        "> 99 %",
        "100 %",
    ]


@pytest.mark.parametrize("k", [2, 3])
def test_methods_leave_nothing_open(k: int) -> None:
    results = compare_runs(draw_runs(k, strengths=(1.6, 0.5)), n_bootstrap=DRAWS)
    text = methods(results)
    assert not re.search(r"\bNone\b|\bnan\b|\{|\}|TODO|\?\?", text)
    for number in ("160 images of 80 patients", "80 images of 40 patients", "512 features", "seed 0", "torch 2.9"):
        assert number in text
    assert headline(results) in text
    assert "Collins et al. 2024" in text
    assert "make figures DATASET=drawn" in text


def test_words_are_on_the_page_and_in_the_docs(two: tuple[list[Run], ComparisonResult]) -> None:
    runs, results = two
    words = "\n".join(f"### {term}\n\n{GLOSSARY[term]}\n" for term in sorted_terms())
    title = "# The words that Firn uses\n\nThe same stand at the end of every report, where terms link to them.\n\n"
    assert (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8") == title + words
    page = re.sub(r"<script.*?</script>", "", render_page(results, runs), flags=re.DOTALL)
    linked = set(re.findall(r'href="#(word-[^"]+)"', page))
    assert len(linked) > 8
    assert linked <= {f"word-{anchor(term)}" for term in GLOSSARY}
    ids = re.findall(r'id="([^"]+)"', page)
    assert {f"word-{anchor(term)}" for term in GLOSSARY} <= set(ids)
    assert len(ids) == len(set(ids))
    assert "A &lt;study&gt;" in page


def test_the_page_hands_out_the_ranking(two: tuple[list[Run], ComparisonResult]) -> None:
    runs, results = two
    page = render_page(results, runs)
    files = dict(re.findall(r'download="(ranking\.\w+)" href="data:[^,]+,([^"]+)"', page))
    assert base64.b64decode(files["ranking.csv"]) == b"".join(ranking_csv(results))
    assert base64.b64decode(files["ranking.tex"]).startswith(b"% \\usepackage{booktabs}")


def test_one_class_alone_has_words_too() -> None:
    run = make_run(draw_predictions(2, strength=1.0))
    one = replace(run, predictions=run.predictions._replace(y=np.where(run.predictions.fold < 0, 1, run.predictions.y)))
    results = compare_runs([one], n_bootstrap=DRAWS)
    assert "that these images cannot tell" in headline(results)
    assert "an unknown number of 100" in missed(results)
