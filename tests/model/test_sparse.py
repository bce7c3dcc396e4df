from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from small_models import (
    FLOAT,
    array_of,
    info,
    model_of,
    normal,
    read,
    round_trip,
    run,
    weights,
)

from onnxprune.errors import ModelError, UnsupportedError


def sparse(name, array, *, rows):
    """A sparse tensor with linear indices or with one row of indices per value."""
    places = np.flatnonzero(array).astype(np.int64)
    if rows:
        places = np.stack(np.unravel_index(places, array.shape), -1).astype(np.int64)
    values = numpy_helper.from_array(array.ravel()[np.flatnonzero(array)], name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(places, f"{name}_places"), array.shape)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.int64])
@pytest.mark.parametrize("place", ["initializer", "constant", "body"])
def test_sparse_tensors_become_dense(tmp_path, rows, dtype, place):
    dense = np.zeros((3, 4), dtype)
    dense[0, 1], dense[2, 3], dense[1, 0] = 1, -2, 3
    tensor = sparse("w", dense, rows=rows)
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    if place == "initializer":
        proto = model_of(
            [helper.make_node("Add", ["w", "x"], ["y"])], [info("x", [1], kind)], [info("y", None, kind)]
        )
        proto.graph.sparse_initializer.append(tensor)
    else:
        nodes = [
            helper.make_node("Constant", [], ["w"], sparse_value=tensor),
            helper.make_node("Add", ["w", "x"], ["y"]),
        ]
        if place == "body":
            inner = helper.make_graph(nodes, "b", [], [info("y", None, kind)])
            flag = helper.make_tensor("v", onnx.TensorProto.BOOL, [], [1])
            nodes = [
                helper.make_node("Constant", [], ["flag"], value=flag),
                helper.make_node("If", ["flag"], ["y"], then_branch=inner, else_branch=inner),
            ]
        proto = model_of(nodes, [info("x", [1], kind)], [info("y", None, kind)])
    model = normal(tmp_path, proto)
    if place != "body":
        np.testing.assert_array_equal(array_of(model, "w"), dense)
    x = np.array([5], dtype)
    np.testing.assert_array_equal(run(round_trip(tmp_path, model), {"x": x})["y"], dense + x)


def test_sparse_bfloat16(tmp_path):
    dense = np.array([0, 1.5, 0, -2], ml_dtypes.bfloat16)
    proto = model_of(
        [helper.make_node("Identity", ["w"], ["y"])], [], [info("y", None, onnx.TensorProto.BFLOAT16)]
    )
    proto.graph.sparse_initializer.append(sparse("w", dense, rows=False))
    np.testing.assert_array_equal(array_of(normal(tmp_path, proto), "w"), dense)


@pytest.mark.parametrize(
    ("indices", "dims"),
    [
        ([0, 6], [2, 3]),
        ([-1, 0], [2, 3]),
        ([0], [2, 3]),
        ([[0, 0], [2, 0]], [2, 3]),
        ([[0, 0], [0, -1]], [2, 3]),
        ([[0], [1]], [2, 3]),
        ([[[0]], [[1]]], [2]),
        ([0, 1], [2, -3]),
    ],
)
def test_bad_sparse_tensors(tmp_path, indices, dims):
    values = numpy_helper.from_array(weights(2), "w")
    tensor = helper.make_sparse_tensor(values, numpy_helper.from_array(np.array(indices, np.int64)), dims)
    proto = model_of([helper.make_node("Identity", ["w"], ["y"])], [], [info("y")])
    proto.graph.sparse_initializer.append(tensor)
    with pytest.raises(ModelError, match="sparse tensor 'w'"):
        read(tmp_path, proto)


def test_sparse_tensors_that_are_too_large_or_strange(tmp_path):
    values = numpy_helper.from_array(weights(1), "w")
    proto = model_of([helper.make_node("Identity", ["w"], ["y"])], [], [info("y")])
    tensor = helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([0])), [2**20, 2**20])
    proto.graph.sparse_initializer.append(tensor)
    with pytest.raises(UnsupportedError, match="too large"):
        read(tmp_path, proto)
    del proto.graph.sparse_initializer[0].dims[:]
    proto.graph.sparse_initializer[0].dims.extend([1])
    proto.graph.sparse_initializer[0].indices.data_type = FLOAT
    with pytest.raises(ModelError):
        read(tmp_path, proto)
    proto.graph.sparse_initializer[0].values.data_location = onnx.TensorProto.EXTERNAL
    with pytest.raises(UnsupportedError, match="external"):
        read(tmp_path, proto)
