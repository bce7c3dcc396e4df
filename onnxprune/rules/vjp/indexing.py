"""VJPs of gathers and scatters: each is put back by the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.rules.backward import Backward, Vjp
from onnxprune.rules.expr import Expr, vector
from onnxprune.rules.op import Op
from onnxprune.rules.rule import Key
from onnxprune.rules.vjp.scatter import put_back, put_back_run, scatter

_LARGEST = 1 << 16
"""Indices up to which constant ones are looked at."""


def _gather(op: Op, back: Backward) -> None:
    data, indices = op.input(0), op.input(1)
    rank, width = back.rank(data), back.rank(indices)
    axis = op.int("axis", 0) % rank
    extent = back.dims(data)[axis]
    tensor = indices.const_value
    if tensor is not None and extent is not None and width < 2 and tensor.size <= _LARGEST:
        taken = np.asarray(tensor.numpy(), np.int64) % max(extent, 1)
        if width == 1:
            back.give(0, put_back(back, back.g, data, axis, taken))
        else:
            first = int(taken)
            back.give(0, put_back_run(back.g.unsqueeze(axis), {axis: (first, extent - 1 - first)}, rank))
        return
    wide = back.x(1) if indices.dtype == ir.DataType.INT64 else back.x(1).op("Cast", to=ir.DataType.INT64)
    back.give(0, scatter(back, back.g, data, axis, wide, width))


def _gather_elements(op: Op, back: Backward) -> None:
    zeros = back.builder.zeros(back.shape(op.input(0)))
    axis = op.int("axis", 0)
    back.give(0, zeros.op("ScatterElements", back.x(1), back.g, axis=axis, reduction="add"))


def _gather_nd(op: Op, back: Backward) -> None:
    zeros = back.builder.zeros(back.shape(op.input(0)))
    batch = op.int("batch_dims", 0)
    indices = _with_batch(op, back, batch) if batch else back.x(1)
    back.give(0, zeros.op("ScatterND", indices, back.g, reduction="add"))


def _with_batch(op: Op, back: Backward, batch: int) -> Expr:
    """Indices that name the positions of the batch axes, too."""
    indices, rank = op.input(1), back.rank(op.input(1))
    lead = vector(back.builder, [*(back.extent(indices, dim) for dim in range(rank - 1)), 1])
    parts = []
    for dim in range(batch):
        steps = back.count_up(back.extent(indices, dim))
        aligned = steps.reshape([-1 if n == dim else 1 for n in range(rank)])
        parts.append(aligned.op("Expand", lead))
    return back.builder.concat([*parts, back.x(1)], -1)


# --- scatters --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scatter:
    """A scatter, and the gather that reads what it wrote."""

    op_type: str
    indices: Expr
    axis: dict[str, int]

    def put(self, into: Expr, updates: Expr, reduction: str = "none") -> Expr:
        """Scatter."""
        how = {} if reduction == "none" else {"reduction": reduction}
        return into.op(self.op_type, self.indices, updates, **self.axis, **how)

    def read(self, x: Expr) -> Expr:
        """Gather at the indices."""
        kind = "GatherND" if self.op_type == "ScatterND" else "GatherElements"
        return x.op(kind, self.indices, **self.axis)


def _scatter(op: Op, back: Backward) -> None:
    axis = {} if op.node.op_type == "ScatterND" else {"axis": op.int("axis", 0)}
    scatter = _Scatter(op.node.op_type, back.x(1), axis)
    reduction = op.str("reduction", "none")
    if reduction in ("max", "min"):
        _extreme(back, scatter)
        return
    if reduction == "mul":
        _product(back, scatter)
        return
    if back.wants(0):
        kept = back.g
        if reduction == "none":
            kept = scatter.put(kept, back.builder.zeros(back.shape(op.input(2))))
        back.give(0, kept)
    if back.wants(2):
        back.give(2, scatter.read(back.g))


def _extreme(back: Backward, scatter: _Scatter) -> None:
    """Of max and min: all that are as large as the result share its gradient, as in PyTorch."""
    kept = back.x(0).op("Equal", back.y()).float()
    taken = back.x(2).op("Equal", scatter.read(back.y())).float()
    share = back.g / scatter.put(kept, taken, "add")
    if back.wants(0):
        back.give(0, share * kept)
    if back.wants(2):
        back.give(2, scatter.read(share) * taken)


def _product(back: Backward, scatter: _Scatter) -> None:
    """What all other factors make; exact where some are zero."""
    data, updates = back.x(0), back.x(2)
    builder = back.builder
    if back.wants(0):
        one = builder.zeros(back.shape(back.op.input(0))) + 1.0
        back.give(0, back.g * scatter.put(one, updates, "mul"))
    if back.wants(2):
        zero = updates.op("Equal", 0.0)
        count = scatter.put(data * 0.0, zero.float(), "add")
        others = scatter.put(data, zero.op("Where", 1.0, updates), "mul")
        alone = scatter.read(others * back.g)
        divided = alone / zero.op("Where", 1.0, updates)
        left = scatter.read(count) - zero.float()  # zeros among the other factors
        back.give(2, divided.where(left.op("Equal", 0.0)))


def _tensor_scatter(op: Op, back: Backward) -> None:
    """Updates take the place of positions of the cache that begin at an index per sample."""
    cache, updates = op.input(0), op.input(1)
    rank = back.rank(cache)
    axis = op.int("axis", -2) % rank
    steps = back.count_up(back.extent(updates, axis)).unsqueeze(*range(1, rank - axis))
    if op.has(2):
        steps = back.x(2).op("Cast", to=ir.DataType.INT64).reshape([-1, *[1] * (rank - 1)]) + steps
    if op.str("mode", "linear") == "circular":
        extent = back.extent(cache, axis)
        steps = steps.op("Mod", back.builder.ints(extent) if isinstance(extent, int) else extent)
    scatter = _Scatter("ScatterElements", steps.op("Expand", back.shape(updates)), {"axis": axis})
    if back.wants(0):
        back.give(0, scatter.put(back.g, back.builder.zeros(back.shape(updates))))
    if back.wants(1):
        back.give(1, scatter.read(back.g))


VJPS: dict[Key, Vjp] = {
    ("", "Gather"): _gather,
    ("", "GatherElements"): _gather_elements,
    ("", "GatherND"): _gather_nd,
    ("", "ScatterElements"): _scatter,
    ("", "ScatterND"): _scatter,
    ("", "TensorScatter"): _tensor_scatter,
}
