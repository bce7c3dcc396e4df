"""Pieces that several operator families share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxprune.graph.axes import Axis, Index

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxprune.graph.relations import Relations
    from onnxprune.rules.op import Op


def arange(n: int) -> Index:
    """0, 1, ..., n-1 as int64."""
    return np.arange(n, dtype=np.int64)


def tie_axes(op: Op, relations: Relations, a: ir.Value, b: ir.Value, skip: tuple[int, ...] = ()) -> None:
    """Tie the axes of two values of equal rank one to one, except the dims in `skip`."""
    for dim in range(min(op.rank(a), op.rank(b))):
        if dim not in skip:
            relations.tie(Axis(a, dim), Axis(b, dim))


def tie_broadcast(op: Op, relations: Relations, source: ir.Value, target: ir.Value, *, last: int = 0) -> None:
    """Tie the axes of `source` to those of `target`, aligned from the right, as numpy broadcasts.

    An axis of extent 1 that is broadcast has no position to lose and is left out.

    Parameters
    ----------
    last
        That many trailing axes are left alone (the matrix axes of MatMul).
    """
    m, n = op.rank(source), op.rank(target)
    for offset in range(last + 1, m + 1):
        a, b = Axis(source, m - offset), Axis(target, n - offset)
        if op.extent(a) == 1 and op.extent(b) != 1:
            continue
        relations.tie(a, b)
