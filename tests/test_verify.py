"""Damage is found, named with its images, and mended by computing just that again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import draw, stored
from test_entry import KEY, filled
from verbs_for_tests import extract, repair, verify_entries

from features.cache import Entry, entries
from features.cache.entry import cache_root
from features.cache.verify import find_entries, verify
from features.datasets import load_dataset
from features.views import pooled_view
from pipeline.cache import list_entries


def flip(path: Path, position: int) -> None:
    """Flip one bit of a file."""
    image = bytearray(path.read_bytes())
    image[position] ^= 16
    path.write_bytes(image)


def test_every_flipped_bit_is_reported(spots: Path) -> None:
    """At 200 random positions of all files of an entry, verify names exactly the file that was touched."""
    entry, _, _ = filled(load_dataset(str(spots)))
    assert verify(entry) == []
    files = [entry.master, *sorted(entry.shards.iterdir())]
    sizes = [path.stat().st_size for path in files]
    rng = np.random.default_rng(0)
    for position in rng.integers(0, sum(sizes), 200).tolist():
        index = int(np.searchsorted(np.cumsum(sizes), position, side="right"))
        path, at = files[index], position - sum(sizes[:index])
        flip(path, at)
        damaged = [damage.path for damage in verify(entry)]
        flip(path, at)
        assert damaged == [path]


def test_images_of_a_damaged_or_lost_shard_are_listed(spots: Path) -> None:
    """The master knows whose rows a shard held; a shard under another's name is noticed."""
    dataset = load_dataset(str(spots))
    entry, _, _ = filled(dataset)
    first, second, third, _ = sorted(entry.shards.iterdir())
    held = {name: damage_images(entry, name) for name in (first, second)}
    assert all(len(images) in (2, 10) for images in held.values())
    os.replace(third, second)
    reported = {damage.path: damage.reason for damage in verify(entry)}
    assert reported == {second: "its name is not that of its content", third: "is missing"}


def damage_images(entry: Entry, path: Path) -> list[str]:
    """Return the images that verify lists when a shard is cut short."""
    image = path.read_bytes()
    path.write_bytes(image[:-1])
    (damage,) = verify(entry)
    path.write_bytes(image)
    assert damage.path == path
    return damage.images


def test_repair_computes_just_what_is_damaged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two of the shards and the master are damaged: afterwards everything is as before, to the bit."""
    folder = draw(tmp_path / "set", per_class=100, test=20)
    extract(str(folder), "squeezenet1_1", precision="float32")
    (entry,) = entries(stored("set"))
    before = pooled_view(entry, list(entry.key.blocks), "both")
    shards = sorted(entry.shards.iterdir())
    assert len(shards) == 4
    flip(shards[1], 5000)
    shards[3].unlink()
    lines, well = verify_entries(str(folder))
    assert not well
    assert lines[-1] == f"run: make cache-repair DATASET={folder}"
    assert sum(line.startswith("    ") for text in lines for line in text.splitlines()) in (64 + 48, 64 + 64)
    flip(entry.master, 700)
    capfd.readouterr()
    assert repair(str(folder)) == [f"repaired: {entry.folder.name}, 2 files"]
    assert "240 images in" not in capfd.readouterr().err
    assert verify_entries(str(folder))[1]
    after = pooled_view(entry, list(entry.key.blocks), "both")
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert repair(str(folder)) == [f"whole: {entry.folder.name}"]
    assert list_entries()[0].images == "240 of 240"


def test_entries_are_found_without_a_master(spots: Path) -> None:
    """A shard alone tells the key of its entry; a folder of anything else is no entry."""
    entry, _, _ = filled(load_dataset(str(spots)))
    entry.master.unlink()
    (cache_root(stored("spots")) / "notes").mkdir()
    assert [found.key for found in find_entries(cache_root(stored("spots")))] == [KEY]
    assert [damage.reason for damage in verify(entry)] == ["is missing"]


def test_verify_exits_with_2(spots: Path) -> None:
    """The command line tells damage by its exit code, for scripts."""
    entry, _, _ = filled(load_dataset(str(spots)))
    command = [sys.executable, "-m", "pipeline", "cache-verify"]
    root = Path(__file__).parents[1]
    assert subprocess.run(command, cwd=root, capture_output=True).returncode == 0
    flip(entry.master, 600)
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 2
    assert "damaged master" in done.stdout
