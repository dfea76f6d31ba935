"""What the cache costs, as ratios of two things measured in turn: `python -m benchmarks.cache [--million]`.

Arrays are feature maps and pooled features like those of resnet18 (real ones where the cache of a data set with maps
of layer4 is given as --dataset); every side writes to the same disk and syncs at the end.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np

from features.backbones import load_spec
from features.cache import Digests, Entry, Key, open_entry
from features.cache.entry import cache_root, entries
from features.cache.reader import FeatureRows
from features.datasets import load_dataset
from features.views import map_rows, map_view, pooled_view

ROWS, SHARD, REPEATS = 4096, 365, 9
# The command, and at its end the most memory that it ever held (kB).
MEASURED = """
from pipeline.__main__ import main
main()
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""
KEY = Key("bench", "0" * 64, ("layer4",), "squash", "bfloat16")


def drawn_maps(rows: int) -> np.ndarray:
    """Return maps as sparse as ReLU leaves them: about half zeros, heavy-tailed, smooth over positions."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(256, 512, 7, 7)).astype(np.float32)
    smooth = (coarse + np.roll(coarse, 1, 2) + np.roll(coarse, 1, 3)) / 2
    return np.tile(np.maximum(smooth - 0.2, 0).astype(np.float16), (-(-rows // 256), 1, 1, 1))[:rows]


def real_maps(name: str) -> np.ndarray:
    """Return the cached maps of layer4 of a data set."""
    entry = next(e for e in entries(name) if e.files("maps/layer4"))
    return np.asarray(map_view(entry, "layer4").X)


def timed(function: Callable[[], object]) -> float:
    """Return the wall seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def in_turn(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float, float]:
    """Return median seconds of both and the median of the ratios second / first, pair by pair."""
    pairs = [(timed(first), timed(second)) for _ in range(REPEATS)]
    a, b = (statistics.median(p[i] for p in pairs) for i in (0, 1))
    return a, b, statistics.median(p[1] / p[0] for p in pairs)


def digests(n: int) -> np.ndarray:
    """Return made-up image digests."""
    return np.array([f"{i:064x}".encode() for i in range(n)])


def write_ours(folder: Path, maps: np.ndarray) -> Entry:
    """Commit maps and pooled features shard by shard."""
    entry = Entry(folder / "ours", KEY)
    shutil.rmtree(entry.folder, ignore_errors=True)
    names = digests(len(maps))
    for i in range(0, len(maps), SHARD):
        at = slice(i, i + SHARD)
        entry.commit("maps/layer4", names[at], {"maps/layer4": maps[at]})
    return entry


def write_plain(folder: Path, maps: np.ndarray, **options: object) -> Path:
    """Append the same arrays to one resizable dataset with plain h5py, 64 rows at a time, and sync once."""
    path = folder / "plain.h5"
    path.unlink(missing_ok=True)
    with h5py.File(path, "w") as file:
        shape = maps.shape[1:]
        settings: dict[str, object] = {"chunks": (8, *shape), **options}
        dataset = file.create_dataset("maps/layer4", (0, *shape), maxshape=(None, *shape), dtype=maps.dtype, **settings)
        for i in range(0, len(maps), 64):
            dataset.resize(min(i + 64, len(maps)), axis=0)
            dataset[i : i + 64] = maps[i : i + 64]
        file.flush()
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    return path


def compare_writing(folder: Path, maps: np.ndarray) -> None:
    """Print how fast shards are written against a plain append."""
    write_ours(folder, maps)
    plain, ours, ratio = in_turn(lambda: write_plain(folder, maps), lambda: write_ours(folder, maps))
    size = maps.nbytes / 1e6
    print(f"| write {size:,.0f} MB of maps, synced | {size / ours:,.0f} MB/s | plain append {size / plain:,.0f} MB/s | "
          f"{1 / ratio:.2f} | >= 0.8 |")  # fmt: skip


def compare_reading(folder: Path, maps: np.ndarray) -> None:
    """Print how fast pooled features and maps come back."""
    entry, dataset = fill_entry(folder, maps)
    name = "pooled/layer4/avg"

    def plain() -> object:
        with h5py.File(entry.master, "r") as file:
            return file[name][...].astype(np.float32)

    with h5py.File(folder / "contiguous.h5", "w") as file, h5py.File(entry.master, "r") as source:
        file[name] = source[name][...]

    def plain_view() -> object:
        with h5py.File(entry.master, "r") as file:
            return [file[n][...] for n in ("ids", "labels", "groups", "splits")], file[name][...].astype(np.float32)

    def contiguous() -> object:
        with h5py.File(folder / "contiguous.h5", "r") as file:
            return file[name][...].astype(np.float32)

    manifest = entry.manifest()
    assert manifest is not None
    order = np.argsort(manifest.ids, kind="stable")

    def ours() -> object:
        with FeatureRows(entry, manifest.parts["pooled"].take(order), [name], np.float32) as rows:
            return rows[:]

    def our_view() -> object:
        return pooled_view(entry, ["layer4"])

    rows = (
        ("pooled features of a block", ours, "h5py on the master", plain),
        ("pooled features of a block", ours, "h5py on one contiguous dataset", contiguous),
        ("the same with ids, labels, groups, splits", our_view, "h5py on the master", plain_view),
    )
    for what, mine, label, other in rows:
        a, b, ratio = in_turn(other, mine)
        print(f"| {what}, {len(dataset):,} rows | {b * 1e3:.1f} ms | {label} {a * 1e3:.1f} ms | "
              f"{1 / ratio:.2f} | >= 0.8 |")  # fmt: skip
    with map_rows(entry, "layer4").X as stream:
        shuffled = np.random.default_rng(0).permutation(len(stream))

        def epoch(at: np.ndarray) -> None:
            for i in range(0, len(at), 64):
                stream[at[i : i + 64]]

        with h5py.File(folder / "maps.h5", "w") as file:
            file["maps"] = maps

        def plain_epoch() -> None:
            with h5py.File(folder / "maps.h5", "r") as file:
                for i in range(0, len(maps), 64):
                    file["maps"][i : i + 64]

        rate = maps.nbytes / 1e6
        sequential = (("in order", lambda: epoch(np.arange(len(stream)))), ("plain h5py in order", plain_epoch))
        for label, other in sequential:
            a, b, ratio = in_turn(other, lambda: epoch(shuffled))
            print(f"| maps in shuffled batches of 64 | {rate / b:,.0f} MB/s | {label} {rate / a:,.0f} MB/s | "
                  f"{1 / ratio:.2f} | >= 0.5 |")  # fmt: skip


def fill_entry(folder: Path, maps: np.ndarray) -> tuple[Entry, object]:
    """Return an entry with a master over maps and pooled features of as many made-up images."""
    os.environ["FIRN_ARTIFACTS"] = str(folder / "artifacts")
    dataset = numbered_files(folder / "images", len(maps))
    entry = open_entry(dataset.name, KEY)
    known = Digests.of(dataset.ids, dataset.source.stamps(dataset.ids))
    known.sha256[:] = digests(len(maps))
    pooled = maps.mean(axis=(2, 3), dtype=np.float32).astype(np.float16)
    for i in range(0, len(maps), SHARD):
        at = slice(i, i + SHARD)
        entry.commit("maps/layer4", known.sha256[at], {"maps/layer4": maps[at]})
        both = {f"pooled/layer4/{kind}": pooled[at] for kind in ("avg", "max")}
        entry.commit("pooled", known.sha256[at], both)
    entry.refresh(dataset, known, {}, {})
    return entry, dataset


def numbered_files(folder: Path, n: int):  # type: ignore[no-untyped-def]
    """Return a data set of `n` tiny files in two class folders, whose content is their number."""
    for k in (0, 1):
        for split in ("train", "test"):
            (folder / split / f"class{k}").mkdir(parents=True, exist_ok=True)
    for i in range(n):
        split = "test" if i % 5 == 0 else "train"
        (folder / split / f"class{i % 2}" / f"{i:07d}.png").write_bytes(b"%d" % i)
    return load_dataset(str(folder))


def compare_compression(folder: Path, maps: np.ndarray) -> None:
    """Print size and rates of the filters that could be used, against none."""
    import hdf5plugin

    rows: dict[str, dict[str, object]] = {
        "none": {},
        "gzip 1 + shuffle (stock)": {"compression": "gzip", "compression_opts": 1, "shuffle": True},
        "lzf + shuffle (h5py)": {"compression": "lzf", "shuffle": True},
        "lz4 (plugin)": dict(hdf5plugin.LZ4()),
        "zstd 3 (plugin)": dict(hdf5plugin.Zstd(clevel=3)),
        "bitshuffle + lz4 (plugin)": dict(hdf5plugin.Bitshuffle(cname="lz4")),
        "bitshuffle + zstd (plugin)": dict(hdf5plugin.Bitshuffle(cname="zstd")),
    }
    print(
        "\n| filter, chunks of 8 rows | size | write MB/s | read MB/s | shuffled batches MB/s |\n|---|---|---|---|---|"
    )
    order = np.random.default_rng(0).permutation(len(maps))
    for label, options in rows.items():
        write = statistics.median(timed(lambda o=options: write_plain(folder, maps, **o)) for _ in range(3))
        path = folder / "plain.h5"
        with h5py.File(path, "r") as file:
            dataset = file["maps/layer4"]
            read = statistics.median(timed(lambda d=dataset: d[...]) for _ in range(3))
            some = order[: 64 * 8]
            batches = [np.sort(some[i : i + 64]) for i in range(0, len(some), 64)]
            shuffled = timed(lambda d=dataset, b=batches: [d[at] for at in b])
        size = maps.nbytes / 1e6
        print(f"| {label} | {path.stat().st_size / maps.nbytes:.2f} | {size / write:,.0f} | {size / read:,.0f} | "
              f"{maps[: len(some)].nbytes / 1e6 / shuffled:,.0f} |")  # fmt: skip


def no_op(folder: Path, n: int, limit: str) -> None:
    """Print wall time and memory of `extract` on a ready entry of `n` images, interpreter start included."""
    os.environ["FIRN_ARTIFACTS"] = str(folder / f"artifacts{n}")
    dataset = numbered_files(folder / f"images{n}", n)
    spec = load_spec("squeezenet1_1")
    entry = open_entry(dataset.name, spec.key(preprocess="squash", precision="float32"))
    stamps = dataset.source.stamps(dataset.ids)
    known = Digests.of(dataset.ids, stamps)
    known.sha256[:] = digests(n)
    names = [f"pooled/{block}/{kind}" for block in entry.key.blocks for kind in ("avg", "max")]
    for i in range(0, n, 8192):
        at = slice(i, i + 8192)
        entry.commit(
            "pooled", known.sha256[at], {name: np.zeros((len(known.ids[at]), 1), np.float16) for name in names}
        )
    entry.refresh(replace(dataset), known, {}, {})
    known.save(cache_root(dataset.name) / "digests.h5", clock=time.time_ns() + 10**10)
    arguments = ["extract", "--dataset", str(folder / f"images{n}")]
    arguments += ["--backbone", "squeezenet1_1", "--precision", "float32"]
    seconds, memory = [], 0
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", MEASURED, *arguments], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
        assert done.stdout.startswith("ready"), done.stdout
        memory = int(done.stdout.split()[-1]) / 1024
    wall = statistics.median(seconds)
    print(f"| no-op extract of {n:,} images | {wall:.2f} s | {memory:,.0f} MB at most | | {limit} |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="", help="take real maps of layer4 from this data set's cache")
    parser.add_argument("--million", action="store_true", help="also 1,000,000 images (minutes to prepare)")
    parser.add_argument("--folder", help="where to write (default: a temporary folder)")
    arguments = parser.parse_args()
    maps = real_maps(arguments.dataset)[:ROWS] if arguments.dataset else drawn_maps(ROWS)
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        print("| what | ours | against | ratio | bar |\n|---|---|---|---|---|")
        compare_writing(folder, maps)
        compare_reading(folder, maps)
        no_op(folder, 5840, "< 1 s")
        if arguments.million:
            no_op(folder, 1_000_000, "< 30 s, < 1,024 MB")
        compare_compression(folder, maps)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
