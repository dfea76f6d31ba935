"""House-keeping: what there is, what changed, what may go; and nothing goes that anybody needs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import draw, stored
from PIL import Image
from test_entry import KEY, filled, rows, sha
from test_verify import flip
from verbs_for_tests import collect, extract, train_heads, why

from features.cache import Digests, Entry, Key, entries, open_entry
from features.cache.entry import cache_root, changes, last_used, note_use
from features.cache.gc import abandoned, remove, survey
from features.cache.lease import Leases
from features.cache.verify import find_entries, verify
from features.datasets import load_dataset
from features.datasets.load import at_hand
from features.storage import data_root, temporary_name
from pipeline.cache import list_entries, print_entries

ON = {"precision": "float32"}


@pytest.fixture(autouse=True)
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust the times of images that were drawn a moment ago: tests change them by more than a tick."""
    monkeypatch.setattr("features.cache.content.RACY_NS", 0)


def extracted(folder: Path, **settings: str) -> Entry:
    """Extract with the bundled backbone and return the entry that was written last."""
    extract(str(folder), "squeezenet1_1", **{"precision": "float32", **settings})
    return entries(load_dataset(str(folder)).name)[-1]


def dead_process() -> int:
    """Return the number of a process that has ended."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    return ended.pid


def test_ls_tells_the_state(spots: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ready, partial, stale, images not here, damaged master: each in words, with rows, parts and bytes."""
    entry = extracted(spots, maps="1")
    (listed,) = list_entries(str(spots))
    assert listed[:3] == (f"{stored('spots')}/{entry.folder.name}", "32 of 32", "maps/features.12, pooled")
    assert listed.state == "ready"
    bytes_ = sum(p.stat().st_size for p in entry.folder.rglob("*") if p.is_file())
    assert listed.size == f"{bytes_ / 1e6:.1f} MB"
    assert list_entries()[0].state == "not compared: DATASET= gives its path"
    (spots / "train/spot/train000.png").rename(spots / "train/normal/x.png")
    assert list_entries(str(spots))[0].state.startswith("partial: 1 of 32 images")
    (spots / "train/normal/x.png").unlink()
    assert list_entries(str(spots))[0].state.startswith("stale: ")
    flip(entry.master, 900)
    (damaged,) = list_entries(str(spots))
    assert damaged.state == f"damaged master; run: make cache-repair DATASET={spots}"
    assert "cache-repair with the path of spots-" in list_entries()[0].state
    print_entries([listed, damaged])
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["entry", "images", "parts", "size", "state", "used"]
    assert header.index("state") == first.index("ready") == second.index("damaged")


def test_ls_loads_named_sets_that_are_here_and_makes_none() -> None:
    """A row of the table is compared with where its images are at hand; nothing is downloaded or drawn for it."""
    assert at_hand("phantom") is None
    assert at_hand("nothing") is None
    assert not data_root().exists()
    for split in ("train", "test"):
        for name in ("NORMAL", "PNEUMONIA"):
            folder = data_root() / "pneumonia" / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                Image.fromarray(np.full((40, 40), 10 * i, np.uint8)).save(folder / f"IM-{i}-{split}.png")
    assert len(at_hand("pneumonia") or []) == 16
    extract("pneumonia", "squeezenet1_1", precision="float32")
    assert [line.state for line in list_entries()] == ["ready"]
    shutil.rmtree(data_root())
    assert [line.state for line in list_entries()] == ["images not here"]


def test_training_leaves_a_sign_of_use(spots: Path) -> None:
    """The sign is younger than the master; where it cannot be left, the reader goes on."""
    entry = extracted(spots)
    os.utime(entry.master, (1_000_000_000, 1_000_000_000))
    assert list_entries()[0].used.startswith("2001-09-")
    before = time.time() - 10
    train_heads(str(spots), "squeezenet1_1", heads="lda", precision="float32")
    assert last_used(entry) > before
    assert verify(entry) == []
    note_use(Entry(Path("/proc/firn"), entry.key))
    assert last_used(Entry(Path("/proc/firn"), entry.key)) == 0


def test_changes_are_named_image_by_image(spots: Path) -> None:
    """Every kind of change, alone and side by side; rows in any order."""
    dataset = load_dataset(str(spots))
    entry, digests, _ = filled(dataset)
    manifest = entry.manifest()
    assert manifest is not None
    manifest = manifest._take(np.random.default_rng(0).permutation(31))._replace(left_out={sha(31).decode(): "broken"})
    assert changes(manifest, dataset, digests) == {"unreadable": [dataset.ids[31]]}
    ids = [*dataset.ids[2:], "train/spot/y.png", "train/spot/z.png"]  # the first two are gone, or renamed to z
    now = replace(
        dataset,
        ids=ids,
        classes=("healthy", "spot"),
        labels=np.concatenate([dataset.labels[2:], [1, 1]]),
        splits=np.array([*dataset.splits[2:], "train", "train"]),
        groups=np.array([*dataset.groups[2:], "g", "g"]),
    )
    now.splits[20], now.groups[21] = "val", "another"
    contents = np.array([*digests.sha256[2:], sha(500), sha(0)], dtype="S64")
    contents[3] = sha(501)
    later = Digests(np.array([i.encode() for i in ids]), contents, digests.stamps)
    found = changes(manifest, now, later)
    assert found.pop("relabelled") == [i for i, label in zip(ids[:30], now.labels, strict=False) if label == 0]
    assert found == {
        "new": ["train/spot/y.png"],
        "changed": [ids[3]],
        "renamed": ["train/spot/z.png"],
        "removed": [dataset.ids[1]],
        "unreadable": [dataset.ids[31]],
        "in another split": [ids[20]],
        "regrouped": [ids[21]],
    }


def test_why_counts_what_changed(spots: Path) -> None:
    """New, changed, removed and renamed files of a real entry, told without computing or writing anything."""
    entry = extracted(spots)
    assert why(str(spots), "squeezenet1_1", **ON)[0].startswith(f"ready: {stored('spots')} squeezenet1_1 32 images")
    image = (spots / "train/spot/train001.png").read_bytes()
    (spots / "train/spot/new.png").write_bytes(image + b" ")
    (spots / "train/spot/train002.png").write_bytes(image + b"  ")
    (spots / "test/spot/test000.png").unlink()
    (spots / "train/normal/train003.png").rename(spots / "train/normal/moved.png")
    (spots / "train/normal/train004.png").touch()
    stamps = {p: p.stat().st_mtime_ns for p in cache_root(stored("spots")).rglob("*")}
    first, *kinds, last = why(str(spots), "squeezenet1_1", **ON)
    assert first.startswith(f"partial: {stored('spots')} squeezenet1_1 ")
    assert kinds == [
        "  new: 1 (train/spot/new.png)",
        "  changed: 1 (train/spot/train002.png)",
        "  renamed: 1 (train/normal/moved.png)",
        "  removed: 1 (test/spot/test000.png)",
    ]
    assert last == f"run: make extract DATASET={spots} BACKBONE=squeezenet1_1 PRECISION=float32"
    assert {p: p.stat().st_mtime_ns for p in cache_root(stored("spots")).rglob("*")} == stamps
    assert extracted(spots).folder == entry.folder
    assert why(str(spots), "squeezenet1_1", **ON)[0].startswith("ready")


def test_why_compares_with_the_nearest_entries(spots: Path) -> None:
    """What differs is said in words, nearest entry first, and the command names what was asked for."""
    extracted(spots)
    extracted(spots, preprocess="pad", precision="bfloat16")
    lines = why(str(spots), "squeezenet1_1", preprocess="crop", precision="float32")
    first, second = (i for i, line in enumerate(lines) if line.endswith("is there, but"))
    near = [line.strip().split(":")[0] for line in lines[first + 1 : second]]
    far = [line.strip().split(":")[0] for line in lines[second + 1 : -1]]
    assert near == ["the preprocess changed"]
    assert far == ["the preprocess changed", "the precision changed"]
    assert "PREPROCESS=crop" in lines[-1]


def test_why_answers_without_torch(spots: Path) -> None:
    """Where recipes are remembered, the question costs no import of torch."""
    from test_pack import without_torch

    extracted(spots)
    shown = without_torch(
        "cache-why",
        *("--dataset", str(spots), "--backbone", "squeezenet1_1", "--precision", "float16"),
        artifacts=Path(os.environ["FIRN_ARTIFACTS"]),
    ).stdout
    assert "the precision changed: float32 -> float16" in shown


def surveyed(entry: Entry, folder: Path) -> tuple[list[Path], list[str]]:
    """Return what may go of an entry as it is asked for today."""
    dataset = load_dataset(str(folder))
    memo = Digests.load(cache_root(dataset.name) / "digests.h5")
    digests = Digests.of(dataset.ids, dataset.source.stamps(dataset.ids), memo)
    found = survey(entry, dataset, digests, entry.key)
    return [item.path for item in found.waste], found.kept


def test_only_shards_without_a_needed_row_go(tmp_path: Path) -> None:
    """A shard whose images are all gone goes, one with some left is told and stays; features stay as they were."""
    folder = draw(tmp_path / "set", per_class=100, test=20)
    entry = extracted(folder)
    before = {path.name: path for path in entry.shards.iterdir()}
    assert surveyed(entry, folder) == ([], [])
    manifest = entry.manifest()
    assert manifest is not None
    shard_of = [manifest.parts["pooled"].shards[i] for i in manifest.parts["pooled"].shard]
    of_test = {shard for shard, id in zip(shard_of, manifest.ids, strict=True) if id.startswith(b"test")}
    emptied, thinned = sorted({*shard_of} - of_test)[:2]  # names are drawn: a class folder must not run empty
    for image, shard in zip(manifest.ids.tolist(), shard_of, strict=True):
        if shard == emptied:
            (folder / image.decode()).unlink()
    (folder / manifest.ids[shard_of.index(thinned)].decode()).unlink()
    waste, kept = surveyed(entry, folder)
    assert waste == []
    assert "stale" in kept[0], "what the master still uses is not settled"
    extracted(folder)
    waste, (kept_line,) = surveyed(entry, folder)
    assert waste == [before[emptied]]
    total = shard_of.count(thinned)
    assert kept_line == f"{before[thinned]}: {total - 1:,} of {total:,} rows are in use"
    assert collect(str(folder), **ON)[0].startswith(f"would remove: {before[emptied]}, ")
    assert before[emptied].exists(), "a dry run touches nothing"
    assert collect(str(folder), yes=True, **ON)[0].startswith(f"removed: {before[emptied]}, ")
    assert not before[emptied].exists()
    assert collect(str(folder), **ON)[-1] == f"nothing to remove of {stored('set')}"
    assert verify(entry) == []
    assert list_entries(str(folder))[0].state == "ready"


def test_shards_of_an_unfinished_run_stay(spots: Path) -> None:
    """Rows that no master knows yet, and maps that are not complete yet, are work done, not waste."""
    dataset = load_dataset(str(spots))
    entry, digests, _ = filled(dataset)
    maps = np.zeros((20, 2, 3, 3), np.float16)
    entry.commit("maps/late", digests.sha256[:10], {"maps/late": maps[:10]})
    useless = entry.commit("maps/late", np.array([sha(900)]), {"maps/late": maps[:1]})
    entry.refresh(dataset, digests, {}, {})
    found = survey(entry, dataset, digests, KEY)
    assert [item.path for item in found.waste] == [useless]
    entry.commit("pooled", np.array([sha(700)]), rows(1, seed=1))
    grown = digests._replace(sha256=digests.sha256.copy())
    grown.sha256[0] = b""
    found = survey(entry, dataset, grown, KEY)
    assert (found.waste, len(found.kept)) == ([], 1), "an image was not read yet: its row may be in any shard"
    entry.master.unlink()
    assert survey(entry, dataset, digests, KEY).waste == []
    twin = open_entry(dataset.name, replace(KEY, backbone="other"))
    assert survey(twin, dataset, digests, twin.key).waste == []


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(spots: Path) -> None:
    """Temporary files, leases and half-removed folders of ended processes; a living writer keeps its whole entry."""
    entry = extracted(spots)
    gone, host = dead_process(), socket.gethostname()
    living = temporary_name(entry.shards / "pooled-x.h5")
    living.write_bytes(b"half")
    dead = [living.with_name(living.name.replace(f"~{os.getpid()}~", f"~{gone}~")), entry.shards / ".unit-000009.claim"]
    dead[0].write_bytes(b"half")
    dead[1].write_text(json.dumps({"host": host, "process": gone}))
    half = cache_root(stored("spots")) / f".removed~{host}~{gone}~1f.tmp"
    shutil.copytree(entry.folder, half / entry.folder.name)
    assert find_entries(half.parent) == [entry]
    assert entries(stored("spots")) == [entry], "a half-removed entry is no entry"
    assert sorted(surveyed(entry, spots)[0]) == sorted(dead)
    assert [item.path for item in abandoned(half.parent)] == [half]
    leases = Leases(entry.shards)
    assert leases.acquire(3)
    waste, (kept,) = surveyed(entry, spots)
    assert (waste, kept) == ([], f"{entry.folder}: a writer is at work on it")
    assert "kept: " in "\n".join(collect(str(spots), yes=True, preprocess="pad", **ON))
    assert entry.master.exists()
    leases.release()
    assert len(collect(str(spots), yes=True, **ON)) == 3
    assert not half.exists()
    assert not any(path.exists() for path in dead)
    assert living.exists()
    assert verify(entry) == []


def test_entries_that_no_run_would_use_go(spots: Path) -> None:
    """Another preprocessing, precision or other weights: told in the words of the key, removed when told to."""
    kept = extracted(spots)
    padded = extracted(spots, preprocess="pad")
    lines = collect(str(spots), **ON)
    assert lines[0].startswith(f"would remove: {padded.folder}, ")
    assert "the preprocess changed: pad" in lines[0]
    assert lines[-1].endswith(" YES=1")
    assert collect(str(spots), "squeezenet1_1", yes=True, **ON)[0].startswith(f"removed: {padded.folder}")
    assert not padded.folder.exists()
    assert [p.name for p in cache_root(stored("spots")).glob(".*")] == []
    assert verify(kept) == []
    older = open_entry(stored("spots"), replace(kept.key, weights="1" * 64))
    older.commit("pooled", np.array([sha(1)]), rows(1))
    first, *_ = collect(str(spots), yes=True, **ON)
    assert f"the weights changed: 111111111111 -> {kept.key.weights[:12]}" in first
    assert entries(stored("spots")) == [kept]


def test_entries_without_weights_here_stay(spots: Path) -> None:
    """Where it cannot be told what a run would use, nothing goes, and nothing is downloaded to find out."""
    key = Key("resnet18", "2" * 64, ("layer4",), "squash 8", "float32")
    entry = open_entry(load_dataset(str(spots)).name, key)
    entry.commit("pooled", np.array([sha(1)]), {"pooled/layer4/avg": np.zeros((1, 3), np.float16)})
    assert collect(str(spots), yes=True, **ON) == [
        f"kept: {entry.folder}: no weights of resnet18 here, so it cannot be told whether a run would use it",
        f"nothing to remove of {stored('spots')}",
    ]
    assert entry.shards.is_dir()


def test_a_kill_while_an_entry_is_removed_leaves_no_half_entry(spots: Path, tmp_path: Path) -> None:
    """Killed at the first deleted file: the entry is out of sight at once, and the next call takes the rest away."""
    dataset = load_dataset(str(spots))
    entry, digests, _ = filled(dataset)
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from features.cache.gc import Waste, remove\n"
        "def dying(*_, **__): os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.unlink = dying\n"
        "remove([Waste(Path(sys.argv[1]), 0, '')])\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code, str(entry.folder)], cwd=root)
    assert done.returncode == -signal.SIGKILL
    assert not entry.folder.exists()
    assert find_entries(cache_root(dataset.name)) == entries(dataset.name) == []
    assert entry.state(dataset, digests, ["pooled"]).word == "missing"
    left = abandoned(cache_root(dataset.name))
    assert len(left) == 1
    assert left[0].size > 1000
    remove(left)
    assert list(cache_root(dataset.name).iterdir()) == []
