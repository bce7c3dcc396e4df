"""One linear layer: its weights, the second moments of its inputs, and what changed weights cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Matrix = np.ndarray[Any, np.dtype[np.float64]]

Bools = np.ndarray[Any, np.dtype[np.bool_]]

DAMPENING = 0.01
"""Share of the mean diagonal that is added to the diagonal, as in the papers' code."""


@dataclass(frozen=True, eq=False)
class Solution:
    """New weights of one layer.

    Attributes
    ----------
    weight
        Shape (rows, columns): zero where `mask` is set.
    mask
        Shape (rows, columns): what was chosen to be zero.
    error
        `sum over rows of (w - w') H (w - w')^T`, with the Hessian that was given, not the damped one; in its units.
    dampening
        Share of the mean diagonal that was added; more than asked for where the Hessian had no Cholesky factor.
    """

    weight: Matrix
    mask: Bools
    error: float
    dampening: float


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer that was checked, and its damped Hessian.

    Attributes
    ----------
    weight
        Shape (rows, columns), float64; a copy.
    hessian
        Shape (columns, columns), float64, as given.
    dead
        Shape (columns,): the diagonal is zero, so the layer sees only zeros there.
    locked
        Shape (rows, columns): stays zero.
    """

    weight: Matrix
    hessian: Matrix
    dead: Bools
    locked: Bools

    @classmethod
    def of(cls, weight: Matrix, hessian: Matrix, locked: Bools | None) -> Layer:
        """Check what is given.

        Raises
        ------
        ValueError
            Shapes that do not fit, values that are not finite, a negative variance, a locked weight that is not
            zero.
        """
        weight = np.array(weight, np.float64)
        hessian = np.asarray(hessian, np.float64)
        if weight.ndim != 2:
            raise ValueError(f"the weight needs shape (rows, columns), not {weight.shape}")
        columns = weight.shape[1]
        if hessian.shape != (columns, columns):
            raise ValueError(f"the Hessian needs shape {(columns, columns)}, not {hessian.shape}")
        if not np.isfinite(weight).all():
            raise ValueError("the weight holds NaN or infinity")
        diagonal = np.diagonal(hessian)
        if not np.isfinite(hessian).all():
            raise ValueError("the Hessian holds NaN or infinity")
        if (diagonal < 0).any():
            raise ValueError(f"the Hessian's diagonal is negative in column {int(np.argmin(diagonal))}")
        locked = flags(locked, weight, "locked")
        if weight[locked].any():
            raise ValueError("a locked weight is not zero")
        return cls(weight, hessian, diagonal == 0, locked)

    def damped(self, dampening: float) -> Matrix:
        """Shape (columns, columns): with a share of the mean live diagonal added to the diagonal.

        Dead columns get that mean, and are tied to nothing.
        """
        damped = self.hessian.copy()
        damped[self.dead] = damped[:, self.dead] = 0.0
        mean = float(np.diagonal(damped).sum()) / max(int((~self.dead).sum()), 1)
        np.einsum("ii->i", damped)[...] += np.where(self.dead, mean or 1.0, dampening * mean)
        return damped


def flags(given: Bools | None, weight: Matrix, name: str) -> Bools:
    """A mask of the weight's shape; none set where nothing is given."""
    if given is None:
        return np.zeros(weight.shape, np.bool_)
    found = np.asarray(given)
    if found.shape != weight.shape or found.dtype != np.bool_:
        raise ValueError(f"{name} needs booleans of shape {weight.shape}, not {found.dtype} {found.shape}")
    return found


def layer_error(weight: Matrix, new: Matrix, hessian: Matrix) -> float:
    """`sum over rows of (w - w') H (w - w')^T`.

    Parameters
    ----------
    weight, new
        Shape (rows, columns): before and after.
    hessian
        Shape (columns, columns).
    """
    change = np.asarray(weight, np.float64) - new
    return float((change * (change @ hessian)).sum())
