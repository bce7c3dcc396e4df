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

FEW = 4
"""Finding so many order statistics is faster than sorting."""

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


def chooser(pattern: Pattern, layer: Layer, scale: Matrix, block: int) -> tuple[int, Choose]:
    """How many columns to choose at a time, and how.

    Parameters
    ----------
    pattern
        What is wanted.
    layer
        Where.
    scale
        Shape (columns,): what the square of a weight costs, if it alone goes and later columns make up for it.
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
    stretch = max(block // width, 1)
    shape = groups, -1, columns // width
    alone = None if pattern.even else _units(np.square(layer.weight) * scale, height, width).reshape(shape)
    quotas = _quotas(kind.reshape(shape), pattern.zeros, alone, stretch)
    mixed = not (kind == 2).all()

    def choose(costs: Matrix, start: int) -> Bools:
        first, last = start // width, (start + costs.shape[1]) // width
        units = _units(np.maximum(costs, 0.0), height, width)  # locked ones add nothing to their block
        kinds = kind[:, first:last]
        if groups == 1:  # in the order in which the solver keeps them
            units, kinds = units.T, kinds.T
        values, kinds = units.reshape(groups, -1), kinds.reshape(groups, -1)
        chosen: Bools = np.zeros(values.shape, np.bool_)
        for this, quota in enumerate(quotas[:, first // stretch]):
            if quota.any():
                chosen |= least(np.where(kinds == this, values, np.inf) if mixed else values, quota)
        chosen = chosen.reshape(units.shape)
        if groups == 1:
            chosen = chosen.T
        return chosen.repeat(height, axis=0).repeat(width, axis=1) if height * width > 1 else chosen

    return stretch * width, choose


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
    if not layer.dead.any() and not layer.locked.any():
        return np.full((shape[0], shape[2]), 2, np.int8)
    locked = layer.locked.reshape(shape).all(axis=(1, 3))
    free = (layer.locked | layer.dead).reshape(shape).all(axis=(1, 3))
    return np.where(locked, 0, np.where(free, 1, 2)).astype(np.int8)


def _quotas(kind: np.ndarray, zeros: int, costs: Matrix | None, stretch: int) -> np.ndarray:
    """How many units of each kind go in each stretch of columns.

    Parameters
    ----------
    kind
        Shape (groups, units, columns).
    zeros
        Of each group.
    costs
        Shape as `kind`: each stretch gives what it has among the cheapest. Without them all give the same share.
    stretch
        Columns.

    Returns
    -------
    Shape (kinds, stretches, groups).
    """
    left = np.full(len(kind), zeros)
    found = []
    for this in range(3):
        these = kind == this
        each = _count(these, stretch)
        total = each.sum(axis=0)
        gone = np.minimum(left, total)
        left = left - gone
        if costs is None:
            before = gone * np.cumsum(each, axis=0) // np.maximum(total, 1)
            found.append(np.diff(before, axis=0, prepend=0))
        elif gone.any():
            flat = costs if these.all() else np.where(these, costs, np.inf)
            cheapest = least(flat.reshape(len(kind), -1), gone)
            found.append(_count(cheapest.reshape(kind.shape), stretch))
        else:
            found.append(np.zeros_like(each))
    return np.stack(found)


def _count(flags: Bools, stretch: int) -> np.ndarray:
    """How many are set in each stretch of columns: (groups, units, columns) to (stretches, groups)."""
    groups, units, columns = flags.shape
    starts = np.arange(0, columns, stretch)
    if flags.all() or not flags.any():
        each = units * np.diff(starts, append=columns) * int(flags.any())
        return np.repeat(each[:, None], groups, axis=1)
    return np.stack([np.count_nonzero(flags[:, :, i : i + stretch], axis=(1, 2)) for i in starts])


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
    places = np.maximum(quota - 1, 0)
    some = np.unique(places)
    ordered = np.ascontiguousarray(values)  # ten times as fast to sort
    ordered = np.partition(ordered, some, axis=1) if len(some) <= FEW else np.sort(ordered, axis=1)
    last = np.take_along_axis(ordered, places[:, None], axis=1)
    last = np.where(quota[:, None] > 0, last, -np.inf)
    chosen: Bools = values <= last
    surplus = np.flatnonzero(chosen.sum(axis=1) > quota)
    if len(surplus):
        less, equal = values[surplus] < last[surplus], values[surplus] == last[surplus]
        wanted = quota[surplus] - less.sum(axis=1)
        chosen[surplus] = less | (equal & (np.cumsum(equal, axis=1) <= wanted[:, None]))
    return chosen


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
