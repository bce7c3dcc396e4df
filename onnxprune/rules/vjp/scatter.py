"""Putting gradients back to the positions that an operator took along one axis."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxprune.graph.axes import Index
from onnxprune.rules.backward import Backward
from onnxprune.rules.expr import Expr, vector


def put_back(back: Backward, g: Expr, value: ir.Value, axis: int, taken: Index) -> Expr:
    """Add position `j` of `g` to position `taken[j]` of `axis`; the other axes are those of `value`.

    Each position that is taken once only is found in `g` by a Gather, which is faster than to scatter.
    """
    extent, rank = back.dims(value)[axis], back.rank(value)
    if extent is None or len(np.unique(taken % extent)) < len(taken):
        return scatter(back, g, value, axis, back.builder.constant(taken), 1)
    source = np.full(extent, len(taken), np.int64)  # what is not taken finds a zero behind the end
    source[taken % extent] = np.arange(len(taken))
    if len(taken) < extent:
        g = g.pad([0] * rank, [int(dim == axis) for dim in range(rank)])
    return g.op("Gather", back.builder.constant(source), axis=axis)


def put_back_run(g: Expr, axes: dict[int, tuple[Expr | int, Expr | int]], rank: int) -> Expr:
    """Zeros before and after what was taken, per axis."""
    before: list[Expr | int] = [axes.get(dim, (0, 0))[0] for dim in range(rank)]
    after: list[Expr | int] = [axes.get(dim, (0, 0))[1] for dim in range(rank)]
    return g.pad(before, after)


def scatter(back: Backward, g: Expr, value: ir.Value, axis: int, indices: Expr, width: int) -> Expr:
    """Add to the positions of `value` along `axis` that `indices`, of rank `width`, name.

    The axes of `indices` lie in `g` where `axis` lies in `value`.
    """
    rank = back.rank(value)
    others = [dim for dim in range(rank) if dim != axis]
    lead = list(range(axis, axis + width))
    rest = [dim for dim in range(rank + width - 1) if dim not in lead]
    extents = back.extents(value)
    zeros = back.builder.zeros(vector(back.builder, [extents[dim] for dim in (axis, *others)]))
    moved = zeros.op("ScatterND", indices.unsqueeze(-1), g.transpose([*lead, *rest]), reduction="add")
    order = [axis, *others]
    return moved.transpose([order.index(dim) for dim in range(rank)])
