"""One linear layer: its weights, the second moments of its inputs, and what changed weights cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Matrix = np.ndarray[Any, np.dtype[np.float64]]

Bools = np.ndarray[Any, np.dtype[np.bool_]]

DAMPENING = 0.01
"""Share of the mean diagonal that is added to the diagonal, as in the papers' code."""

PIVOT = 1e-12
"""A Cholesky pivot below this share of its diagonal element is rounding: the Hessian is singular."""

INVERTIBLE = 1e-7
"""A pivot above this share leaves an inverse that half of its digits are good for."""


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
        Share of the mean diagonal that was added; more than asked for where the Hessian would have been singular.
    """

    weight: Matrix
    mask: Bools
    error: float
    dampening: float


@dataclass(frozen=True, eq=False)
class Damped:
    """The Hessian that is solved with.

    Attributes
    ----------
    hessian
        Shape (columns, columns): `H + ridge I`; in dead columns the mean of the diagonal, and nothing else.
    upper
        Shape (columns, columns): the upper triangular R of `hessian = R R^T`. With U the upper Cholesky factor of
        the inverse, `R = U^-1`.
    ridge
        What was added to the diagonal.
    dampening
        The same, as a share of the mean diagonal of the columns that are not dead.
    """

    hessian: Matrix
    upper: Matrix
    ridge: float
    dampening: float

    @property
    def invertible(self) -> bool:
        """Whether the inverse has enough correct digits to go on with."""
        pivots = np.square(np.diagonal(self.upper))
        return bool((pivots > INVERTIBLE * np.diagonal(self.hessian)).all())


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer that was checked.

    Attributes
    ----------
    weight
        Shape (rows, columns), float64.
    hessian
        Shape (columns, columns), float64; zero in dead rows and columns.
    dead
        Shape (columns,): the diagonal is zero, so the layer sees only zeros there (or constants, where the Hessian
        is a covariance).
    locked
        Shape (rows, columns): stays zero.
    """

    weight: Matrix
    hessian: Matrix
    dead: Bools
    locked: Bools

    @classmethod
    def of(cls, weight: Matrix, hessian: Matrix, locked: Bools | None = None) -> Layer:
        """Check what is given.

        Raises
        ------
        ValueError
            Shapes that do not fit, values that are not finite, a negative variance, a locked weight that is not
            zero.
        """
        weight = np.asarray(weight, np.float64)
        hessian = np.asarray(hessian, np.float64)
        if weight.ndim != 2 or not weight.size:
            raise ValueError(f"the weight needs shape (rows, columns), not {weight.shape}")
        columns = weight.shape[1]
        if hessian.shape != (columns, columns):
            raise ValueError(f"the Hessian needs shape {(columns, columns)}, not {hessian.shape}")
        if not np.isfinite(weight).all():
            raise ValueError("the weight holds NaN or infinity")
        if not np.isfinite(hessian).all():
            raise ValueError("the Hessian holds NaN or infinity")
        diagonal = np.diagonal(hessian)
        if diagonal.min() < -1e-6 * np.abs(diagonal).max():  # less is the rounding of a variance
            raise ValueError(f"the Hessian's diagonal is negative in column {int(np.argmin(diagonal))}")
        dead = diagonal <= 0
        if dead.any():
            hessian = hessian.copy()
            hessian[dead] = 0.0
            hessian[:, dead] = 0.0
        locked = flags(locked, weight, "locked")
        if locked.any() and weight[locked].any():
            raise ValueError("a locked weight is not zero")
        return cls(weight, hessian, dead, locked)

    def damp(self, dampening: float) -> Damped:
        """Add a share of the mean diagonal to the diagonal; ten times more, until there is a Cholesky factor.

        Raises
        ------
        ValueError
            A negative share, or a Hessian that is far from positive semidefinite.
        """
        if not 0 <= dampening < np.inf:
            raise ValueError(f"the dampening must not be negative, and is {dampening}")
        live = np.diagonal(self.hessian)[~self.dead]
        mean = float(live.mean()) if live.size else 1.0
        while dampening <= 1 or not live.size:
            ridge = dampening * mean
            hessian = self.hessian.copy()
            np.einsum("ii->i", hessian)[...] += np.where(self.dead, mean, ridge)
            if (upper := _upper(hessian)) is not None:
                return Damped(hessian, upper, ridge, dampening)
            dampening = max(10 * dampening, PIVOT)
        raise ValueError("the Hessian is not positive semidefinite, so it is no matrix of second moments")

    def error(self, new: Matrix) -> float:
        """What new weights cost, not damped."""
        return layer_error(self.weight, new, self.hessian)


def _upper(hessian: Matrix) -> Matrix | None:
    """R of `hessian = R R^T`; None where it is singular."""
    try:
        lower = np.linalg.cholesky(hessian[::-1, ::-1])
    except np.linalg.LinAlgError:
        return None
    upper: Matrix = np.asarray(lower[::-1, ::-1], np.float64)
    pivots = np.square(np.diagonal(upper))
    singular = not (pivots > PIVOT * np.diagonal(hessian)).all()  # NaN, too
    return None if singular else upper


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
