"""BatchNormalization nodes as linear maps: of every channel by itself, so with one feature per group.

In inference form, y = scale z + shift with z = (x - mean) / sqrt(var + epsilon) (Ioffe and Szegedy 2015,
https://arxiv.org/abs/1502.03167, algorithm 2). Here z is the feature, the scale its weight, the shift the bias.
Mean and variance stay as they are; another scale and shift make up for inputs that are not what they were. As z is
about centred, its moments lose no digits where a channel's mean is large.

No channels are summed over, so nothing of this is a `Consumer` of units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.graph.axes import Index
from onnxprune.model.batchnorm import in_inference_form
from onnxprune.statistics.consumers import Consumer, consumer_of

Array = np.ndarray[Any, Any]

SCALE, SHIFT, MEAN, VARIANCE = 1, 2, 3, 4
"""Slots of the parameters."""


@dataclass(frozen=True)
class Norm:
    """A BatchNormalization in inference form; the same words as `Consumer`.

    It is seen as a convolution of one tap in as many groups as there are channels, of its normalised input.

    Attributes
    ----------
    node
        Its parameters are initializers.
    """

    node: ir.Node

    @property
    def x(self) -> ir.Value:
        """The activation, (N, C, ...)."""
        return self._input(0)

    @property
    def y(self) -> ir.Value:
        """The output, of the same shape."""
        return self.node.outputs[0]

    @property
    def weight(self) -> ir.Value:
        """The scale, (C,)."""
        return self._input(SCALE)

    @property
    def bias(self) -> ir.Value:
        """The shift, (C,)."""
        return self._input(SHIFT)

    @property
    def label(self) -> str:
        """Name of the layer for people."""
        return self.node.name or str(self.weight.name)

    @property
    def key(self) -> str:
        """As of `Consumer`."""
        return str(self.node.outputs[0].name)

    @property
    def convolves(self) -> bool:
        """Its channels lie like a convolution's, whatever the rank."""
        return True

    @property
    def taps(self) -> int:
        """One."""
        return 1

    @property
    def columns(self) -> int:
        """Each channel sees itself only."""
        return 1

    @property
    def groups(self) -> int:
        """Number of channels."""
        data = self.weight.const_value
        return 0 if data is None else int(data.shape.numpy()[0])

    @property
    def outputs(self) -> int:
        """Number of channels."""
        return self.groups

    @property
    def array(self) -> Array:
        """The scale."""
        return self._array(SCALE)

    @property
    def centre(self) -> Array:
        """The running mean, (C,), float64."""
        return self._array(MEAN).astype(np.float64)

    @property
    def variance(self) -> Array:
        """The running variance and epsilon, (C,), float64; (x - centre) / sqrt(variance) is the feature."""
        epsilon = self.node.attributes.get_float("epsilon", 1e-5)
        return np.asarray(self._array(VARIANCE).astype(np.float64) + epsilon)

    def matrix(self, array: Array | None = None) -> Array:
        """The scale as (channels, 1, 1), float64."""
        return np.asarray(self.array if array is None else array).astype(np.float64).reshape(-1, 1, 1)

    def from_matrix(self, matrix: Array) -> Array:
        """The scale, from what `matrix` gives."""
        return np.asarray(matrix.reshape(-1))

    def bias_vector(self) -> Array:
        """The shift, (C,), float64."""
        return self._array(SHIFT).astype(np.float64)

    def to_bias(self, vector: Array) -> Array:
        """A shift as the initializer holds it."""
        return np.asarray(vector, self._array(SHIFT).dtype)

    def windows(self, x_dims: tuple[int, ...], y_dims: tuple[int, ...]) -> tuple[Index, Array]:
        """As of `Consumer`: every position sees itself."""
        index = np.arange(math.prod(x_dims), dtype=np.int64)[:, None]
        return index, np.ones(index.shape, bool)

    def _input(self, slot: int) -> ir.Value:
        value = self.node.inputs[slot]
        if value is None:
            raise ValueError(f"{self.node.name!r} has no input {slot}")
        return value

    def _array(self, slot: int) -> Array:
        value = self._input(slot)
        if value.const_value is None:
            raise ValueError(f"{value.name!r} is no initializer")
        return np.asarray(value.const_value.numpy())


LinearMap = Consumer | Norm
"""What can be refitted."""


def norm_of(node: ir.Node) -> Norm | str:
    """The node as a linear map of every channel, or why it is none."""
    graph = node.graph
    if node.op_type != "BatchNormalization" or node.domain not in ("", "ai.onnx") or graph is None:
        return f"{node.op_type} is no BatchNormalization"
    imports = graph.opset_imports
    if not in_inference_form(node, imports.get("", imports.get("ai.onnx", 0))):
        return "it is not in inference form"
    if len(node.inputs) != 5 or node.inputs[0] is None or node.inputs[0].const_value is not None:
        return "it has no activation"
    shapes = set()
    for value in node.inputs[1:]:
        if value is None or value.const_value is None or value.is_graph_input():
            return "its parameters are computed"
        if value.dtype is None or not value.dtype.is_floating_point():
            return "its parameters are quantised"
        shapes.add(tuple(value.const_value.shape.numpy()))
    if len(shapes) != 1 or len(shapes.pop()) != 1:
        return "its parameters are no vectors of one length"
    norm = Norm(node)
    return norm if (norm.variance > 0).all() else "its variance is not positive"


def linear_map_of(node: ir.Node) -> LinearMap | str:
    """The node as what can be refitted, or why it cannot."""
    return norm_of(node) if node.op_type == "BatchNormalization" else consumer_of(node)
