"""VJPs of data movement along an axis: what was taken goes back, what was repeated is summed."""

from __future__ import annotations

import numpy as np

from onnxprune.rules.backward import Backward, Vjp
from onnxprune.rules.expr import Expr, vector
from onnxprune.rules.op import Op, normalized
from onnxprune.rules.rule import Key
from onnxprune.rules.vjp.scatter import put_back, put_back_run, scatter

# --- Concat and Split --------------------------------------------------------------------------------------


def _concat(op: Op, back: Backward) -> None:
    axis = op.int("axis", 0) % back.rank(op.output())
    start: Expr | int = 0
    for slot, part in enumerate(op.node.inputs):
        if part is None:
            continue
        end = _plus(back, start, back.extent(part, axis))
        if back.wants(slot):
            back.give(slot, back.g.slice(axis, start, end) if len(op.node.inputs) > 1 else back.g)
        start = end


def _plus(back: Backward, a: Expr | int, b: Expr | int) -> Expr | int:
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    if a == 0:
        return b
    ints = back.builder.ints
    return (ints(a) if isinstance(a, int) else a) + (ints(b) if isinstance(b, int) else b)


def _minus(back: Backward, a: Expr | int, *others: Expr | int) -> Expr | int:
    ints = back.builder.ints
    for b in others:
        if isinstance(a, int) and isinstance(b, int):
            a = a - b
        elif b != 0:
            a = (ints(a) if isinstance(a, int) else a) - (ints(b) if isinstance(b, int) else b)
    return a


def _split(op: Op, back: Backward) -> None:
    axis = op.int("axis", 0) % back.rank(op.input(0))
    parts = [
        back.gradient(slot) or back.builder.zeros(back.shape(part))
        for slot, part in enumerate(op.node.outputs)
    ]
    back.give(0, back.builder.concat(parts, axis))


# --- Slice -------------------------------------------------------------------------------------------------


def _slice(op: Op, back: Backward) -> None:
    x, y = op.input(0), op.output()
    rank = back.rank(x)
    starts, steps, axes = op.ints("starts", 1), op.ints("steps", 4), op.ints("axes", 3)
    count = back.dims(op.input(1))[0]
    if (op.has(3) and axes is None) or (op.has(4) and steps is None) or count is None:
        raise back.refusal("its axes or steps are known at run time only")
    axes = normalized(axes or range(count), rank)
    runs: dict[int, tuple[Expr | int, Expr | int]] = {}
    others: dict[int, tuple[int, int]] = {}
    for entry, (axis, step) in enumerate(zip(axes, steps or [1] * count, strict=True)):
        if step == 1 and starts is not None and not op.varies(1):
            extent = back.extent(x, axis)
            before = _first(back, starts[entry], extent)
            runs[axis] = (before, _minus(back, extent, before, back.extent(y, axis)))
        else:
            others[axis] = (entry, step)
    g = put_back_run(back.g, runs, rank)
    for number, (axis, (entry, step)) in enumerate(others.items()):
        g = _strided(back, g, axis, entry, step, alone=number == len(others) - 1)
    back.give(0, g)


def _first(back: Backward, start: int, extent: Expr | int) -> Expr | int:
    """The first position that is taken."""
    if isinstance(extent, int):
        return min(max(start + extent if start < 0 else start, 0), extent)
    ints = back.builder.ints
    if start == 0:
        return 0
    if start > 0:
        return extent.op("Min", ints(start))
    return (extent + ints(start)).op("Max", ints(0))


def _strided(back: Backward, g: Expr, axis: int, entry: int, step: int, *, alone: bool) -> Expr:
    """Put back what was taken along one axis with a step, or from a start that is known at run time.

    `alone`: all other axes have the extents of the input.
    """
    op = back.op
    x = op.input(0)
    starts, ends = op.ints("starts", 1), op.ints("ends", 2)
    extent = back.dims(x)[axis]
    if extent is not None and starts is not None and ends is not None and not op.varies(1, 2):
        stop = None if step < 0 and ends[entry] < -extent else ends[entry]
        positions = np.arange(*slice(starts[entry], stop, step).indices(extent), dtype=np.int64)
        return put_back(back, g, x, axis, positions)  # they are unique: it does not look at other axes
    if not alone:
        raise back.refusal("it slices several axes in a way that is known at run time only")
    every = _range(back, back.extent(x, axis))
    bounds = [_entry(back, slot, entry) for slot in (1, 2)]
    taken = every.op("Slice", *bounds, back.builder.ints(0), back.builder.ints(step))
    return scatter(back, g, x, axis, taken, 1)


def _entry(back: Backward, slot: int, entry: int) -> Expr:
    return back.x(slot).slice(0, entry, entry + 1)


def _range(back: Backward, extent: Expr | int) -> Expr:
    constant = back.builder.constant
    if isinstance(extent, int):
        return constant(np.arange(extent, dtype=np.int64))
    return constant(np.int64(0)).op("Range", extent.squeeze(0), constant(np.int64(1)))


# --- Pad, Expand, Tile -------------------------------------------------------------------------------------


def _pad(op: Op, back: Backward) -> None:
    x = op.input(0)
    rank = back.rank(x)
    mode = op.str("mode", "constant")
    if mode == "constant":
        back.give(0, back.g.op("Pad", -back.x(1), 0.0, back.x(3) if op.has(3) else None))
        return
    pads = op.ints("pads", 1)
    axes = op.ints("axes", 3)
    if pads is None or op.varies(1) or (op.has(3) and axes is None):
        raise back.refusal("how much it pads is known at run time only")
    axes = normalized(axes or range(rank), rank)
    widths = dict(zip(axes, zip(pads, pads[len(axes) :], strict=False), strict=True))
    g = back.g
    for axis, (before, after) in widths.items():
        if before or after:
            g = _padded_axis(back, g, axis, before, after, mode)
    back.give(0, g)


def _padded_axis(back: Backward, g: Expr, axis: int, before: int, after: int, mode: str) -> Expr:
    """Add what was copied into the pads of one axis: multiply with what Pad makes of an identity matrix."""
    value = back.op.input(0)
    matrix = identity_matrix(back, back.extent(value, axis))
    moved = matrix.op("Pad", back.builder.ints(before, 0, after, 0), mode=mode)
    return along(g, axis, back.rank(value), moved)


def identity_matrix(back: Backward, extent: Expr | int) -> Expr:
    """As many rows and columns as an axis has positions."""
    if isinstance(extent, int):
        return back.builder.constant(np.eye(extent, dtype=np.float32))
    return back.builder.zeros(vector(back.builder, [extent, extent])).op("EyeLike")


def along(g: Expr, axis: int, rank: int, matrix: Expr) -> Expr:
    """Multiply one axis by a matrix (old positions, new positions)."""
    if axis == rank - 1:
        return g @ matrix
    if axis == rank - 2:
        return matrix.transpose([1, 0]) @ g
    order = [dim for dim in range(rank) if dim != axis] + [axis]
    return (g.transpose(order) @ matrix).transpose([order.index(dim) for dim in range(rank)])


def _expand(op: Op, back: Backward) -> None:
    back.give_fitted(0, back.g)


def _tile(op: Op, back: Backward) -> None:
    x, y = op.input(0), op.output()
    parts: list[Expr | int] = []
    for dim, (a, b) in enumerate(zip(back.dims(x), back.dims(y), strict=True)):
        repeats = _entry(back, 1, dim) if a is None or b is None or not a else b // a
        parts += [repeats, back.extent(x, dim)]
    apart = back.g.reshape(vector(back.builder, parts))
    back.give(0, apart.sum(*range(0, len(parts), 2), keep=False))


def _trilu(op: Op, back: Backward) -> None:
    back.give(0, back.g.op("Trilu", back.x(1) if op.has(1) else None, upper=op.int("upper", 1)))


def _reverse(op: Op, back: Backward) -> None:
    axes = {"batch_axis": op.int("batch_axis", 1), "time_axis": op.int("time_axis", 0)}
    back.give(0, back.g.op("ReverseSequence", back.x(1), **axes))


VJPS: dict[Key, Vjp] = {
    ("", "Concat"): _concat,
    ("", "Split"): _split,
    ("", "Slice"): _slice,
    ("", "Pad"): _pad,
    ("", "Expand"): _expand,
    ("", "Tile"): _tile,
    ("", "Trilu"): _trilu,
    ("", "ReverseSequence"): _reverse,
}
