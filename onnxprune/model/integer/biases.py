"""Biases of operators of integers: rounded to the scale that an operator takes for granted, or added behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.model import edit
from onnxprune.model.integer.forms import CONTRIB
from onnxprune.model.integer.fused import biased
from onnxprune.model.integer.grid import behind
from onnxprune.model.integer.parts import array_of, one_value
from onnxprune.model.uses import only_user

Array = np.ndarray[Any, Any]

_SAME = 1e-6
"""Scales that differ by less, relatively, are the same number, rounded on two ways."""


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


def round_before_bias(graph: ir.Graph, core: ir.Node) -> None:
    """Round a product of a QLinearMatMul, which has no bias, before the one that it got is added.

    The scale is the one that the file has for the product, so the sum needs no other. Where the file has
    onnxruntime's operators, the bias is stored in 8 bits, so that the sum is a QLinearAdd.
    """
    add, bias = biased(core)
    last = None if bias is None else only_user(add.outputs[0])
    if bias is None or last is None or last.op_type != "QuantizeLinear" or last.domain:
        return
    if not one_value(last.inputs[1]) or (len(last.inputs) > 2 and not one_value(last.inputs[2])):
        return
    slot = 0 if add.inputs[1] is bias else 1
    name = f"{core.outputs[0].name}/rounded"
    integers = _put(graph, add, "QuantizeLinear", [core.outputs[0], *last.inputs[1:]], name)
    zero = last.inputs[2] if len(last.inputs) > 2 else None
    dtype = ir.DataType.UINT8 if zero is None else zero.dtype
    integers.type = None if dtype is None else ir.TensorType(dtype)
    floats = [integers, *last.inputs[1:]]
    add.replace_input_with(slot, _put(graph, add, "DequantizeLinear", floats, f"{name}/floats"))
    if CONTRIB in graph.opset_imports and dtype in (ir.DataType.UINT8, ir.DataType.INT8):
        parts = _in_bytes(graph, array_of(bias, "the bias"), str(bias.name), dtype)
        add.replace_input_with(1 - slot, _put(graph, add, "DequantizeLinear", parts, f"{bias.name}/floats"))
        if not bias.uses():
            del graph.initializers[str(bias.name)]


def _put(
    graph: ir.Graph, before: ir.Node, op_type: str, inputs: list[ir.Value | None], name: str
) -> ir.Value:
    out = ir.Value(name=edit.fresh(graph, name), type=ir.TensorType(ir.DataType.FLOAT))
    label = edit.fresh(graph, f"{name}/{op_type}")
    graph.insert_before(before, ir.Node("", op_type, inputs, outputs=[out], name=label))
    return out


def _in_bytes(graph: ir.Graph, floats: Array, name: str, dtype: ir.DataType) -> list[ir.Value | None]:
    """A vector in 8 bits, with the scale and the zero point that reach from its least to its largest number."""
    limits = np.iinfo(dtype.numpy())
    low, high = min(float(floats.min()), 0.0), max(float(floats.max()), 0.0)
    scale = np.asarray((high - low) / (limits.max - limits.min) or 1.0, np.float32)
    zero = np.clip(np.rint(limits.min - low / scale), limits.min, limits.max)
    stored = np.clip(np.rint(floats / scale) + zero, limits.min, limits.max)
    return [
        edit.add_initializer(graph, f"{name}_quantized", stored.astype(dtype.numpy()), dtype),
        edit.add_initializer(graph, f"{name}_scale", scale, ir.DataType.FLOAT),
        edit.add_initializer(graph, f"{name}_zero_point", zero.astype(dtype.numpy()), dtype),
    ]
