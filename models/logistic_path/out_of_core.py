"""Logistic regression on features larger than memory: one pass over the rows per quasi-Newton step of all problems.

Where the rows outnumber the features many times, a sample of them has nearly the same minimum and nearly the same
Hessian: the descent starts at the sample's solutions, with inverses of the sample's Hessians for a preconditioner, and
is at the minimum a few passes later. Nothing is kept per row but labels and weights. Without margins to search along,
a step is judged by the slope where it ends, which for a convex function tells whether it went too far.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from models.logistic_path.arrays import ROWS, Array, in_turn
from models.logistic_path.design import Design, Moments, exact_design, fast_design
from models.logistic_path.duality_gap import Certified, curvature, newton_step
from models.logistic_path.lbfgs import PAIRS, Problems, dot, inverse_times, squared
from models.logistic_path.loss import Labels, labels_of, losses
from models.logistic_path.preconditioner import Preconditioner, Rounded, preconditioner_at
from models.logistic_path.strengths import Block, Task, decades, solve_path

SAMPLE = 32768  # rows at least
_PER_FEATURE = 16  # rows of the sample
_RARE = 200  # rows of a class that the sample has at least, if there are so many
_FLOATS = 2**20  # of a block of rows and its margins
_START = 1.0  # gap of the sample's solutions: its own error is larger
_PATIENCE = {"float32": 4, "float64": 15}  # steps without progress after which rounding is to blame
_PROGRESS = 0.7  # of the best gap
_TOO_FAR = 0.5  # share of the slope, reversed, at which a step is taken back
_PROOFS = 4


class _At(NamedTuple):
    """All problems at theta (B, K, d + 1); every array has the batch first, in float64."""

    theta: Array
    value: Array  # (B,)
    gradient: Array  # (B, K, d + 1)
    bend: Array  # (B, K, K) Hessian by the intercepts

    def take(self, kept: NDArray[np.int64]) -> _At:
        return _At(*(a[kept] for a in self))


@final
@dataclass(frozen=True)
class _PerStrength:
    """One preconditioner per run of neighbouring strengths; what `apply` takes for a fold is the run's number."""

    preconditioners: list[Preconditioner]

    def apply(self, v: Array, fold: NDArray[np.int64]) -> Array:
        """Return each problem's own preconditioner times v."""
        out = v + 0
        for i in np.unique(fold).tolist():
            mine = np.flatnonzero(fold == i)
            out[mine] = self.preconditioners[i].apply(v[mine], np.zeros(len(mine), np.int64))
        return out


@dataclass(frozen=True)
class _Stream:
    """B problems over rows that are read block by block."""

    design: Design
    labels: Labels
    fold: NDArray[np.int64]  # (B,)
    run: NDArray[np.int64]  # (B,) of strengths, for the preconditioner
    penalty: Array  # (B,) 1 / C, float64

    def take(self, kept: NDArray[np.int64]) -> _Stream:
        """Return the problems at the places `kept`."""
        return replace(self, fold=self.fold[kept], run=self.run[kept], penalty=self.penalty[kept])

    def at(self, theta: Array) -> _At:
        """Return value, gradient and curvature at theta, after one pass over the rows."""
        arrays = self.design.arrays
        given = arrays.cast(theta, self.design.dtype)
        value, gradient, bend = self.penalty * squared(theta[..., :-1]) / 2, theta * self.penalty[:, None, None], 0.0
        gradient[..., -1] = 0
        for v, g, h in in_turn(arrays, lambda rows: self._over(rows, given), self._rows(theta.shape[1])):
            value, gradient, bend = value + v, gradient + g, bend + arrays.cast(h, "float64")
        return _At(theta, value, gradient, bend)

    def _rows(self, scores: int) -> list[slice]:
        """Return blocks of rows that fit, with their margins, in the processor's cache."""
        n, d = self.design.matrix.shape
        step = max(64, _FLOATS // (d + 4 * scores * len(self.fold)))
        return [slice(start, min(start + step, n)) for start in range(0, n, step)]

    def _over(self, rows: slice, theta: Array) -> tuple[Array, Array, Array]:
        """Return what some rows add to value, gradient and curvature."""
        xp, design, labels = self.design.arrays.xp, self.design.part(rows), self.labels.part(rows)
        part = Problems(design, labels, self.fold, self.penalty, design.weight[self.fold])
        loss, q = losses(xp, part.margins(theta))
        residual = labels.residuals(q) * part.weight[:, None]
        value = (loss * part.weight).sum(-1, dtype=xp.float64)
        return value, design.gradient(residual, self.fold), curvature(part, q)


def solve_out_of_core(task: Task, found: Moments, strengths: NDArray[np.float64]) -> Iterator[Block]:
    """Yield the certified solutions of every fold for the ascending strengths (S,); the task's rows stay on the disk.

    Raises what reading them raises.
    """
    sample, folds = _sampled(task, found), len(task.exact.weight)
    runs = list(decades(strengths, len(strengths)))
    run = np.repeat(np.concatenate([np.full(r.stop - r.start, i) for i, r in enumerate(runs)]), folds)
    theta = _solved(sample, strengths)
    preconditioner = _PerStrength([_preconditioner(sample, strengths[r], theta[r]) for r in runs])
    fast, exact = (_stream(task, design, strengths, run) for design in (task.fast, task.exact))
    start = fast.at(theta.reshape(-1, *theta.shape[2:]))
    end, iterations = _descend(fast, start, preconditioner, task.tol / 2, task.max_iter)
    solution, more = _proved(exact, end.theta, preconditioner, task)
    yield Block(slice(0, len(strengths)), np.arange(folds), solution, iterations + more)


def sample_size(d: int) -> int:
    """Return how many rows a sample of (n, d) features has; with fewer rows there is nothing to gain from one."""
    return max(SAMPLE, _PER_FEATURE * d)


def _sampled(task: Task, found: Moments) -> Task:
    """Return the task on a sample stratified by class, each row of which weighs for all that it stands for."""
    X, rng, chosen, share = task.exact.matrix, np.random.default_rng(0), [], np.ones(len(task.y))
    size = sample_size(X.shape[1]) / len(task.y)
    for k in range(task.classes):
        own = np.flatnonzero(task.y == k)
        some = rng.permutation(own)[: max(_RARE, int(size * len(own)))]
        share[some] = len(own) / len(some)
        chosen.append(some)
    rows = np.sort(np.concatenate(chosen))
    matrix = np.concatenate([X[rows[i : i + ROWS]] for i in range(0, len(rows), ROWS)])
    weight = task.exact.arrays.get(task.exact.weight)[:, rows] * share[rows]
    exact = exact_design(task.exact.arrays, matrix, weight, found)
    return replace(task, exact=exact, fast=fast_design(exact, matrix, found), y=task.y[rows], tol=_START)


def _solved(sample: Task, strengths: NDArray[np.float64]) -> Array:
    """Return the sample's solutions theta (S, F, K, d + 1) in float64."""
    arrays, parts = sample.exact.arrays, list(solve_path(sample, strengths))
    first = parts[0].solution.theta
    theta = arrays.put(np.zeros((len(strengths), len(sample.exact.weight), *first.shape[1:])))
    for p in parts:
        own = slice(int(p.folds[0]), int(p.folds[-1]) + 1)
        theta[p.places, own] = p.solution.theta.reshape(-1, len(p.folds), *first.shape[1:])
    return theta


def _preconditioner(sample: Task, strengths: NDArray[np.float64], theta: Array) -> Preconditioner:
    """Return the preconditioner of a run of strengths, theta (S', F, K, d + 1), at the middle one's mean fold."""
    middle, design = len(strengths) // 2, sample.fast
    problems = sample.problems(design, strengths[middle : middle + 1])
    _, q = losses(design.arrays.xp, problems.margins(design.arrays.cast(theta[middle], design.dtype)))
    p, weight = problems.labels.probabilities(q).mean(0)[None], problems.weight.mean(0)[None]
    return Rounded(design.arrays, preconditioner_at(design, p, weight, float(strengths[middle])), "float64")


def _stream(task: Task, design: Design, strengths: NDArray[np.float64], run: NDArray[np.int64]) -> _Stream:
    """Return the problems of every strength with every fold, strength by strength."""
    arrays, folds = design.arrays, len(design.weight)
    penalty = arrays.put(np.repeat(1 / strengths, folds), "float64")
    labels = labels_of(arrays, task.y, task.classes, design.dtype)
    return _Stream(design, labels, np.tile(np.arange(folds), len(strengths)), run, penalty)


def _descend(
    problems: _Stream, at: _At, preconditioner: Preconditioner, tol: float, most: int
) -> tuple[_At, NDArray[np.int64]]:
    """Return where the gap is tol or nothing gets better, and the passes it took; finished problems leave the batch."""
    end, iterations, place = _At(*(a + 0 for a in at)), np.zeros(len(at.theta), np.int64), np.arange(len(at.theta))
    best, since, length = np.full(len(place), np.inf), np.zeros(len(place), np.int64), problems.penalty * 0 + 1
    memory = list[tuple[Array, Array]]()
    while True:
        gap = problems.design.arrays.get(
            _gap(problems, at) + (_lift(problems, at) * at.gradient[..., -1]).sum(-1) / 2 / at.value
        )
        since = np.where(gap < _PROGRESS * best, 0, since + 1)
        best = np.minimum(best, gap)
        going = np.flatnonzero((gap > tol) & (since < _PATIENCE[problems.design.dtype]) & (iterations[place] < most))
        if len(going) < len(place):
            for whole, some in zip(end, at, strict=True):
                whole[place] = some
            place, best, since, length = place[going], best[going], since[going], length[going]
            problems, at, memory = problems.take(going), at.take(going), [(s[going], y[going]) for s, y in memory]
        if not len(place):
            return end, iterations
        iterations[place] += 1
        at, length, memory = _step(problems, at, length, preconditioner, memory)


def _step(
    problems: _Stream, at: _At, length: Array, preconditioner: Preconditioner, memory: list[tuple[Array, Array]]
) -> tuple[_At, Array, list[tuple[Array, Array]]]:
    """Take one quasi-Newton step, or take it back where the slope at its end says that it was far too long."""
    xp = problems.design.arrays.xp
    direction = -inverse_times(at.gradient, preconditioner, memory, problems.run)
    new = problems.at(at.theta + length[:, None, None] * direction)
    before, after = dot(at.gradient, direction), dot(new.gradient, direction)
    far = after > -_TOO_FAR * before
    held = far[:, None, None]
    pair = tuple(xp.where(held, 0 * a, b - a) for a, b in ((at.theta, new.theta), (at.gradient, new.gradient)))
    chosen = _At(*(xp.where(far.reshape(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(at, new, strict=True)))
    shorter = length * xp.clip(before / xp.where(far, before - after, before), 0.1, 0.7)
    return chosen, xp.where(far, shorter, 1 + 0 * length), [*memory[1 - PAIRS :], (pair[0], pair[1])]


def _gap(problems: _Stream, at: _At) -> Array:
    """Return the bound (B,) of the excess by the weights, relative to the objective."""
    return squared(at.gradient[..., :-1]) / problems.penalty / 2 / at.value


def _lift(problems: _Stream, at: _At) -> Array:
    """Return Newton's step (B, K) of the intercepts."""
    return newton_step(problems.design, at.bend, at.gradient[..., -1:])[..., 0]


def _proved(
    exact: _Stream, theta: Array, preconditioner: Preconditioner, task: Task
) -> tuple[Certified, NDArray[np.int64]]:
    """Return the solutions with intercepts minimised out, as `certify` does, descending in float64 where need be."""
    at, iterations = exact.at(theta), np.zeros(len(theta), np.int64)
    for _ in range(_PROOFS):
        at, more = _descend(exact, at, preconditioner, task.tol / 2, task.max_iter)
        moved = at.theta + 0
        moved[..., -1] -= _lift(exact, at)
        at, iterations = exact.at(moved), iterations + more
        gap = exact.design.arrays.get(_gap(exact, at))
        if (gap <= task.tol).all() or (iterations >= task.max_iter).all():
            break
    return Certified(at.theta, at.theta[..., :0], exact.design.arrays.get(at.value), gap), iterations
