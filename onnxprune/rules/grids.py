"""Constant index tables that are grids: each coordinate goes along one axis of the table, or stands still.

`y[:, :, a:b] = x` is exported as a ScatterND whose table lists every position that is written. Such a table says of
each axis of the data which of its positions comes from which position of the updates, and it is made again for the
positions that stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.graph.axes import Axis, Index

if TYPE_CHECKING:
    from onnxprune.rules.op import Op
    from onnxprune.rules.refit import Refit


@dataclass(frozen=True)
class Line:
    """The positions that one coordinate of a table takes.

    Attributes
    ----------
    along
        Dim of the table along which it moves; None where all entries have the same position.
    positions
        Where it is at each step along that dim, counted from the front; all different.
    """

    along: int | None
    positions: Index


def constant_table(op: Op, slot: int) -> Index | None:
    """The indices in an input, where they are an initializer (see `onnxprune.model.tables`)."""
    tensor = op.input(slot).const_value if op.has(slot) else None
    return None if tensor is None else np.asarray(tensor.numpy(), np.int64)


def read_grid(table: Index, extents: Sequence[int | None]) -> tuple[Line, ...] | None:
    """The lines of a table (..., coordinates) that addresses axes of these extents; None where it is no grid.

    In a grid no entry is there twice: every dim of the table that is longer than 1 moves exactly one coordinate.

    Examples
    --------
    >>> table = np.stack(np.meshgrid([0], [4, 2], indexing="ij"), axis=-1)
    >>> [(line.along, line.positions.tolist()) for line in read_grid(table, (3, 6))]
    [(None, [0]), (1, [4, 2])]
    >>> read_grid(np.array([[0, 0], [1, 1]]), (3, 6)) is None
    True
    """
    batch = table.shape[:-1]
    if not table.size or None in extents:
        return None
    lines = []
    for coordinate, extent in enumerate(extents):
        places = table[..., coordinate]
        places = np.where(places < 0, places + (extent or 0), places)
        moves = [d for d, size in enumerate(batch) if size > 1 and np.ptp(places, axis=d).any()]
        if len(moves) > 1:
            return None
        along = moves[0] if moves else None
        here = tuple(slice(None) if d == along else 0 for d in range(len(batch)))
        positions = np.ravel(places[here])
        if len(np.unique(positions)) != len(positions):
            return None
        lines.append(Line(along, positions))
    moved = sorted(line.along for line in lines if line.along is not None)
    return tuple(lines) if moved == [d for d, size in enumerate(batch) if size > 1] else None


def refit_grid(op: Op, refit: Refit, slot: int, addressed: Sequence[Axis], steps: Sequence[Axis]) -> None:
    """Make the table again for the positions that stay.

    Parameters
    ----------
    slot
        The input that holds the table.
    addressed
        The axis that each coordinate looks into.
    steps
        For every dim of the table but the last, the axis that goes with it.
    """
    table = constant_table(op, slot)
    if table is None or not any(refit.changed(axis) for axis in (*addressed, *steps)):
        return
    new = _renumbered(op, refit, table, addressed)
    for dim, axis in enumerate(steps):
        keep = refit.keep(axis)
        if keep is not None:
            new = np.take(new, keep, axis=dim)
    refit.set_input(slot, new)


def _renumbered(op: Op, refit: Refit, table: Index, addressed: Sequence[Axis]) -> Index:
    """The table with each coordinate counted over the positions that stay."""
    new = table.copy()
    for coordinate, axis in enumerate(addressed):
        keep = refit.keep(axis)
        if keep is not None:
            extent = op.extent(axis) or 0
            number = np.full(extent, -1, np.int64)
            number[keep] = np.arange(len(keep))
            new[..., coordinate] = number[table[..., coordinate] % extent]
    return new
