"""The images on the page: which, under which class maps, whatever their names are, and Chromium on it all."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from chromium import CHROMIUM, Browser, complaints, requested
from conftest import draw, stored
from PIL import Image
from verbs_for_tests import audit, compare, extract, report, selected, train_heads
from verbs_for_tests import pack as cache_pack

from features.datasets import load_dataset
from features.errors import CacheError
from models.runs.compare import compare_runs
from models.runs.outcomes import judged
from models.runs.record import load_runs
from pipeline.render.gallery import make_gallery
from pipeline.render.html_page import load_extras

NET = "squeezenet1_1"
CLASSES = ("<img src=x onerror=alert(1)> normal", '"><script>alert(2)<!-- ')
IMAGES = ("<img src=x onerror=alert(3)>.png", '"><script>alert(4).png', "'; =cmd|.png", "=1+1 ${x} {{7*7}}.png")

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: the page is not opened in a browser")


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """Return drawn images under hostile names; four in the test split lie in the wrong class, so errors are sure."""
    folder = draw(tmp_path / "evil", per_class=8, test=6)
    for split in ("train", "test"):
        for plain, name in zip(("normal", "spot"), CLASSES, strict=True):
            (folder / split / plain).rename(folder / split / name)
    wrong, right = (folder / "test" / name for name in CLASSES)
    for i, name in enumerate(IMAGES):
        shutil.move(right / f"test00{i}.png", wrong / name)
    return folder


@pytest.fixture
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


def gallery_of(page: Path) -> str:
    """Return the part of the page with the images."""
    found = re.search(r'<section id="gallery">(.*?)</section>', page.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


@needs_chromium
def test_browser_hostile_images(evil: Path, browser: Browser) -> None:
    """Each image is beside its map, the audit is told, and no name is more than a name."""
    extract(str(evil), NET, maps="1", precision="float32")
    train_heads(str(evil), NET, heads="logistic", precision="float32")
    audit(str(evil), NET, precision="float32")
    page = Path(report(str(evil)))
    (run,) = load_runs(stored("evil"))
    found = judged(run)
    wrong = {str(found.ids[i]) for i in np.flatnonzero(found.y != found.called)}
    assert wrong
    browser.open(page)
    browser.settle()
    assert complaints(browser) == []
    assert requested(browser) == [page.resolve().as_uri()]
    names = "[...document.querySelectorAll('.gallery figcaption small')].map((small) => small.title)"
    assert set(browser.value(names)) == wrong
    assert wrong & {f"test/{CLASSES[0]}/{name}" for name in IMAGES}
    drawn = "[...document.querySelectorAll('#gallery img')].every((img) => img.complete && img.naturalWidth > 50)"
    assert browser.value(drawn)
    assert browser.value("document.querySelectorAll('img').length") == 2 * len(wrong) + 1  # and the scale
    assert browser.value("document.querySelectorAll('script').length") == 3
    beside = "[...document.querySelectorAll('.beside')].map((pair) => [...pair.children].map((img) => img.offsetTop))"
    assert all(len(tops) == 2 and tops[0] == tops[1] for tops in browser.value(beside))
    assert "Nothing found of" in browser.value("document.getElementById('audit').textContent")
    assert complaints(browser) == []
    assert requested(browser) == []


def test_images_and_maps(evil: Path) -> None:
    """A tile is the image as the network saw it; what the class map of another run is laid over says so."""
    extract(str(evil), NET, maps="1", precision="float32")
    train_heads(str(evil), NET, heads="logistic knn", precision="float32")
    runs, images = load_runs(stored("evil")), load_dataset(str(evil))
    results = compare_runs(runs, n_bootstrap=20)
    rows = {row.record.head: row for row in results.runs}
    own, other = (make_gallery(replace(results, runs=(rows[head],)), runs, images) for head in ("logistic", "knn"))
    assert not any("has no class activation maps" in note for note in own["notes"])
    assert any(
        "has no class activation maps; these are of logistic on squeezenet1_1" in note for note in other["notes"]
    )
    for gallery in (own, other):
        tiles = [tile for line in gallery["lines"] for tile in line["images"]]
        assert tiles
        assert all(tile["is"] != tile["called"] for tile in tiles)
        chances = [[tile["chance"] for tile in line["images"]] for line in gallery["lines"]]
        assert chances == [sorted(line, reverse=True) for line in chances]
        for tile in tiles:
            one = judged(next(run for run in runs if run.record.head == ("logistic" if gallery is own else "knn")))
            at = int(np.flatnonzero(one.ids == tile["id"])[0])
            rule = f"{'at or above' if tile['called'] == CLASSES[1] else 'below'} the threshold of {one.threshold:.3f}."
            chance = f"P({CLASSES[1]}) = {one.proba[at, 1]:.3f}"
            assert tile["words"] == f"Is {tile['is']}, called {tile['called']}: {chance}, {rule}"
        plain, mapped = (opened(tiles[0][kind]) for kind in ("image", "map"))
        assert plain.mode == "L"
        assert plain.size == mapped.size == (224, 224)
        with Image.open(evil / tiles[0]["id"]) as image:
            seen = image.resize((224, 224), Image.Resampling.BILINEAR)
        assert np.abs(np.asarray(plain, np.float64) - np.asarray(seen)).mean() < 6


def opened(url: str) -> Image.Image:
    """Return the image in a data URL."""
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def test_what_is_missing_is_said(evil: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without maps, with changed images, without images: a page all the same, and the command to type."""
    extract(str(evil), NET, precision="float32")
    train_heads(str(evil), NET, heads="lda", precision="float32")
    assert "make report DATASET=" in gallery_of(Path(compare(str(evil))))
    page = Path(report(str(evil)))
    assert re.search(r"Without class activation maps: no maps of .*make extract DATASET=", gallery_of(page))
    assert "make audit DATASET=" in page.read_text()
    assert gallery_of(page).count("<img") >= 1
    kept = gallery_of(page)
    assert gallery_of(Path(compare(str(evil)))) == kept  # what was made is shown again
    pack = tmp_path / "evil.h5"
    cache_pack(str(evil), NET, out=str(pack), precision="float32")
    tile = json.loads((page.parent / "gallery.json").read_text())["lines"][0]["images"][0]["id"]
    Image.new("L", (48, 48)).save(evil / tile)
    with pytest.raises(CacheError, match="as they are now; run: make extract train-heads DATASET="):
        report(str(evil))
    os.unlink(page.parent / "gallery.json")
    assert "features of squeezenet1_1 without the images" in gallery_of(Path(report(str(pack))))


def test_a_gallery_of_other_runs_is_not_shown(evil: Path) -> None:
    """It belongs to one run on one state of the images, and holds images only."""
    extract(str(evil), NET, precision="float32")
    train_heads(str(evil), NET, heads="lda", precision="float32")
    page = Path(report(str(evil)))
    file = page.parent / "gallery.json"
    content = json.loads(file.read_text())
    stranger = json.loads(file.read_text())
    stranger["lines"][0]["images"][0]["image"] = "https://example.org/x.png"
    runs = selected(dataset=str(evil)).load_all()
    results = compare_runs(runs, n_bootstrap=20)
    for changed in ({}, {"identity": "other"}, {"manifest": "other"}, {"run": "other"}, {"lines": 3}, stranger):
        file.write_text(json.dumps(content | changed))
        assert (load_extras(page.parent, results, runs[0]).gallery is None) == bool(changed), changed
