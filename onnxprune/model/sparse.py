"""Sparse tensors made dense: onnx-ir drops sparse initializers silently and refuses sparse constants."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune.errors import ModelError, UnsupportedError
from onnxprune.model import edit
from onnxprune.model.structure import nodes_of
from onnxprune.model.tensors import all_graphs, check_tensor

_DAMAGED = "The file is damaged or was written by a faulty tool: export the model again."
_LARGEST = 2**31 - 1

INDEX_BYTES = 8
"""ONNX stores the position of every value of a sparse tensor as an int64."""

SPARSE_FROM = 6
"""The IR version from which on graphs have sparse initializers."""


def densify(proto: onnx.ModelProto) -> int:
    """Turn sparse initializers and the `sparse_value` of Constant nodes into dense tensors of the same name.

    Parameters
    ----------
    proto
        Mutated.

    Returns
    -------
    int
        How many there were.

    Raises
    ------
    ModelError
        Indices do not fit the shape or the number of values.
    UnsupportedError
        The dense tensor would be larger than 2 GiB, or another attribute is sparse.
    """
    count = 0
    for graph in all_graphs(proto):
        count += len(graph.sparse_initializer)
        for sparse in graph.sparse_initializer:
            graph.initializer.append(dense_tensor(sparse))
        del graph.sparse_initializer[:]
    for body in (proto.graph.node, *(function.node for function in proto.functions)):
        for node in nodes_of(body):
            for attribute in node.attribute:
                count += _densify_attribute(node, attribute)
    return count


def _densify_attribute(node: onnx.NodeProto, attribute: onnx.AttributeProto) -> bool:
    """Make the attribute dense; whether it was sparse."""
    kinds = onnx.AttributeProto
    if attribute.ref_attr_name or attribute.type not in (kinds.SPARSE_TENSOR, kinds.SPARSE_TENSORS):
        return False
    if node.op_type != "Constant" or attribute.name != "sparse_value":
        raise UnsupportedError(
            f"attribute {attribute.name!r} of node {node.name!r} ({node.op_type}) is sparse, "
            "which onnxprune cannot read",
            "Make it dense.",
        )
    dense = dense_tensor(attribute.sparse_tensor)
    attribute.ClearField("sparse_tensor")
    attribute.name, attribute.type = "value", kinds.TENSOR
    attribute.t.CopyFrom(dense)
    return True


def dense_tensor(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    """The same tensor with its zeros.

    Parameters
    ----------
    sparse
        Indices are linear, shape (nnz,), or one row per value, shape (nnz, rank).
    """
    name = sparse.values.name
    for tensor in (sparse.values, sparse.indices):
        check_tensor(tensor)
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.data_type == onnx.TensorProto.STRING:
            raise UnsupportedError(
                f"the sparse tensor {name!r} is external or holds strings, which onnxprune cannot read",
                "Make it dense.",
            )
    values = ir.serde.deserialize_tensor(sparse.values)
    indices = np.asarray(ir.serde.deserialize_tensor(sparse.indices).numpy())
    shape = tuple(int(dim) for dim in sparse.dims)
    if any(dim < 0 for dim in shape):
        raise ModelError(f"the sparse tensor {name!r} has the shape {list(shape)}", _DAMAGED)
    if math.prod(shape) * values.dtype.bitwidth / 8 > _LARGEST:
        raise UnsupportedError(
            f"the sparse tensor {name!r} has the shape {list(shape)} and is too large to be made dense",
            "Store it as a dense tensor with external data.",
        )
    flat = _flat_indices(name, indices, shape, values.size)
    dense = np.zeros(math.prod(shape), values.dtype.numpy())
    dense[flat] = values.numpy().ravel()
    return ir.serde.serialize_tensor(edit.tensor(dense.reshape(shape), values.dtype, name))


def sparse_tensor(tensor: ir.TensorProtocol, name: str) -> onnx.SparseTensorProto:
    """A tensor without its zeros: values, and their positions in the flattened tensor."""
    array = np.asarray(tensor.numpy())
    places = np.flatnonzero(array)
    proto = onnx.SparseTensorProto(dims=array.shape)
    values = edit.tensor(array.ravel()[places], tensor.dtype, name)
    proto.values.CopyFrom(ir.serde.serialize_tensor(values))
    indices = edit.tensor(places.astype(np.int64), ir.DataType.INT64, f"{name}/indices")
    proto.indices.CopyFrom(ir.serde.serialize_tensor(indices))
    return proto


def sparse_saves(model: ir.Model, names: Iterable[str]) -> list[str]:
    """Those of the initializers that are smaller without their zeros."""
    found = []
    for name in names:
        data = model.graph.initializers[name].const_value if name in model.graph.initializers else None
        if data is None or data.dtype.bitwidth % 8 or data.dtype == ir.DataType.STRING:
            continue
        nonzero = int(np.count_nonzero(data.numpy()))
        if nonzero * (data.dtype.itemsize + INDEX_BYTES) < data.nbytes:
            found.append(name)
    return found


def _flat_indices(
    name: str, indices: edit.Array, shape: tuple[int, ...], count: int
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    good = indices.dtype == np.int64 and indices.ndim in (1, 2) and len(indices) == count
    if good and indices.ndim == 2:
        good = indices.shape[1] == len(shape) and bool(((indices >= 0) & (indices < np.array(shape))).all())
        if good:
            return np.asarray(np.ravel_multi_index(tuple(indices.T), shape), np.int64).reshape(count)
    elif good and not ((indices < 0) | (indices >= math.prod(shape))).any():
        return indices.astype(np.int64)
    raise ModelError(
        f"the indices of the sparse tensor {name!r} (shape {list(indices.shape)}) do not fit its "
        f"{count} values and its shape {list(shape)}",
        _DAMAGED,
    )
