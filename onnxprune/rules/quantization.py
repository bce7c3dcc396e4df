"""Operators that round activations to scaled integers and back.

Every position is rounded alone, so positions are tied as they are. Scales and zero points that differ along
an axis are cut with it. The range of DynamicQuantizeLinear is that of the whole tensor and of 0: units are
masked before it, so that what will be gone has no say in the range.

Specifications: https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html and, for the types of the domain
com.microsoft, https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxprune.errors import Reason
from onnxprune.graph.axes import Axis
from onnxprune.rules.helpers import tie_axes
from onnxprune.rules.rule import QUANTIZER, Key, Rule, table

if TYPE_CHECKING:
    from onnxprune.graph.relations import Relations
    from onnxprune.model.shapes import Inferred
    from onnxprune.rules.op import Op


def _round(op: Op, relations: Relations) -> None:
    x, y = op.input(0), op.output()
    axis, block = op.int("axis", 1), op.int("block_size", 0)
    rank = op.rank(x)
    axis += rank if axis < 0 else 0
    differs = [value for value in op.node.inputs[1:] if value is not None and op.rank(value) > 0]
    pinned: tuple[int, ...] = ()
    if any(
        op.rank(value) != 1 for value in differs
    ):  # one scale per block of the axis, and per position of others
        if not block or not all(op.rank(value) == rank for value in differs):
            return
        pinned = (axis,)
        for value in differs:
            tie_axes(op, relations, value, y, skip=pinned)
            relations.pin(Axis(value, axis), Reason.QUANTIZED)
        relations.pin(Axis(x, axis), Reason.QUANTIZED)
        relations.pin(Axis(y, axis), Reason.QUANTIZED)
    elif any(op.extent(Axis(value, 0)) != 1 for value in differs):
        for value in differs:
            relations.tie(Axis(value, 0), Axis(y, axis))
    else:
        for value in differs:  # one number
            relations.pin(Axis(value, 0), Reason.AUXILIARY)
    tie_axes(op, relations, x, y, skip=pinned)


def _round_dynamically(op: Op, relations: Relations) -> None:
    x = op.input(0)
    tie_axes(op, relations, x, op.output())
    for axis in op.axes(x):
        if not op.dynamic(axis):
            relations.isolate(axis)


def _dynamic_extents(op: Op) -> list[Inferred]:
    dims = op.dims(op.input(0))
    return (
        [] if dims is None else [(dims, ir.DataType.UINT8), ((), ir.DataType.FLOAT), ((), ir.DataType.UINT8)]
    )


def _quantized(op: Op) -> list[Inferred]:
    dims = op.dims(op.input(0))
    zero = op.input(2).dtype if op.has(2) else ir.DataType.UINT8
    return [] if dims is None else [(dims, zero)]


def _dequantized(op: Op) -> list[Inferred]:
    dims = op.dims(op.input(0))
    return [] if dims is None else [(dims, op.input(1).dtype)]


_KINDS = {1: QUANTIZER, 2: QUANTIZER}

RULES: dict[Key, Rule] = {
    **table(Rule(_round, kinds=_KINDS), "QuantizeLinear", "DequantizeLinear"),
    **table(Rule(_round, kinds=_KINDS, extents=_quantized), "QuantizeLinear", domain="com.microsoft"),
    **table(Rule(_round, kinds=_KINDS, extents=_dequantized), "DequantizeLinear", domain="com.microsoft"),
    **table(Rule(_round_dynamically, extents=_dynamic_extents), "DynamicQuantizeLinear"),
}
