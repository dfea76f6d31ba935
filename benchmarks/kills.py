"""How does the cache take it when an extraction is killed, over and over?

Run: python -m benchmarks.kills [--kills 200] [--cuts 60] [--seed 0]

Each death is that of a process that extracts 24 images (real X-rays where ../shared/data lies) with squeezenet1_1:
at a system call chosen at random, before, inside or after it, or at a random time. A cut takes the power with it: what
was not synced is cut short, zeroed or gone. Every time a reader looks, the run is resumed, and all arrays, ids, labels
and maps must be those of an undisturbed run bit for bit, with no file of the dead left; the first difference ends the
program with a traceback.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from faults_for_tests import ROWS, Fault, Nursery, Trial, Undisturbed, images, moments, trial, undisturbed

COLUMNS = ("when", "call", "on", "deaths", "power cut", "files left", "kept", "lost at most", "rows seen")
Cell = tuple[str, str, str]


def main() -> None:
    """Parse the options, kill, print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="deaths without a power cut")
    parser.add_argument("--cuts", type=int, default=60, help="deaths with one")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    nursery = Nursery(folder / "nursery")
    try:
        start = time.perf_counter()
        like = undisturbed(nursery, images(folder / "set"), folder / "undisturbed")
        span = time.perf_counter() - start
        rng = np.random.default_rng(options.seed)
        done = [one(nursery, like, folder, rng, i, i >= options.kills) for i in range(options.kills + options.cuts)]
    finally:
        nursery.close()
        shutil.rmtree(folder)
    show(done, span)


def one(
    nursery: Nursery, like: Undisturbed, folder: Path, rng: np.random.Generator, number: int, cut: bool
) -> tuple[Cell, bool, Trial]:
    """Kill one extraction at a random moment: three of four times at a call, else by the clock."""
    kinds = moments(like.calls)
    cells = list(kinds)
    cell: Cell = ("by the clock", "", "")
    fault = Fault(int(rng.integers(20, 500)), how="alarm")
    if rng.random() < 0.75:
        cell = cells[int(rng.integers(len(cells)))]
        fault = kinds[cell][int(rng.integers(len(kinds[cell])))]
    artifacts = folder / f"trial{number}"
    result = trial(nursery, like, artifacts, fault, cut=int(rng.integers(1 << 30)) if cut else None)
    shutil.rmtree(artifacts)
    return cell, cut, result


def show(done: list[tuple[Cell, bool, Trial]], span: float) -> None:
    """Print one line per kind of moment, and the sum."""
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for cell in sorted({cell for cell, _, _ in done}):
        print("| " + " | ".join(map(str, (*cell, *_figures([d for d in done if d[0] == cell])))) + " |")
    print("| " + " | ".join(map(str, ("all", "", "", *_figures(done)))) + " |")
    print(f"\nEvery resumed run ended bit for bit as the undisturbed one; a shard has {ROWS} rows.")
    print(f"The undisturbed run took {span:.1f} s with the start of its process.")


def _figures(done: list[tuple[Cell, bool, Trial]]) -> tuple[object, ...]:
    """Return deaths, power cuts among them, left-over files, and the ranges of rows kept, lost and seen."""
    trials = [one for _, _, one in done]
    kept, seen = ([getattr(one, name) for one in trials] for name in ("kept", "seen"))
    return (
        sum(one.answer["killed"] > 0 for one in trials),
        sum(cut for _, cut, _ in done),
        sum(len(one.left) for one in trials),
        f"{min(kept)} to {max(kept)}",
        max(one.lost for one in trials),
        f"{min(seen)} to {max(seen)}",
    )


if __name__ == "__main__":
    main()
