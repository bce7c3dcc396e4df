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

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxprune.solvers.layer import DAMPENING, Bools, Damped, Layer, Matrix, Solution, flags
from onnxprune.solvers.patterns import Choose, Pattern, chooser

NARROW = 16
"""So few columns are settled one by one."""

WIDE = 128
"""So many columns are checked at a time."""

MOST = 0.98
"""When so many rows are found to be well, the others are looked at one by one."""

TILE = 64
"""Matrices are transposed in squares of this size."""


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
        mask = flags(what, layer.weight, "the mask").T
        _halves(
            _starts(columns, block), sweep.push, lambda first, last: sweep.fix(first, last, mask[first:last])
        )
    else:
        width, choose = (block, what) if callable(what) else chooser(what, layer, sweep.scale, block)
        _halves(_starts(columns, width), sweep.push, lambda first, last: sweep.choose(first, last, choose))
    lost = sweep.check() - damped.ridge * sweep.squares(layer.dead)
    np.copyto(sweep.now, 0.0, where=sweep.gone)
    return Solution(_turned(sweep.now), _turned(sweep.gone), max(lost, 0.0), damped.dampening)


def _turned(matrix: np.ndarray) -> np.ndarray:
    """The transpose, in rows of its own."""
    turned = np.empty(matrix.shape[::-1], matrix.dtype)
    for i in range(0, matrix.shape[0], TILE):
        for j in range(0, matrix.shape[1], TILE):
            turned[j : j + TILE, i : i + TILE] = matrix[i : i + TILE, j : j + TILE].T
    return turned


def _starts(columns: int, width: int) -> list[int]:
    """Where stretches of columns begin, and where the last one ends."""
    return [*range(0, columns, width), columns]


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
    """Columns of one layer, while they are settled: `old` to `locked` have shape (columns, rows).

    Attributes
    ----------
    old
        The weights that were given.
    now
        What they would best be, as far as earlier columns were pushed; mutated.
    change
        E: old minus new weights, of columns that are settled; mutated.
    gone
        What is to be zero, of columns that are settled; mutated.
    locked
        Stays zero; None where nothing has to.
    unit
        Shape (columns, columns): R, each column divided by its diagonal element.
    scale
        Shape (columns,): the squares of R's diagonal; zero in dead columns.
    cost
        Shape (rows,): the damped error of what is settled; mutated.
    scratch
        Shape (columns, rows): overwritten all the time. Fresh memory costs more than the sums that it is for.
    """

    old: Matrix
    now: Matrix
    change: Matrix
    gone: Bools
    locked: Bools | None
    unit: Matrix
    scale: Matrix
    cost: Matrix
    scratch: Matrix

    @classmethod
    def of(cls, layer: Layer, damped: Damped) -> _Sweep:
        old = _turned(layer.weight)
        diagonal = np.diagonal(damped.upper)
        return cls(
            old,
            old.copy(),
            np.empty_like(old),
            np.empty(old.shape, np.bool_),
            layer.locked.T if layer.locked.any() else None,
            damped.upper / diagonal,
            np.where(layer.dead, 0.0, np.square(diagonal)),
            np.zeros(old.shape[1]),
            np.empty_like(old),
        )

    def push(self, first: int, middle: int, last: int) -> None:
        """Let columns from `middle` on make up for what changed in those before."""
        pushed = self.scratch[: last - middle]
        np.matmul(self.unit[first:middle, middle:last].T, self.change[first:middle], out=pushed)
        self.now[middle:last] += pushed

    def choose(self, first: int, last: int, choose: Choose) -> None:
        """Choose what goes in a stretch of columns, and settle it."""
        costs = self.old[first:last].copy()
        if first:
            ahead = np.linalg.inv(self.unit[first:last, first:last]).T
            earlier = np.subtract(self.now[first:last], costs, out=self.scratch[: last - first])
            costs += ahead @ earlier
        np.square(costs, out=costs)
        costs *= self.scale[first:last, None]
        if self.locked is not None:
            costs[self.locked[first:last]] = -1.0
        zeros = np.asarray(choose(costs.T, first))
        if zeros.shape != costs.shape[::-1] or zeros.dtype != np.bool_:
            wanted = costs.shape[::-1]
            raise ValueError(f"the choice needs booleans of shape {wanted}, not {zeros.dtype} {zeros.shape}")
        self.fix(first, last, zeros.T)

    def fix(self, first: int, last: int, zeros: Bools) -> None:
        """Settle a stretch of columns of which these (columns, rows) go."""
        gone = self.gone[first:last]
        gone[...] = zeros
        if self.locked is not None:
            gone |= self.locked[first:last]
        _halves([*range(first, last, NARROW), last], self.push, self.settle)
        paid = np.multiply(self.now[first:last], gone, out=self.scratch[: last - first])
        self.cost[...] += self.scale[first:last] @ np.square(paid, out=paid)

    def settle(self, first: int, last: int) -> None:
        """Settle a few columns one by one, of which it is known what goes."""
        kept = np.subtract(1.0, self.gone[first:last])
        shares = np.ascontiguousarray(self.unit[first:last, first:last].T)
        new = np.empty(self.now.shape[1])
        for i, column in enumerate(range(first, last)):
            now = self.now[column]
            if i:
                now += np.matmul(shares[i, :i], self.change[first:column], out=new)
            np.multiply(now, kept[i], out=new)
            np.subtract(self.old[column], new, out=self.change[column])

    def check(self) -> float:
        """Undo the updates of rows that lose less without them; the damped error after that.

        What a row loses without updates is the square of `lost @ R`; its terms are summed from the left until they
        exceed what it loses with them.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            sure = self._surely()
        rows = np.flatnonzero((self.cost > 0) & ~sure)
        plain, paid = np.zeros(len(rows)), self.cost[rows]
        lost = np.empty((0, len(rows)))
        for first, last in itertools.pairwise(_starts(len(self.old), WIDE)):
            more = self.old[first:last, rows] * self.gone[first:last, rows]
            lost = np.concatenate([lost, more])
            terms = self.unit[:last, first:last].T @ lost
            plain += self.scale[first:last] @ np.square(terms, out=terms)
            better = plain < paid
            if not better.all():
                rows, plain, paid, lost = rows[better], plain[better], paid[better], lost[:, better]
            if not len(rows):
                break
        if not len(rows):
            return float(self.cost.sum())
        self.now[:, rows] = self.old[:, rows]
        self.change[:, rows] = lost
        self.cost[rows] = plain
        return float(self.cost.sum())

    def _surely(self) -> Bools:
        """Shape (rows,): rows that lose more without updates, for all that float32 can tell.

        The same sums for all rows together, and no further than most of them need. A term is wrong by less than
        `m eps |lost| |R_:j|` after m columns, so the root of the sum of the squares is wrong by less than
        `m eps |lost| |R|`. Where float32 overflows nothing is sure.
        """
        columns, rows = self.old.shape
        lost = np.empty((columns, rows), np.float32)
        plain, size, norm = np.zeros(rows), np.zeros(rows), 0.0
        sure: Bools = np.zeros(rows, np.bool_)
        for first, last in itertools.pairwise(_starts(columns, WIDE)):
            if sure.mean() > MOST:
                break
            more = lost[first:last]
            np.multiply(self.old[first:last], self.gone[first:last], out=more, casting="same_kind")
            upper = self.unit[:last, first:last].astype(np.float32)
            terms = upper.T @ lost[:last]
            plain += self.scale[first:last] @ np.square(terms, out=terms)
            size += np.einsum("cr,cr->r", more, more)
            norm += float(self.scale[first:last] @ np.einsum("ij,ij->j", upper, upper))
            wrong = 2 * (last + 4) * np.finfo(np.float32).eps * np.sqrt(size * norm)
            sure = np.square(np.maximum(np.sqrt(plain) - wrong, 0.0)) > self.cost
            sure &= np.isfinite(plain)
        return sure

    def squares(self, dead: Bools) -> float:
        """Of all changes but those in dead columns."""
        each = np.einsum("cr,cr->c", self.change, self.change)
        return float(each[~dead].sum())
