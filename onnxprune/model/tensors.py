"""What can be wrong with a tensor in a file: its type, its shape, and data that does not fit the two."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator

import onnx
import onnx_ir as ir

from onnxprune.errors import ModelError, UnsupportedError
from onnxprune.model.structure import nodes_of, subgraphs_of

_DAMAGED = "The file is damaged or was written by a faulty tool: export the model again."
_FIELDS = {
    ir.DataType.FLOAT: ("float_data", 1),
    ir.DataType.COMPLEX64: ("float_data", 2),
    ir.DataType.DOUBLE: ("double_data", 1),
    ir.DataType.COMPLEX128: ("double_data", 2),
    ir.DataType.INT64: ("int64_data", 1),
    ir.DataType.UINT32: ("uint64_data", 1),
    ir.DataType.UINT64: ("uint64_data", 1),
    ir.DataType.STRING: ("string_data", 1),
}
"""Where a type's elements lie when they are not raw, and how many numbers each takes; else `int32_data`."""


def all_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All dense tensors: initializers and attributes of the graph, its subgraphs and the functions."""
    yield from _of_graph(proto.graph)
    for function in proto.functions:
        yield from _of_nodes(function.node)
        for attribute in function.attribute_proto:
            yield from _of_attribute(attribute)


def all_graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph and all subgraphs, those inside functions included."""
    yield proto.graph
    bodies = [proto.graph.node, *(function.node for function in proto.functions)]
    for node in itertools.chain.from_iterable(map(nodes_of, bodies)):
        yield from subgraphs_of(node)


def _of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from _of_attribute(attribute)
        for graph in subgraphs_of(node):
            yield from _of_graph(graph)


def _of_attribute(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    if attribute.type == onnx.AttributeProto.TENSOR:
        yield attribute.t
    elif attribute.type == onnx.AttributeProto.TENSORS:
        yield from attribute.tensors


def data_type(tensor: onnx.TensorProto) -> ir.DataType:
    """Its element type; raise ModelError where that is none of ONNX's."""
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        dtype = ir.DataType.UNDEFINED
    if dtype == ir.DataType.UNDEFINED:
        raise ModelError(
            f"tensor {tensor.name!r} has the element type {tensor.data_type}, which does not exist in "
            f"onnx {onnx.__version__}",
            "Upgrade onnx, or export the model again.",
        )
    return dtype


def byte_size(tensor: onnx.TensorProto) -> int:
    """Bytes that a tensor of this type and shape has; strings count as none."""
    dtype = data_type(tensor)
    if dtype == ir.DataType.STRING:
        return 0
    return -(-math.prod(int(dim) for dim in tensor.dims) * dtype.bitwidth // 8)


def check_tensor(tensor: onnx.TensorProto) -> None:
    """Raise ModelError where a tensor's type is unknown, or its data has not the size that its shape needs.

    Parameters
    ----------
    tensor
        Where its data is external, only type and shape are looked at.
    """
    dtype = data_type(tensor)
    if any(dim < 0 for dim in tensor.dims):
        raise ModelError(f"tensor {tensor.name!r} has the shape {list(tensor.dims)}", _DAMAGED)
    if tensor.HasField("segment"):
        raise UnsupportedError(
            f"tensor {tensor.name!r} is stored in segments, which onnxprune cannot read",
            "Load and save the model with another tool first.",
        )
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return
    if tensor.HasField("raw_data") and dtype != ir.DataType.STRING:
        needed, there, what = byte_size(tensor), len(tensor.raw_data), "bytes"
    else:
        name, each = _FIELDS.get(dtype, ("int32_data", 1))
        elements = math.prod(tensor.dims)
        packed = dtype.bitwidth < 6 if dtype != ir.DataType.STRING else False
        needed = byte_size(tensor) if packed else elements * each
        there, what = len(getattr(tensor, name)), "elements" if each == 1 else "numbers"
    if needed != there:
        raise ModelError(
            f"tensor {tensor.name!r} ({dtype.name}, shape {list(tensor.dims)}) needs {needed} {what}, "
            f"but has {there}",
            _DAMAGED,
        )
