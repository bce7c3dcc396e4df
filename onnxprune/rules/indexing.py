"""Positions that are chosen by index tensors or by values, known or at run time.

The axes that indices address keep all positions; the others pass through data, indices, updates and output.
A gathered list may lose entries with its indices. A scattered one may not: an entry that is gone would leave
the old value in its place. Where a constant table of ScatterND is a grid (`onnxprune.rules.grids`), a written
position goes with the entry that is written there.

Specification: https://onnx.ai/onnx/operators/onnx__GatherElements.html,
https://onnx.ai/onnx/operators/onnx__GatherND.html, https://onnx.ai/onnx/operators/onnx__ScatterElements.html,
https://onnx.ai/onnx/operators/onnx__ScatterND.html, https://onnx.ai/onnx/operators/onnx__TensorScatter.html,
https://onnx.ai/onnx/operators/onnx__NonMaxSuppression.html and their neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune.errors import Reason
from onnxprune.graph.axes import Axis
from onnxprune.rules.grids import Line, constant_table, read_grid, refit_grid
from onnxprune.rules.helpers import arange, tie_axes
from onnxprune.rules.pins import pin_all, pin_dims
from onnxprune.rules.rule import Key, Rule, table

if TYPE_CHECKING:
    from onnxprune.graph.relations import Relations
    from onnxprune.rules.op import Op
    from onnxprune.rules.refit import Refit


def _tie_first(op: Op, relations: Relations, short: Axis, long: Axis) -> None:
    """Tie all positions of `short` to the first ones of `long`."""
    extent = op.extent(short)
    if extent is None or extent == op.extent(long):
        relations.tie(short, long)
    else:
        relations.tie(short, long, arange(extent), arange(extent))


# --- element by element ----------------------------------------------------------------------------------


def _gather_elements(op: Op, relations: Relations) -> None:
    data, indices, y = op.input(0), op.input(1), op.output()
    axis = op.int("axis", 0) % op.rank(data)
    tie_axes(op, relations, indices, y)
    for dim in range(op.rank(data)):
        if dim != axis:
            _tie_first(op, relations, Axis(indices, dim), Axis(data, dim))
    relations.pin(Axis(data, axis), Reason.INDEXED)


def _scatter_elements(op: Op, relations: Relations) -> None:
    data, indices, updates, y = op.input(0), op.input(1), op.input(2), op.output()
    axis = op.int("axis", 0) % op.rank(data)
    tie_axes(op, relations, data, y, skip=(axis,))
    tie_axes(op, relations, indices, updates, skip=(axis,))
    for dim in range(op.rank(data)):
        if dim != axis:
            _tie_first(op, relations, Axis(updates, dim), Axis(data, dim))
    for value in (data, indices, updates, y):
        relations.pin(Axis(value, axis), Reason.INDEXED)


# --- slice by slice --------------------------------------------------------------------------------------


def _gather_nd(op: Op, relations: Relations) -> None:
    data, indices, y = op.input(0), op.input(1), op.output()
    last = op.rank(indices) - 1
    width = op.extent(Axis(indices, last))
    relations.pin(Axis(indices, last), Reason.AUXILIARY)
    if width is None:
        return
    batch = op.int("batch_dims", 0)
    for dim in range(last):
        relations.tie(Axis(indices, dim), Axis(y, dim))
    for dim in range(batch):
        relations.tie(Axis(data, dim), Axis(y, dim))
    pin_dims(relations, data, range(batch, batch + width), Reason.INDEXED)
    for dim in range(batch + width, op.rank(data)):
        relations.tie(Axis(data, dim), Axis(y, last + dim - batch - width))


def _scatter_nd(op: Op, relations: Relations) -> None:
    data, indices, updates, y = op.input(0), op.input(1), op.input(2), op.output()
    last = op.rank(indices) - 1
    width = op.extent(Axis(indices, last))
    relations.pin(Axis(indices, last), Reason.AUXILIARY)
    if width is None:
        return
    for dim in range(width, op.rank(data)):
        relations.tie(Axis(data, dim), Axis(y, dim))
        relations.tie(Axis(updates, last + dim - width), Axis(y, dim))
    lines = _written(op)
    if lines is None:
        reason = Reason.INDEXED if constant_table(op, 1) is None else Reason.PICKED
        for value, count in ((indices, last), (updates, last), (data, width), (y, width)):
            pin_dims(relations, value, range(count), reason)
        return
    relations.auxiliary(indices)
    pin_dims(relations, updates, (d for d in range(last) if op.extent(Axis(updates, d)) == 1), Reason.PICKED)
    for dim, line in enumerate(lines):
        source, target = Axis(data, dim), Axis(y, dim)
        relations.tie(source, target)
        if line.along is None:
            relations.pin(source, Reason.PICKED)
            relations.pin(target, Reason.PICKED)
        else:
            updated = Axis(updates, line.along)
            relations.tie(updated, target, arange(len(line.positions)), line.positions)


def _written(op: Op) -> tuple[Line, ...] | None:
    """What a ScatterND writes along each axis that it addresses; None where its table is no constant grid."""
    places, extents = constant_table(op, 1), op.dims(op.input(0)) or ()
    return None if places is None else read_grid(places, extents[: places.shape[-1]])


def _refit_scatter_nd(op: Op, refit: Refit) -> None:
    lines = _written(op)
    if lines is not None:
        steps = op.axes(op.input(2))[: op.rank(op.input(1)) - 1]
        refit_grid(op, refit, 1, op.axes(op.output())[: len(lines)], steps)


def _tensor_scatter(op: Op, relations: Relations) -> None:
    """A write into a cache, at another place along `axis` for every sample."""
    cache, update, y = op.input(0), op.input(1), op.output()
    axis = op.int("axis", -2) % op.rank(cache)
    tie_axes(op, relations, cache, y, skip=(axis,))
    tie_axes(op, relations, update, y, skip=(axis,))
    for value in (cache, update, y):
        relations.pin(Axis(value, axis), Reason.INDEXED)
    if op.has(2):
        relations.tie(Axis(op.input(2), 0), Axis(y, 0))


def _one_hot(op: Op, relations: Relations) -> None:
    indices, y = op.input(0), op.output()
    axis = op.int("axis", -1) % op.rank(y)
    for dim in range(op.rank(indices)):
        relations.tie(Axis(indices, dim), Axis(y, dim if dim < axis else dim + 1))
    relations.pin(Axis(y, axis), Reason.INDEXED)
    pin_all(op, relations, op.node.inputs[1:], Reason.AUXILIARY)


# --- by value: how many positions there are is known at run time only -------------------------------------


def _compress(op: Op, relations: Relations) -> None:
    x, condition, y = op.input(0), op.input(1), op.output()
    relations.pin(Axis(condition, 0), Reason.INDEXED)
    if "axis" not in op.node.attributes:  # the tensor is flattened first
        pin_all(op, relations, (x,), Reason.INDEXED)
        pin_all(op, relations, (y,), Reason.DYNAMIC)
        return
    axis = op.int("axis", 0) % op.rank(x)
    tie_axes(op, relations, x, y, skip=(axis,))
    relations.pin(Axis(x, axis), Reason.INDEXED)
    relations.pin(Axis(y, axis), Reason.DYNAMIC)


def _find(op: Op, relations: Relations) -> None:
    """NonZero and Unique: the results are positions, and as many as there happen to be."""
    pin_all(op, relations, op.node.inputs, Reason.SELECTED)
    pin_all(op, relations, op.outputs, Reason.DYNAMIC)


def _suppress(op: Op, relations: Relations) -> None:
    boxes, scores = op.input(0), op.input(1)
    pin_all(op, relations, (boxes, scores), Reason.SELECTED)
    pin_all(op, relations, op.node.inputs[2:], Reason.AUXILIARY)
    pin_all(op, relations, op.outputs, Reason.DYNAMIC)


RULES: dict[Key, Rule] = {
    **table(Rule(_gather_elements), "GatherElements"),
    **table(Rule(_scatter_elements), "ScatterElements", "Scatter"),
    **table(Rule(_gather_nd), "GatherND"),
    **table(Rule(_scatter_nd, _refit_scatter_nd), "ScatterND"),
    **table(Rule(_tensor_scatter), "TensorScatter"),
    **table(Rule(_one_hot), "OneHot"),
    **table(Rule(_compress), "Compress"),
    **table(Rule(_find), "NonZero", "Unique"),
    **table(Rule(_suppress), "NonMaxSuppression"),
}
