"""Integers of a value of floats, when an operator is put together again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.model import edit
from onnxprune.model.integer.parts import NotThisForm, Quantized, array_of, is_constant, one_value, only_user

Array = np.ndarray[Any, Any]

_SAME = 1e-6
"""Scales that differ by less, relatively, are the same number, rounded on two ways."""


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


def requantized_bias(graph: ir.Graph, value: ir.Value, product: Array) -> ir.Value:
    """A bias as int32 at the scale of the sum that it is added to; the same integers where the scale is the same.

    Parameters
    ----------
    graph
        Gets an initializer where the integers change.
    value
        A bias of floats: of a DequantizeLinear, or an initializer.
    product
        The scale of the sum: a number, or one for each position of the last axis.
    """
    found = behind(value)
    scale = product.reshape(()) if product.size == 1 else product
    if found is None:
        floats, name = array_of(value, "the bias"), f"{value.name}_quantized"
    else:
        integers, old = array_of(found.integers, "the bias"), array_of(found.scale, "the scale of the bias")
        plain = found.zero is None or not array_of(found.zero, "a zero point").any()
        kept = found.integers.dtype == ir.DataType.INT32 and plain
        if kept and old.size in (1, scale.size) and np.allclose(old, scale, rtol=_SAME, atol=0):
            return found.integers
        zero = 0 if found.zero is None else array_of(found.zero, "a zero point").astype(np.int64)
        floats, name = (integers.astype(np.int64) - zero) * old.astype(np.float64), str(found.integers.name)
    limits = np.iinfo(np.int32)
    whole = np.clip(np.rint(floats.astype(np.float64) / scale), limits.min, limits.max)
    if found is not None and found.integers.dtype == ir.DataType.INT32 and only_user(found.integers):
        edit.set_array(found.integers, whole)
        return found.integers
    return edit.add_initializer(graph, name, whole.astype(np.int32), ir.DataType.INT32)
