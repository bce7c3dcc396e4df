from __future__ import annotations

import gc
import os

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.calibrate import InputSpec, open_session, predict, read_dataset, run, stream
from onnxprune.calibrate import sessions as sessions_module
from onnxprune.calibrate.providers import CPU
from onnxprune.errors import ModelError, UsageError

LINEAR = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[n,3] x) => (float[n,2] y, float[n,3] z)
    <float[3,2] w = {1,2,3,4,5,6}> { y = MatMul(x, w)  z = Neg(x) }"""
W = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
SPEC = InputSpec("x", np.dtype(np.float32), ("n", 3))


def linear():
    return ir.from_onnx_text(LINEAR)


def rows(count):
    return np.random.default_rng(0).standard_normal((count, 3)).astype(np.float32)


def with_big_weight(array, dtype=ir.DataType.FLOAT, ir_version=8, as_input=False):
    """y = x @ cast(w), with a weight above the limit."""
    tensor = ir.Tensor(array, dtype=dtype, name="w")
    weight = ir.Value(name="w", type=ir.TensorType(dtype), shape=ir.Shape(array.shape), const_value=tensor)
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", array.shape[0]]))
    cast = ir.node("Cast", [weight], {"to": ir.DataType.FLOAT})
    product = ir.node("MatMul", [x, cast.outputs[0]])
    y = product.outputs[0]
    y.name, y.type, y.shape = "y", x.type, ir.Shape(["n", array.shape[1]])
    inputs = [x, weight] if as_input else [x]
    graph = ir.Graph(
        inputs, [y], nodes=[cast, product], initializers=[weight], name="g", opset_imports={"": 17}
    )
    return ir.Model(graph, ir_version=ir_version)


def test_run_gives_outputs_by_name():
    session = open_session(linear())
    assert session.get_providers() == [CPU]
    found = run(session, {"x": rows(4)})
    assert list(found) == ["y", "z"]
    assert np.allclose(found["y"], rows(4) @ W, atol=1e-6)
    assert np.array_equal(found["z"], -rows(4))
    assert list(run(session, {"x": rows(4)}, ["z"])) == ["z"]


@pytest.mark.parametrize(
    ("dtype", "numpy_dtype"),
    [
        (ir.DataType.FLOAT, np.float32),
        (ir.DataType.FLOAT16, np.float16),
        (ir.DataType.BFLOAT16, ml_dtypes.bfloat16),
        (ir.DataType.INT8, np.int8),
    ],
)
def test_big_weights_are_handed_over_and_stay_alive(dtype, numpy_dtype):
    array = (np.random.default_rng(0).standard_normal((512, 2100)) * 3).astype(numpy_dtype)
    assert array.nbytes > sessions_module.EXTERNAL_ABOVE
    expected = array.astype(np.float32)
    session = open_session(with_big_weight(array.copy(), dtype), optimize=False)
    assert list(session._onnxprune_weights) == ["w"]
    x = np.eye(512, dtype=np.float32)
    for _ in range(3):
        gc.collect()
        noise = [np.full((512, 2100), 7, numpy_dtype) for _ in range(4)]
        assert np.array_equal(run(session, {"x": x})["y"], expected)
        del noise


def test_big_weights_are_not_copied_into_the_message(monkeypatch):
    array = np.zeros((512, 2100), np.float32)
    sizes = []
    import onnxruntime

    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda data, *args, **more: sizes.append(len(data)) or real(data, *args, **more),
    )
    session = open_session(with_big_weight(array))
    assert sizes[0] < 1000
    assert session._onnxprune_weights["w"].data_ptr() == array.ctypes.data


@pytest.mark.parametrize(("ir_version", "overridable"), [(3, False), (8, True)])
def test_big_weights_that_are_graph_inputs(ir_version, overridable):
    array = np.ones((512, 2100), np.float32)
    session = open_session(with_big_weight(array, ir_version=ir_version, as_input=True))
    x = np.ones((1, 512), np.float32)
    assert run(session, {"x": x})["y"][0, 0] == 512
    assert [value.name for value in session.get_overridable_initializers()] == ["w"] * overridable
    if overridable:
        assert run(session, {"x": x, "w": 2 * array})["y"][0, 0] == 1024


def test_external_weights_are_read_where_they_lie(tmp_path):
    array = np.random.default_rng(0).standard_normal((512, 2100)).astype(np.float32)
    ir.save(with_big_weight(array), tmp_path / "m.onnx", external_data="m.data")
    model = ir.load(tmp_path / "m.onnx")
    assert isinstance(model.graph.initializers["w"].const_value, ir.ExternalTensor)
    found = run(open_session(model), {"x": np.eye(512, dtype=np.float32)})["y"]
    assert np.allclose(found, array, atol=1e-6)
    assert sorted(os.listdir(tmp_path)) == ["m.data", "m.onnx"]


def test_weights_that_are_gone(tmp_path):
    ir.save(with_big_weight(np.ones((512, 2100), np.float32)), tmp_path / "m.onnx", external_data="m.data")
    model = ir.load(tmp_path / "m.onnx")
    (tmp_path / "m.data").unlink()
    with pytest.raises(ModelError, match="weights cannot be read"):
        open_session(model)


def test_bf16_in_and_out():
    model = ir.from_onnx_text("""<ir_version: 8, opset_import: ["" : 17]>
        g (bfloat16[n,2] x, float[n,2] f) => (bfloat16[n,2] y, float[n,2] z, float[n,2] u)
        { y = Identity(x)  z = Cast<to=1>(x)  u = Neg(f) }""")
    session = open_session(model)
    x = np.array([[1.0, 3.3], [-2.5, 1e30]], np.float32)
    rounded = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    for given in (x, x.astype(ml_dtypes.bfloat16)):
        found = run(session, {"x": given, "f": x})
        assert found["y"].dtype == found["z"].dtype == np.float32
        assert np.array_equal(found["y"], rounded)
        assert np.array_equal(found["z"], rounded)
        assert np.array_equal(found["u"], -x)
    empty = np.zeros((0, 2), np.float32)
    assert run(session, {"x": empty, "f": empty})["y"].shape == (0, 2)


def test_bf16_with_a_scalar_and_an_overridden_initializer():
    model = ir.from_onnx_text("""<ir_version: 8, opset_import: ["" : 17]>
        g (bfloat16 x, float m) => (bfloat16 y, float z) <float m = {1}> { y = Identity(x)  z = Neg(m) }""")
    session = open_session(model)
    found = run(session, {"x": np.float32(1.5), "m": np.float32(2)})
    assert (found["y"].shape, found["y"], found["z"]) == ((), 1.5, -2)


def test_outputs_that_are_no_tensors_are_left_out():
    model = ir.from_onnx_text("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[n,3] x) => (seq(float[n,3]) s, float[n,3] y) { s = SequenceConstruct(x)  y = Neg(x) }""")
    session = open_session(model)
    assert list(run(session, {"x": rows(1)})) == ["y"]
    assert list(run(session, {"x": rows(1)}, ["s"])) == ["s"]


def test_options():
    options = open_session(linear(), threads=1, optimize=False, deterministic=True).get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.use_deterministic_compute
    assert options.graph_optimization_level.name == "ORT_DISABLE_ALL"
    options = open_session(linear(), deterministic=False).get_session_options()
    assert not options.use_deterministic_compute
    assert options.graph_optimization_level.name == "ORT_ENABLE_ALL"
    assert options.enable_mem_pattern
    assert not open_session(linear(), lean=True).get_session_options().enable_mem_pattern


@pytest.mark.parametrize("optimize", [False, True])
def test_a_lean_session_computes_the_same(optimize):
    array = np.random.default_rng(0).standard_normal((512, 2100)).astype(np.float32)
    sessions = [
        open_session(with_big_weight(array, ir.DataType.FLOAT), optimize=optimize, lean=lean)
        for lean in (False, True)
    ]
    gc.collect()
    found = [
        run(session, {"x": np.eye(512, dtype=np.float32)})["y"] for session in sessions for _ in range(2)
    ]
    for other in found:
        np.testing.assert_array_equal(other, array)


def dataset(count):
    return read_dataset({"x": rows(count), "labels": np.arange(count)}, [SPEC])


def test_stream_and_predict():
    seen = []
    parts = list(
        stream(open_session(linear()), dataset(5), 2, progress=lambda done, total: seen.append((done, total)))
    )
    assert [labels.tolist() for _, labels in parts] == [[0, 1], [2, 3], [4]]
    assert [found["y"].shape for found, _ in parts] == [(2, 2), (2, 2), (1, 2)]
    assert seen == [(2, 5), (4, 5), (5, 5)]
    found = predict(open_session(linear()), dataset(5), 2)
    assert np.allclose(found["y"], rows(5) @ W, atol=1e-6)
    assert list(predict(open_session(linear()), dataset(5), 2, outputs=["z"])) == ["z"]


def test_predict_stacks_what_has_no_batch_axis():
    model = ir.from_onnx_text(LINEAR.replace("[n,", "[1,"))
    fixed = read_dataset({"x": rows(3)}, [InputSpec("x", SPEC.dtype, (1, 3))])
    assert predict(open_session(model), fixed, 8)["y"].shape == (3, 1, 2)


def test_predict_refuses_outputs_of_several_shapes():
    model = ir.from_onnx_text("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[n,s] x) => (float[n,s] y) { y = Neg(x) }""")
    data = read_dataset(
        [{"x": np.ones((1, 2))}, {"x": np.ones((1, 3))}], [InputSpec("x", SPEC.dtype, ("n", "s"))]
    )
    with pytest.raises(UsageError, match="cannot be joined"):
        predict(open_session(model), data, 2)


def test_what_goes_wrong_is_raised_without_noise(capfd):
    broken = linear()
    broken.graph[0].op_type = "NoSuchOperator"
    with pytest.raises(ModelError, match="cannot load the model: .*NoSuchOperator") as caught:
        open_session(broken)
    assert "[ONNXRuntimeError]" not in caught.value.what and "\n" not in caught.value.what
    session = open_session(linear())
    with pytest.raises(ModelError, match=r"failed on inputs 'x' float32\[2, 4\]: Got invalid dimensions"):
        run(session, {"x": np.ones((2, 4), np.float32)})
    with pytest.raises(ModelError, match="failed on inputs"):
        run(session, {"x": np.ones((2, 3), np.float64)})
    with pytest.raises(UsageError, match=r"no output 'yy' \(did you mean 'y'\?\)"):
        run(session, {"x": rows(1)}, ["yy"])
    assert capfd.readouterr() == ("", "")


def test_failing_inside_a_kernel_makes_no_noise(capfd):
    model = ir.from_onnx_text("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[n,m] x) => (float[a,b] y) <int64[2] s = {2,3}> { y = Reshape(x, s) }""")
    with pytest.raises(ModelError, match="failed on inputs"):
        run(open_session(model), {"x": np.ones((1, 5), np.float32)})
    assert capfd.readouterr() == ("", "")


def test_messages_are_trimmed():
    text = "[ONNXRuntimeError] : 1 : FAIL : /a/b/graph.cc:12 Load model failed: " + "x" * 1000 + "\nmore"
    found = sessions_module.trim(RuntimeError(text))
    assert found.startswith("Load model failed: xxx")
    assert len(found) <= 400
    assert sessions_module.trim(RuntimeError()) == "RuntimeError"


LOOKED_UP = """<ir_version: 8, opset_import: ["" : 17]>
    g (int64[n] ids) => (float[n,2] y) <float[3,2] w = {1,2,3,4,5,6}> { y = Gather<axis=0>(w, ids) }"""


def test_an_index_beyond_a_table_is_a_matter_of_values():
    with pytest.raises(ModelError, match="looks up more than there is"):
        run(open_session(ir.from_onnx_text(LOOKED_UP)), {"ids": np.array([0, 3])})
