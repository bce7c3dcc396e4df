"""Quantised weights as float initializers: what `take_quantized` takes away `give_quantized` gives back.

Every other room works on float weights. So DequantizeLinear nodes that see constants only become initializers of
their output's name, whose tensor (`QuantizedTensor`) still knows what the file stores. Activations stay quantised
where the file quantises them: these nodes have rules (`onnxprune.rules.quantization`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.model import edit, rounding
from onnxprune.model.biases import DOMAINS, integer, mark_biases
from onnxprune.model.quantized import Layout, QuantizedTensor, Scheme, Written
from onnxprune.model.scaled import take_scaled
from onnxprune.model.uses import only_user

Array = np.ndarray[Any, Any]


def take_quantized(graph: ir.Graph) -> None:
    """Replace each DequantizeLinear of constants, and each product that says the same, by a float initializer.

    Parameters
    ----------
    graph
        Mutated. Constants are initializers. Nodes and initializers that are not needed any more stay,
        without users.
    """
    take_scaled(graph)
    for node in tuple(graph):
        if node.op_type == "DequantizeLinear" and node.domain in DOMAINS:
            tensor = _taken(graph, node)
            if tensor is not None:
                edit.replace_by_initializer(graph, node.outputs[0], tensor)
                graph.remove(node, safe=True)
    for node in tuple(graph):
        if node.op_type == "Transpose" and not node.domain:
            _take_transpose(graph, node)
    mark_biases(graph)


def _taken(graph: ir.Graph, node: ir.Node) -> QuantizedTensor | None:
    """What a DequantizeLinear of constants makes; None where it reads an activation or is not understood."""
    output = node.outputs[0]
    if output.is_graph_output() or not output.name or _has(node, "precision"):
        return None
    before = node.inputs[0].producer() if node.inputs[0] is not None else None
    first = node if before is None else before
    if before is not None and not _is_pair(before, node):
        return None
    source, scale_value = first.inputs[0], node.inputs[1]
    zero_value = node.inputs[2] if len(node.inputs) > 2 else None
    data, scale = _constant(graph, source), _constant(graph, scale_value)
    if data is None or scale is None or (zero_value is not None and _constant(graph, zero_value) is None):
        return None
    layout = _layout(node, data, scale)
    zero = _constant(graph, zero_value)
    if layout is None:
        return None
    scales = np.asarray(scale.numpy())
    if before is None:
        stored, raw = data, None
        zeros = np.zeros(scales.shape, data.dtype.numpy()) if zero is None else np.asarray(zero.numpy())
    else:
        dtype = _quantized_type(before, zero)
        zeros = np.zeros(scales.shape, dtype.numpy()) if zero is None else np.asarray(zero.numpy())
        raw = np.asarray(data.numpy())
        stored = edit.tensor(_rounded(raw, scales, zeros, layout, dtype), dtype)
    if not (stored.dtype.is_integer() or stored.dtype.bitwidth <= 8) or not _fit(zeros, scales, layout):
        return None
    kind = node.attributes.get("output_dtype")
    to = ir.DataType(kind.as_int()) if kind is not None and kind.as_int() else scale.dtype
    scheme = Scheme(
        _written(node), layout, stored, zeros, quantize=None if before is None else _written(before)
    )
    return QuantizedTensor(stored, scales, zeros, scheme, to, name=output.name, raw=raw)


def _fit(zero: Array, scale: Array, layout: Layout) -> bool:
    return zero.shape == scale.shape if layout.axis is not None else zero.size == scale.size


def _is_pair(quantize: ir.Node, node: ir.Node) -> bool:
    """Whether a QuantizeLinear rounds a float weight only for a DequantizeLinear with the same scales."""
    if quantize.op_type != "QuantizeLinear" or quantize.domain not in DOMAINS or _has(quantize, "precision"):
        return False
    if only_user(quantize.outputs[0]) is None:
        return False
    theirs, ours = ([v for v in n.inputs[1:] if v is not None] for n in (quantize, node))
    if len(theirs) != len(ours):
        return False
    for a, b in zip(theirs, ours, strict=True):
        if a.const_value is None or b.const_value is None:
            return False
        if a is not b and not same_tensor(a.const_value, b.const_value):
            return False
    return all(integer(quantize, name, default) == integer(node, name, default) for name, default in _LAYOUT)


_LAYOUT = (("axis", 1), ("block_size", 0))


def _quantized_type(quantize: ir.Node, zero: ir.TensorProtocol | None) -> ir.DataType:
    if zero is not None:
        return zero.dtype
    return ir.DataType(integer(quantize, "output_dtype", 0) or ir.DataType.UINT8)


def _rounded(raw: Array, scale: Array, zero: Array, layout: Layout, dtype: ir.DataType) -> Array:
    """What QuantizeLinear makes of floats, in their own precision."""
    low, high = rounding.limits(dtype)
    scaled = raw / layout.spread(scale, raw.shape)
    if not dtype.is_integer():
        return np.clip(scaled.astype(np.float32), low, high).astype(dtype.numpy())
    shifted = np.rint(scaled).astype(np.float64) + layout.spread(zero, raw.shape).astype(np.float64)
    return np.clip(shifted, low, high).astype(np.int64).astype(dtype.numpy())


def _constant(graph: ir.Graph, value: ir.Value | None) -> ir.TensorProtocol | None:
    if value is None or not value.is_initializer() or value.graph is not graph or value.is_graph_output():
        return None
    return None if isinstance(value.const_value, QuantizedTensor) else value.const_value


def _layout(node: ir.Node, data: ir.TensorProtocol, scale: ir.TensorProtocol) -> Layout | None:
    """Which elements share a scale; None where the shapes do not fit."""
    shape = tuple(int(d) for d in data.shape.numpy())
    given = tuple(int(d) for d in scale.shape.numpy())
    axis, block = (integer(node, name, default) for name, default in _LAYOUT)
    axis += len(shape) if axis < 0 else 0
    if not block and (not given or given == (1,)):
        return Layout()
    layout = Layout(axis, block)
    return layout if 0 <= axis < len(shape) and layout.scales(shape) == given else None


def _take_transpose(graph: ir.Graph, node: ir.Node) -> None:
    """Turn a quantised weight that only a Transpose reads, so that the layer behind it has it as a weight."""
    source, output = node.inputs[0], node.outputs[0]
    tensor = None if source is None else source.const_value
    if (
        source is None
        or not isinstance(tensor, QuantizedTensor)
        or tensor.scheme.turn is not None
        or only_user(source) is None
        or output.is_graph_output()
        or not output.name
    ):
        return
    attribute = node.attributes.get("perm")
    rank = len(tensor.extents)
    perm = tuple(reversed(range(rank))) if attribute is None else tuple(attribute.as_ints())
    layout, scheme = tensor.layout, tensor.scheme
    if layout.axis is not None:
        layout = replace(layout, axis=perm.index(layout.axis))
    scheme = replace(scheme, layout=layout, perm=perm, turn=_written(node))
    turned = turn(tensor, perm, scheme)
    turned.name = output.name
    edit.replace_by_initializer(graph, output, turned)
    graph.remove(node, safe=True)


def turn(tensor: QuantizedTensor, perm: tuple[int, ...], scheme: Scheme) -> QuantizedTensor:
    """A weight with its axes in another order, under a scheme whose layout fits that."""
    stored, dtype = tensor.stored, tensor.stored.dtype
    shape = ir.Shape([tensor.extents[dim] for dim in perm])
    blocks = tensor.layout.block > 0
    return tensor.rearranged(
        {
            "stored": ir.LazyTensor(
                lambda: edit.tensor(np.transpose(stored.numpy(), perm), dtype), dtype=dtype, shape=shape
            ),
            "scale": np.transpose(tensor.scale, perm) if blocks else tensor.scale,
            "zero": np.transpose(tensor.zero, perm) if blocks else tensor.zero,
            "scheme": scheme,
            "floats": None if tensor.floats is None else np.transpose(tensor.floats, perm),
            "raw": None if tensor.raw_floats is None else np.transpose(tensor.raw_floats, perm),
        }
    )


def _written(node: ir.Node) -> Written:
    output = node.outputs[0]
    return Written(
        node.op_type,
        node.domain,
        node.name or "",
        tuple("" if value is None else str(value.name) for value in node.inputs),
        str(output.name),
        tuple(node.attributes.values()),
        output.type is not None,
        output.shape is not None,
    )


def same_tensor(a: ir.TensorProtocol, b: ir.TensorProtocol) -> bool:
    """Whether two tensors have the same type, shape and bytes."""
    if a is b:
        return True
    same = a.dtype == b.dtype and tuple(a.shape.numpy()) == tuple(b.shape.numpy())
    return bool(same and a.tobytes() == b.tobytes())


def _has(node: ir.Node, name: str) -> bool:
    attribute = node.attributes.get(name)
    return attribute is not None and bool(attribute.value)
