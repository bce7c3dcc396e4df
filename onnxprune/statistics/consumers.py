"""Layers as linear maps: which rows a weight multiplies, and where its bias is.

A convolution is a matrix product once its input is unfolded: one row per output position, one column per input
channel and tap of the kernel. So is a transposed convolution, where taps that fall between the input's positions
see zero. Statistics, repair and reconstruction all look at layers in this form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.graph.axes import Index
from onnxprune.model.uses import gives_shapes_only, only_use

Array = np.ndarray[Any, Any]

OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""What can be seen as a linear map; FusedConv and the like are not among them, because of their activation."""

SHAPE_ONLY = "only the shape of what it makes is used"


@dataclass(frozen=True)
class Consumer:
    """A node that multiplies an activation by a weight.

    Attributes
    ----------
    node
        Conv, ConvTranspose, Gemm or MatMul.
    x
        The activation.
    weight
        The initializer.
    y
        What the product and its bias make: the output of an Add behind a MatMul that has one, else the node's.
    bias
        The initializer that is added, or None.
    groups
        Of a convolution; 1 otherwise.
    """

    node: ir.Node
    x: ir.Value
    weight: ir.Value
    y: ir.Value
    bias: ir.Value | None
    groups: int

    @property
    def label(self) -> str:
        """Name of the layer for people."""
        return self.node.name or str(self.weight.name)

    @property
    def key(self) -> str:
        """What the layer makes, by name: the same in models that the original became."""
        return str(self.node.outputs[0].name)

    @property
    def convolves(self) -> bool:
        """Whether the input has to be unfolded."""
        return self.node.op_type in ("Conv", "ConvTranspose")

    @property
    def array(self) -> Array:
        """The weight."""
        data = self.weight.const_value
        if data is None:
            raise ValueError(f"{self.weight.name!r} is no initializer")
        return np.asarray(data.numpy())

    @property
    def taps(self) -> int:
        """Positions of the kernel; 1 for a matrix."""
        return math.prod(self._shape[2:]) if self.convolves else 1

    @property
    def columns(self) -> int:
        """Input channels that each group sees."""
        if self.node.op_type == "Conv":
            return self._shape[1]
        if self.node.op_type == "ConvTranspose":
            return self._shape[0] // self.groups
        return self._shape[-1] if self._transposed else self._shape[0]

    @property
    def outputs(self) -> int:
        """Output channels of all groups."""
        if self.node.op_type == "Conv":
            return self._shape[0]
        if self.node.op_type == "ConvTranspose":
            return self._shape[1] * self.groups
        return self._shape[0] if self._transposed else self._shape[-1]

    @property
    def _shape(self) -> tuple[int, ...]:
        data = self.weight.const_value
        return () if data is None else tuple(int(d) for d in data.shape.numpy())

    @property
    def _transposed(self) -> bool:
        return self.node.op_type == "Gemm" and _int(self.node, "transB", 0) == 1

    @property
    def layout(self) -> str:
        """How the weight lies in memory: weights of one shape and one layout correspond element by element."""
        return self.node.op_type if self.convolves else "rows" if self._transposed else "columns"

    @property
    def factor(self) -> float:
        """What the node multiplies its weight by (alpha); `matrix` holds the product."""
        return _float(self.node, "alpha", 1.0) if self.node.op_type == "Gemm" else 1.0

    def matrix(self, array: Array | None = None) -> Array:
        """The weight as (groups, outputs per group, taps x columns), float64, columns running fastest."""
        wide = np.asarray(self.array if array is None else array).astype(np.float64)
        w = np.ascontiguousarray(self.arranged(wide))
        return w if self.convolves else w * self.factor

    def arranged(self, array: Array) -> Array:
        """An array of the weight's shape, laid out as by `matrix`; no factor, the same type, often a view."""
        if not self.convolves:
            return (array if self._transposed else array.T)[None]
        split = array.reshape(self.groups, -1, array.shape[1], self.taps)
        order = (0, 1, 3, 2) if self.node.op_type == "Conv" else (0, 2, 3, 1)
        turned = split.transpose(order)
        return np.asarray(turned.reshape(self.groups, turned.shape[1], -1))

    def from_matrix(self, matrix: Array) -> Array:
        """The weight in the node's own layout, from what `matrix` gives."""
        if not self.convolves:
            w = matrix[0] / self.factor
            return np.asarray(w if self._transposed else w.T)
        split = matrix.reshape(self.groups, matrix.shape[1], self.taps, -1)
        order = (0, 1, 3, 2) if self.node.op_type == "Conv" else (0, 3, 1, 2)
        return np.asarray(split.transpose(order).reshape(self._shape))

    def bias_vector(self) -> Array:
        """Shape (outputs,), float64; zeros without a bias."""
        if self.bias is None or self.bias.const_value is None:
            return np.zeros(self.outputs)
        vector = np.asarray(self.bias.const_value.numpy()).astype(np.float64).ravel()
        if self.node.op_type == "Gemm" and len(self.node.inputs) > 2 and self.node.inputs[2] is self.bias:
            vector = vector * _float(self.node, "beta", 1.0)
        return np.broadcast_to(vector, (self.outputs,)).copy()

    def to_bias(self, vector: Array, beside: Array | None = None) -> Array:
        """A bias of shape (outputs,) as the initializer holds it.

        `beside` is what the initializer holds by now, where another layer has a part of it.
        """
        data = None if self.bias is None else self.bias.const_value
        if data is None:
            raise ValueError(f"{self.label} has no bias")
        if self.node.op_type == "Gemm":
            vector = vector / (_float(self.node, "beta", 1.0) or 1.0)
        shape = tuple(int(d) for d in data.shape.numpy())
        vector = vector.reshape(shape if math.prod(shape) == len(vector) else (-1,))
        return np.asarray(vector, data.dtype.numpy())

    def windows(self, x_dims: tuple[int, ...], y_dims: tuple[int, ...]) -> tuple[Index, Array]:
        """Which input positions each output position sees.

        Parameters
        ----------
        x_dims, y_dims
            Spatial extents of input and output.

        Returns
        -------
        index
            Shape (output positions, taps): position in the flattened input; 0 where it sees padding.
        inside
            The same shape, bool: False where it sees padding.
        """
        kernel = self._shape[2:]
        spatial = len(kernel)
        strides = _ints(self.node, "strides") or [1] * spatial
        dilations = _ints(self.node, "dilations") or [1] * spatial
        begins = self._begins(x_dims, y_dims, kernel, strides, dilations)
        index = np.zeros((1, 1), np.int64)
        inside = np.ones((1, 1), bool)
        for d in range(spatial):
            out, tap = np.arange(y_dims[d])[:, None], np.arange(kernel[d])[None]
            if self.node.op_type == "Conv":
                place = out * strides[d] - begins[d] + tap * dilations[d]
                hit = (place >= 0) & (place < x_dims[d])
            else:
                scaled = out + begins[d] - tap * dilations[d]
                place = scaled // strides[d]
                hit = (scaled % strides[d] == 0) & (place >= 0) & (place < x_dims[d])
            place = np.where(hit, place, 0)
            index = index[:, None, :, None] * x_dims[d] + place[None, :, None, :]
            inside = inside[:, None, :, None] & hit[None, :, None, :]
            index = index.reshape(index.shape[0] * index.shape[1], -1)
            inside = inside.reshape(index.shape)
        return index, inside

    def _begins(
        self,
        x_dims: tuple[int, ...],
        y_dims: tuple[int, ...],
        kernel: tuple[int, ...],
        strides: list[int],
        dilations: list[int],
    ) -> list[int]:
        """Padding before the first position, per spatial axis."""
        attribute = self.node.attributes.get("auto_pad")
        mode = "NOTSET" if attribute is None else attribute.as_string()
        pads = _ints(self.node, "pads") or [0] * 2 * len(kernel)
        if mode in ("NOTSET", "VALID") and not _ints(self.node, "output_shape"):
            return pads[: len(kernel)] if mode == "NOTSET" else [0] * len(kernel)
        begins = []
        more = _ints(self.node, "output_padding") or [0] * len(kernel)
        for x, y, k, s, d, extra in zip(x_dims, y_dims, kernel, strides, dilations, more, strict=True):
            reach = (k - 1) * d + 1
            if self.node.op_type == "Conv":
                total = max((y - 1) * s + reach - x, 0)
            else:
                total = max(s * (x - 1) + extra + reach - y, 0)
            lower = mode == "SAME_LOWER" if self.node.op_type == "Conv" else mode != "SAME_UPPER"
            begins.append(total - total // 2 if lower else total // 2)
        return begins


def consumer_of(node: ir.Node) -> Consumer | str:
    """The node as a linear map, or why it is none."""
    if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
        return f"{node.op_type} is no plain product"
    x, weight = node.inputs[0], node.inputs[1]
    if x is None or weight is None or weight.const_value is None:
        return "its weight is computed, or on the left"
    if not (weight.dtype is not None and weight.dtype.is_floating_point()):
        return "its weight is quantised"
    rank = len(weight.const_value.shape)
    if node.op_type in ("Gemm", "MatMul") and rank != 2:
        return "its weight is a stack of matrices"
    if node.op_type == "Gemm" and _int(node, "transA", 0):
        return "its input is transposed"
    if x.const_value is not None:
        return "it multiplies constants"
    if len(weight.uses()) > 1:
        if gives_shapes_only(node):
            return SHAPE_ONLY
        if sum(not gives_shapes_only(use.node) for use in weight.uses()) > 1:
            return "other layers share its weight"
    y = node.outputs[0]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and not _is_vector(bias, _rows(node, weight)):
        return "its bias is no vector of constants"
    if node.op_type == "MatMul":
        y, bias = _bias_behind(node, _rows(node, weight))
    groups = _int(node, "group", 1) if node.op_type.startswith("Conv") else 1
    return Consumer(node, x, weight, y, bias, groups)


def _is_vector(bias: ir.Value, rows: int) -> bool:
    data = bias.const_value
    return data is not None and math.prod(data.shape.numpy()) == rows


def _rows(node: ir.Node, weight: ir.Value) -> int:
    data = weight.const_value
    shape = () if data is None else tuple(int(d) for d in data.shape.numpy())
    if node.op_type == "Conv":
        return shape[0]
    if node.op_type == "ConvTranspose":
        return shape[1] * _int(node, "group", 1)
    return shape[0] if node.op_type == "Gemm" and _int(node, "transB", 0) else shape[-1]


def _bias_behind(node: ir.Node, rows: int) -> tuple[ir.Value, ir.Value | None]:
    """The Add of a vector that alone uses a product, rounded, cast or neither, if there is one."""
    product = node.outputs[0]
    value = read_back(product)
    use = only_use(value)
    if (
        use is not None
        and use.node.op_type == "Cast"
        and not use.node.domain
        and use.node.graph is node.graph
    ):
        value = use.node.outputs[0]
        use = only_use(value)
    floats = value.dtype is None or value.dtype.is_floating_point()
    if use is None or use.node.op_type != "Add" or not floats or use.node.graph is not node.graph:
        return product, None
    add, slot = use
    other = add.inputs[1 - slot]
    if other is None or other.const_value is None:
        return product, None
    shape = tuple(int(d) for d in other.const_value.shape.numpy())
    if shape and shape[-1] == rows and math.prod(shape) == rows:
        return add.outputs[0], other
    return product, None


def read_back(value: ir.Value) -> ir.Value:
    """The value as floats again, where all that sees it is a QuantizeLinear that only a DequantizeLinear sees."""
    found = value
    for op_type in ("QuantizeLinear", "DequantizeLinear"):
        use = only_use(found)
        if use is None or use.node.op_type != op_type or use.slot != 0:
            return value
        found = use.node.outputs[0]
    return found


def _int(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _float(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_float()


def _ints(node: ir.Node, name: str) -> list[int]:
    attribute = node.attributes.get(name)
    return [] if attribute is None else list(attribute.as_ints())
