"""Ways that only move data: which channel of a layer's output every position of a later tensor is.

Between a projection and the product of queries and keys lie Reshape, Transpose, Split and the like, and
multiplications by a scalar; in quantised models, numbers are rounded in between. They are followed with an array of
channel numbers, so that a head may be cut out of the channels in any way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.graph.axes import Index
from onnxprune.graph.build import AxisGraph
from onnxprune.model.rounding import limits
from onnxprune.model.uses import READS_SHAPE
from onnxprune.rules.op import Op
from onnxprune.statistics.consumers import Consumer

RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")

MOVES = (*RESHAPES, "Transpose", "Slice", "Gather", "Split")
"""Operators whose first input is moved about, and nothing else."""

SCALES = ("Mul", "Div")

QUANTISERS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, eq=False)
class Route:
    """The way from a layer to a tensor that holds some of its channels.

    Attributes
    ----------
    layer
        The projection.
    channel
        The shape of the tensor: which of the layer's output channels each position is.
    factor
        What the channels are multiplied by on the way; None: a scalar that is computed.
    steps
        The nodes on the way.
    """

    layer: Consumer
    channel: Index
    factor: float | None
    steps: tuple[ir.Node, ...] = ()

    @property
    def rounded(self) -> bool:
        """Whether the channels are rounded to stored numbers on the way, so that their range is bounded."""
        return any(step.op_type in QUANTISERS for step in self.steps)


class Router:
    """Finds routes in a model.

    Parameters
    ----------
    axis_graph
        Of the model; not mutated.
    layers
        Every layer that is a linear map.
    """

    def __init__(self, axis_graph: AxisGraph, layers: Mapping[ir.Value, Consumer]) -> None:
        self._dims = axis_graph.shapes.dims
        self._ops = {op.node: op for op in axis_graph.main_ops}
        self._made_by = {layer.y: layer for layer in layers.values()}

    def route(self, node: ir.Node, slot: int) -> Route | str:
        """The way to an input of a node, or why there is none along which a layer can be changed for it alone."""
        value = node.inputs[slot]
        steps: list[tuple[ir.Node, ir.Value]] = []
        while value is not None and value not in self._made_by:
            before = value.producer()
            source = None if before is None else self._carried(before)
            if before is None or source is None:
                what = "an input of the model" if before is None else before.op_type
                return f"there is {what} between it and the layer before it"
            steps.append((before, value))
            value = source
        if value is None:
            return "it has no input"
        layer = self._made_by[value]
        found = self._numbers(layer)
        if found is None:
            return f"the shape of {layer.label}'s output is not known"
        factor: float | None = 1.0
        for step, made in reversed(steps):
            moved = self._move(step, found)
            if moved is None:
                return f"what {step.op_type} {step.name!r} does is not known"
            found = moved[list(step.outputs).index(made)]
            scale = self._scale(step)
            factor = None if factor is None or scale is None else factor * scale
        others = self._others(layer, node, slot, found)
        way = tuple(step for step, _ in reversed(steps))
        return Route(layer, found, factor, way) if others is None else others

    def op(self, node: ir.Node) -> Op | None:
        """What is known about a node of the main graph."""
        return self._ops.get(node)

    def scales(self, node: ir.Node, slot: int) -> bool:
        """Whether a node multiplies this input by one number, or divides it."""
        return node.op_type in SCALES and self._carrier(node) == slot

    def _numbers(self, layer: Consumer) -> Index | None:
        """The channel of every position of a layer's output."""
        dims = self._known(layer.y)
        if dims is None:
            return None
        axis = 1 if layer.convolves else len(dims) - 1
        shape = [-1 if d == axis else 1 for d in range(len(dims))]
        return np.broadcast_to(np.arange(layer.outputs).reshape(shape), dims)

    def _known(self, value: ir.Value) -> tuple[int, ...] | None:
        dims = self._dims.get(value)
        if dims is None or any(d is None for d in dims):
            return None
        return tuple(int(d or 0) for d in dims)

    def _carried(self, node: ir.Node) -> ir.Value | None:
        """The input whose entries a node hands on, each multiplied by the same number at most."""
        if node.domain not in ("", "ai.onnx") or node not in self._ops:
            return None
        if node.op_type in MOVES or _is_rounding(node) or _quantises(node):
            return node.inputs[0]
        if node.op_type in SCALES:
            slot = self._carrier(node)
            return None if slot is None else node.inputs[slot]
        return None

    def _carrier(self, node: ir.Node) -> int | None:
        """The slot of a product or quotient whose other operand is one number."""
        for slot in (0, 1) if node.op_type == "Mul" else (0,):
            value, other = node.inputs[slot], node.inputs[1 - slot]
            if value is None or other is None or value.const_value is not None:
                continue
            single, dims = self._known(other), self._known(value)
            if single is not None and dims is not None and set(single) <= {1} and len(single) <= len(dims):
                return slot
        return None

    def _scale(self, node: ir.Node) -> float | None:
        if node.op_type not in SCALES:
            return 1.0
        other = node.inputs[1 - (self._carrier(node) or 0)]
        if other is None or other.const_value is None:
            return None
        number = float(np.ravel(other.const_value.numpy())[0])
        if number == 0 or not np.isfinite(number):
            return None
        return number if node.op_type == "Mul" else 1 / number

    def _move(self, node: ir.Node, array: Index) -> list[Index] | None:
        """What a node makes of an array, per output; None where that is not known."""
        op = self._ops[node]
        made = [self._known(value) for value in node.outputs]
        dims = [each for each in made if each is not None]
        if len(dims) < len(made) or (node.op_type not in SCALES and node.inputs[0] is None):
            return None
        moved = rearranged(op, array, dims)
        fits = moved is not None and [a.shape for a in moved] == dims
        return moved if fits else None

    def _others(self, layer: Consumer, node: ir.Node, slot: int, mine: Index) -> str | None:
        """Who else sees the channels that end at this input; None: nobody."""
        channels = np.unique(mine)
        numbers = self._numbers(layer)
        queue = [] if numbers is None else [(layer.y, numbers)]
        while queue:
            value, array = queue.pop()
            if not np.isin(array, channels).any():
                continue
            if value.is_graph_output():
                return f"{layer.label} makes the output {value.name!r}, too"
            for user, place in value.uses():
                if (user is node and place == slot) or user.op_type in READS_SHAPE:
                    continue
                moved = self._move(user, array) if self._carried(user) is value else None
                if moved is None:
                    return f"{user.op_type} {user.name!r} uses the same channels of {layer.label}"
                queue += zip(user.outputs, moved, strict=True)
        return None


def _is_rounding(node: ir.Node) -> bool:
    """Whether a node casts from one float type to another, as mixed precision does between any two layers."""
    if node.op_type != "Cast":
        return False
    kinds = [None if v is None else v.dtype for v in (node.inputs[0], node.outputs[0])]
    return all(kind is not None and kind.is_floating_point() for kind in kinds)


def _quantises(node: ir.Node) -> bool:
    """Whether a node rounds all entries with one scale, or says what such stored numbers mean.

    A range that ends at zero may stand for a Relu, which quantisers take out.
    """
    if node.op_type not in QUANTISERS or node.inputs[0] is None or node.inputs[1] is None:
        return False
    scale, zero = node.inputs[1].const_value, node.inputs[2] if len(node.inputs) > 2 else None
    point = None if zero is None else zero.const_value
    stored = (node.outputs if node.op_type == "QuantizeLinear" else node.inputs)[0]
    if scale is None or scale.size != 1 or stored is None or stored.dtype is None:
        return False
    if zero is not None and (point is None or point.size != 1):
        return False
    middle = 0.0 if point is None else float(point.numpy().ravel()[0])
    return middle not in limits(stored.dtype)


def rearranged(
    op: Op, array: np.ndarray[Any, Any], dims: Sequence[tuple[int, ...]]
) -> list[np.ndarray[Any, Any]] | None:
    """What an operator of `MOVES` or `SCALES`, or a Cast, makes of an array of numbers, scales left out.

    Parameters
    ----------
    op
        The node.
    array
        Of the extents of its first input.
    dims
        Extents of its outputs.

    Returns
    -------
    list or None
        One array per output; None where a size or an index is not known.
    """
    kind = op.node.op_type
    if kind in SCALES or kind == "Cast" or kind in QUANTISERS:
        return [array]
    if kind in RESHAPES:
        return [array.reshape(dims[0])] if array.size == np.prod(dims[0], dtype=np.int64) else None
    if kind == "Transpose":
        return [array.transpose(op.ints("perm") or list(range(array.ndim))[::-1])]
    axis = op.int("axis", 0)
    if kind == "Split":
        ends = np.cumsum([each[axis] for each in dims])[:-1]
        return list(np.split(array, ends, axis=axis))
    if kind == "Gather":
        index = op.data(1)
        return None if index is None else [np.take(array, index.astype(np.int64), axis=axis)]
    return _sliced(op, array)


def _sliced(op: Op, array: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]] | None:
    starts, ends = op.ints("starts", 1), op.ints("ends", 2)
    if starts is None or ends is None or (op.has(3) and op.data(3) is None):
        return None
    if op.has(4) and op.data(4) is None:
        return None
    axes = op.ints("axes", 3) or list(range(len(starts)))
    steps = op.ints("steps", 4) or [1] * len(starts)
    index: list[slice] = [slice(None)] * array.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 1:
            return None
        index[axis] = slice(start, end, step)
    return [array[tuple(index)]]
