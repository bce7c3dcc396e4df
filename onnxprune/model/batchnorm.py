"""Folding of BatchNormalization into the convolution or matrix product before it. Done on request only.

In inference form, y = (x - mean) s + B with s = scale / sqrt(var + epsilon). Where x = W a + b, that is
y = (s W) a + ((b - mean) s + B), per output channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.model import edit

Array = np.ndarray[Any, Any]

_BIAS = 2
"""Slot of the bias of Conv, ConvTranspose and Gemm."""


def fold_batchnorm(model: ir.Model) -> ir.Model:
    """A copy of `model` with every BatchNormalization folded that directly follows a layer it can be folded into.

    That is: the layer is a Conv, ConvTranspose or Gemm whose weight and bias are initializers that nothing else
    uses, its output goes nowhere else, the BatchNormalization is in inference form, and its parameters are
    initializers. Others stay. The result has the original's outputs up to the rounding of the weights.

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
            norm = _read(node, version)
            layer = node.inputs[0].producer() if norm is not None and node.inputs[0] is not None else None
            if norm is not None and layer is not None and _fold(graph, layer, norm):
                _bypass(graph, layer, node)
    edit.drop_unused(graph, keep=frozenset(v.name or "" for v in graph.inputs))
    return model


@dataclass(frozen=True)
class _Norm:
    """y = x * factor + shift, per channel."""

    factor: Array
    shift: Array
    mean: Array


def _read(node: ir.Node, version: int) -> _Norm | None:
    """The parameters of a BatchNormalization in inference form, None for any other."""
    training = node.attributes.get_int("training_mode", 0) if version >= 14 else 0
    plain = node.attributes.get_int("spatial", 1) == 1 and (version >= 7 or node.attributes.get_int("is_test", 0))
    used = [out for out in node.outputs[1:] if out.uses() or out.is_graph_output()]
    tensors = [_initializer(value) for value in node.inputs[1:5]]
    if training or not plain or used or len(tensors) < 4 or any(t is None for t in tensors):
        return None
    scale, bias, mean, variance = (np.asarray(t.numpy(), np.float64) for t in tensors if t is not None)
    epsilon = np.float64(node.attributes.get_float("epsilon", 1e-5))
    factor = scale / np.sqrt(variance + epsilon)
    return _Norm(factor, bias, mean)


def _initializer(value: ir.Value | None) -> ir.TensorProtocol | None:
    return value.const_value if value is not None and value.is_initializer() else None
