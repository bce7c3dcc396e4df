"""Optimal brain compression: in each row the cheapest weight goes, and all others of the row make up for it.

Frantar and Alistarh 2022, https://arxiv.org/abs/2208.11580. With G the inverse Hessian of what is left of a row w,
losing the weights p (one, or a block of neighbours) costs `w_p (G_pp)^-1 w_p^T`, and leaves

    w - w_p (G_pp)^-1 G_p:        G - G_:p (G_pp)^-1 G_p:

The paper keeps G for each row. All rows begin with the same G, and what a row subtracts from it are products of the
rows `v = L^-1 G_p:` with themselves, `G_pp = L L^T`: a Cholesky factorisation that pivots by cost. So only the v and
G's diagonal (blocks) are kept, and a row of G is made when it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.solvers.layer import DAMPENING, Bools, Layer, Matrix, Solution
from onnxprune.solvers.patterns import Blocks, Elements, NOfM, PerRow, check, least
from onnxprune.solvers.refit import refit

Index = np.ndarray[Any, np.dtype[np.int64]]

LEAST = 1e-6
"""Share of the mean diagonal that is always added: the factors begin with an inverse, and subtract from it."""

MEMORY = 256 * 2**20
"""Bytes that a batch of rows may take."""


def obc(
    weight: Matrix,
    hessian: Matrix,
    what: Elements | PerRow | NOfM | Blocks,
    *,
    locked: Bools | None = None,
    dampening: float = DAMPENING,
    memory: int = MEMORY,
) -> Solution:
    """Zero the cheapest weights of each row, one after the other.

    Takes about `rows * columns * t^2` floating-point operations, where t is how many weights of a row are tried: all
    of them for `Elements` and `Blocks`, which then compare rows, and only those that go for `PerRow` and `NOfM`.

    Parameters
    ----------
    weight
        Shape (rows, columns) = (outputs, inputs). Not mutated.
    hessian
        Shape (columns, columns): second moments or covariance of the inputs, at any positive scale; symmetric. Not
        mutated.
    what
        A pattern; blocks must be one row high.
    locked
        Shape (rows, columns): zeros that stay, and that count as chosen.
    dampening
        Share of the mean diagonal that is added to the diagonal; at least `LEAST`.
    memory
        Bytes that a batch of rows may take; at least one row is taken.

    Raises
    ------
    ValueError
        As of `sparsegpt`; blocks of several rows.
    """
    layer = Layer.of(weight, hessian, locked)
    rows, columns = layer.weight.shape
    check(what, (rows, columns))
    width = 1
    if isinstance(what, Blocks):
        height, width = what.shape
        if height != 1:
            raise ValueError(f"blocks of {height} rows are not possible here, because rows go their own ways")
    damped = layer.damp(max(dampening, LEAST))
    inverse = np.linalg.inv(damped.hessian)
    steps = _steps(what, columns // width)
    longest = int(layer.locked.sum(axis=1).max()) + steps * width
    size = max(1, int(memory // (8 * columns * (longest + 4 * width + 8))))
    order = np.empty((rows, steps), np.int64)
    costs = np.empty((rows, steps))
    for first in range(0, rows, size):
        batch = _Rows.of(layer, inverse, slice(first, first + size), width, longest)
        for step, (unit, cost) in enumerate(batch.greedy(what, steps)):
            order[first : first + size, step], costs[first : first + size, step] = unit, cost
    gone = np.zeros((rows, columns // width), np.bool_)
    counts = _counts(what, costs, layer.locked, width)
    np.put_along_axis(gone, order, np.arange(steps) < counts[:, None], axis=1)
    mask = gone.repeat(width, axis=1) | layer.locked
    return refit(layer.weight, mask, layer.hessian, dampening=damped.dampening)


def _steps(what: Elements | PerRow | NOfM | Blocks, units: int) -> int:
    """How many units of a row are tried at most."""
    if isinstance(what, NOfM):
        return units // what.m * what.n
    return min(what.zeros, units)


def _counts(what: Elements | PerRow | NOfM | Blocks, costs: Matrix, locked: Bools, width: int) -> Index:
    """Shape (rows,): how many of its steps each row takes; exactly as many as are wanted in all."""
    possible = np.isfinite(costs).sum(axis=1)
    if isinstance(what, NOfM):
        return possible
    already = locked.reshape(len(locked), -1, width).all(axis=2).sum(axis=1)
    if isinstance(what, PerRow):
        return np.minimum(np.maximum(what.zeros - already, 0), possible)
    left = max(what.zeros - int(already.sum()), 0)
    hull = np.array([rising(row) for row in costs])
    return least(hull.reshape(1, -1), np.array([left])).reshape(costs.shape).sum(axis=1)


def rising(costs: Matrix) -> Matrix:
    """The slopes of the convex hull below the running sum: stretches that fall are replaced by their means.

    A row's weights must go in its order, and a costly one may come before a cheap one. With rising costs the cheapest
    of all rows are the beginnings of rows.

    Parameters
    ----------
    costs
        Shape (steps,).
    """
    if (np.diff(costs) >= 0).all():
        return costs
    means: list[float] = []
    lengths: list[int] = []
    for cost in costs.tolist():
        length = 1
        while means and means[-1] > cost:
            cost = (cost * length + means[-1] * lengths[-1]) / (length + lengths[-1])
            length += lengths.pop()
            means.pop()
        means.append(cost)
        lengths.append(length)
    return np.repeat(means, lengths)


@dataclass(eq=False)
class _Rows:
    """Some rows of a layer, while their weights go.

    Attributes
    ----------
    weight
        Shape (rows, columns); zero where it is gone, and in dead columns, where it costs nothing. Mutated.
    inverse
        Shape (columns, columns): of the damped Hessian, the same for all rows.
    diagonal
        Shape (rows, units, width, width): blocks of the diagonal of each row's own inverse; mutated.
    factor
        Shape (rows, steps, columns): the v of the steps that were taken; mutated.
    taken
        How many of them there are; mutated.
    left
        Shape (rows, columns): what is not gone; mutated.
    locked
        Shape (rows, columns).
    """

    weight: Matrix
    inverse: Matrix
    diagonal: Matrix
    factor: Matrix
    taken: int
    left: Bools
    locked: Bools

    @classmethod
    def of(cls, layer: Layer, inverse: Matrix, rows: slice, width: int, longest: int) -> _Rows:
        """The first to go are locked weights."""
        weight = np.where(layer.dead, 0.0, layer.weight[rows])
        count, columns = weight.shape
        units = np.arange(columns).reshape(-1, width)
        blocks = inverse[units[:, :, None], units[:, None, :]]
        diagonal = np.repeat(blocks[None], count, axis=0)
        locked = layer.locked[rows]
        factor = np.empty((count, longest, columns))
        found = cls(weight, inverse, diagonal, factor, 0, np.ones(weight.shape, np.bool_), locked)
        order = np.argsort(~locked, axis=1, kind="stable")
        for step in range(int(locked.sum(axis=1).max())):
            column = order[:, step : step + 1]
            found.take(column, np.take_along_axis(locked, column, axis=1)[:, 0])
        return found

    def greedy(self, what: Elements | PerRow | NOfM | Blocks, steps: int) -> Iterator[tuple[Index, Matrix]]:
        """Step by step the unit that goes in each row, and its cost: infinite where none can go any more."""
        count, units, width, _ = self.diagonal.shape
        rows = np.arange(count)
        for _ in range(steps):
            costs = np.where(self.left.reshape(count, units, width).any(axis=2), self._costs(), np.inf)
            if isinstance(what, NOfM):
                full = (~self.left).reshape(count, -1, what.m).sum(axis=2) >= what.n
                costs[full.repeat(what.m, axis=1)] = np.inf
            unit = np.argmin(costs, axis=1)
            cost = costs[rows, unit]
            yield unit, cost
            self.take(unit[:, None] * width + np.arange(width), np.isfinite(cost))

    def _costs(self) -> Matrix:
        """Shape (rows, units): `w_p (G_pp)^-1 w_p^T`."""
        count, units, width, _ = self.diagonal.shape
        if width == 1:
            return np.square(self.weight) / self.diagonal[:, :, 0, 0]
        weight = self.weight.reshape(count, units, width, 1)
        return (weight * np.linalg.solve(self.diagonal, weight)).sum(axis=(2, 3))

    def take(self, columns: Index, valid: Bools) -> None:
        """Let weights of each row go, and let the others make up for them.

        Parameters
        ----------
        columns
            Shape (rows, width).
        valid
            Shape (rows,): where nothing goes, nothing changes.
        """
        count, width = columns.shape
        rows = np.arange(count)[:, None]
        goes = self.left[rows, columns] & valid[:, None]
        before, after = self.taken, self.taken + width
        made = self.factor[:, before:after]
        made[...] = self.inverse[columns]
        made -= self.factor[rows, :before, columns] @ self.factor[:, :before]
        made *= self.left[:, None, :]
        made *= goes[:, :, None]
        pivot = made[rows[:, :, None], np.arange(width)[:, None], columns[:, None, :]]
        pivot = np.where(goes[:, :, None] & goes[:, None, :], pivot, np.eye(width))
        lower = np.sqrt(pivot) if width == 1 else np.linalg.cholesky(pivot)
        made[...] = made / lower if width == 1 else np.linalg.solve(lower, made)
        lost = np.where(goes, self.weight[rows, columns], 0.0)[:, :, None]
        lost = lost / lower if width == 1 else np.linalg.solve(lower, lost)
        self.weight -= (lost * made).sum(axis=1)
        self._narrow(made)
        self._forget(np.nonzero(goes)[0], columns[goes])
        self.taken = after

    def _narrow(self, made: Matrix) -> None:
        """Subtract from the diagonal what a step takes from each row's inverse."""
        units, width = self.diagonal.shape[1:3]
        if width == 1:
            self.diagonal[:, :, 0, 0] -= np.square(made).sum(axis=1)
        else:
            blocks = made.reshape(*made.shape[:2], units, width)
            self.diagonal -= np.einsum("rsui,rsuj->ruij", blocks, blocks)

    def _forget(self, rows: Index, columns: Index) -> None:
        """Take weights off the books: exactly zero, and an inverse that ties them to nothing."""
        width = self.diagonal.shape[2]
        unit, within = columns // width, columns % width
        self.weight[rows, columns] = 0.0
        self.left[rows, columns] = False
        self.diagonal[rows, unit, within, :] = 0.0
        self.diagonal[rows, unit, :, within] = 0.0
        self.diagonal[rows, unit, within, within] = 1.0
