"""Heads on more features than fit into memory: `python -m benchmarks.large [--rows 100000 1000000]`.

Draws rectified features x 512 in float16, with the spectrum of a frozen network's, into a real cache entry in a
temporary folder, then trains each head on it in a process of its own and prints what that took: seconds,
seconds per million rows, and the most memory that was resident. A million rows take 1 GB of disk.
The linear head tries 5 strengths on 5 folds; LightGBM stops after so many trees that both sizes grow as many.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

FEATURES, SHARD = 512, 8192
HEADS = ("logistic", "lightgbm")
STRENGTHS, TREES = 5, 100
BAR = 2e9  # bytes


def fill(rows: int) -> None:
    """Write the entry of a drawn data set of so many images, which are never looked at, shard by shard."""
    from features.cache import Digests, Key, open_entry
    from features.datasets.dataset import Dataset, Stamps

    rng, d = np.random.default_rng(0), FEATURES
    spectrum = (1 / np.sqrt(1 + np.arange(d))).astype(np.float32)
    mix, lift = rng.standard_normal((d, d), dtype=np.float32) / 3, rng.uniform(0, 0.9, d).astype(np.float32)
    side, labels = rng.standard_normal(40, dtype=np.float32), np.zeros(rows, np.int64)
    entry = open_entry(f"drawn{rows}", Key("bench", "0" * 64, ("last",), "squash", "float32"))
    digests = np.array([f"{i:064x}".encode() for i in range(rows)])
    for i in range(0, rows, SHARD):
        latent = rng.standard_normal((min(SHARD, rows - i), d), dtype=np.float32) * spectrum
        X = np.maximum(np.exp(0.5 * (latent @ mix)) - lift, 0).astype(np.float16)
        labels[i : i + SHARD] = latent[:, :40] @ side + rng.normal(0, 1, len(X)) > -0.9
        entry.commit("pooled", digests[i : i + SHARD], {"pooled/last/avg": X})
    ids = [f"{i:07d}.png" for i in range(rows)]
    groups = np.array([f"{i // 2:07d}" for i in range(rows)])
    splits = np.full(rows, "train")
    dataset = Dataset(f"drawn{rows}", ("no", "yes"), ids, labels, splits, groups, None)  # type: ignore[arg-type]
    known = Digests.of(ids, Stamps(*np.zeros((3, rows), np.int64)))
    known.sha256[:] = digests
    entry.refresh(dataset, known, {}, {})


def train(head: str, rows: int) -> dict[str, Any]:
    """Train a head on the entry of so many rows; return seconds, peak memory and what it chose."""
    from features.cache.entry import entries
    from features.views import rows_view
    from models.heads import make_head
    from models.heads.lightgbm import Boosted
    from models.heads.linear import Logistic

    Logistic.steps, Boosted.most_trees = STRENGTHS, TREES
    start = time.perf_counter()
    view = rows_view(entries(f"drawn{rows}")[-1], ["last"])
    opened = time.perf_counter()
    fitted = make_head(head).fit(view.X, view.y, view.groups)
    end = time.perf_counter()
    status = Path("/proc/self/status").read_text()  # ru_maxrss would count what the parent held before this started
    memory, cpu = int(status.split("VmHWM:")[1].split()[0]) * 1024, time.process_time()
    return {"open": opened - start, "fit": end - opened, "cpu": cpu, "memory": memory, "chosen": fitted.chosen_}


def measured(head: str, rows: int) -> dict[str, Any]:
    """Train in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.large", "--head", head, "--rows", str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--folder", help="where to write (default: a temporary folder)")
    parser.add_argument("--head", choices=HEADS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.head:
        print(json.dumps(train(arguments.head, arguments.rows[0])))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        os.environ["FIRN_ARTIFACTS"] = folder
        print("| head | rows | open, s | fit, s | fit, s per million rows | resident | load | chosen |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        for rows in arguments.rows:
            fill(rows)
        for head in HEADS:
            for rows in arguments.rows:
                load, m = os.getloadavg()[0], measured(head, rows)
                chosen = ", ".join(f"{k} {v:.4g}" for k, v in m["chosen"].items())
                print(
                    f"| {head} | {rows:,} | {m['open']:.1f} | {m['fit']:.1f} ({m['cpu']:.0f} of processor) | "
                    f"{m['fit'] / rows * 1e6:.1f} | {m['memory'] / 1e9:.2f} GB, bar {BAR / 1e9:.0f} | "
                    f"{load:.1f} | {chosen} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
