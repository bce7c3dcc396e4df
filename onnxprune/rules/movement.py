"""Data movement along an axis: Concat, Split, Slice, Gather, Pad, Expand, Tile.

Each is an index array: position j of the output is position `index[j]` of an input. What carries an extent or
a position (Split sizes, Slice ends, Pad widths, Gather indices) is refitted.

Specification: https://onnx.ai/onnx/operators/onnx__Concat.html and its neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxprune.errors import Reason
from onnxprune.graph.axes import Axis, Index
from onnxprune.rules.helpers import arange, tie_axes, tie_broadcast
from onnxprune.rules.op import normalized
from onnxprune.rules.rule import Key, Rule, table

if TYPE_CHECKING:
    from onnxprune.graph.relations import Relations
    from onnxprune.rules.op import Op
    from onnxprune.rules.refit import Refit


# --- Concat and Split ------------------------------------------------------------------------------------


def _concat(op: Op, relations: Relations) -> None:
    y = op.output()
    axis = op.int("axis", 0) % op.rank(y)
    offset = 0
    for value in op.node.inputs:
        if value is None:
            continue
        tie_axes(op, relations, value, y, skip=(axis,))
        part = Axis(value, axis)
        extent = op.extent(part)
        if extent is None:
            relations.pin(Axis(y, axis), Reason.UNKNOWN_SHAPE)
            return
        relations.tie(part, Axis(y, axis), arange(extent), arange(extent) + offset)
        offset += extent


def _split(op: Op, relations: Relations) -> None:
    x = op.input(0)
    axis = op.int("axis", 0) % op.rank(x)
    offset = 0
    for part in op.node.outputs:
        tie_axes(op, relations, x, part, skip=(axis,))
        extent = op.extent(Axis(part, axis))
        if extent is None:
            relations.pin(Axis(x, axis), Reason.UNKNOWN_SHAPE)
            return
        relations.tie(Axis(part, axis), Axis(x, axis), arange(extent), arange(extent) + offset)
        offset += extent


def _refit_split(op: Op, refit: Refit) -> None:
    axis = op.int("axis", 0) % op.rank(op.input(0))
    parts = [Axis(part, axis) for part in op.node.outputs]
    sizes = [refit.extent(part) for part in parts]
    if op.opset >= 13 and op.has(1):
        refit.entries(1, {i: size for i, size in enumerate(sizes) if not op.dynamic(parts[i])})
    elif any(refit.changed(part) for part in parts):
        if op.opset >= 13:
            refit.set_input(1, np.array(sizes, np.int64))
            refit.drop_attribute("num_outputs")
        else:
            refit.set_ints("split", sizes)


# --- Slice -----------------------------------------------------------------------------------------------


def _slice_spans(op: Op) -> dict[int, tuple[int, int, int, int]] | None:
    """Per sliced dim: entry in starts/ends, start, stop, step; None where they are not known."""
    starts, ends = op.ints("starts", 1), op.ints("ends", 2)
    if (
        starts is None
        or ends is None
        or (op.has(3) and op.data(3) is None)
        or (op.has(4) and op.data(4) is None)
    ):
        return None
    x = op.input(0)
    axes = normalized(op.ints("axes", 3) or range(len(starts)), op.rank(x))
    steps = op.ints("steps", 4) or [1] * len(starts)
    spans = {}
    for entry, (dim, start, end, step) in enumerate(zip(axes, starts, ends, steps, strict=True)):
        extent = op.extent(Axis(x, dim))
        if extent is None or step == 0:
            return None
        lower = None if step < 0 and end < -extent else end
        spans[dim] = (entry, *slice(start, lower, step).indices(extent))
    return spans


def _slice(op: Op, relations: Relations) -> None:
    x, y = op.input(0), op.output()
    spans = _slice_spans(op)
    if spans is None:
        return
    tie_axes(op, relations, x, y, skip=tuple(spans))
    for dim, (_, start, stop, step) in spans.items():
        source = np.arange(start, stop, step, dtype=np.int64)
        if op.varies(1, 2, 3, 4):  # another input takes other positions
            relations.pin(Axis(x, dim), Reason.DYNAMIC)
            relations.pin(Axis(y, dim), Reason.DYNAMIC)
        elif step != 1:  # what is kept need not be evenly spaced any more
            relations.pin(Axis(x, dim), Reason.ORDERED)
            relations.pin(Axis(y, dim), Reason.ORDERED)
        else:
            relations.tie(Axis(x, dim), Axis(y, dim), source, arange(len(source)))


def _refit_slice(op: Op, refit: Refit) -> None:
    x = op.input(0)
    starts, ends = op.ints("starts", 1), op.ints("ends", 2)
    if starts is None or ends is None:
        return
    for dim, (entry, start, stop, _) in (_slice_spans(op) or {}).items():
        axis = Axis(x, dim)
        extent = op.extent(axis) or 0
        keep = refit.keep(axis)
        if keep is None:
            continue
        starts[entry] = int((keep < start).sum())
        if ends[entry] <= extent:  # beyond, it means "to the end"
            ends[entry] = int((keep < stop).sum())
    fixed = [dim for dim in range(op.rank(x)) if not op.dynamic(Axis(x, dim))]
    entries = [entry for dim, (entry, *_) in (_slice_spans(op) or {}).items() if dim in fixed]
    if op.has(1):
        refit.entries(1, {entry: starts[entry] for entry in entries})
        refit.entries(2, {entry: ends[entry] for entry in entries})
    elif any(refit.changed(axis) for axis in op.axes(x)):
        refit.set_ints("starts", starts)
        refit.set_ints("ends", ends)


def _merged(old: list[int], changes: dict[int, int]) -> list[int]:
    return [changes.get(i, v) for i, v in enumerate(old)]


# --- Gather ----------------------------------------------------------------------------------------------


def _gather(op: Op, relations: Relations) -> None:
    data, indices, y = op.input(0), op.input(1), op.output()
    axis = op.int("axis", 0) % op.rank(data)
    width = op.rank(indices)
    for dim in range(op.rank(data)):
        if dim != axis:
            relations.tie(Axis(data, dim), Axis(y, dim if dim < axis else dim + width - 1))
    picked = op.data(1)
    if picked is None:
        relations.pin(Axis(data, axis), Reason.INDEXED)
        for dim in range(width):
            relations.tie(Axis(indices, dim), Axis(y, axis + dim))
    elif width == 1 and op.is_constant(1):
        source: Index = np.asarray(picked, np.int64) % (op.extent(Axis(data, axis)) or 1)
        relations.tie(Axis(data, axis), Axis(y, axis), source, arange(len(source)))
        relations.auxiliary(indices)
    else:
        relations.pin(Axis(data, axis), Reason.SELECTED)


def _refit_gather(op: Op, refit: Refit) -> None:
    axis = op.int("axis", 0) % op.rank(op.input(0))
    source, target = Axis(op.input(0), axis), Axis(op.output(), axis)
    keep = refit.keep(source)
    picked = op.data(1)
    if keep is None or picked is None:
        return
    renumber = np.full(op.extent(source) or 0, -1, np.int64)
    renumber[keep] = np.arange(len(keep))
    kept = refit.keep(target)
    wanted = np.asarray(picked, np.int64) % len(renumber)
    refit.set_input(1, renumber[wanted if kept is None else wanted[kept]])


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
        refit.set_ints("pads", _merged(op.ints("pads") or [], wanted))


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
    **table(Rule(_slice, _refit_slice), "Slice"),
    **table(Rule(_gather, _refit_gather, kinds={0: "embedding"}), "Gather"),
    **table(Rule(_pad, _refit_pad), "Pad"),
    **table(Rule(_expand, _refit_expand), "Expand"),
    **table(Rule(_tile, _refit_tile), "Tile"),
}
