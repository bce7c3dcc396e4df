"""A quantised model that saturates as it did, but does not round.

Rounding makes a difference of the last digit of float32 into one of a whole step, now and then. Where two
models are compared that add the same terms in another order, that says nothing about them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.model import edit, rounding
from onnxprune.model.biases import DOMAINS

Array = np.ndarray[Any, Any]


def is_quantized(model: ir.Model) -> bool:
    """Whether some activation of the main graph is rounded to stored numbers."""
    return any(
        node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") and node.domain in DOMAINS
        for node in model.graph
    )


def without_rounding(model: ir.Model) -> ir.Model:
    """A copy of `model` in which activations that are rounded and read at once are only clipped.

    What lies between a QuantizeLinear and other operators stays, and so does DynamicQuantizeLinear: which range it
    finds is no matter of the last digit.

    Parameters
    ----------
    model
        Normalised; not mutated.
    """
    model = model.clone()
    graph = model.graph
    for node in tuple(graph):
        if node.op_type != "DequantizeLinear" or node.domain not in DOMAINS or node.inputs[0] is None:
            continue
        before = node.inputs[0].producer()
        if before is None or before.inputs[0] is None:
            continue
        if before.op_type == "QuantizeLinear" and before.domain in DOMAINS:
            bounds = _bounds(before, node)
            if bounds is not None:
                _replace(graph, node, before.inputs[0], list(zip(("Max", "Min"), bounds, strict=True)))
    edit.drop_unused(graph)
    return model


def _replace(graph: ir.Graph, node: ir.Node, x: ir.Value, clips: list[tuple[str, Array]]) -> None:
    output = node.outputs[0]
    for op_type, bound in clips:
        dtype = output.dtype or ir.DataType.FLOAT
        value = edit.add_initializer(graph, f"{output.name}/{op_type}", bound.astype(dtype.numpy()), dtype)
        made = ir.Node("", op_type, [x, value], name=edit.fresh(graph, f"{output.name}/{op_type}_node"))
        made.outputs[0].name = edit.fresh(graph, f"{output.name}/{op_type}")
        made.outputs[0].type = output.type
        graph.insert_before(node, made)
        x = made.outputs[0]
    last = ir.Node("", "Identity", [x], name=edit.fresh(graph, f"{output.name}/unrounded"))
    graph.insert_before(node, last)
    edit.take_over(graph, output, last.outputs[0])
    graph.remove(node, safe=True)


def _bounds(quantize: ir.Node, node: ir.Node) -> tuple[Array, Array] | None:
    """What the least and the largest stored number mean; None where the two nodes do not speak of the same."""
    pairs = list(zip(quantize.inputs[1:], node.inputs[1:], strict=False))
    if len(quantize.inputs) != len(node.inputs) or any((a is None) != (b is None) for a, b in pairs):
        return None
    arrays = []
    for a, b in pairs:
        if a is None or b is None:
            continue
        if a.const_value is None or b.const_value is None:
            return None
        first, second = a.const_value.numpy(), b.const_value.numpy()
        if first.shape != second.shape or not np.array_equal(first, second):
            return None
        arrays.append(np.asarray(first))
    scale, dtype = arrays[0], quantize.outputs[0].dtype
    block = quantize.attributes.get("block_size")
    if dtype is None or (block is not None and block.as_int()) or scale.ndim > 1:
        return None
    low, high = rounding.limits(dtype)
    zero = arrays[1].astype(np.float64) if len(arrays) > 1 else np.zeros(scale.shape)
    wide = scale.astype(np.float64)
    if math.prod(scale.shape) != 1:
        shape = quantize.outputs[0].shape
        axis = quantize.attributes.get("axis")
        place = 1 if axis is None else axis.as_int()
        if shape is None:
            return None
        lined = [-1 if dim == place % len(shape) else 1 for dim in range(len(shape))]
        wide, zero = wide.reshape(lined), zero.reshape(lined)
    else:
        wide, zero = wide.reshape(()), zero.reshape(())
    return (low - zero) * wide, (high - zero) * wide
