"""The duality gap of a solution, from objective and gradient over the features as given, in float64."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.logistic_path.arrays import Array
from models.logistic_path.design import Design
from models.logistic_path.lbfgs import Problems, squared
from models.logistic_path.loss import losses

_STEPS = 3  # of Newton's method, which converges quadratically, on an intercept that is nearly right


class Certified(NamedTuple):
    """Solutions of B problems and their duality gaps, which bound (objective - minimum) / objective from above."""

    theta: Array  # (B, K, d + 1) float64
    margins: Array  # (B, K, n) float64; (B, K, 0) where the rows are read block by block
    objective: NDArray[np.float64]  # (B,)
    gap: NDArray[np.float64]  # (B,)


def certify(problems: Problems, theta: Array) -> Certified:
    """Minimise out the intercepts, and bound the excess of the objective by the gradient that is left.

    With the intercept minimised out, the objective is 1 / C strongly convex in the weights W, so that its excess is at
    most C ||gradient||^2 / 2; the same number is the duality gap at the dual point that the residuals make.
    """
    get = problems.design.arrays.get
    theta, margins = _balance(problems, theta)
    loss, q = losses(problems.design.arrays.xp, margins)
    objective, g = get(problems.value(theta, loss)), problems.gradient(theta, q)
    gap = get(squared(g[..., :-1]) / problems.penalty / 2) / objective
    return Certified(theta, margins, objective, gap)


def _balance(problems: Problems, theta: Array) -> tuple[Array, Array]:
    """Return theta with its intercepts minimised out, and the margins there."""
    xp, labels = problems.design.arrays.xp, problems.labels
    theta, margins = theta + 0, problems.margins(theta)
    for _ in range(_STEPS):
        _, q = losses(xp, margins)
        slope = (labels.residuals(q) * problems.weight[:, None]).sum(-1)
        step = -xp.clip(newton_step(problems.design, curvature(problems, q), slope[..., None]), -1, 1)
        theta[..., -1] += step[..., 0]
        margins = margins + labels.steps(step)
    return theta, margins


def newton_step(design: Design, bend: Array, slope: Array) -> Array:
    """Return the solution (B, K, 1) of bend (B, K, K) times step = slope (B, K, 1), the least where there are many.

    Classes that are told apart from all others for certain are no part of the others' curvature: to the last digit
    several such make it singular, and then none of their intercepts is moved against the others.
    """
    xp = design.arrays.xp
    try:
        return xp.linalg.solve(bend, slope)
    except (np.linalg.LinAlgError, RuntimeError):  # of numpy, of torch
        return xp.linalg.pinv(xp.nan_to_num(bend), hermitian=True) @ slope  # NaN in one problem ends no other


def curvature(problems: Problems, q: Array) -> Array:
    """Return the Hessian (B, K, K) of the loss by the intercepts.

    It is made regular, for adding a constant to all K changes nothing.
    """
    p = problems.labels.probabilities(q)
    weighted = p * problems.weight[:, None]
    classes = p.shape[1]
    eye = problems.design.arrays.put(np.eye(classes), problems.design.dtype)
    h = eye * weighted.sum(-1)[..., None] - weighted @ p.swapaxes(1, 2)
    ones = (classes > 1) * (h * eye).sum(-1).mean(-1)[:, None, None]
    return h + ones + 1e-300 * eye
