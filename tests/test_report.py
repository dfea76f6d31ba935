"""The files of a comparison, and the page as Chromium sees it."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pytest
from chromium import CHROMIUM, Browser, complaints, requested
from runs_for_tests import draw_predictions, draw_runs, make_run

from models.runs.compare import compare_runs, run_names
from models.runs.record import Run
from models.runs.results import UNDECIDED, ComparisonResult
from pipeline.render.html_page import predictions_csv, write_report
from pipeline.render.page_figures import operating_table, sides

DRAWS = 60  # of the bootstrap
EVIL = "<script>alert(1)</script>"
BREAKOUT = "</script><img src=x onerror=alert(2)> <!-- ${x} 'q' \"r\" & {{ 7*7 }} $\\frac{"

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: the page is not opened in a browser")


class Written(NamedTuple):
    """A report with what it was made of."""

    runs: list[Run]
    results: dict[str, Any]
    page: Path

    @property
    def chosen(self) -> Run:
        return next(run for run in self.runs if run.name == self.results["chosen"])


def written(folder: Path, runs: list[Run]) -> Written:
    result = compare_runs(runs, n_bootstrap=DRAWS)
    return Written(runs, result.to_json(), write_report(result, runs, folder))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Written:
    runs = draw_runs(2, strengths=(1.2, 1.6, 1.5, 0.4), note="Synthetic: drawn for a test.")
    return written(tmp_path_factory.mktemp("two"), runs)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Written:
    runs = draw_runs(3, strengths=(1.2, 1.6), classes=[EVIL, BREAKOUT, "=1+1"], note=EVIL, head=EVIL)
    return written(tmp_path_factory.mktemp("three"), runs)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


def test_every_file_is_there_and_whole(two: Written) -> None:
    names = {path.name for path in two.page.parent.iterdir()}
    tables = {
        "results.json",
        "ranking.csv",
        "ranking.tex",
        "predictions.csv",
        "predictions-by-group.csv",
        "report.html",
    }
    assert names == tables | {"roc.svg", "roc.png", "pr.svg", "pr.png"}
    assert json.loads((two.page.parent / "results.json").read_text(encoding="utf-8")) == json.loads(
        json.dumps(two.results)
    )


def test_same_results_same_bytes(two: Written, tmp_path: Path) -> None:
    again = write_report(ComparisonResult.from_json(two.results), two.runs, tmp_path).parent
    for path in two.page.parent.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


def test_predictions_keep_every_digit(two: Written) -> None:
    with (two.page.parent / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(run.predictions.ids) for run in two.runs)
    for run, name in zip(two.runs, run_names(two.runs), strict=True):
        mine = [row for row in rows if row["run"] == name]
        assert [row["id"] for row in mine] == run.predictions.ids.tolist()
        assert np.array_equal([float(row["p_opacity"]) for row in mine], run.predictions.proba[:, 1])
        assert [row["split"] for row in mine] == np.where(run.predictions.fold < 0, "test", "train").tolist()
        assert [int(row["fold"] or -1) for row in mine] == run.predictions.fold.tolist()
        assert [row["label"] == "opacity" for row in mine] == (run.predictions.y == 1).tolist()


@pytest.mark.parametrize(
    ("cell", "kept"),
    [
        ("=1+1", "'=1+1"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("\n=1", "'\n=1"),
        ("＝1+1", "'＝1+1"),
        ("-1.5e-3", "-1.5e-3"),
        ("+4", "+4"),
        ("a=b,c", "a=b,c"),
    ],
)
def test_no_cell_is_a_formula(cell: str, kept: str) -> None:
    p = draw_predictions(2, strength=1.0, train=10, test=0)
    ids = p.ids.astype(object)
    ids[3] = cell
    run = make_run(p._replace(ids=ids.astype(str)), classes=["clear", cell])
    lines = b"".join(predictions_csv([run])).decode()
    rows = list(csv.DictReader(lines.splitlines(keepends=True)))
    assert rows[3]["id"] == kept
    assert {row["label"] for row in rows} == {"clear", kept}


def test_plots_are_images(two: Written, three: Written) -> None:
    for report in (two, three):
        folder = report.page.parent
        for name in ("roc", "pr"):
            assert (folder / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
            root = ElementTree.parse(folder / f"{name}.svg").getroot()
            assert root.tag.endswith("svg")
            assert not [node for node in root.iter() if node.tag.endswith("script")]


def test_page_is_small_and_self_contained(two: Written) -> None:
    text = two.page.read_text(encoding="utf-8")
    assert two.page.stat().st_size < 8_000_000
    assert text.count("* plotly.js v") == 1
    own = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#|data:)""", own)
    assert "default-src &#39;none&#39;" in own
    assert "http:" not in own.replace("http-equiv", "")
    assert "https:" not in own


def test_page_says_what_matters(two: Written) -> None:
    text = re.sub(r"\s+", " ", two.page.read_text(encoding="utf-8").replace("&#39;", "'"))
    for sentence in [two.results["summary"], *two.results["protocol"]]:
        assert sentence in text
    for command in two.results["commands"]:
        assert f"<code>{command}</code>" in text
    assert 'class="note synthetic">Synthetic: drawn for a test.' in text
    for row in two.results["runs"]:
        area = row["test"]["roc_auc"]
        assert f"[{area['low']:.3f}, {area['high']:.3f}]" in text
        assert row["key_digests"][0] in text
    assert text.count(">no detectable difference<") == 2 + sum(
        row["against_chosen"]["verdict"] == UNDECIDED for row in two.results["runs"] if row["against_chosen"]
    )


def test_names_are_escaped(three: Written) -> None:
    text = three.page.read_text(encoding="utf-8")
    assert EVIL not in text
    assert "<img" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    data = re.search(r'<script type="application/json" id="firn-data">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    names = {trace["name"] for view in json.loads(data[1])["figures"]["roc"]["views"] for trace in view}
    assert any("&lt;script&gt;" in name for name in names)
    assert not any("<" in name for name in names)


def test_page_without_test_images(tmp_path: Path) -> None:
    report = written(tmp_path, draw_runs(2, train=100, test=0, grouped_by=""))
    text = report.page.read_text(encoding="utf-8")
    assert "when corrected for the choice" in text
    assert "Against the chosen" in text
    assert "on the other folds" in text
    assert "each image counts as independent" in text


@pytest.mark.parametrize("preset", [0.25, 0.5])
def test_operating_table_counts(preset: float) -> None:
    p = draw_predictions(2, strength=1.0).part(test=True)
    p = p._replace(proba=p.proba.round(1))  # ties
    side = sides(p, ["clear", "opacity"])[0]
    table = operating_table(side, {"mine": preset})
    assert table["thresholds"] == sorted(set(table["thresholds"]))
    assert table["thresholds"][table["presets"]["mine"]] == preset
    for at, hits, alarms in zip(table["thresholds"], table["true_positives"], table["false_positives"], strict=True):
        called = side.score >= at
        assert (hits, alarms) == (called[side.y == 1].sum(), called[side.y == 0].sum())
    assert (table["true_positives"][0], table["false_positives"][0]) == (table["positives"], table["negatives"])
    assert (table["true_positives"][-1], table["false_positives"][-1]) == (0, 0)


def test_operating_table_of_many_images_stays_short() -> None:
    p = draw_predictions(2, strength=1.0, train=0, test=6000)
    table = operating_table(sides(p, ["clear", "opacity"])[0], {"mine": 0.123456789})
    assert len(table["thresholds"]) < 2000
    assert table["thresholds"][table["presets"]["mine"]] == 0.123456789


def shown_numbers(browser: Browser) -> dict[str, str]:
    """Return what the operating point says."""
    names = ["sensitivity", "specificity", "ppv", "npv"]
    cells = ["true-positives", "false-positives", "false-negatives", "true-negatives"]
    ids = json.dumps([*names, *cells, "threshold-value"])
    found = browser.value(f"Object.fromEntries({ids}.map((id) => [id, document.getElementById(id).textContent]))")
    return dict(found)


def expected_numbers(run: Run, threshold: float, prevalence: float) -> dict[str, str]:
    """Return the same from the predictions, by the definitions."""
    p = run.predictions.part(test=True)
    called, real = p.proba[:, 1] >= threshold, p.y == 1
    counts = [int((a & b).sum()) for a, b in ((called, real), (called, ~real), (~called, real), (~called, ~real))]
    hits, alarms, missed, cleared = counts
    sensitivity, specificity = hits / (hits + missed), cleared / (cleared + alarms)
    found, false = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
    right, wrong = specificity * (1 - prevalence), (1 - sensitivity) * prevalence
    ratios = [sensitivity, specificity, found / (found + false), right / (right + wrong)]
    names = ["sensitivity", "specificity", "ppv", "npv"]
    cells = ["true-positives", "false-positives", "false-negatives", "true-negatives"]
    text = [f"{ratio:.3f}" for ratio in ratios] + [str(count) for count in counts]
    return dict(zip([*names, *cells, "threshold-value"], [*text, f"{threshold:.3f}"], strict=True))


@needs_chromium
def test_browser_page_is_quiet_and_asks_for_nothing(browser: Browser, two: Written) -> None:
    for dark in (False, True):
        with browser.looking(width=400 if dark else 1200, dark=dark):
            browser.open(two.page)
            assert browser.value("document.documentElement.scrollWidth <= innerWidth")
            drawn = browser.value("document.querySelectorAll('.plot .main-svg .trace, .plot .main-svg .bars').length")
            assert drawn > 10
            assert requested(browser) == [two.page.resolve().as_uri()]
            assert complaints(browser) == []


@needs_chromium
def test_browser_slider_moves_the_numbers(browser: Browser, two: Written) -> None:
    browser.open(two.page)
    share = float((two.chosen.predictions.part(test=True).y == 1).mean())
    table = operating_table(
        sides(two.chosen.predictions.part(test=True), ["clear", "opacity"])[0],
        {k: v["threshold"] for k, v in two.results["runs"][0]["thresholds"].items()} | {"half": 0.5},
    )
    start = table["presets"]["youden"]
    youden = two.results["runs"][0]["thresholds"]["youden"]
    assert shown_numbers(browser) == expected_numbers(two.chosen, youden["threshold"], share)
    assert shown_numbers(browser)["sensitivity"] == f"{youden['sensitivity']['value']:.3f}"
    assert shown_numbers(browser)["specificity"] == f"{youden['specificity']['value']:.3f}"
    browser.value("document.getElementById('threshold').focus()")
    browser.press("ArrowRight", 7)
    assert shown_numbers(browser) == expected_numbers(two.chosen, table["thresholds"][start + 7], share)
    browser.press("ArrowLeft", 12)
    assert shown_numbers(browser) == expected_numbers(two.chosen, table["thresholds"][start - 5], share)
    assert complaints(browser) == []


@needs_chromium
def test_browser_presets_and_prevalence(browser: Browser, two: Written) -> None:
    browser.open(two.page)
    point = two.results["runs"][0]["thresholds"]["sensitivity>=0.95"]
    browser.value("document.querySelector('[data-preset=\"sensitivity>=0.95\"]').focus()")
    browser.press("Enter")
    prevalence = "document.getElementById('prevalence')"
    browser.value(f"{prevalence}.value = '2.5'; {prevalence}.dispatchEvent(new Event('input'))")
    numbers = shown_numbers(browser)
    assert numbers == expected_numbers(two.chosen, point["threshold"], 0.025)
    assert numbers["sensitivity"] == f"{point['sensitivity']['value']:.3f}"
    assert float(numbers["ppv"]) < 0.2
    assert "“opacity”" in browser.value("document.getElementById('frequencies').textContent")


@needs_chromium
def test_browser_ring_follows_the_threshold(browser: Browser, two: Written) -> None:
    browser.open(two.page)
    ring = "document.querySelector('[data-figure=roc]').data.find((trace) => trace.name === 'operating point')"
    before = browser.value(f"[{ring}.x[0], {ring}.y[0]]")
    browser.value("document.getElementById('threshold').focus()")
    browser.press("ArrowRight", 10)
    browser.settle()
    after = browser.value(f"[{ring}.x[0], {ring}.y[0]]")
    numbers = shown_numbers(browser)
    assert after != before
    assert [f"{1 - after[0]:.3f}", f"{after[1]:.3f}"] == [numbers["specificity"], numbers["sensitivity"]]


@needs_chromium
def test_browser_headings_sort(browser: Browser, two: Written) -> None:
    browser.open(two.page)
    rows = "[...document.querySelectorAll('.ranking tbody tr')].map((row) => row.cells[1].dataset.value)"
    heading = "[...document.querySelectorAll('.ranking thead button')].find((b) => b.textContent === 'Test ROC AUC')"
    by_area = sorted(two.results["runs"], key=lambda row: -row["test"]["roc_auc"]["value"])
    by_brier = sorted(two.results["runs"], key=lambda row: row["test"]["brier"]["value"])
    assert browser.value(rows) == [row["name"] for row in two.results["runs"]]
    browser.value(f"{heading}.focus()")
    browser.press("Enter")
    assert browser.value(rows) == [row["name"] for row in by_area]
    assert browser.value(f"{heading}.closest('th').getAttribute('aria-sort')") == "descending"
    browser.value(f"{heading}.click()")
    assert browser.value(rows) == [row["name"] for row in by_area[::-1]]
    browser.value(f"{heading.replace('Test ROC AUC', 'Brier score')}.click()")
    assert browser.value(rows) == [row["name"] for row in by_brier]
    assert browser.value("document.querySelectorAll('[aria-sort]').length") == 1


@needs_chromium
def test_browser_runs_can_be_hidden_and_metrics_shown(browser: Browser, two: Written) -> None:
    browser.open(two.page)
    lines = "document.querySelector('[data-figure=pr]').data.filter((trace) => trace.meta).length"
    before = browser.value(lines)
    browser.value("document.querySelector('[data-run=\"1\"]').click()")
    browser.settle()
    assert browser.value(lines) == before - 1
    extra = "getComputedStyle(document.querySelector('.ranking td.extra')).display"
    assert browser.value(extra) == "none"
    browser.value("document.getElementById('all-metrics').click()")
    assert browser.value(extra) == "table-cell"


@needs_chromium
def test_browser_figures_follow_dark_and_paper(browser: Browser, two: Written) -> None:
    colour = "document.querySelector('[data-figure=roc]').layout.font.color"
    seen = []
    for dark in (False, True):
        with browser.looking(width=1000, dark=dark):
            browser.open(two.page)
            seen.append(browser.value(colour))
    with browser.looking(width=1000, dark=True):
        browser.settle()
        browser.value("dispatchEvent(new Event('beforeprint'))")
        assert browser.value(colour) == seen[0]
        assert browser.value("document.querySelector('[data-figure=cost]').clientWidth") <= 680
        browser.value("dispatchEvent(new Event('afterprint'))")
        assert browser.value(colour) == seen[1] != seen[0]


@needs_chromium
def test_browser_evil_names_stay_names(browser: Browser, three: Written) -> None:
    browser.open(three.page)
    assert complaints(browser) == []
    assert requested(browser) == [three.page.resolve().as_uri()]
    options = "[...document.querySelectorAll('#class-of-curves option')].map((option) => option.textContent)"
    assert browser.value(options) == [EVIL, BREAKOUT, "=1+1"]
    assert browser.value("document.querySelectorAll('img').length") == 0
    select = "document.getElementById('class-of-trust')"
    line = "JSON.stringify(document.querySelector('[data-figure=roc]').data.at(-1).y)"
    before = browser.value(line)
    browser.value(f"{select}.value = '2'; {select}.dispatchEvent(new Event('change'))")
    browser.settle()
    assert browser.value(line) != before
    assert browser.value("document.getElementById('class-of-curves').value") == "2"
    assert complaints(browser) == []


@needs_chromium
def test_browser_shows_the_first_twenty_of_many_runs(browser: Browser, tmp_path: Path) -> None:
    """The rest of the ranking waits behind a checkbox, and has no curve."""
    strengths = [1.6 - 0.05 * i for i in range(24)]
    many = written(tmp_path, draw_runs(2, strengths=strengths, train=60, test=40))
    browser.open(many.page)
    visible = "[...document.querySelectorAll('.ranking tbody tr')].filter((row) => row.offsetHeight).length"
    assert browser.value(visible) == 20
    assert browser.value("document.querySelectorAll('[data-run]').length") == 20
    browser.value("document.getElementById('all-runs').click()")
    assert browser.value(visible) == 24
