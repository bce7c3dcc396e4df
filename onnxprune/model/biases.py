"""Biases of quantised layers: 32 bits, at the scale of the sums that the layer's integers make.

That scale is the product of those of its input and its weight, as onnxruntime's quantiser writes it and
integer kernels take it for granted. So it changes with the weight's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.model import edit, rounding
from onnxprune.model.origin import twins
from onnxprune.model.quantized import Layout, QuantizedTensor, Scheme, Written
from onnxprune.model.uses import only_user

Array = np.ndarray[Any, Any]

DOMAINS = ("", "ai.onnx", "com.microsoft")
"""Where QuantizeLinear and DequantizeLinear are found."""

_PLAIN = "onnxprune.plain_biases"

_EXACT = 1e-6
"""Relative difference below which a scale is taken for the product of two others."""


def mark_biases(graph: ir.Graph) -> None:
    """Note which biases have the product of two scales, and which are plain floats in the file."""
    plain: set[str] = set()
    for node in graph:
        bias = _bias_of(node)
        if node.op_type == "Add" and not node.domain:
            plain.update(str(v.name) for v in node.inputs if v is not None and v.is_initializer())
        if bias is None:
            continue
        tensor, product = bias.const_value, product_of_scales(node)
        if tensor is not None and not isinstance(tensor, QuantizedTensor):
            plain.add(str(bias.name))
        elif isinstance(tensor, QuantizedTensor) and product is not None:
            of_product = tensor.stored.dtype == ir.DataType.INT32 and _is_product(tensor, product)
            bias.const_value = tensor.under(replace(tensor.scheme, of_product=of_product))
    graph.meta[_PLAIN] = frozenset(plain)


def _bias_of(node: ir.Node) -> ir.Value | None:
    """The initializer that a layer adds."""
    layer = node.op_type in ("Conv", "ConvTranspose", "Gemm") and not node.domain
    bias = node.inputs[2] if layer and len(node.inputs) > 2 else None
    return bias if bias is not None and bias.is_initializer() else None


def _is_product(tensor: QuantizedTensor, product: Array) -> bool:
    if product.size not in (1, tensor.scale.size):
        return False
    return np.allclose(product.ravel(), tensor.scale.ravel(), rtol=_EXACT, atol=0)


def settle_biases(graph: ir.Graph, leave: Collection[str]) -> None:
    """Give biases whose scale was the product of those of input and weight that product again.

    A layer whose input and weight are quantised, and which got a bias where it had none, has it stored like
    that: with a float among its inputs, runtimes would not take the layer for one of integers.
    """
    plain, roots = graph.meta.get(_PLAIN, frozenset()), twins(graph)
    for node in graph:
        bias = _bias_of(node)
        product = None if bias is None else product_of_scales(node)
        if bias is None or product is None or bias.name in leave:
            continue
        name = str(bias.name)
        if isinstance(bias.const_value, QuantizedTensor):
            bias.const_value = _bias_again(bias.const_value, product)
        elif roots.get(name, name) not in plain and _is_own(bias):
            bias.const_value = _new_bias(bias, product)
    for node in graph:
        if node.op_type == "Add" and not node.domain:
            _settle_addend(node, plain, roots)


def _settle_addend(node: ir.Node, plain: Collection[str], roots: Mapping[str, str]) -> None:
    """Store a vector that was put behind a product as the sum is stored, where the Add is to be one of integers."""
    for place, vector in enumerate(node.inputs):
        other = node.inputs[1 - place]
        if vector is None or other is None or not vector.is_initializer() or not _is_own(vector):
            continue
        data, name = vector.const_value, str(vector.name)
        users = list(node.outputs[0].uses())
        rounds = len(users) == 1 and users[0].node.op_type == "QuantizeLinear"
        maker, dtype = other.producer(), users[0].node.outputs[0].dtype if rounds else None
        if data is None or isinstance(data, QuantizedTensor) or roots.get(name, name) in plain:
            continue
        if maker is None or maker.op_type != "DequantizeLinear" or dtype is None or data.dtype != _FLOAT:
            continue
        if dtype in (ir.DataType.INT8, ir.DataType.UINT8):
            vector.const_value = _whole_range(name, np.asarray(data.numpy()), dtype)


_FLOAT = ir.DataType.FLOAT


def _whole_range(name: str, floats: Array, dtype: ir.DataType) -> QuantizedTensor:
    """A vector with one scale and one zero point."""
    scale, zero = np.zeros((), np.float32), np.ones((), dtype.numpy())  # a zero point that is not the middle
    stored = edit.tensor(np.zeros(floats.shape, dtype.numpy()), dtype)
    inputs = tuple(f"{name}_{what}" for what in ("quantized", "scale", "zero_point"))
    node = Written("DequantizeLinear", "", f"{name}_DequantizeLinear", inputs, name)
    whole = edit.tensor(np.array([], dtype.numpy()), dtype)
    tensor = QuantizedTensor(stored, scale, zero, Scheme(node, Layout(), whole, zero), _FLOAT, name=name)
    return tensor.holding(floats)


def product_of_scales(node: ir.Node) -> Array | None:
    """Scale of the sums that a layer of integers makes, (outputs,) or a scalar; None where it is none."""
    x, weight = node.inputs[0], node.inputs[1]
    maker = None if x is None else x.producer()
    if maker is None or maker.op_type != "DequantizeLinear" or maker.domain not in DOMAINS:
        return None
    scale = maker.inputs[1].const_value if maker.inputs[1] is not None else None
    tensor = None if weight is None else weight.const_value
    if scale is None or scale.size != 1 or not isinstance(tensor, QuantizedTensor):
        return None
    if tensor.stored.dtype not in (ir.DataType.INT8, ir.DataType.UINT8) or tensor.layout.block:
        return None
    if tensor.layout.axis not in (None, _output_axis(node)):
        return None
    return np.asarray(np.float32(scale.numpy().ravel()[0]) * tensor.scale.astype(np.float32))


def _output_axis(node: ir.Node) -> int:
    if node.op_type == "Gemm":
        return 0 if integer(node, "transB", 0) else 1
    return 1 if node.op_type == "ConvTranspose" else 0


def _bias_again(tensor: QuantizedTensor, product: Array) -> ir.TensorProtocol:
    """A bias at the product of its layer's scales; floats where it is too large for that."""
    if not tensor.scheme.of_product or product.size not in (1, tensor.scale.size):
        return tensor
    if tensor.floats is None and _is_product(tensor, product):
        return tensor
    scale = np.broadcast_to(product.ravel(), tensor.scale.size).reshape(tensor.scale.shape)
    return _at_scale(tensor, scale)


def _at_scale(tensor: QuantizedTensor, scale: Array) -> ir.TensorProtocol:
    floats = np.asarray(tensor.plain().numpy())
    _, most = rounding.limits(tensor.stored.dtype)
    if (np.abs(floats.astype(np.float64)) > most * tensor.layout.spread(scale, floats.shape)).any():
        return edit.tensor(floats, tensor.dtype, tensor.name)
    return tensor.at_scale(scale)


def _is_own(bias: ir.Value) -> bool:
    return only_user(bias) is not None


def _new_bias(bias: ir.Value, product: Array) -> ir.TensorProtocol | None:
    """A float bias that was not in the file, as numbers of 32 bits."""
    data = bias.const_value
    shape = () if data is None else tuple(int(d) for d in data.shape.numpy())
    if (
        data is None
        or len(shape) != 1
        or product.size not in (1, shape[0])
        or data.dtype != ir.DataType.FLOAT
    ):
        return data
    dtype, name = ir.DataType.INT32, str(bias.name)
    layout = Layout() if product.size == 1 else Layout(0)
    inputs = (f"{name}_quantized", f"{name}_quantized_scale")
    axis = () if product.size == 1 else (ir.AttrInt64("axis", 0),)
    node = Written("DequantizeLinear", "", f"{name}_DequantizeLinear", inputs, name, axis)
    stored, zero = edit.tensor(np.zeros(shape, np.int32), dtype), np.zeros(product.shape, np.int32)
    tensor = QuantizedTensor(stored, product, zero, Scheme(node, layout, stored, zero), data.dtype, name=name)
    return _at_scale(tensor.holding(data.numpy()), product)


def integer(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute."""
    attribute = node.attributes.get(name)
    return default if attribute is None else int(attribute.as_int())
