"""Data movement along an axis: Concat, Split, Gather, Pad, Expand, Tile.

Each is an index array: position j of the output is position `index[j]` of an input. What carries an extent or
a position (Split sizes, Pad widths, Gather indices) is refitted. A Gather with a single index, or
with a table of them that has more than one long axis, keeps the axis that it looks into.

Specification: https://onnx.ai/onnx/operators/onnx__Concat.html and its neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxprune.errors import Reason
from onnxprune.graph.axes import Axis, Index
from onnxprune.rules.divided import carry_axes, gather_others
from onnxprune.rules.grids import constant_table
from onnxprune.rules.helpers import arange, tie_axes, tie_broadcast
from onnxprune.rules.op import normalized
from onnxprune.rules.pins import pin_dims
from onnxprune.rules.rule import Key, Rule, table

if TYPE_CHECKING:
    from onnxprune.graph.relations import Relations
    from onnxprune.rules.op import Op
    from onnxprune.rules.refit import Refit


# --- Concat and Split ------------------------------------------------------------------------------------


def _concat(op: Op, relations: Relations) -> None:
    y = op.output()
    axis = op.int("axis", 0) % op.rank(y)
    parts = [value for value in op.node.inputs if value is not None]
    for value in parts:
        tie_axes(op, relations, value, y, skip=(axis,))
    _tie_parts(op, relations, [Axis(value, axis) for value in parts], Axis(y, axis))


def _split(op: Op, relations: Relations) -> None:
    x = op.input(0)
    axis = op.int("axis", 0) % op.rank(x)
    ends = np.cumsum([op.extent(Axis(part, axis)) or 0 for part in op.outputs])
    for part, end in zip(op.outputs, ends, strict=True):
        count = op.extent(Axis(part, axis)) or 0
        carry_axes(op, relations, x, part, (axis,), np.arange(end - count, end, dtype=np.int64))
    _tie_parts(op, relations, [Axis(part, axis) for part in op.outputs], Axis(x, axis))


def _tie_parts(op: Op, relations: Relations, parts: list[Axis], whole: Axis) -> None:
    """Tie runs of `whole`, one behind the other; where the runs begin must be known for all of them."""
    extents = [op.extent(part) for part in parts]
    if None in extents:
        for axis in (*parts, whole):
            relations.pin(axis, Reason.UNKNOWN_SHAPE)
        return
    offset = 0
    for part, extent in zip(parts, extents, strict=True):
        positions = arange(extent or 0)
        relations.tie(part, whole, positions, positions + offset)
        offset += extent or 0


def _refit_split(op: Op, refit: Refit) -> None:
    axis = op.int("axis", 0) % op.rank(op.input(0))
    parts = [Axis(part, axis) for part in op.node.outputs]
    sizes = [refit.extent(part) for part in parts]
    if op.opset >= 13 and op.has(1):
        known = [op.extent(part) is not None and not op.dynamic(part) for part in parts]
        refit.entries(1, {i: size for i, size in enumerate(sizes) if known[i]})
    elif any(refit.changed(part) for part in parts):
        if op.opset >= 13:
            refit.set_input(1, np.array(sizes, np.int64))
            refit.drop_attribute("num_outputs")
        else:
            refit.set_ints("split", sizes)


# --- Gather ----------------------------------------------------------------------------------------------


def _picked(op: Op) -> tuple[int, Index] | None:
    """Constant indices along one axis: their only axis, or the only long one, and they in order; else None."""
    extents = op.dims(op.input(1)) or ()
    long = [dim for dim, extent in enumerate(extents) if extent != 1]
    if not op.is_constant(1) or not extents or len(long) > 1:
        return None
    tensor = op.input(1).const_value  # a table may be indexed by more positions than shapes ever have
    if tensor is None:
        return None
    return long[0] if long else len(extents) - 1, np.asarray(tensor.numpy(), np.int64).ravel()


def _gather(op: Op, relations: Relations) -> None:
    data, indices, y = op.input(0), op.input(1), op.output()
    axis = op.int("axis", 0) % op.rank(data)
    width = op.rank(indices)
    gather_others(op, relations, axis)
    found, extent = _picked(op), op.extent(Axis(data, axis))
    if found is not None and extent:
        along, picked = found
        relations.tie(Axis(data, axis), Axis(y, axis + along), picked % extent, arange(len(picked)))
        pin_dims(relations, y, (axis + dim for dim in range(width) if dim != along), Reason.PICKED)
        relations.auxiliary(indices)
        return
    relations.pin(Axis(data, axis), Reason.INDEXED if constant_table(op, 1) is None else Reason.PICKED)
    for dim in range(width):
        relations.tie(Axis(indices, dim), Axis(y, axis + dim))


def _refit_gather(op: Op, refit: Refit) -> None:
    axis = op.int("axis", 0) % op.rank(op.input(0))
    source = Axis(op.input(0), axis)
    keep, found = refit.keep(source), _picked(op)
    if keep is None or found is None:
        return
    along, picked = found
    renumber = np.full(op.extent(source) or 0, -1, np.int64)
    renumber[keep] = np.arange(len(keep))
    kept = refit.keep(Axis(op.output(), axis + along))
    wanted = picked % len(renumber)
    shape = [1] * op.rank(op.input(1))
    shape[along] = -1
    refit.set_input(1, renumber[wanted if kept is None else wanted[kept]].reshape(shape))


# --- Pad -------------------------------------------------------------------------------------------------


def _pad_widths(op: Op) -> dict[int, tuple[int, int, int, int]] | None:
    """Per padded dim: entry of the width before, before, entry of the width after, after."""
    pads = op.ints("pads", 1)
    if pads is None or (op.has(3) and op.data(3) is None):
        return None
    axes = normalized(op.ints("axes", 3) or range(len(pads) // 2), op.rank(op.input(0)))
    n = len(axes)
    return {dim: (i, pads[i], n + i, pads[n + i]) for i, dim in enumerate(axes)}


def _pad(op: Op, relations: Relations) -> None:
    x, y = op.input(0), op.output()
    widths = _pad_widths(op)
    if widths is None:
        return
    for dim in range(op.rank(x)):
        a, b = Axis(x, dim), Axis(y, dim)
        _, before, _, after = widths.get(dim, (0, 0, 0, 0))
        if not before and not after:
            relations.tie(a, b)
        elif op.varies(1):
            relations.pin(a, Reason.DYNAMIC)
            relations.pin(b, Reason.DYNAMIC)
        elif op.str("mode", "constant") != "constant":
            relations.pin(a, Reason.ORDERED)
            relations.pin(b, Reason.ORDERED)
        else:
            m, n = op.extent(a) or 0, op.extent(b) or 0
            source = arange(m)
            inside = (source + before >= 0) & (source + before < n)
            relations.free(b)
            relations.tie(a, b, source[inside], source[inside] + before)
    if op.has(1):
        relations.auxiliary(op.input(1))


def _refit_pad(op: Op, refit: Refit) -> None:
    x, y = op.input(0), op.output()
    wanted = {}
    for dim, (i, before, j, after) in (_pad_widths(op) or {}).items():
        a, b = Axis(x, dim), Axis(y, dim)
        m, n = op.extent(a) or 0, op.extent(b) or 0
        if not op.dynamic(a) and not op.dynamic(b):
            wanted[i] = refit.count(b, 0, before) if before > 0 else -refit.count(a, 0, -before)
            wanted[j] = refit.count(b, n - after, n) if after > 0 else -refit.count(a, m + after, m)
    if op.has(1):
        refit.entries(1, wanted)
    elif any(refit.changed(axis) for axis in (*op.axes(x), *op.axes(y))):
        pads = op.ints("pads") or []
        refit.set_ints("pads", [wanted.get(entry, width) for entry, width in enumerate(pads)])


# --- Expand and Tile -------------------------------------------------------------------------------------


def _expand(op: Op, relations: Relations) -> None:
    x, y = op.input(0), op.output()
    for axis in op.axes(y):
        relations.free(axis)
    tie_broadcast(op, relations, x, y)
    relations.auxiliary(op.input(1))


def _refit_expand(op: Op, refit: Refit) -> None:
    y = op.output()
    target = op.dims(op.input(1))
    lead = op.rank(y) - (target[0] if target and target[0] is not None else 0)
    asked = op.ints("shape", 1)
    wanted = {}
    for axis in op.axes(y)[lead:]:
        entry = None if asked is None else asked[axis.dim - lead]
        if op.dynamic(axis) or entry == 1 or (entry is None and not refit.changed(axis)):
            continue  # a 1 leaves the extent to the input
        wanted[axis.dim - lead] = refit.extent(axis)
    refit.entries(1, wanted)


def _tile(op: Op, relations: Relations) -> None:
    x, y = op.input(0), op.output()
    for a, b in zip(op.axes(x), op.axes(y), strict=True):
        m, n = op.extent(a), op.extent(b)
        if m is None or n is None or m == 0:
            continue
        if m == 1 and n > 1:
            relations.free(b)
        else:
            relations.tie(a, b, arange(n) % m, arange(n))
    relations.auxiliary(op.input(1))


def _refit_tile(op: Op, refit: Refit) -> None:
    repeats = op.ints("repeats", 1)
    wanted = {}
    for a, b in zip(op.axes(op.input(0)), op.axes(op.output()), strict=True):
        if op.dynamic(a) or op.dynamic(b):
            continue
        if op.extent(a) == 1:
            wanted[b.dim] = refit.extent(b)
        elif repeats is not None:
            wanted[b.dim] = repeats[b.dim]
    refit.entries(1, wanted)


RULES: dict[Key, Rule] = {
    **table(Rule(_concat), "Concat"),
    **table(Rule(_split, _refit_split), "Split"),
    **table(Rule(_gather, _refit_gather, kinds={0: "embedding"}), "Gather"),
    **table(Rule(_pad, _refit_pad), "Pad"),
    **table(Rule(_expand, _refit_expand), "Expand"),
    **table(Rule(_tile, _refit_tile), "Tile"),
}
