"""Folding of BatchNormalization into the convolution or matrix product before it. Done on request only.

In inference form, y = (x - mean) f + B with f = scale / sqrt(var + epsilon). Where x = W a + b, that is
y = (f W) a + ((b - mean) f + B), per output channel (Jacob et al. 2018,
https://arxiv.org/abs/1712.05877, section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.model import edit

Array = np.ndarray[Any, Any]

_WEIGHT, _BIAS = 1, 2
"""Slots of Conv, ConvTranspose and Gemm."""


def fold_batchnorm(model: ir.Model) -> ir.Model:
    """A copy of `model` in which every BatchNormalization that directly follows a layer is folded into it.

    The layer must be a Conv, ConvTranspose or Gemm whose weight is an initializer that nothing else uses,
    whose bias is one, too, and whose output goes nowhere else; the BatchNormalization must be in inference
    form and have initializers as parameters. Others stay. Names stay, except that the layer's output takes
    the name of the BatchNormalization's. Outputs are the original's up to the rounding of the weights.

    Parameters
    ----------
    model
        Normalised, so that constants are initializers. Not mutated.
    """
    model = model.clone()
    graph = model.graph
    version = graph.opset_imports.get("", graph.opset_imports.get("ai.onnx", 0))
    for node in tuple(graph):
        if node.op_type == "BatchNormalization" and not node.domain:
            norm, layer = _read(node, version), _layer(node)
            if norm is not None and layer is not None and _fold(graph, layer, norm):
                _bypass(graph, layer, node)
    edit.drop_unused(graph, keep=frozenset(value.name or "" for value in graph.inputs))
    return model


@dataclass(frozen=True)
class _Norm:
    """y = (x - mean) * factor + shift, per channel, in float64."""

    factor: Array
    mean: Array
    shift: Array


def _read(node: ir.Node, version: int) -> _Norm | None:
    """The parameters of a BatchNormalization in inference form, None for any other."""
    flags = node.attributes
    if not in_inference_form(node, version):
        return None
    arrays = [array for value in node.inputs[1:5] if (array := _array(value)) is not None]
    if len(arrays) != 4:
        return None
    scale, shift, mean, variance = arrays
    return _Norm(scale / np.sqrt(variance + flags.get_float("epsilon", 1e-5)), mean, shift)


def in_inference_form(node: ir.Node, version: int) -> bool:
    """Whether a BatchNormalization of this opset uses its running mean and variance, one of each per channel."""
    flags = node.attributes
    training = version >= 14 and flags.get_int("training_mode", 0) != 0
    old = version < 7 and flags.get_int("is_test", 0) == 0
    return not (training or old or not flags.get_int("spatial", 1) or any(map(_is_used, node.outputs[1:])))


def _layer(norm: ir.Node) -> ir.Node | None:
    """The Conv, ConvTranspose or Gemm before a BatchNormalization, if it may be changed."""
    value = norm.inputs[0]
    node = value.producer() if value is not None else None
    if value is None or node is None or node.domain or node.graph is not norm.graph:
        return None
    weight = node.inputs[_WEIGHT] if len(node.inputs) > _WEIGHT else None
    if (
        node.op_type not in ("Conv", "ConvTranspose", "Gemm")
        or len(value.uses()) != 1
        or value.is_graph_output()
        or weight is None
        or weight.const_value is None
        or not _is_own(weight)
    ):
        return None
    return node


def _is_used(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _is_own(value: ir.Value) -> bool:
    """Whether it is an initializer with one use, which nobody can override."""
    io = value.is_graph_input() or value.is_graph_output()
    return value.is_initializer() and not io and len(value.uses()) == 1


def _array(value: ir.Value | None) -> Array | None:
    if value is None or not value.is_initializer() or value.is_graph_input() or value.const_value is None:
        return None
    return np.asarray(value.const_value.numpy()).astype(np.float64)


def _fold(graph: ir.Graph, layer: ir.Node, norm: _Norm) -> bool:
    """Scale the layer's weight and rewrite its bias; False, and nothing done, where they do not fit."""
    weight = layer.inputs[_WEIGHT]
    bias = layer.inputs[_BIAS] if len(layer.inputs) > _BIAS else None
    old, tensor = _array(bias), weight.const_value if weight is not None else None
    if weight is None or tensor is None or (bias is not None and old is None):
        return False
    shape, channels = tuple(tensor.shape.numpy()), norm.factor.shape
    if (old is not None and old.shape[:-1].count(1) != max(old.ndim - 1, 0)) or _channels(
        layer, shape
    ) != channels:
        return False
    beta = layer.attributes.get_float("beta", 1.0) if layer.op_type == "Gemm" else 1.0
    before = np.broadcast_to(0.0 if old is None else beta * old.reshape(-1), channels)
    shift = (before - norm.mean) * norm.factor + norm.shift
    if tensor.dtype != ir.DataType.FLOAT and not (
        edit.fits(weight, _scale(layer, tensor.numpy(), norm.factor)) and edit.fits(bias or weight, shift)
    ):
        return False
    if isinstance(tensor, ir.ExternalTensor):
        edit.set_lazy(weight, shape, lambda: _scale(layer, tensor.numpy(), norm.factor))
    else:
        edit.set_array(weight, _scale(layer, tensor.numpy(), norm.factor))
    if layer.op_type == "Gemm":
        layer.attributes.pop("beta", None)
    _set_bias(graph, layer, shift, tensor.dtype)
    return True


def _channels(layer: ir.Node, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Output channels of a layer with a weight of this shape."""
    if layer.op_type == "Gemm":
        return (shape[0 if layer.attributes.get_int("transB", 0) else 1],)
    if layer.op_type == "ConvTranspose":
        return (shape[1] * layer.attributes.get_int("group", 1),)
    return (shape[0],)


def _scale(layer: ir.Node, array: Array, factor: Array) -> Array:
    """The weight with every output channel multiplied by its factor, float64."""
    wide = array.astype(np.float64)
    if layer.op_type == "Gemm":
        wide = wide * (factor[:, None] if layer.attributes.get_int("transB", 0) else factor)
    elif layer.op_type == "ConvTranspose":  # (in, out / group, ...): the group's number is in the first axis
        groups = layer.attributes.get_int("group", 1)
        parts = wide.reshape(groups, -1, *array.shape[1:])
        wide = parts * factor.reshape(groups, 1, -1, *[1] * (array.ndim - 2))
    else:
        wide = wide * factor.reshape(-1, *[1] * (array.ndim - 1))
    return np.asarray(wide.reshape(array.shape))


def _set_bias(graph: ir.Graph, layer: ir.Node, array: Array, dtype: ir.DataType) -> None:
    bias = layer.inputs[_BIAS] if len(layer.inputs) > _BIAS else None
    if bias is not None and _is_own(bias):
        edit.set_array(bias, array)
        return
    name = bias.name if bias is not None else f"{layer.inputs[_WEIGHT].name}/bias"  # type: ignore[union-attr]
    if len(layer.inputs) <= _BIAS:
        layer.resize_inputs(_BIAS + 1)
    layer.replace_input_with(_BIAS, edit.add_initializer(graph, str(name), array, dtype))


def _bypass(graph: ir.Graph, layer: ir.Node, norm: ir.Node) -> None:
    """Let the layer's output take the place, and the name, of the BatchNormalization's."""
    new, old = layer.outputs[0], norm.outputs[0]
    name, shape, type_ = old.name, old.shape, old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(norm, safe=True)
    new.name = name
    new.shape = shape if shape is not None else new.shape
    new.type = type_ if type_ is not None else new.type
