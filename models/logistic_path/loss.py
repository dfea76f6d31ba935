"""The logistic loss in margins, where neither a tiny loss nor a tiny residual loses its digits.

With two classes there is one score per row and one margin, t = -z for class 1 and z for class 0. With K > 2 there are K
scores and K margins t_k = z_k - z_y, of which the label's own is minus infinity. Either way the loss of a row is
log(1 + sum_k exp t_k) and its derivative with respect to t_k is the probability q_k of the wrong class k.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.logistic_path.arrays import Array, Arrays

_NEVER = -1e30  # the label's own margin: exp of it is 0 in any precision


@dataclass(frozen=True)
class Labels:
    """What turns scores into margins and back: a sign per row, or a one-hot matrix."""

    xp: Any
    sign: Array  # (n,) two classes; empty for more
    own: Array  # (K, n) 1 where the row has the class; empty for two classes

    def part(self, rows: slice) -> Labels:
        """Return the labels of some rows."""
        return Labels(self.xp, self.sign[rows], self.own[:, rows])

    def steps(self, u: Array) -> Array:
        """Return the change of the margins (B, K, n) with a change u of the scores."""
        if len(self.sign):
            return u * self.sign
        return u - (u * self.own).sum(1)[:, None]

    def margins(self, z: Array) -> Array:
        """Return the margins (B, K, n) of scores z."""
        t = self.steps(z)
        return t if len(self.sign) else self.xp.where(self.own > 0, _NEVER, t)

    def residuals(self, q: Array) -> Array:
        """Return the derivative of the loss by the scores, for that by the margins, q; the transpose of `steps`."""
        if len(self.sign):
            return q * self.sign
        return q - self.own * q.sum(1)[:, None]

    def probabilities(self, q: Array) -> Array:
        """Return the probability (B, K, n) of each class, for two classes that of the wrong one."""
        if len(self.sign):
            return q
        return q + self.own * (1 - q.sum(1))[:, None]


def labels_of(arrays: Arrays, y: NDArray[np.int64], classes: int, dtype: str) -> Labels:
    """Return the labels (n,) of 0..classes-1 in the precision they are to be used in."""
    sign = np.where(y == 1, -1.0, 1.0) if classes == 2 else np.zeros(0)
    own = np.zeros((0, 0)) if classes == 2 else np.arange(classes)[:, None] == y
    return Labels(arrays.xp, arrays.put(sign, dtype), arrays.put(own, dtype))


def losses(xp: Any, t: Array) -> tuple[Array, Array]:
    """Return the loss (B, n) of margins t (B, K, n) and its derivative (B, K, n)."""
    top = xp.clip(xp.amax(t, 1), 0, None)
    e = xp.exp(t - top[:, None])
    rest = e.sum(1) + xp.expm1(-top)
    return top + xp.log1p(rest), e / (1 + rest)[:, None]
