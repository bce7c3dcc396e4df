"""Balance constraints: how units are divided into cells that have to keep equal numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxprune.errors import Reason
from onnxprune.graph.axes import Index


@dataclass(frozen=True)
class Balanced:
    """A balance constraint: the block of every unit, -1 for units that lie in all blocks alike or in none."""

    block: Index
    count: int


class Unbalanced(Exception):
    """The balance constraints of a group cannot all be kept."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.sentence)
        self.reason = reason


def find_cells(
    units: Index, kinds: Index, balances: list[Balanced], rank: Callable[[], Index]
) -> Index | None:
    """Divide units into cells so that equal numbers per cell keep all constraints and empty no axis.

    Units of one cell lie in the same block of every constraint and touch the same axes (`kinds`). Cells are
    divided further, in the order of `rank`, until all have the same size; then every block must have the same
    number of cells.

    Returns
    -------
    array or None
        The cell of each unit; None where no constraint binds them.

    Examples
    --------
    Twelve channels in 2 groups of 6 and in 3 groups of 4 at once:

    >>> import numpy as np
    >>> twelve = np.arange(12)
    >>> balances = [Balanced(twelve // 6, 2), Balanced(twelve // 4, 3)]
    >>> find_cells(twelve, np.zeros(12, int), balances, lambda: twelve).tolist()
    [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    """
    bound = [balance for balance in balances if (balance.block[units] >= 0).any()]
    if not bound:
        return None
    keys = np.array([kinds, *(balance.block[units] for balance in bound)])
    _, cell, sizes = np.unique(keys.T, axis=0, return_inverse=True, return_counts=True)
    cell = cell.ravel()
    size = int(np.gcd.reduce(sizes))
    if size < 2:
        reason = Reason.INDIVISIBLE if len(set(sizes.tolist())) == 1 else Reason.INCOMPATIBLE_BLOCKS
        raise Unbalanced(reason)
    for balance in bound:
        block = balance.block[units]
        if len(set(np.bincount(block[block >= 0], minlength=balance.count).tolist())) != 1:
            raise Unbalanced(Reason.INCOMPATIBLE_BLOCKS)
    if (sizes == size).all():
        return np.asarray(cell, np.int64)
    order = np.lexsort((rank(), cell))
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    chunk = np.empty(len(units), np.int64)
    chunk[order] = np.arange(len(units)) - first[cell[order]]
    _, fine = np.unique(np.array([cell, chunk // size]).T, axis=0, return_inverse=True)
    return np.asarray(fine.ravel(), np.int64)
