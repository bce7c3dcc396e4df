"""Optimal brain compression: in each row the cheapest weight goes, and all others of the row make up for it.

Frantar and Alistarh 2022, https://arxiv.org/abs/2208.11580. With G the inverse Hessian of what is left of a row w,
losing the weights p (one, or a block of neighbours) costs `w_p (G_pp)^-1 w_p^T`, and leaves

    w - w_p (G_pp)^-1 G_p:        G - G_:p (G_pp)^-1 G_p:

The paper updates G for each row and step, which is as slow as memory is. What a step subtracts from G is the
product of `v = L^-1 G_p:` with itself, `G_pp = L L^T`: a Cholesky factorisation that pivots by cost. So the v are
kept, of G only the diagonal is updated, and its other rows are made when they are needed, until the v are many:
then they are subtracted all at once, by a product of matrices, and what can no longer go is forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.solvers.eliminate import Index, Rows
from onnxprune.solvers.layer import DAMPENING, Bools, Layer, Matrix, Solution
from onnxprune.solvers.patterns import Blocks, Elements, NOfM, PerRow, check, least
from onnxprune.solvers.refit import refit

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

    Takes about `rows * columns^3` floating-point operations for `Elements` and `Blocks`, which try all weights of
    every row and then compare rows; less for `PerRow` and `NOfM`, which try only those that go.

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
    inverse = np.asarray(np.linalg.inv(damped.hessian), np.float64)
    steps = _steps(what, columns // width)
    size = max(1, memory // (16 * columns * columns))
    order = np.empty((rows, steps), np.int64)
    costs = np.empty((rows, steps))
    live = np.where(layer.dead, 0.0, layer.weight)
    for first in range(0, rows, size):
        these = slice(first, first + size)
        batch = Rows.of(live[these], inverse, layer.locked[these], width)
        full = _Full.of(what, layer.locked[these]) if isinstance(what, NOfM) else None
        for step in range(steps):
            if full:
                batch.close(full.units)
            unit, cost = batch.step()
            order[these, step], costs[these, step] = unit, cost
            if full:
                full.count(unit, np.isfinite(cost))
    gone = np.zeros((rows, columns // width), np.bool_)
    counts = _counts(what, costs, layer.locked, width)
    row, taken = np.nonzero(np.arange(steps) < counts[:, None])
    gone[row, order[row, taken]] = True
    mask = gone.repeat(width, axis=1) | layer.locked
    return refit(layer.weight, mask, layer.hessian, dampening=damped.dampening)


def _steps(what: Elements | PerRow | NOfM | Blocks, units: int) -> int:
    """How many units of a row are tried at most."""
    if isinstance(what, NOfM):
        return units // what.m * what.n
    return min(what.zeros, units)


def _counts(what: Elements | PerRow | NOfM | Blocks, costs: Matrix, locked: Bools, width: int) -> Index:
    """Shape (rows,): how many of its steps each row takes; exactly as many as are wanted in all."""
    possible: Index = np.isfinite(costs).sum(axis=1)
    if isinstance(what, NOfM):
        return possible
    already: Index = locked.reshape(len(locked), -1, width).all(axis=2).sum(axis=1)
    if isinstance(what, PerRow):
        return np.asarray(np.minimum(np.maximum(what.zeros - already, 0), possible), np.int64)
    left = max(what.zeros - int(already.sum()), 0)
    hull = np.array([rising(row) for row in costs])
    chosen = least(hull.reshape(1, -1), np.array([left])).reshape(costs.shape)
    return np.asarray(chosen.sum(axis=1), np.int64)


def rising(costs: Matrix) -> Matrix:
    """The slopes of the convex hull below the running sum: stretches that fall are replaced by their means.

    A row's weights must go in its order, and a costly one may come before a cheap one. With rising costs the
    cheapest of all rows are the beginnings of rows.

    Parameters
    ----------
    costs
        Shape (steps,).
    """
    if (costs[1:] >= costs[:-1]).all():
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


@dataclass(frozen=True, eq=False)
class _Full:
    """Which groups of `NOfM` have their zeros.

    Attributes
    ----------
    what
        The pattern.
    gone
        Shape (rows, groups): zeros so far; mutated.
    """

    what: NOfM
    gone: Index

    @classmethod
    def of(cls, what: NOfM, locked: Bools) -> _Full:
        return cls(what, locked.reshape(len(locked), -1, what.m).sum(axis=2))

    @property
    def units(self) -> Bools:
        """Shape (rows, columns): what has to stay."""
        return (self.gone >= self.what.n).repeat(self.what.m, axis=1)

    def count(self, unit: Index, valid: Bools) -> None:
        """One more in each row."""
        self.gone[np.arange(len(unit)), unit // self.what.m] += valid
