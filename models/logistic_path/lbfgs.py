"""Preconditioned L-BFGS on a batch of logistic regressions, one column of the matrix products per problem.

Nocedal and Wright 2006, algorithm 7.4, started from a preconditioner close to the inverse Hessian. Along a direction
the margins are linear: an accurate line search costs no product with the features. Finished problems leave the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.logistic_path.arrays import Array
from models.logistic_path.design import Design
from models.logistic_path.loss import Labels, losses
from models.logistic_path.preconditioner import Preconditioner

PAIRS = 10  # steps and gradient changes remembered
_PATIENCE = 15  # iterations without progress after which rounding is to blame
_PROGRESS = 0.7  # of the best gap
_TRIALS = 12
_TINY = 1e-37  # keeps a step of length zero from dividing by zero
_SLOPE = 0.1  # the line search ends when the slope has fallen to this share


@dataclass(frozen=True)
class Problems:
    """B problems over one design: minimise `sum_i w_i loss_i + ||W||^2 / (2 C)` over theta, (B, K, d + 1).

    theta holds the weights W of the standardised features and, last, the intercept.
    """

    design: Design
    labels: Labels
    fold: NDArray[np.int64]  # (B,)
    penalty: Array  # (B,) 1 / C
    weight: Array  # (B, n)

    def take(self, kept: NDArray[np.int64]) -> Problems:
        """Return the problems at the places `kept`."""
        return replace(self, fold=self.fold[kept], penalty=self.penalty[kept], weight=self.weight[kept])

    def margins(self, theta: Array) -> Array:
        """Return the margins (B, K, n) at theta."""
        return self.labels.margins(self.design.scores(theta, self.fold))

    def value(self, theta: Array, loss: Array) -> Array:
        """Return the objective (B,) in float64, for the row losses (B, n) at theta."""
        xp = self.design.arrays.xp
        return (loss * self.weight).sum(-1, dtype=xp.float64) + self.penalty * squared(theta[..., :-1]) / 2

    def gradient(self, theta: Array, q: Array) -> Array:
        """Return the gradient (B, K, d + 1), for the derivatives q (B, K, n) of the losses at theta."""
        g = self.design.gradient(self.labels.residuals(q) * self.weight[:, None], self.fold)
        g[..., :-1] += self.penalty[:, None, None] * theta[..., :-1]
        return g


class Descent(NamedTuple):
    """Where the descent ended."""

    theta: Array  # (B, K, d + 1)
    margins: Array  # (B, K, n)
    iterations: NDArray[np.int64]  # (B,)


class _State(NamedTuple):
    """One point of every problem still in the batch; every array has the batch first."""

    theta: Array
    margins: Array
    loss: Array
    q: Array
    gradient: Array

    def take(self, kept: NDArray[np.int64]) -> _State:
        return _State(*(a[kept] for a in self))


def squared(a: Array) -> Array:
    """Return the squared norm (B,) of each problem's part of a (B, ...)."""
    return dot(a, a)


def dot(a: Array, b: Array) -> Array:
    """Return the scalar product (B,) of each problem's parts of a and b (B, ...)."""
    return (a * b).reshape(len(a), -1).sum(-1)


def minimise(
    problems: Problems, theta: Array, margins: Array, preconditioner: Preconditioner, tol: float, max_iter: int
) -> Descent:
    """Descend from theta, whose margins are given, until the gradient certifies a gap of tol relative to the objective.

    Gives up on a problem, short of tol, when neither gap nor objective gets better any more, or after max_iter.
    """
    end = Descent(theta + 0, margins + 0, np.zeros(len(theta), np.int64))
    at = np.arange(len(theta))
    better = np.array([[_PROGRESS], [1 - 10 * np.finfo(problems.design.dtype).eps]])  # of the gap, of the objective
    best, since = np.full((2, len(at)), np.inf), np.zeros(len(at), np.int64)
    state, memory = _arrive(problems, theta, margins), list[tuple[Array, Array]]()
    while True:
        now = _standing(problems, state)
        since = np.where((now < better * best).any(0), 0, since + 1)
        best = np.minimum(best, now)
        going = np.flatnonzero((now[0] > tol) & (since < _PATIENCE) & (end.iterations[at] < max_iter))
        if len(going) < len(at):
            end.theta[at], end.margins[at] = state.theta, state.margins
            at, best, since = at[going], best[:, going], since[going]
            problems, state, memory = problems.take(going), state.take(going), [(s[going], y[going]) for s, y in memory]
        if not len(at):
            return end
        end.iterations[at] += 1
        state, memory = _step(problems, state, preconditioner, memory)


def _arrive(problems: Problems, theta: Array, margins: Array) -> _State:
    """Return the state at theta, whose margins are known."""
    loss, q = losses(problems.design.arrays.xp, margins)
    return _State(theta, margins, loss, q, problems.gradient(theta, q))


def _standing(problems: Problems, state: _State) -> NDArray[np.float64]:
    """Return the certified gap and the objective (2, B); the intercept counts in the gap in its own curvature.

    The objective is 1 / C strongly convex in the weights, so its excess is at most C ||gradient||^2 / 2.
    """
    arrays, wrong = problems.design.arrays, state.q.sum(1)
    bends = (problems.weight * wrong * (1 - wrong)).sum(-1) + _TINY
    of_intercept = (
        arrays.cast(squared(state.gradient[..., -1]), "float64") / bends
    )  # beyond float32 where bends is tiny
    excess = squared(state.gradient[..., :-1]) / problems.penalty + of_intercept
    value = problems.value(state.theta, state.loss)
    return arrays.get(arrays.xp.stack([excess / 2 / value, value]))


def _step(
    problems: Problems, state: _State, preconditioner: Preconditioner, memory: list[tuple[Array, Array]]
) -> tuple[_State, list[tuple[Array, Array]]]:
    """Take one quasi-Newton step and remember it."""
    direction = -inverse_times(state.gradient, preconditioner, memory, problems.fold)
    change = problems.labels.steps(problems.design.scores(direction, problems.fold))
    slope = dot(state.gradient, direction)
    length = search(problems, state.theta, state.margins, direction, change, slope)[:, None, None]
    theta, margins = state.theta + length * direction, state.margins + length * change
    new = _arrive(problems, theta, margins)
    return new, [*memory[1 - PAIRS :], (length * direction, new.gradient - state.gradient)]


def inverse_times(
    g: Array, preconditioner: Preconditioner, memory: list[tuple[Array, Array]], fold: NDArray[np.int64]
) -> Array:
    """Return the quasi-Newton inverse Hessian times g, by the two loops over the memory."""
    stack = []
    for s, y in reversed(memory):
        inverse = 1 / (dot(s, y) + _TINY)
        a = inverse * dot(s, g)
        stack.append((s, y, a, inverse))
        g = g - a[:, None, None] * y
    g = preconditioner.apply(g, fold)
    for s, y, a, inverse in reversed(stack):
        g = g + (a - inverse * dot(y, g))[:, None, None] * s
    return g


def search(
    problems: Problems, theta: Array, margins: Array, direction: Array, change: Array, slope: Array | None = None
) -> Array:
    """Return the lengths (B,) along `direction`, which changes the margins by `change`, where the slope is nearly zero.

    `slope` (B,) is the slope at length 0, where it is known. Newton's method in one variable on a convex function, kept
    inside the bracket that the signs of the slope give.
    """
    xp = problems.design.arrays.xp
    linear = problems.penalty * dot(theta[..., :-1], direction[..., :-1])
    square = problems.penalty * squared(direction[..., :-1])
    enough = _SLOPE * xp.abs(_slope(problems, margins, change)[0] + linear if slope is None else slope)
    length = xp.ones_like(enough)
    low, high = xp.zeros_like(length), xp.zeros_like(length) + np.inf
    for _ in range(_TRIALS):
        rise, bend = _slope(problems, margins + length[:, None, None] * change, change)
        rise, bend = rise + linear + length * square, bend + square + _TINY
        done = xp.abs(rise) <= enough
        if bool(done.all()):
            break
        low, high = xp.where(rise < 0, length, low), xp.where(rise < 0, high, length)
        guess, far = length - rise / bend, xp.minimum(high, 4 * length)
        inside = (guess > low) & (guess < far)
        length = xp.where(done, length, xp.where(inside, guess, (low + far) / 2))
    return length


def _slope(problems: Problems, margins: Array, change: Array) -> tuple[Array, Array]:
    """Return slope and curvature (B,) of the weighted loss along the change of the margins."""
    _, q = losses(problems.design.arrays.xp, margins)
    mean = (q * change).sum(1)
    spread = (q * change * change).sum(1) - mean * mean
    return (mean * problems.weight).sum(-1), (spread * problems.weight).sum(-1)
