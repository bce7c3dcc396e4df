from __future__ import annotations

import gc

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper
from small_models import info, model_of, perceptron, run, weights, write

from onnxprune.model import edit, io
from onnxprune.model.finalize import finalize
from onnxprune.model.normalize import normalize
from onnxprune.surgery.keep import slice_array, zero_slices

DTYPES = {
    ir.DataType.FLOAT: np.float32,
    ir.DataType.FLOAT16: np.float16,
    ir.DataType.BFLOAT16: ml_dtypes.bfloat16,
    ir.DataType.DOUBLE: np.float64,
    ir.DataType.INT4: ml_dtypes.int4,
    ir.DataType.UINT4: ml_dtypes.uint4,
    ir.DataType.FLOAT4E2M1: ml_dtypes.float4_e2m1fn,
    ir.DataType.FLOAT8E4M3FN: ml_dtypes.float8_e4m3fn,
    ir.DataType.INT8: np.int8,
    ir.DataType.INT64: np.int64,
    ir.DataType.BOOL: np.bool_,
}
KINDS = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)


def graph_with(array, dtype, name="w"):
    """A loaded model's graph with one more initializer."""
    model = ir.from_proto(perceptron())
    return model.graph, edit.add_initializer(model.graph, name, array, dtype)


def values_of(dtype, *shape):
    return (np.arange(np.prod(shape)) % 8).reshape(shape).astype(np.float32).astype(DTYPES[dtype])


@KINDS
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (0, 2)])
def test_tensors_of_every_type(dtype, shape):
    array = values_of(dtype, *shape)
    tensor = edit.tensor(array, dtype, "t")
    assert (tensor.dtype, tensor.shape.numpy(), tensor.name) == (dtype, shape, "t")
    assert tensor.numpy().shape == shape and tensor.numpy().dtype == array.dtype
    np.testing.assert_array_equal(tensor.numpy(), array)
    assert len(tensor.tobytes()) == tensor.nbytes
    again = ir.serde.deserialize_tensor(ir.serde.serialize_tensor(tensor))
    np.testing.assert_array_equal(again.numpy(), array)


@KINDS
def test_other_arrays_are_cast_not_reinterpreted(dtype):
    """onnx-ir takes uint8 and uint16 arrays for the bits of types that numpy lacks."""
    for given in (np.float32, np.uint8, np.int64):
        array = np.array([0, 1, 3, 2], given)
        np.testing.assert_array_equal(edit.tensor(array, dtype).numpy(), array.astype(DTYPES[dtype]))


def test_other_memory_orders():
    array = np.asfortranarray(weights(3, 4))
    assert edit.tensor(array, ir.DataType.FLOAT).tobytes() == np.ascontiguousarray(array).tobytes()
    assert edit.tensor(array[::2, ::-1], ir.DataType.FLOAT).tobytes() == array[::2, ::-1].tobytes()


def test_strings():
    tensor = edit.tensor(np.array([[b"a", b"b"]], object), ir.DataType.STRING, "s")
    assert tensor.dtype == ir.DataType.STRING and tensor.shape.numpy() == (1, 2)
    assert list(ir.serde.serialize_tensor(tensor).string_data) == [b"a", b"b"]


@KINDS
def test_data_shape_and_type_change_together(dtype):
    _, value = graph_with(values_of(dtype, 3, 4), dtype)
    edit.set_array(value, values_of(dtype, 2, 5))
    assert (value.dtype, value.const_value.dtype) == (dtype, dtype)
    assert list(value.shape) == list(value.const_value.shape) == [2, 5]
    edit.set_array(value, values_of(dtype))
    assert value.shape.rank() == 0 and value.const_value.numpy().shape == ()
    edit.set_tensor(value, edit.tensor(weights(7), ir.DataType.DOUBLE))
    assert value.dtype == ir.DataType.DOUBLE and list(value.shape) == [7]


@KINDS
def test_lazy_data(dtype):
    _, value = graph_with(values_of(dtype, 3, 4), dtype)
    calls = []

    def make():
        calls.append(1)
        return values_of(dtype, 3, 2)

    edit.set_lazy(value, (3, 2), make)
    assert not calls
    assert (value.dtype, list(value.shape), value.const_value.nbytes) == (
        dtype,
        [3, 2],
        -(-6 * dtype.bitwidth // 8),
    )
    np.testing.assert_array_equal(value.const_value.numpy(), values_of(dtype, 3, 2))
    assert value.const_value.tobytes() == edit.tensor(values_of(dtype, 3, 2), dtype).tobytes()
    edit.set_lazy(value, (4, 2), make)
    with pytest.raises(RuntimeError, match=r"'w' was announced as \(4, 2\), but is \(3, 2\)"):
        value.const_value.numpy()


def test_values_without_a_type_are_refused():
    with pytest.raises(ValueError, match="'v' has no element type"):
        edit.set_array(ir.Value(name="v"), weights(3))
    with pytest.raises(ValueError, match="'v' has no element type"):
        edit.set_lazy(ir.Value(name="v"), (3,), lambda: weights(3))


@KINDS
def test_sliced_weights_survive_a_file_bit_by_bit(tmp_path, dtype):
    array = values_of(dtype, 6, 4)
    graph, value = graph_with(array, dtype)
    keep = np.array([True, False, True, True, False, False])
    sliced = slice_array(value.const_value.numpy(), {0: keep, 1: np.array([True, True, True, False])}, {})
    edit.set_array(value, sliced)
    zeroed = edit.add_initializer(graph, "z", zero_slices(array, 0, keep, None), dtype)
    assert zeroed.name == "z"
    model = ir.Model(graph, ir_version=10)
    for external in (False, True):
        io.save(model, tmp_path / "m.onnx", external=external, force=True)
        again = io.load(tmp_path / "m.onnx").ir.graph.initializers
        np.testing.assert_array_equal(again["w"].const_value.numpy(), array[keep][:, :3])
        assert again["w"].const_value.tobytes() == edit.tensor(array[keep][:, :3], dtype).tobytes()
        expected = array.copy()
        expected[~keep] = 0
        np.testing.assert_array_equal(again["z"].const_value.numpy(), expected)


@KINDS
@pytest.mark.parametrize("external", [False, True])
def test_all_types_survive_the_whole_way(tmp_path, dtype, external):
    """Load, normalise, finalise, save, load: the same bits; sub-byte types with an odd number of elements."""
    array = values_of(dtype, 7, 401)
    tensor = ir.serde.serialize_tensor(edit.tensor(array, dtype, "w"))
    proto = model_of(
        [helper.make_node("Identity", ["w"], ["y"])],
        [],
        [info("y", [7, 401], dtype.value)],
        [tensor],
        opset=23,
        ir=11,
    )
    model = normalize(io.load(write(tmp_path / "in.onnx", proto)).ir)
    io.save(finalize(model), tmp_path / "out.onnx", external=external)
    again = io.load(tmp_path / "out.onnx").ir.graph.initializers["w"].const_value
    assert again.dtype == dtype and again.tobytes() == edit.tensor(array, dtype).tobytes()
    np.testing.assert_array_equal(np.asarray(again.numpy()), array)


# ----------------------------------------------------------------------------------------------- names


def test_fresh_names():
    graph, value = graph_with(weights(2), ir.DataType.FLOAT, "W")
    assert value.name == "W_1"
    assert [edit.fresh(graph, "W") for _ in range(2)] == ["W_2", "W_3"]
    for taken in ("x", "h", "first", "y"):
        assert edit.fresh(graph, taken) == f"{taken}_1"
    assert edit.fresh(graph, "new") == "new"


def test_names_inside_subgraphs_are_taken():
    body = helper.make_graph([helper.make_node("Relu", ["x"], ["in"], name="n")], "b", [], [info("in")])
    node = helper.make_node("If", ["f"], ["y"], then_branch=body, else_branch=body)
    graph = ir.from_proto(model_of([node], [info("x"), info("f", [], 9)], [info("y")])).graph
    assert [edit.fresh(graph, name) for name in ("in", "n")] == ["in_1", "n_1"]


def test_clones_do_not_share_their_names():
    """What is added to one clone must not change the names in the next: results would depend on history."""
    model = ir.from_proto(perceptron())
    assert edit.fresh(model.graph, "a") == "a"
    for _ in range(3):
        copy = model.clone()
        assert edit.add_initializer(copy.graph, "mask", weights(1), ir.DataType.FLOAT).name == "mask"
        second = copy.clone()
        del copy
        gc.collect()
        assert edit.add_initializer(second.graph, "mask", weights(1), ir.DataType.FLOAT).name == "mask_1"
    assert edit.fresh(model.graph, "mask") == "mask"


def test_inserting_before_an_input():
    proto = perceptron()
    model = ir.from_proto(proto)
    second = model.graph[3]
    mask = edit.add_initializer(model.graph, "mask", np.array([1, 0, 1, 0]), ir.DataType.FLOAT)
    edit.insert_before(second, 0, "Mul", [mask])
    edit.insert_before(second, 1, "Mul", [mask], first=False)
    x = {"x": weights(5, 3)}
    assert [node.op_type for node in model.graph] == ["MatMul", "Add", "Relu", "Mul", "Mul", "MatMul"]
    assert [v.name for v in model.graph[4].inputs] == ["mask", "V"]
    with pytest.raises(ValueError, match="no input"):
        edit.insert_before(ir.node("Relu", [None]), 0, "Mul", [mask])
    mask.shape = ir.Shape([4])
    second.inputs[1].producer().replace_input_with(
        0, edit.add_initializer(model.graph, "one", np.ones(1), ir.DataType.FLOAT)
    )
    arrays = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    hidden = np.maximum(x["x"] @ arrays["W"] + arrays["b"], 0) * arrays["mask"]
    got = run(ir.to_proto(model), x)["y"]
    np.testing.assert_allclose(got, hidden @ arrays["V"], rtol=1e-5)


def test_dropping_what_is_unused():
    model = ir.from_proto(perceptron())
    graph = model.graph
    edit.add_initializer(graph, "unused", weights(2), ir.DataType.FLOAT)
    edit.add_initializer(graph, "wanted", weights(2), ir.DataType.FLOAT)
    listed = edit.add_initializer(graph, "listed", weights(2), ir.DataType.FLOAT)
    graph.inputs.append(listed)
    edit.drop_unused(graph, keep=frozenset({"wanted"}))
    assert list(graph.initializers) == ["W", "b", "V", "wanted"] and [v.name for v in graph.inputs] == ["x"]
    assert len(graph) == 4
