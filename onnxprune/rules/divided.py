"""Data movement of tensors that have an axis of blocks, each with units of its own: the states of both directions.

A recurrent layer that goes both ways has one tensor for the states of both, (..., directions, ..., units): which
units stay need not be the same in both, only as many (see `onnxprune.graph.axes.Blocked`). That lasts as long as
operators keep the blocks apart. What knows of them uses these functions; where any other operator reads such an
axis, blocks are joined.
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
    """Tie two axes in order; where `a` is divided, `b` is, too, along dim `rows` of its value if there is one."""
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


def gather_others(op: Op, relations: Relations, axis: int) -> None:
    """Tie the axes of a Gather that it does not look into."""
    data, y, width, tensor = op.input(0), op.output(), op.rank(op.input(1)), op.input(1).const_value
    for dim in range(op.rank(data)):
        if dim == axis:
            continue
        a, b = Axis(data, dim), Axis(y, dim if dim < axis else dim + width - 1)
        blocked = blocks_of(relations, a)
        if blocked is None or blocked.rows != axis:
            rows = None if blocked is None else blocked.rows + (width - 1 if blocked.rows > axis else 0)
            carry(relations, a, b, rows)
        elif tensor is not None and width < 2 and tensor.size:
            picked = np.asarray(tensor.numpy(), np.int64).ravel() % blocked.blocks
            take_blocks(op, relations, a, b, axis, picked)
        else:
            relations.tie(a, b)


def merged(relations: Relations, a: Axis, shape: tuple[int, ...]) -> bool:
    """Whether the blocks of the axis lie one behind the other: all dims between it and its rows are 1."""
    blocked = blocks_of(relations, a)
    if blocked is None or blocked.rows >= a.dim or blocked.blocks != shape[blocked.rows]:
        return False
    return bool(np.prod(shape[blocked.rows + 1 : a.dim]) == 1)
