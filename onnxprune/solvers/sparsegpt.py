"""SparseGPT: columns go from left to right, and later columns make up for the zeros of earlier ones.

Frantar and Alistarh 2023, https://arxiv.org/abs/2301.00774. The paper works with U, the upper Cholesky factor of
the inverse Hessian, `H^-1 = U^T U`. What it does needs no inverse: with `R = U^-1`, upper triangular and
`H = R R^T`, and with `E = W - W'`, the error is

    tr(E H E^T) = ||E R||^2,    (E R)_j = R_jj (E_j + sum over i < j of E_i R_ij / R_jj)

so that the best weights of column j, once the columns before it are settled, are

    W_j + sum over i < j of E_i R_ij / R_jj

A weight w there costs `(w R_jj)^2 = w^2 / U_jj^2` to lose, these costs add up to the error, and one Cholesky
factorisation is all that has to be computed in advance. The sum over i is taken by halves, so that nearly all of it
are products of large matrices. Where a stretch B of columns is chosen together, its columns count as they are best
if none of them goes: `W_B - E_B` with `(E R)_B = 0`, for which R_BB is inverted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxprune.solvers.layer import DAMPENING, Bools, Damped, Layer, Matrix, Solution, flags
from onnxprune.solvers.patterns import Choose, Pattern, chooser

NARROW = 16
"""So few columns are settled one by one."""

WIDE = 256
"""So many columns are checked at a time."""


def sparsegpt(
    weight: Matrix,
    hessian: Matrix,
    what: Pattern | Choose | Bools,
    *,
    locked: Bools | None = None,
    dampening: float = DAMPENING,
    block: int = 128,
) -> Solution:
    """Zero weights of one layer, and let the weights of later columns make up for it.

    Takes `columns^3 / 3 + rows * columns^2` floating-point operations.

    Parameters
    ----------
    weight
        Shape (rows, columns) = (outputs, inputs). Not mutated.
    hessian
        Shape (columns, columns): second moments or covariance of the inputs, at any positive scale; symmetric. Not
        mutated.
    what
        A pattern; or a function that chooses in each stretch of `block` columns, given what each weight costs; or
        the mask, shape (rows, columns), set where weights are to be zero.
    locked
        Shape (rows, columns): zeros that stay, and that count as chosen.
    dampening
        Share of the mean diagonal that is added to the diagonal.
    block
        How many columns are chosen at a time. `NOfM` chooses m at a time, `Blocks` a multiple of their width.

    Raises
    ------
    ValueError
        Values that are not finite, shapes that do not fit, a pattern that does not divide the matrix, more zeros
        than there are weights.

    Notes
    -----
    Weights of dead columns are chosen first. Those that are not chosen keep their values, where the paper's code
    zeroes them on top of what was asked for. A row is updated only if that makes its damped error smaller: where
    nearly everything goes, weights that made up for others may have to go themselves. So neither `error` nor the
    damped error is ever larger than those of the mask alone.
    """
    layer = Layer.of(weight, hessian, locked)
    columns = layer.weight.shape[1]
    if block < 1:
        raise ValueError(f"{block} columns at a time are not possible")
    damped = layer.damp(dampening)
    sweep = _Sweep.of(layer, damped)
    if isinstance(what, np.ndarray):
        sweep.fix(0, columns, flags(what, layer.weight, "the mask").T)
    else:
        width, choose = (block, what) if callable(what) else chooser(what, layer, sweep.costs.T, block)
        starts = [*range(0, columns, width), columns]
        _halves(starts, sweep.push, lambda first, last: sweep.choose(first, last, choose))
    lost = float(sweep.check().sum())
    ridges = damped.ridge * float(np.square(sweep.change[~layer.dead]).sum())
    new = np.where(sweep.kept, sweep.now, 0.0)
    return Solution(
        np.ascontiguousarray(new.T),
        np.ascontiguousarray(~sweep.kept.T),
        max(lost - ridges, 0.0),
        damped.dampening,
    )


def _halves(
    starts: list[int], push: Callable[[int, int, int], None], settle: Callable[[int, int], None]
) -> None:
    """Settle stretches from left to right, and push what the left half changed to the right half."""
    if len(starts) == 2:
        settle(starts[0], starts[1])
        return
    middle = len(starts) // 2
    _halves(starts[: middle + 1], push, settle)
    push(starts[0], starts[middle], starts[-1])
    _halves(starts[middle:], push, settle)


@dataclass(frozen=True, eq=False)
class _Sweep:
    """Columns of one layer, while they are settled. All arrays but the last two have shape (columns, rows).

    Attributes
    ----------
    old
        The weights that were given.
    now
        What they would best be, as far as earlier columns were pushed; mutated.
    change
        E: old minus new weights, of columns that are settled; mutated.
    kept
        What was not chosen to be zero, of columns that are settled; mutated.
    locked
        Stays zero.
    unit
        Shape (columns, columns): R, each column divided by its diagonal element.
    scale
        Shape (columns,): the squares of R's diagonal; zero in dead columns.
    """

    old: Matrix
    now: Matrix
    change: Matrix
    kept: Bools
    locked: Bools
    unit: Matrix
    scale: Matrix

    @classmethod
    def of(cls, layer: Layer, damped: Damped) -> _Sweep:
        old = np.ascontiguousarray(layer.weight.T)
        diagonal = np.diagonal(damped.upper)
        return cls(
            old,
            old.copy(),
            np.empty_like(old),
            np.zeros(old.shape, np.bool_),
            layer.locked.T,
            damped.upper / diagonal,
            np.where(layer.dead, 0.0, np.square(diagonal)),
        )

    @property
    def costs(self) -> Matrix:
        """Shape (columns, rows): of each weight that was given, if it alone goes and later columns make up."""
        return np.square(self.old) * self.scale[:, None]

    def push(self, first: int, middle: int, last: int) -> None:
        """Let columns from `middle` on make up for what changed in those before."""
        self.now[middle:last] += self.unit[first:middle, middle:last].T @ self.change[first:middle]

    def choose(self, first: int, last: int, choose: Choose) -> None:
        """Choose what goes in a stretch of columns, and settle it."""
        earlier = self.now[first:last] - self.old[first:last]
        ahead = np.linalg.inv(self.unit[first:last, first:last]).T @ earlier
        costs = np.square(self.old[first:last] + ahead)
        costs *= self.scale[first:last, None]
        costs[self.locked[first:last]] = -1.0
        zeros = np.asarray(choose(costs.T, first))
        if zeros.shape != costs.shape[::-1] or zeros.dtype != np.bool_:
            wanted = costs.shape[::-1]
            raise ValueError(f"the choice needs booleans of shape {wanted}, not {zeros.dtype} {zeros.shape}")
        self.fix(first, last, zeros.T)

    def fix(self, first: int, last: int, zeros: Bools) -> None:
        """Settle a stretch of columns of which these (columns, rows) go."""
        np.logical_or(zeros, self.locked[first:last], out=self.kept[first:last])
        np.logical_not(self.kept[first:last], out=self.kept[first:last])
        _halves([*range(first, last, NARROW), last], self.push, self.settle)

    def settle(self, first: int, last: int) -> None:
        """Settle a few columns one by one, of which it is known what goes."""
        kept = self.kept[first:last].astype(np.float64)
        shares = np.ascontiguousarray(self.unit[first:last, first:last].T)
        new = np.empty(self.now.shape[1])
        for i, column in enumerate(range(first, last)):
            now = self.now[column]
            if i:
                now += np.matmul(shares[i, :i], self.change[first:column], out=new)
            np.multiply(now, kept[i], out=new)
            np.subtract(self.old[column], new, out=self.change[column])

    def check(self) -> Matrix:
        """Undo the updates of rows that lose less without them; what each row then loses, shape (rows,).

        The cost of a row without updates is the square of `lost @ R`; its terms are summed from the left until they
        exceed the row's cost, which for most rows is soon.
        """
        lost = np.where(self.kept, 0.0, self.old)
        cost = self.scale @ np.square(np.where(self.kept, 0.0, self.now))
        rows = np.flatnonzero(cost)
        plain = np.zeros(len(rows))
        for first in range(0, len(lost), WIDE):
            last = min(first + WIDE, len(lost))
            terms = self.unit[:last, first:last].T @ lost[:last, rows]
            plain += self.scale[first:last] @ np.square(terms)
            better = plain < cost[rows]
            rows, plain = rows[better], plain[better]
        self.now[:, rows] = self.old[:, rows]
        self.change[:, rows] = lost[:, rows]
        cost[rows] = plain
        return cost
