"""All strengths and folds of the linear head at once, against scikit-learn one after the other.

    python -m benchmarks.heads [--full | --sizes | --findings] [--features FILE.npz]

Draws 5,216 x 2,048 rectified features with the spectrum of ResNet-50's on chest X-rays (eigenvalues falling as 1/k), or
reads X and y of a file. scikit-learn's LogisticRegression (lbfgs, tol 1e-8, warm-started along the ascending strengths)
gets the standardised folds for nothing. Without --full it runs one fold of the five and its time is multiplied by five;
the table says so. In float32 its line search gives up before tol, so that float64 is the like-for-like comparison.

With --sizes it prints a row for each of SIZES instead: the 13 strengths of a head, scikit-learn at its default
tolerance in both precisions and at 1e-8, each with its worst excess over the certified minimum; CPU seconds in one
thread, so that other work on the machine does not count.

With --findings it draws 14 findings of 2 to 40 % of 2,000 images with 256 features, and solves each alone, all together
(`sweep_findings`), and all by scikit-learn's OneVsRestClassifier at its default tolerance, over the same 5 folds and 20
strengths, all of them run; CPU seconds of one thread likewise.
"""

from __future__ import annotations

import argparse
import sys
import time
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.logistic_path import Sweep, strengths, sweep, sweep_findings

FOLDS = 5
CLOCK = time.process_time if {"--sizes", "--findings"} & set(sys.argv) else time.perf_counter
SIZES = ((200, 512), (800, 512), (5216, 512), (5216, 2048))
FINDINGS = (2000, 256, 14)  # images, features, findings


class Run(NamedTuple):
    """What one solver did with the folds it was given."""

    seconds: float  # for all folds
    note: str
    objective: NDArray[np.float64]  # (folds, S)
    gradient: NDArray[np.float64]  # (folds, S) infinity norm of the gradient of the mean loss, scikit-learn's measure
    iterations: NDArray[np.int64]  # (folds, S)


def drawn(n: int, d: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return features (n, d) and labels like a frozen network's: 1/k spectrum, rectified, heavy-tailed, 3 to 1."""
    rng = np.random.default_rng(seed)
    spectrum = 1 / np.sqrt(1 + np.arange(d))
    latent = rng.standard_normal((n, d), dtype=np.float32) * spectrum.astype(np.float32)
    mixed = latent @ rng.standard_normal((d, d), dtype=np.float32)
    mixed /= mixed.std(0)
    X = np.maximum(np.exp(0.5 * mixed) - rng.uniform(0, 0.9, d).astype(np.float32), 0)
    side = latent[:, :40] @ rng.standard_normal(40, dtype=np.float32)
    side += rng.normal(0, 0.08 * side.std(), n).astype(np.float32)
    return X, (side > np.quantile(side, 0.26)).astype(np.int64)


def folds_of(y: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return stratified training masks (FOLDS, n)."""
    rank = np.zeros(len(y), np.int64)
    for k in np.unique(y):
        rank[y == k] = np.arange((y == k).sum())
    return rank % FOLDS != np.arange(FOLDS)[:, None]


def measured(X: Any, y: Any, w: Any, b: float, C: float) -> tuple[float, float]:
    """Return objective and infinity norm of its gradient over the rows, in float64, for a binary model of X."""
    z = X @ w + b
    r = 1 / (1 + np.exp(-z)) - y
    value = np.logaddexp(0, np.where(y == 1, -z, z)).sum() + w @ w / (2 * C)
    return float(value), float(max(np.abs(X.T @ r + w / C).max(), abs(r.sum())) / len(y))


def ours(X: Any, y: Any, folds: Any, grid: Any) -> tuple[Run, Sweep]:
    """Run the sweep on all folds."""
    tick = CLOCK()
    found = sweep(X, y, strengths=grid, folds=folds)
    seconds = CLOCK() - tick
    gradient = np.zeros_like(found.objective)
    for f, training in enumerate(folds):
        A = X[training].astype(np.float64)
        center, scale = A.mean(0), np.where(A.std(0) > 0, A.std(0), 1)
        A = (A - center) / scale
        for s, C in enumerate(grid):
            w, b = found.coef[f, s, 0], found.intercept[f, s, 0]
            gradient[f, s] = measured(A, y[training], w * scale, b + center @ w, C)[1]
    return Run(seconds, "all folds", found.objective, gradient, found.iterations), found


def theirs(X: Any, y: Any, folds: Any, grid: Any, dtype: Any, tol: float = 1e-8) -> Run:
    """Run scikit-learn on the given folds, timing nothing but `fit`, and scale the time to FOLDS."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    numbers, seconds = np.zeros((3, len(folds), len(grid))), 0.0
    for f, training in enumerate(folds):
        A, rows = StandardScaler().fit_transform(X[training].astype(np.float64)), y[training]
        given = A.astype(dtype)
        model = LogisticRegression(tol=tol, max_iter=100_000, warm_start=True)
        for s, C in enumerate(grid):
            model.C = C
            tick = CLOCK()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # in float32 its line search gives up before tol
                model.fit(given, rows)
            seconds += CLOCK() - tick
            value = measured(A, rows, model.coef_[0].astype(np.float64), float(model.intercept_[0]), C)
            numbers[:, f, s] = *value, model.n_iter_[0]
    note = "all folds" if len(folds) == FOLDS else f"{len(folds)} fold, time x {FOLDS // len(folds)}"
    return Run(seconds * FOLDS / len(folds), note, numbers[0], numbers[1], numbers[2].astype(np.int64))


def peak(work: Callable[[], object]) -> int:
    """Return the most bytes that the work held at a time."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def main() -> None:
    """Print the table."""
    from threadpoolctl import threadpool_limits

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="give scikit-learn all folds, not one")
    parser.add_argument("--sizes", action="store_true", help="a row for each size, in CPU seconds of one thread")
    parser.add_argument("--findings", action="store_true", help="14 findings against one, and scikit-learn's")
    parser.add_argument("--features", type=Path, help="an .npz with X (n, d) and y (n,) of 0 and 1")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.findings:
        with threadpool_limits(1):
            findings()
        return
    with threadpool_limits(1 if args.sizes else args.threads):
        if args.features:
            with np.load(args.features) as file:
                X, y = file["X"].astype(np.float32), file["y"].astype(np.int64)
        else:
            X, y = drawn(*SIZES[-1])
        if args.sizes:
            sizes(X, y)
        else:
            compare(X, y, args.full)


def findings() -> None:
    """Print what all findings took together, each alone on average, and scikit-learn's one against the rest."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.preprocessing import StandardScaler

    n, d, count = FINDINGS
    X, y = drawn_findings(n, d, count)
    folds, grid = np.arange(n) % FOLDS != np.arange(FOLDS)[:, None], strengths()
    tick = CLOCK()
    alone = [sweep(X, column, strengths=grid, folds=folds) for column in y.T]
    one = (CLOCK() - tick) / count
    tick = CLOCK()
    found = sweep_findings(X, y, strengths=grid, folds=folds)
    together = CLOCK() - tick
    assert all(each.converged.all() for each in (*alone, *found))
    print(f"{n:,} x {d:,}, {count} findings, {FOLDS} folds, {len(grid)} strengths, every gap at most 1e-6, CPU seconds")
    print(f"one finding {one:.2f} | all together {together:.2f}, {together / one:.1f} times one", flush=True)
    seconds, excess = 0.0, 0.0
    for f, training in enumerate(folds):
        A = StandardScaler().fit_transform(X[training].astype(np.float64))
        for s, C in enumerate(grid):
            tick = CLOCK()
            model = OneVsRestClassifier(LogisticRegression(C=C, max_iter=100_000)).fit(A, y[training])
            seconds += CLOCK() - tick
            for k, head in enumerate(model.estimators_):
                value, _ = measured(A, y[training, k], head.coef_[0], float(head.intercept_[0]), C)
                floor = found[k].objective[f, s] * (1 - found[k].gap[f, s])
                excess = max(excess, value / floor - 1)
    print(f"OneVsRestClassifier {seconds:.2f}, {seconds / together:.1f} times ours; its worst excess {excess:.0e}")


def drawn_findings(n: int, d: int, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return features as `drawn` and a label matrix (n, count) of findings from 2 to 40 % of the rows."""
    rng, X = np.random.default_rng(1), drawn(n, d)[0]
    side = np.log1p(X) @ (rng.standard_normal((d, count), dtype=np.float32) / np.sqrt(1 + np.arange(d))[:, None])
    side = side / side.std(0) + np.linspace(0.3, 1.5, count) * rng.standard_normal((n, count))
    cut = [np.quantile(column, 1 - share) for column, share in zip(side.T, np.geomspace(0.02, 0.4, count), strict=True)]
    return X, (side > np.array(cut)).astype(np.int64)


def sizes(X: NDArray[np.float32], y: NDArray[np.int64]) -> None:
    """Print for the leading rows and columns of X what both solvers took and how far from the minimum they ended."""
    ways = [(dtype, tol) for dtype in (np.float32, np.float64) for tol in (1e-4, 1e-8)]
    print("n x d: sweep [s, excess] | sklearn [s, ratio, excess] at", ", ".join(f"{w.__name__} {t}" for w, t in ways))
    for n, d in SIZES:
        some, labels, grid = np.ascontiguousarray(X[:n, :d]), y[:n], strengths(13)
        folds = folds_of(labels)
        mine, found = min((ours(some, labels, folds, grid) for _ in range(3)), key=lambda each: each[0].seconds)
        floor = found.objective * (1 - found.gap)
        print(f"{n:,} x {d:,}: {mine.seconds:.3f} {found.gap.max():.0e}", end="", flush=True)
        for dtype, tol in ways:
            run = theirs(some, labels, folds[:1], grid, dtype, tol)
            excess = (run.objective / floor[:1] - 1).max()
            print(f" | {run.seconds:.2f} {run.seconds / mine.seconds:.1f} {excess:.0e}", end="", flush=True)
        print()


def compare(X: NDArray[np.float32], y: NDArray[np.int64], full: bool) -> None:
    """Run both solvers in turn and print what they took and reached."""
    folds, grid = folds_of(y), strengths()
    print(f"{len(X):,} x {X.shape[1]:,} float32 ({X.nbytes / 2**20:.0f} MB), {FOLDS} folds, {len(grid)} strengths")
    sweep(X[:200, :20], y[-200:] * 0 + np.arange(200) % 2, strengths=[1.0], folds=folds[:, :200])
    some = folds if full else folds[:1]
    first, found = ours(X, y, folds, grid)
    runs, seconds = {"sweep": first}, [first.seconds]
    for name, dtype in (("sklearn float64", np.float64), ("sklearn float32", np.float32)):
        runs[name] = theirs(X, y, some, grid, dtype)
        seconds.append(ours(X, y, folds, grid)[0].seconds)
    runs["sweep"] = first._replace(
        seconds=float(np.median(seconds)), note="all folds, median of 3, in turn with the others"
    )
    floor = found.objective * (1 - found.gap)
    print(f"{'':16} {'seconds':>8} {'ratio':>6} {'excess':>8} {'gradient':>9} {'steps':>6}  measured on")
    for name, run in runs.items():
        excess, steps = (run.objective / floor[: len(run.objective)] - 1).max(), run.iterations.mean()
        print(f"{name:16} {run.seconds:8.2f} {run.seconds / runs['sweep'].seconds:6.1f} {excess:8.1e}", end=" ")
        print(f"{run.gradient.max():9.1e} {steps:6.1f}  {run.note}")
    print("excess: worst objective over the certified minimum; gradient: worst, of the mean loss, infinity norm")
    print(f"certified: gap {found.gap.max():.1e} at most, {int(found.converged.sum())} of {found.gap.size} problems")
    held = peak(lambda: sweep(X, y, strengths=grid, folds=folds))
    print(f"memory besides X: {held / 2**20:.0f} MB, {held / X.nbytes:.2f} copies of X")


if __name__ == "__main__":
    main()
