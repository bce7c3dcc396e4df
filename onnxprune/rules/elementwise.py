"""Operators that treat every position alone: unary, binary with broadcasting, selections between operands.

Specification of broadcasting: https://onnx.ai/onnx/repo-docs/Broadcasting.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxprune.rules.helpers import tie_axes, tie_broadcast
from onnxprune.rules.rule import Key, Rule, table

if TYPE_CHECKING:
    from onnxprune.graph.relations import Relations
    from onnxprune.model.shapes import Inferred
    from onnxprune.rules.op import Op

UNARY = [
    "Abs",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BitCast",
    "BitwiseNot",
    "Cast",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Cosh",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Not",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
]
BINARY = [
    "Add",
    "And",
    "BitShift",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Or",
    "PRelu",
    "Pow",
    "Sub",
    "Sum",
    "Where",
    "Xor",
]
_KINDS = {"Add": "bias", "Sub": "bias", "Sum": "bias", "Mul": "scale", "Div": "scale", "PRelu": "slope"}


def _unary(op: Op, relations: Relations) -> None:
    for output in op.node.outputs:
        tie_axes(op, relations, op.input(0), output)


def _broadcasting(op: Op, relations: Relations) -> None:
    if "broadcast" in op.node.attributes:  # before opset 7, aligned by an attribute
        return
    for value in op.node.inputs:
        if value is not None:
            tie_broadcast(op, relations, value, op.output())


def _cast_like(op: Op, relations: Relations) -> None:
    tie_axes(op, relations, op.input(0), op.output())
    for axis in op.axes(op.input(1)):  # only its type is looked at
        relations.free(axis)


def _compared(op: Op) -> list[Inferred]:
    """Operands broadcast against each other; opsets 12 to 15 have no inference for two of the comparisons."""
    shapes = [op.dims(value) for value in op.node.inputs if value is not None]
    known = [
        tuple(extent or 0 for extent in dims) for dims in shapes if dims is not None and None not in dims
    ]
    if len(known) < len(shapes):
        return []
    try:
        return [(np.broadcast_shapes(*known), ir.DataType.BOOL)]
    except ValueError:
        return []


def _dropped(op: Op) -> list[Inferred]:
    """Output and mask are like the input; before opset 10 onnx infers no shape of the mask."""
    dims, dtype = op.dims(op.input(0)), op.input(0).dtype
    return [] if dims is None else [(dims, dtype), (dims, dtype if op.opset < 10 else ir.DataType.BOOL)]


def _rule(op_type: str) -> Rule:
    kind = _KINDS.get(op_type)
    extents = _compared if op_type in ("GreaterOrEqual", "LessOrEqual") else None
    return Rule(_broadcasting, kinds={} if kind is None else dict.fromkeys(range(8), kind), extents=extents)


RULES: dict[Key, Rule] = {
    **table(Rule(_unary), *UNARY),
    **{("", op_type): _rule(op_type) for op_type in BINARY},
    **table(Rule(_cast_like), "CastLike"),
    **table(Rule(_unary, extents=_dropped), "Dropout"),
}
