"""Runs are of the data set as it is now, or left out by name; nothing of another data set is taken for one's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import draw
from verbs_for_tests import collect, compare, extract, selected, train_heads

from features.cache.entry import cache_root
from features.errors import CacheError
from features.progress import heard
from models.runs.current import stale_runs

NET = "squeezenet1_1"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Return a CSV of drawn images, with heads trained on it."""
    folder = draw(tmp_path / "a")
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))
    lines = [f"{name},{name.split('/')[1]},{name.split('/')[0]}" for name in names]
    place = folder / "labels.csv"
    place.write_text("\n".join(["path,label,split", *lines]))
    extract(str(place), NET, precision="float32")
    train_heads(str(place), NET, heads="lda knn", precision="float32")
    return place


def relabel(place: Path) -> None:
    """Give the first image of the table the other label, and its features their new master."""
    first, *rest = place.read_text().splitlines()[1:]
    name, label, split = first.split(",")
    other = {"normal": "spot", "spot": "normal"}[label]
    place.write_text("\n".join(["path,label,split", f"{name},{other},{split}", *rest]))
    extract(str(place), NET, precision="float32")


def test_runs_of_edited_labels_are_left_out(table: Path) -> None:
    """None is left: an error with the command that trains anew; after one head is, the other is left out by name."""
    assert len(selected(dataset=str(table)).load_all()) == 2
    relabel(table)
    with heard() as lines, pytest.raises(CacheError, match="run: make extract train-heads DATASET="):
        selected(dataset=str(table)).load_all()
    assert all(line.endswith("1 labels have changed") for line in lines)
    train_heads(str(table), NET, heads="lda", precision="float32")
    with heard() as lines:
        page = compare(str(table))
    assert [line.split(":")[0] for line in lines] == [f"left out knn on {NET} features.12 avg"]
    results = json.loads((Path(page).parent / "results.json").read_text())
    assert [run["head"] for run in results["runs"]] == ["lda"]


def test_a_stale_run_named_by_its_folder_says_so(table: Path) -> None:
    """It is still the run that was asked for; one of today's data says nothing."""
    run = selected(dataset=str(table)).load_all()[0]
    with heard() as lines:
        assert selected(run.folder).load().folder == run.folder
    assert lines == []
    relabel(table)
    with heard() as lines:
        selected(run.folder).load()
    assert [line.rpartition(": ")[2] for line in lines] == ["1 labels have changed"]


def test_a_stack_is_of_runs_of_today(table: Path) -> None:
    """Runs of the labels of before are not combined."""
    relabel(table)
    with pytest.raises(CacheError, match=r"has 0 that fit together; run: make train-heads .*HEADS='logistic"):
        train_heads(str(table), NET, heads="stack", precision="float32")


def test_stale_runs_can_be_removed(table: Path) -> None:
    """cache-gc lists them, and removes them when told to; a run may be named too."""
    assert collect(str(table), NET, precision="float32")[-1].startswith("nothing to remove")
    relabel(table)
    lines = collect(str(table), NET, precision="float32")
    assert sum("a run of other data: 1 labels have changed" in line for line in lines) == 2
    collect(str(table), NET, precision="float32", yes=True)
    with pytest.raises(CacheError, match="no trained heads"):
        selected(dataset=str(table)).load_all()
    train_heads(str(table), NET, heads="lda", precision="float32")
    (run,) = selected(dataset=str(table)).load_all()
    assert "named by RUN=" in collect(str(table), NET, precision="float32", run=str(run.folder))[0]
    collect(str(table), NET, precision="float32", run=str(run.folder), yes=True)
    assert not run.folder.exists()


def test_other_bytes_under_the_same_names(table: Path) -> None:
    """An image that was replaced since: its runs are of other images."""
    shutil.copy(table.parent / "train/normal/train000.png", table.parent / "train/normal/train001.png")
    with heard() as lines, pytest.raises(CacheError):
        selected(dataset=str(table)).load_all()
    assert all(line.endswith("other bytes of images") for line in lines)


def test_no_run_is_removed_on_a_guess(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an image cannot be read just now, or the cache is gone, no run is called one of other data."""
    relabel(table)
    dataset = selected(dataset=str(table)).data.load()
    assert len(list(stale_runs(dataset))) == 2
    with monkeypatch.context() as patch:
        patch.setattr(type(dataset.source), "read", unreadable)
        (cache_root(dataset.name) / "digests.h5").unlink()
        assert list(stale_runs(dataset)) == []
    assert len(list(stale_runs(dataset))) == 2
    shutil.rmtree(cache_root(dataset.name))
    assert list(stale_runs(dataset)) == []


def unreadable(source: object, image: str) -> bytes:
    """Fail as a network drive does."""
    raise OSError(f"{image}: stale file handle")
