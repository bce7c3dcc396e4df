"""What the inference of one node takes and gives: extents, element types, values of small tensors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir

Dims = tuple[int | None, ...]
Inferred = tuple[Dims | None, ir.DataType | None]
MAX_DATA = 4096
"""Elements of an integer tensor up to which its values are tracked."""

_FLOAT_DATA = 64
_FLOAT_READERS = frozenset({"OneHot", "Range", "Resize", "Upsample"})
"""Operators whose shape inference reads values of float inputs."""


def agreed(a: Inferred, b: Inferred) -> Inferred:
    """What two branches agree on."""
    dtype = a[1] or b[1]
    if a[0] is None or b[0] is None or len(a[0]) != len(b[0]):
        return None, dtype
    return tuple(m if m == n else None for m, n in zip(a[0], b[0], strict=True)), dtype


def completed(one: Inferred, other: Inferred) -> Inferred:
    """What one source says, and the other where it says nothing; of extents only where both have as many."""
    if one[0] is None:
        return other
    if other[0] is None or len(other[0]) != len(one[0]):
        return one
    return tuple(m if m is not None else n for m, n in zip(one[0], other[0], strict=True)), one[1]


def is_tracked(dtype: ir.DataType, size: int) -> bool:
    """Whether values of such a tensor are kept."""
    if dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED) or dtype.bitwidth < 8:
        return False
    return size <= (MAX_DATA if dtype.is_integer() or dtype == ir.DataType.BOOL else _FLOAT_DATA)


def readable(node: ir.Node, value: ir.Value, data: Mapping[ir.Value, np.ndarray]) -> np.ndarray | None:
    """What the inference of `node` may look at; values of biases and scales would only keep results apart."""
    known = data.get(value)
    if known is None or known.dtype.kind in "iub" or node.op_type in _FLOAT_READERS:
        return known
    return None


def type_of(value: ir.Value, extents: Dims) -> onnx.TypeProto:
    """The type of a value with these extents; float where it has none."""
    dtype = value.dtype or ir.DataType.FLOAT
    return onnx.helper.make_tensor_type_proto(dtype.value, extents)


def from_proto(proto: onnx.TypeProto | None) -> Inferred:
    """Extents and element type that onnx inferred."""
    if proto is None or not proto.HasField("tensor_type"):
        return None, None
    dtype = ir.DataType(proto.tensor_type.elem_type) if proto.tensor_type.elem_type else None
    if not proto.tensor_type.HasField("shape"):
        return None, dtype
    dims = proto.tensor_type.shape.dim
    return tuple(int(dim.dim_value) if dim.HasField("dim_value") else None for dim in dims), dtype


def fill_type(value: ir.Value, dtype: ir.DataType | None) -> None:
    """Give a value an element type where it has none. Mutates `value`."""
    if value.type is None and dtype is not None:
        value.type = ir.TensorType(dtype)


def declared(value: ir.Value, sizes: Mapping[str, int]) -> Dims | None:
    """The extents that the file states, symbolic ones at their sizes."""
    if value.shape is None:
        return None
    return tuple(
        dim if isinstance(dim, int) else sizes.get(str(getattr(dim, "value", None))) for dim in value.shape
    )
