"""Rows of a layer, while their weights go one after the other: the arithmetic of `obc`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.solvers.layer import Bools, Matrix

Index = np.ndarray[Any, np.dtype[np.int64]]

SHARE = 8
"""G is brought up to date when there is a v for one in so many of its rows."""

FEW = 16
"""Not before there are so many v."""


@dataclass(eq=False)
class Rows:
    """Rows of a layer, and the columns of each that can still go; only these are counted. Everything is mutated.

    Attributes
    ----------
    width
        Neighbours that go together: a unit.
    place
        Shape (rows, units): which unit of the layer each one is.
    left
        Shape (rows, columns): what can still go. Rows that have fewer than others are filled up with what cannot.
    weight
        Shape (rows, columns): as the best refit leaves them; zero where it is gone.
    base
        Shape (1 or rows, columns, columns): G, without the steps since it was brought up to date.
    diagonal
        Shape (rows, units, width, width): blocks of G's diagonal.
    made
        Shape (rows, at least `taken`, columns): the v of these steps.
    taken
        How many v there are.
    """

    width: int
    place: Index
    left: Bools
    weight: Matrix
    base: Matrix
    diagonal: Matrix
    made: Matrix
    taken: int

    @classmethod
    def of(cls, weight: Matrix, inverse: Matrix, locked: Bools, width: int) -> Rows:
        """Rows of which the locked weights are gone.

        Parameters
        ----------
        weight
            Shape (rows, columns); zero in dead columns, where it costs nothing.
        inverse
            Shape (columns, columns): of the damped Hessian.
        locked
            Shape (rows, columns).
        width
            Of a unit.
        """
        rows, columns = weight.shape
        units = np.arange(columns).reshape(-1, width)
        blocks = inverse[units[:, :, None], units[:, None, :]]
        found = cls(
            width,
            np.repeat(np.arange(len(units))[None], rows, axis=0),
            np.ones(weight.shape, np.bool_),
            weight.copy(),
            inverse[None],
            np.repeat(blocks[None], rows, axis=0),
            np.empty((rows, _room(columns, width), columns)),
            0,
        )
        found._take_locked(locked)
        return found

    def _take_locked(self, locked: Bools) -> None:
        index = np.arange(len(locked))
        order = np.argsort(~locked, axis=1, kind="stable")
        for step in range(int(locked.sum(axis=1).max())):
            column = order[:, step]
            unit, within = column // self.width, column % self.width
            now = np.argmax(self.place == unit[:, None], axis=1)  # 0 where nothing is locked any more
            self._take((now * self.width + within)[:, None], locked[index, column])

    def step(self) -> tuple[Index, Matrix]:
        """Let the cheapest unit of each row go: which, and its cost; infinite where none can go any more."""
        rows, units, width, _ = self.diagonal.shape
        costs = np.where(self.left.reshape(rows, units, width).any(axis=2), self._costs(), np.inf)
        now = np.argmin(costs, axis=1)
        cost, place = costs[np.arange(rows), now], self.place[np.arange(rows), now]
        self._take(now[:, None] * width + np.arange(width), np.isfinite(cost))
        return place, cost

    def close(self, units: Bools) -> None:
        """Let units stay from now on: of their weights nobody asks any more.

        Parameters
        ----------
        units
            Shape (rows, units of the layer).
        """
        closed = np.take_along_axis(units, self.place, axis=1)
        self.left &= ~closed.repeat(self.width, axis=1)

    def _costs(self) -> Matrix:
        """Shape (rows, units): `w_p (G_pp)^-1 w_p^T`."""
        rows, units, width, _ = self.diagonal.shape
        if width == 1:
            return np.square(self.weight) / self.diagonal[:, :, 0, 0]
        weight = self.weight.reshape(rows, units, width, 1)
        return np.asarray((weight * np.linalg.solve(self.diagonal, weight)).sum(axis=(2, 3)), np.float64)

    def _take(self, columns: Index, valid: Bools) -> None:
        """Let weights of each row go, and let the others make up for them.

        Parameters
        ----------
        columns
            Shape (rows, n).
        valid
            Shape (rows,): where nothing goes, nothing changes.
        """
        if self.taken + columns.shape[1] > self.made.shape[1]:
            columns = self._renew(columns)
        count, width = columns.shape
        rows = np.arange(count)[:, None]
        goes = self.left[rows, columns] & valid[:, None]
        made = self.made[:, self.taken : self.taken + width]
        made[...] = self.base[rows if len(self.base) > 1 else 0, columns]
        if self.taken:
            earlier = self.made[:, : self.taken]
            made -= earlier[rows, :, columns] @ earlier
        made *= self.left[:, None, :]
        made *= goes[:, :, None]
        pivot = made[rows[:, :, None], np.arange(width)[:, None], columns[:, None, :]]
        pivot = np.where(goes[:, :, None] & goes[:, None, :], pivot, np.eye(width))
        lost = np.where(goes, self.weight[rows, columns], 0.0)[:, :, None]
        if width == 1:
            root = np.sqrt(pivot)
            made /= root
            lost /= root
        else:
            lower = np.linalg.cholesky(pivot)
            made[...] = np.linalg.solve(lower, made)
            lost = np.linalg.solve(lower, lost)
        self.weight -= (lost * made).sum(axis=1) if width > 1 else lost[:, 0] * made[:, 0]
        self._narrow(made)
        self._forget(np.nonzero(goes)[0], columns[goes])
        self.taken += width

    def _narrow(self, made: Matrix) -> None:
        """Subtract from G's diagonal what a step takes from it."""
        units, width = self.diagonal.shape[1:3]
        if width == 1:
            for one in range(made.shape[1]):
                self.diagonal[:, :, 0, 0] -= np.square(made[:, one])
        else:
            blocks = made.reshape(*made.shape[:2], units, width)
            self.diagonal -= np.einsum("rsui,rsuj->ruij", blocks, blocks)

    def _forget(self, rows: Index, columns: Index) -> None:
        """Take weights off the books: exactly zero, and G ties them to nothing."""
        unit, within = columns // self.width, columns % self.width
        self.weight[rows, columns] = 0.0
        self.left[rows, columns] = False
        self.diagonal[rows, unit, within, :] = 0.0
        self.diagonal[rows, unit, :, within] = 0.0
        self.diagonal[rows, unit, within, within] = 1.0

    def _renew(self, columns: Index) -> Index:
        """Bring G up to date, and forget units that can no longer go; where `columns` are then."""
        rows, units, width, _ = self.diagonal.shape
        still = self.left.reshape(rows, units, width).any(axis=2)
        kept = np.argsort(~still, axis=1, kind="stable")[:, : max(int(still.sum(axis=1).max()), 1)]
        index = (kept[:, :, None] * width + np.arange(width)).reshape(rows, -1)
        base = np.empty((rows, index.shape[1], index.shape[1]))
        for row, these in enumerate(index):
            made = np.ascontiguousarray(self.made[row, : self.taken, these].T)
            np.matmul(made.T, made, out=base[row])
            np.subtract(self.base[row % len(self.base)][np.ix_(these, these)], base[row], out=base[row])
        moved = np.zeros((rows, units), np.int64)
        np.put_along_axis(moved, kept, np.arange(kept.shape[1])[None], axis=1)
        self.base = base
        self.place = np.take_along_axis(self.place, kept, axis=1)
        self.left = np.take_along_axis(self.left, index, axis=1)
        self.weight = np.take_along_axis(self.weight, index, axis=1)
        self.diagonal = np.take_along_axis(self.diagonal, kept[:, :, None, None], axis=1)
        self.made = np.empty((rows, _room(index.shape[1], width), index.shape[1]))
        self.taken = 0
        found = np.take_along_axis(moved, columns // width, axis=1) * width + columns % width
        return np.asarray(found, np.int64)


def _room(columns: int, width: int) -> int:
    """How many v there may be."""
    return max(columns // SHARE, FEW, width)
