"""The store: keys, digests, shards, master, entry."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from features.cache import Digests, Key, open_entry
from features.cache.entry import Entry
from features.cache.lease import Leases
from features.cache.sealed import is_whole
from features.cache.shard import Shard, block_rows, write_shard
from features.datasets import Dataset, load_dataset
from features.errors import CacheError
from features.views import map_view, pooled_view

KEY = Key("tiny", "0" * 64, ("early", "late"), "squash 8", "float32")


def sha(i: int) -> bytes:
    """Return a made-up digest."""
    return f"{i:064x}".encode()


def rows(n: int, seed: int = 0, width: int = 3) -> dict[str, np.ndarray]:
    """Return made-up pooled features."""
    rng = np.random.default_rng(seed)
    names = [f"pooled/{block}/{kind}" for block in KEY.blocks for kind in ("avg", "max")]
    return {name: rng.normal(size=(n, width)).astype(np.float16) for name in names}


def filled(dataset: Dataset, *, shard: int = 10) -> tuple[Entry, Digests, dict[str, np.ndarray]]:
    """Return an entry with made-up features for every image of a data set, in shards of a few rows."""
    entry = open_entry(dataset.name, KEY)
    digests = Digests.of(dataset.ids, dataset.source.stamps(dataset.ids))
    digests.sha256[:] = [sha(i) for i in range(len(dataset))]
    features = rows(len(dataset))
    for i in range(0, len(dataset), shard):
        at = slice(i, i + shard)
        entry.commit("pooled", digests.sha256[at], {name: array[at] for name, array in features.items()})
    entry.refresh(dataset, digests, {}, {"h5py": "x"})
    return entry, digests, features


def test_key_says_what_changed() -> None:
    """Every field counts, and the difference is put into words."""
    other = replace(KEY, weights="1" * 64, preprocess="crop 8")
    assert other.digest() != KEY.digest()
    assert other.folder() != KEY.folder()
    assert KEY.differences(other) == [
        "the weights changed: 000000000000 -> 111111111111",
        "the preprocess changed: squash 8 -> crop 8",
    ]
    assert Key.from_json(KEY.to_json()) == KEY


def test_shard_gives_back_its_rows(tmp_path: Path) -> None:
    """Any stretch of rows is what was written, and the name tells the content."""
    n, width = 500, 700
    assert block_rows(width * 2) < n, "several checksums are wanted here"
    arrays = rows(n, width=width)
    digests = np.array([sha(i) for i in range(n)])
    path = write_shard(tmp_path, "pooled", KEY.to_json(), digests, arrays)
    assert write_shard(tmp_path, "pooled", KEY.to_json(), digests, arrays) == path
    with Shard(path) as shard:
        assert len(shard) == n
        assert np.array_equal(shard.sha256, digests)
        for start, stop in ((0, n), (3, 4), (45, 200), (499, 500)):
            assert np.array_equal(shard.read("pooled/late/avg", start, stop), arrays["pooled/late/avg"][start:stop])
        with pytest.raises(CacheError, match="has no pooled/none"):
            shard.read("pooled/none", 0, 1)


def test_flipped_bit_is_never_read(tmp_path: Path) -> None:
    """At 300 random positions: the seal notices, and reading raises or gives exactly what was written."""
    arrays = rows(40, width=200)
    digests = np.array([sha(i) for i in range(40)])
    path = write_shard(tmp_path, "pooled", KEY.to_json(), digests, arrays)
    image = path.read_bytes()
    rng = np.random.default_rng(0)
    harmless = 0
    for position in rng.integers(0, len(image), 300).tolist():
        broken = bytearray(image)
        broken[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        assert not is_whole(path)
        try:
            with Shard(path) as shard:
                assert np.array_equal(shard.sha256, digests)
                assert all(np.array_equal(shard.read(name, 0, 40), array) for name, array in arrays.items())
            harmless += 1
        except CacheError:
            pass
    assert harmless < 150, "most of the file matters to a reader"


def test_truncated_shard_is_told(tmp_path: Path) -> None:
    """A cut file is a CacheError that names the file and the command."""
    path = write_shard(tmp_path, "pooled", KEY.to_json(), np.array([sha(0)]), rows(1))
    for length in (0, 100, 600, path.stat().st_size - 5):
        cut = tmp_path / "cut.h5"
        cut.write_bytes(path.read_bytes()[:length])
        with pytest.raises(CacheError, match=r"cut\.h5.*make cache-repair"), Shard(cut) as shard:
            for name in shard.names():
                shard.read(name, 0, 1)


def test_master_opens_with_plain_h5py_and_h5dump(spots: Path, tmp_path: Path) -> None:
    """Whoever knows HDF5 but not Firn reads ids, labels and features from the master, from any working folder."""
    dataset = load_dataset(str(spots))
    entry, _, features = filled(dataset)
    with h5py.File(entry.master, "r") as file:
        assert [i.decode() for i in file["ids"][...]] == dataset.ids
        assert np.array_equal(file["labels"][...], dataset.labels)
        assert list(file.attrs["classes"]) == list(dataset.classes)
        for name, array in features.items():
            assert np.array_equal(file[name][...], array)
    if tool := shutil.which("h5dump"):
        shown = subprocess.run([tool, "-H", str(entry.master)], capture_output=True, text=True, check=True, cwd="/")
        assert 'DATASET "ids"' in shown.stdout
        assert 'ATTRIBUTE "about"' in shown.stdout


def test_flipped_bit_in_the_master_is_told(spots: Path) -> None:
    """Every byte of the master is under its seal."""
    entry, _, _ = filled(load_dataset(str(spots)))
    image = entry.master.read_bytes()
    rng = np.random.default_rng(1)
    for position in rng.integers(0, len(image), 50).tolist():
        broken = bytearray(image)
        broken[position] ^= 4
        entry.master.write_bytes(broken)
        with pytest.raises(CacheError, match="damaged master"):
            entry.manifest()


def test_states_in_words(spots: Path) -> None:
    """missing -> partial -> ready -> stale (relabelled) -> ready -> partial (changed, new, lost)."""
    dataset = load_dataset(str(spots))
    digests = Digests.of(dataset.ids, dataset.source.stamps(dataset.ids))
    assert open_entry(dataset.name, KEY).state(dataset, digests, ["pooled"]).word == "missing"
    entry, digests, _ = filled(dataset)
    assert entry.state(dataset, digests, ["pooled"]) == ("ready", "32 images")
    assert entry.state(dataset, digests, ["pooled", "maps/late"]).word == "partial"
    relabelled = replace(dataset, labels=1 - dataset.labels)
    assert entry.state(relabelled, digests, ["pooled"]).word == "stale"
    before = sorted(os.listdir(entry.shards))
    entry.refresh(relabelled, digests, {}, {})
    assert entry.state(relabelled, digests, ["pooled"]).word == "ready"
    assert sorted(os.listdir(entry.shards)) == before, "labels change without touching features"
    changed = digests._replace(sha256=digests.sha256.copy())
    changed.sha256[3] = sha(99)
    assert entry.state(relabelled, changed, ["pooled"]).why.startswith("1 of 32 images are new")
    (entry.shards / before[0]).unlink()
    assert "shards are gone" in entry.state(relabelled, digests, ["pooled"]).why


def test_rows_follow_content_not_names(spots: Path) -> None:
    """After a rename, a removal and a duplicate every image still has the features of its bytes."""
    dataset = load_dataset(str(spots))
    entry, digests, features = filled(dataset)
    keep = np.array([i for i in range(len(dataset)) if i not in (5, 6)])
    ids = [dataset.ids[i] for i in keep]
    ids[0] = "train/spot/zzz.png"  # renamed, so it moves to another place in the order
    sha256 = digests.sha256[keep]
    sha256[10] = sha256[11]  # two images with the same bytes
    order = np.argsort(ids)
    moved = replace(
        dataset,
        ids=[ids[i] for i in order],
        labels=dataset.labels[keep][order],
        splits=dataset.splits[keep][order],
        groups=dataset.groups[keep][order],
    )
    now = Digests(np.array([moved.ids[i].encode() for i in range(len(ids))]), sha256[order], digests.stamps[keep])
    entry.refresh(moved, now, {}, {})
    view = pooled_view(entry, ["late"])
    expected = features["pooled/late/avg"][[int(s, 16) for s in now.sha256]]
    assert view.ids.tolist() == moved.ids
    assert np.array_equal(view.X, expected.astype(np.float32))
    with h5py.File(entry.master, "r") as file:
        assert np.array_equal(file["pooled/late/avg"][...], expected)


def test_partial_maps_are_not_shown(spots: Path) -> None:
    """Maps appear in the master once every image has them."""
    dataset = load_dataset(str(spots))
    entry, digests, _ = filled(dataset)
    maps = np.arange(32 * 2 * 3 * 3, dtype=np.float16).reshape(32, 2, 3, 3)
    entry.commit("maps/late", digests.sha256[:20], {"maps/late": maps[:20]})
    entry.refresh(dataset, digests, {}, {})
    with pytest.raises(CacheError, match="run: make extract MAPS=late"):
        map_view(entry, "late")
    entry.commit("maps/late", digests.sha256[20:], {"maps/late": maps[20:]})
    entry.refresh(dataset, digests, {}, {})
    assert np.array_equal(map_view(entry, "late").X, maps)


def test_digests_are_remembered_until_a_file_changes(
    spots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal stamps bring the digest back; a touched file, or a damaged memo, does not."""
    monkeypatch.setattr("features.cache.content.RACY_NS", 2_000_000_000)
    dataset = load_dataset(str(spots))
    digests = Digests.of(dataset.ids, dataset.source.stamps(dataset.ids))
    assert not digests.known().any()
    digests.sha256[:] = [sha(i) for i in range(len(dataset))]
    memo = tmp_path / "digests.h5"
    digests.save(memo, clock=time.time_ns())
    assert not Digests.load(memo).known().any(), "files of this very moment are not trusted"
    digests.save(memo, clock=time.time_ns() + 10**10)
    os.utime(spots / dataset.ids[4], ns=(1, 1))
    again = load_dataset(str(spots))
    now = Digests.of(again.ids, again.source.stamps(again.ids), Digests.load(memo))
    assert np.flatnonzero(~now.known()).tolist() == [4]
    assert now.sha256[5] == sha(5)
    memo.write_bytes(memo.read_bytes()[:-1] + b"x")
    assert Digests.load(memo) is None


def test_claims_hold_off_the_living_and_fall_to_the_next(tmp_path: Path) -> None:
    """A unit has one holder; a dead holder's lease is taken over."""
    first, second = Leases(tmp_path), Leases(tmp_path)
    assert first.acquire(7)
    assert not second.acquire(7)
    first.release(7)
    assert second.acquire(7)
    ended = subprocess.Popen(["true"])
    ended.wait()
    holder = (tmp_path / ".unit-000007.claim").read_text()
    (tmp_path / ".unit-000007.claim").write_text(holder.replace(str(os.getpid()), str(ended.pid)))
    assert first.acquire(7)
