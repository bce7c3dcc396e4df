"""Which zeros are wanted: any elements, equally many in each row, N in each M, whole blocks.

A pattern says how many zeros there are; the solvers ask it stretch by stretch which ones, given what each would
cost. Counts are exact: what the rounding of one stretch leaves over goes to the next. Weights that cost nothing go
first: locked ones, then those of columns in which the layer sees only zeros.

`sparsegpt` has to know how many go in a stretch before it knows what later stretches cost. With `even`, as in the
paper, all stretches give the same share of their live weights. Otherwise each gives as many as it has among the
cheapest of the whole matrix, at the weights that were given: fewer in late columns, for which nobody makes up; that
goes well with `block` 32. `obc` compares what it gives up in any case.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxprune.solvers.layer import Bools, Layer, Matrix

Choose = Callable[[Matrix, int], Bools]
"""From the costs (rows, width) of a stretch of columns, and its first column: what goes, same shape.

Costs of locked weights are -1, of weights in dead columns 0. What is locked goes in any case.
"""


@dataclass(frozen=True)
class Elements:
    """Exactly `zeros` elements of the whole matrix; more where more are locked."""

    zeros: int
    even: bool = True


@dataclass(frozen=True)
class PerRow:
    """Exactly `zeros` elements of every row; more where more are locked."""

    zeros: int
    even: bool = True


@dataclass(frozen=True)
class NOfM:
    """`n` zeros in each group of `m` neighbours of a row; more where more are locked."""

    n: int
    m: int


@dataclass(frozen=True)
class Blocks:
    """Exactly `zeros` blocks of shape (rows, columns) go whole. Whole columns are blocks of all rows by one."""

    zeros: int
    shape: tuple[int, int]
    even: bool = True


Pattern = Elements | PerRow | NOfM | Blocks


def check(pattern: Pattern, shape: tuple[int, int]) -> None:
    """Refuse a pattern that a matrix cannot have.

    Raises
    ------
    ValueError
        With the reason.
    """
    rows, columns = shape
    if isinstance(pattern, NOfM):
        if not 0 <= pattern.n <= pattern.m or pattern.m < 1:
            raise ValueError(f"{pattern.n} zeros in {pattern.m} are not possible")
        if columns % pattern.m:
            raise ValueError(f"groups of {pattern.m} do not divide {columns} columns")
        return
    units = columns if isinstance(pattern, PerRow) else rows * columns
    if isinstance(pattern, Blocks):
        height, width = pattern.shape
        if height < 1 or width < 1 or rows % height or columns % width:
            raise ValueError(f"blocks of {height} x {width} do not divide a matrix of {rows} x {columns}")
        units //= height * width
    if not 0 <= pattern.zeros <= units:
        raise ValueError(f"{pattern.zeros} zeros are asked for, of {units}")


def chooser(pattern: Pattern, layer: Layer, costs: Matrix, block: int) -> tuple[int, Choose]:
    """How many columns to choose at a time, and how.

    Parameters
    ----------
    pattern
        What is wanted.
    layer
        Where.
    costs
        Shape (rows, columns): of each weight, before any has gone.
    block
        How many columns at a time, if the pattern leaves that open.
    """
    rows, columns = layer.weight.shape
    check(pattern, (rows, columns))
    if isinstance(pattern, NOfM):
        return pattern.m, lambda costs, start: least_of_groups(costs, pattern)
    height, width = pattern.shape if isinstance(pattern, Blocks) else (1, 1)
    groups = rows if isinstance(pattern, PerRow) else 1
    kind = _kinds(layer, height, width)
    shape = groups, -1, columns // width
    first_costs = None if pattern.even else _units(costs, height, width).reshape(shape)
    due = _due(kind.reshape(shape), pattern.zeros, first_costs)

    def choose(costs: Matrix, start: int) -> Bools:
        first, last = start // width, (start + costs.shape[1]) // width
        units = _units(np.maximum(costs, 0.0), height, width)  # locked ones add nothing to their block
        values, kinds = units.reshape(groups, -1), kind[:, first:last].reshape(groups, -1)
        chosen: Bools = np.zeros(values.shape, np.bool_)
        for this, counts in enumerate(due):
            quota = counts[:, last] - counts[:, first]
            chosen |= least(np.where(kinds == this, values, np.inf), quota)
        chosen = chosen.reshape(units.shape)
        return chosen.repeat(height, axis=0).repeat(width, axis=1) if height * width > 1 else chosen

    return max(block // width, 1) * width, choose


def _units(costs: Matrix, height: int, width: int) -> Matrix:
    """What blocks cost."""
    if height * width == 1:
        return costs
    rows, columns = costs.shape
    return np.asarray(costs.reshape(rows // height, height, -1, width).sum(axis=(1, 3)), np.float64)


def _kinds(layer: Layer, height: int, width: int) -> np.ndarray:
    """Of each block: 0 all locked, 1 all locked or dead, 2 live."""
    rows, columns = layer.weight.shape
    shape = (rows // height, height, columns // width, width)
    locked = layer.locked.reshape(shape).all(axis=(1, 3))
    free = (layer.locked | layer.dead).reshape(shape).all(axis=(1, 3))
    return np.where(locked, 0, np.where(free, 1, 2)).astype(np.int8)


def _due(kind: np.ndarray, zeros: int, costs: Matrix | None) -> np.ndarray:
    """How many units of each kind have to be gone before each column.

    Parameters
    ----------
    kind
        Shape (groups, units, columns).
    zeros
        Of each group.
    costs
        Shape as `kind`: the cheapest are due. Without them all columns give the same share.

    Returns
    -------
    Shape (kinds, groups, columns + 1).
    """
    left = np.full(len(kind), zeros)
    found = []
    for this in range(3):
        these = kind == this
        before = _before(these)
        total = before[:, -1]
        gone = np.minimum(left, total)
        left = left - gone
        if costs is None:
            found.append(gone[:, None] * before // np.maximum(total, 1)[:, None])
        else:
            flat = np.where(these, costs, np.inf).reshape(len(kind), -1)
            found.append(_before(least(flat, gone).reshape(kind.shape)))
    return np.stack(found)


def _before(flags: Bools) -> np.ndarray:
    """How many are set before each column and before the end: (groups, units, columns) to (groups, columns + 1)."""
    groups, _, columns = flags.shape
    before = np.zeros((groups, columns + 1), np.int64)
    np.cumsum(flags.sum(axis=1), axis=1, out=before[:, 1:])
    return before


def least(values: Matrix, quota: np.ndarray) -> Bools:
    """The `quota` least of each row; equal ones by index.

    Parameters
    ----------
    values
        Shape (rows, columns); infinite where nothing may be taken.
    quota
        Shape (rows,): at most as many as there are finite values.
    """
    if not quota.any():
        return np.zeros(values.shape, np.bool_)
    ordered = np.sort(values, axis=1)
    last = np.take_along_axis(ordered, np.maximum(quota - 1, 0)[:, None], axis=1)
    last = np.where(quota[:, None] > 0, last, -np.inf)
    less, equal = values < last, values == last
    wanted = quota - less.sum(axis=1)
    if (equal.sum(axis=1) > wanted).any():
        equal &= np.cumsum(equal, axis=1) <= wanted[:, None]
    return np.asarray(less | equal, np.bool_)


def least_of_groups(costs: Matrix, pattern: NOfM) -> Bools:
    """The n least of each m neighbours of a row; equal ones by index."""
    rows, columns = costs.shape
    if columns == pattern.m <= 8:
        return np.stack([_rank(costs, column) < pattern.n for column in range(columns)], axis=1)
    grouped = costs.reshape(rows, -1, pattern.m)
    order = np.argsort(grouped, axis=2, kind="stable")
    chosen = np.zeros(grouped.shape, np.bool_)
    np.put_along_axis(chosen, order[:, :, : pattern.n], True, axis=2)
    return chosen.reshape(rows, columns)


def _rank(costs: Matrix, column: int) -> np.ndarray:
    """How many of a row go before the one in this column: sorting few columns of many rows is slower."""
    this = costs[:, column]
    rank = np.zeros(len(costs), np.int8)
    for other in range(costs.shape[1]):
        if other != column:
            rank += costs[:, other] <= this if other < column else costs[:, other] < this
    return rank
