"""Integers of a value of floats, when an operator is put together again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.model import edit
from onnxprune.model.integer.parts import NotThisForm, Quantized, is_constant, one_value


@dataclass(frozen=True)
class Operand:
    """An input of an operator, and the integers that it comes from.

    Attributes
    ----------
    value
        What the operator reads.
    source
        Integers, scale and zero point of a DequantizeLinear.
    selected
        Whether positions were taken or zeroed after that.
    """

    value: ir.Value
    source: Quantized
    selected: bool


def locate(node: ir.Node, slot: int) -> Operand:
    """The integers behind an input: of a DequantizeLinear, or of one before masks and what refitting added."""
    value = node.inputs[slot] if slot < len(node.inputs) else None
    start, source = value, behind(value)
    while source is None and start is not None:
        between = start.producer()
        if between is None or not _selects(between):
            break
        start = between.inputs[0]
        source = behind(start)
    selected = start is not value
    if value is None or source is None or (selected and not one_value(source.scale)):
        raise NotThisForm("an operand is not quantised")
    if selected and source.integers.dtype is None and source.zero is None:
        raise NotThisForm("the type of an operand is not known")
    return Operand(value, source, selected)


def _selects(node: ir.Node) -> bool:
    """Whether a node takes positions or multiplies by zeros and ones: values stay on their grid."""
    if node.domain or node.op_type not in ("Mul", "Gather") or not is_constant(node.inputs[1]):
        return False
    factors = node.inputs[1]
    data = None if factors is None else factors.const_value
    return node.op_type == "Gather" or (data is not None and bool(np.isin(data.numpy(), (0, 1)).all()))


def integers_of(graph: ir.Graph, node: ir.Node, operand: Operand) -> Quantized:
    """The integers that an operator is to read instead; exact, because the values are on the grid."""
    source = operand.source
    if not operand.selected:
        return source
    dtype, zero = source.integers.dtype or (source.zero.dtype if source.zero else None), source.zero
    if zero is None and dtype is not None:
        name = f"{operand.value.name}/zero_point"
        zero = edit.add_initializer(graph, name, np.zeros((), dtype.numpy()), dtype)
    out = ir.Value(
        name=edit.fresh(graph, f"{operand.value.name}/quantized"),
        type=None if dtype is None else ir.TensorType(dtype),
    )
    name = edit.fresh(graph, f"{out.name}/QuantizeLinear")
    graph.insert_before(
        node, ir.Node("", "QuantizeLinear", [operand.value, source.scale, zero], outputs=[out], name=name)
    )
    return Quantized(out, source.scale, zero)


def behind(value: ir.Value | None) -> Quantized | None:
    """Integers, scale and zero point where a DequantizeLinear makes the value."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear" or node.domain:
        return None
    integers, scale = node.inputs[0], node.inputs[1]
    if integers is None or scale is None:
        return None
    return Quantized(integers, scale, node.inputs[2] if len(node.inputs) > 2 else None)
