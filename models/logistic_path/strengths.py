"""The regularisation path: blocks of neighbouring strengths, each warm-started from the path so far and certified."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from models.logistic_path.arrays import Array
from models.logistic_path.design import Design
from models.logistic_path.duality_gap import Certified, certify
from models.logistic_path.lbfgs import PAIRS, Problems, minimise, search
from models.logistic_path.loss import labels_of, losses
from models.logistic_path.preconditioner import Preconditioner, preconditioner_at

_DECADE = 10.0001  # ratio of the strengths that share a preconditioner
_FLOATS = 2**23  # in flight, 32 MB
_FOLDS = 8  # folds in flight, each with a preconditioner of its own
_PROOFS = 3  # attempts in float64; moving the intercept may leave a gap again
_FRESH = 25  # iterations on one preconditioner
_POINTS = 3  # of the path, from which it is extrapolated

Past: TypeAlias = list[tuple[float, Array]]  # log C and theta (F, K, d + 1), in ascending order


def strengths(n: int = 20) -> NDArray[np.float64]:
    """Return the default grid of C (n,), ascending from 1e-4 to 1e2."""
    return np.logspace(-4, 2, n)


class Block(NamedTuple):
    """The certified solutions of one block: every strength of `places` with every fold of `folds`."""

    places: slice  # in the ascending strengths
    folds: NDArray[np.int64]  # (F',)
    solution: Certified  # of F' problems per strength, strength by strength
    iterations: NDArray[np.int64]  # of each problem


@dataclass(frozen=True)
class Task:
    """The folds to solve and how well; `exact` is multiplied out in float64, `fast` in float32."""

    exact: Design
    fast: Design
    y: NDArray[np.int64]
    classes: int
    tol: float
    max_iter: int

    def only(self, folds: NDArray[np.int64]) -> Task:
        """Return the task for these folds, which are then numbered from 0."""
        exact, fast = (
            replace(x, mean=x.mean[folds], scale=x.scale[folds], weight=x.weight[folds])
            for x in (self.exact, self.fast)
        )
        return replace(self, exact=exact, fast=fast)

    def problems(self, design: Design, strengths: NDArray[np.float64]) -> Problems:
        """Return the problems of every strength with every fold, strength by strength."""
        arrays, folds = design.arrays, len(design.weight)
        fold = np.tile(np.arange(folds), len(strengths))
        penalty = arrays.put(np.repeat(1 / strengths, folds), design.dtype)
        return Problems(
            design, labels_of(arrays, self.y, self.classes, design.dtype), fold, penalty, design.weight[fold]
        )


def solve_path(task: Task, strengths: NDArray[np.float64]) -> Iterator[Block]:
    """Yield the solutions for the ascending strengths (S,), block by block of folds and strengths."""
    folds = len(task.exact.weight)
    group = int(np.clip(_FLOATS // (4 * _floats(task)), 1, _FOLDS))
    for first in range(0, folds, group):
        own = np.arange(first, min(first + group, folds))
        part, past = task.only(own), list[tuple[float, Array]]()
        for places in decades(strengths, max(1, _FLOATS // (_floats(task) * len(own)))):
            solution, iterations = _solve(part, strengths[places], past)
            yield Block(places, own, solution, iterations)
            each = task.fast.arrays.cast(solution.theta, task.fast.dtype).reshape(
                -1, len(own), *solution.theta.shape[1:]
            )
            past = [*past, *zip(np.log(strengths[places]), each, strict=True)][-_POINTS:]


def _floats(task: Task) -> int:
    """Return the numbers that one problem keeps in flight: scores, and parameters with their memory."""
    n, d = len(task.y), int(task.exact.matrix.shape[1])
    return (1 if task.classes == 2 else task.classes) * (n + 2 * PAIRS * (d + 1))


def decades(strengths: NDArray[np.float64], most: int) -> Iterator[slice]:
    """Yield runs of at most `most` ascending strengths within a decade."""
    start = 0
    for i in range(1, len(strengths) + 1):
        if i == len(strengths) or i - start == most or strengths[i] > _DECADE * strengths[start]:
            yield slice(start, i)
            start = i


def _solve(task: Task, strengths: NDArray[np.float64], past: Past) -> tuple[Certified, NDArray[np.int64]]:
    """Return the certified solutions of one block, and the iterations they took.

    What float32 leaves short of the tolerance is finished in float64.
    """
    fast, exact = task.problems(task.fast, strengths), task.problems(task.exact, strengths)
    theta, iterations = _descend(task, fast, *_start(task, fast, strengths, past))
    found = certify(exact, task.fast.arrays.cast(theta, "float64"))
    for _ in range(_PROOFS):
        short = np.flatnonzero(~(found.gap <= task.tol) & (iterations < task.max_iter))
        if not len(short):
            break
        some = exact.take(short)
        theta, more = _descend(task, some, found.theta[short], found.margins[short])
        iterations[short] += more
        found = _replaced(found, short, certify(some, theta))
    return found, iterations


def _descend(task: Task, problems: Problems, theta: Array, margins: Array) -> tuple[Array, NDArray[np.int64]]:
    """Return the minima from theta on and the iterations, with a preconditioner made anew for those that take long."""
    iterations, going = np.zeros(len(theta), np.int64), np.arange(len(theta))
    while len(going):
        some = problems.take(going)
        limit = min(_FRESH, task.max_iter - int(iterations[going[0]]))
        end = minimise(some, theta[going], margins[going], _preconditioner(some, margins[going]), task.tol / 2, limit)
        theta[going], margins[going] = end.theta, end.margins
        iterations[going] += end.iterations
        going = going[(end.iterations == _FRESH) & (iterations[going] < task.max_iter)]
    return theta, iterations


def _replaced(found: Certified, places: NDArray[np.int64], better: Certified) -> Certified:
    """Write the better solutions in their places, and return all."""
    for old, new in zip(found, better, strict=True):
        old[places] = new
    return found


def _start(task: Task, problems: Problems, strengths: NDArray[np.float64], past: Past) -> tuple[Array, Array]:
    """Return theta and its margins: the path so far, extrapolated in log C as far as that lowers the objective."""
    if not past:
        theta = _null(task, problems)
        return theta, problems.margins(theta)
    base = problems.take(np.arange(len(past[-1][1])))
    last, margins = past[-1][1][problems.fold], base.margins(past[-1][1])[problems.fold]
    if len(past) == 1:
        return last, margins
    ahead = problems.design.arrays.xp.concatenate([_extrapolated(past, float(np.log(c))) for c in strengths]) - last
    change = problems.labels.steps(problems.design.scores(ahead, problems.fold))
    length = search(problems, last, margins, ahead, change)[:, None, None]
    return last + length * ahead, margins + length * change


def _extrapolated(past: Past, at: float) -> Array:
    """Return Lagrange's polynomial through the points of the path, at a log strength."""
    x = [point for point, _ in past]
    shares = [np.prod([(at - b) / (a - b) for b in x if b != a]) for a in x]
    return sum(float(share) * theta for share, (_, theta) in zip(shares, past, strict=True))


def _null(task: Task, problems: Problems) -> Array:
    """Return theta of the model that knows the class frequencies alone."""
    arrays, dtype = problems.design.arrays, problems.design.dtype
    own = arrays.put(np.arange(task.classes)[:, None] == task.y, dtype)
    logs = arrays.xp.log(problems.weight @ own.T)
    intercept = logs[:, 1:] - logs[:, :1] if task.classes == 2 else logs - logs.mean(1)[:, None]
    weights = arrays.put(np.zeros((*intercept.shape, task.exact.matrix.shape[1])), dtype)
    return arrays.xp.concatenate([weights, intercept[..., None]], -1)


def _preconditioner(problems: Problems, margins: Array) -> Preconditioner:
    """Return the preconditioner at a strength a third into each fold's, where the Hessian suits the others best."""
    design, labels = problems.design, problems.labels
    places = [np.flatnonzero(problems.fold == f) for f in range(len(design.weight))]
    at = np.array([own[len(own) // 3] if len(own) else 0 for own in places])
    _, q = losses(design.arrays.xp, margins[at])
    p = labels.probabilities(q)
    strength = 1 / float(np.median(design.arrays.get(problems.penalty[at])))
    return preconditioner_at(design, p, problems.weight[at], strength)
