"""Data movement of tensors that have an axis of blocks, each with units of its own: the states of both directions.

A recurrent layer that goes both ways has one tensor for the states of both, (..., directions, ..., units): which units
stay need not be the same in both, only as many (see `onnxprune.graph.axes.Blocked`). That lasts as long as operators
keep the blocks apart. These are the ones that know of them; where any other reads such an axis, blocks are joined.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.graph.axes import Axis, Blocked, Index
from onnxprune.rules.helpers import arange

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxprune.graph.relations import Relations
    from onnxprune.rules.op import Op


def blocks_of(relations: Relations, axis: Axis) -> Blocked | None:
    """How the axis of an activation is divided; None where it is not, and for weights."""
    return relations.blocked.get(axis) if axis.value.const_value is None else None


def carry(relations: Relations, a: Axis, b: Axis, rows: int | None) -> None:
    """Tie two axes in order; where `a` is divided, `b` is, too, along its value's dim `rows`, unless that is None."""
    blocked = blocks_of(relations, a)
    if blocked is None or rows is None:
        relations.tie(a, b)
        return
    relations.divide(b, blocked.blocks, rows)
    relations.follow(a, b)


def take_blocks(op: Op, relations: Relations, a: Axis, b: Axis, rows: int, picked: Index) -> None:
    """Tie `b` to some blocks of the divided axis `a`; more than one are blocks again, along the dim `rows`."""
    size = op.extent(a) or 0
    if len(picked) > 1:
        relations.divide(b, len(picked), rows)
    relations.follow(a, b, (picked[:, None] * size + arange(size)).ravel(), arange(len(picked) * size))


def carry_axes(
    op: Op,
    relations: Relations,
    x: ir.Value,
    y: ir.Value,
    along: Collection[int],
    picked: Index | None = None,
) -> None:
    """Tie all axes of two values of equal rank but those in `along`, blocks apart.

    Parameters
    ----------
    along
        Dims at which the operator takes some positions. They are left to the caller.
    picked
        Which, where it is a single dim and they are known.
    """
    for dim in range(min(op.rank(x), op.rank(y))):
        if dim in along:
            continue
        a, b = Axis(x, dim), Axis(y, dim)
        blocked = blocks_of(relations, a)
        if blocked is None or blocked.rows not in along:
            carry(relations, a, b, None if blocked is None else blocked.rows)
        elif picked is not None and len(along) == 1 and len(picked):
            take_blocks(op, relations, a, b, blocked.rows, picked % blocked.blocks)
        else:
            relations.tie(a, b)


def merged(relations: Relations, a: Axis, shape: tuple[int, ...]) -> bool:
    """Whether the blocks of the axis lie in memory one behind the other: only ones are between them and their rows."""
    blocked = blocks_of(relations, a)
    if blocked is None or blocked.rows >= a.dim or blocked.blocks != shape[blocked.rows]:
        return False
    return bool(np.prod(shape[blocked.rows + 1 : a.dim]) == 1)
