from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from small_models import check, info, model_of, perceptron, run, same_outputs, weights, write

from onnxprune.model import io
from onnxprune.model.convert import to_float32
from onnxprune.model.finalize import finalize
from onnxprune.model.normalize import normalize

FLOAT, HALF, BF16, DOUBLE = 1, 10, 16, 11
TYPES = pytest.mark.parametrize("kind", [HALF, BF16, DOUBLE])
NUMPY = {HALF: np.float16, BF16: ml_dtypes.bfloat16, DOUBLE: np.float64, FLOAT: np.float32}


def widened(tmp_path, proto, *, normalized=False):
    """The float32 copy as a file's proto: valid, and without any other float type left."""
    model = io.load(write(tmp_path / "in.onnx", proto)).ir
    if normalized:
        model = normalize(model)
    before = ir.to_proto(model)
    copy = to_float32(model)
    assert ir.to_proto(model) == before
    path = tmp_path / "out.onnx"
    io.save(finalize(copy), path, force=True)
    check(path)
    again = onnx.load(path)
    for name in ("FLOAT16", "BFLOAT16", "DOUBLE"):
        assert f"elem_type: {getattr(onnx.TensorProto, name)}\n" not in str(again)
        assert f"data_type: {getattr(onnx.TensorProto, name)}\n" not in str(again)
    return again


def block(kind, seed=0):
    """Conv, LayerNormalization, Gemm and a Constant, all of one type."""
    dtype = NUMPY[kind]
    arrays = {
        "w": weights(4, 3, 3, 3, seed=seed).astype(dtype),
        "g": weights(4, seed=1).astype(dtype),
        "b": weights(4, seed=2).astype(dtype),
        "v": weights(4, 2, seed=3).astype(dtype),
    }
    half = numpy_helper.from_array(np.array(0.5, dtype))
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("LayerNormalization", ["f", "g", "b"], ["n"], stash_type=FLOAT),
        helper.make_node("Constant", [], ["half"], value=half),
        helper.make_node("Mul", ["n", "half"], ["m"]),
        helper.make_node("Gemm", ["m", "v"], ["y"]),
    ]
    proto = model_of(nodes, [info("x", ["n", 3, 8, 8], kind)], [info("y", ["n", 2], kind)], arrays)
    proto.graph.value_info.append(info("f", ["n", 4], kind))
    return proto


@TYPES
@pytest.mark.parametrize("normalized", [False, True])
def test_models_of_one_type(tmp_path, kind, normalized):
    again = widened(tmp_path, block(kind), normalized=normalized)
    rounded = {t.name: numpy_helper.to_array(t).astype(np.float32) for t in block(kind).graph.initializer}
    for tensor in again.graph.initializer:
        if tensor.name in rounded:
            np.testing.assert_array_equal(numpy_helper.to_array(tensor), rounded[tensor.name])
    expected = block(FLOAT)
    for tensor in expected.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(rounded[tensor.name], tensor.name))
    x = {"x": weights(2, 3, 8, 8, seed=9)}
    same_outputs(run(expected, x), run(again, x), exact=False)


def test_what_onnxruntime_can_run_gives_about_the_same(tmp_path):
    proto = block(HALF)
    x = weights(2, 3, 8, 8, seed=9).astype(np.float16)
    wide = run(widened(tmp_path, proto), {"x": x.astype(np.float32)})["y"]
    np.testing.assert_allclose(run(proto, {"x": x})["y"].astype(np.float32), wide, rtol=0.02, atol=0.02)


def test_a_float32_model_stays_as_it_is(tmp_path):
    proto = perceptron()
    assert widened(tmp_path, proto) == proto


@TYPES
def test_mixed_precision_with_casts(tmp_path, kind):
    """float32 outside, another type inside, a quantised branch and an integer one beside it."""
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], to=kind),
        helper.make_node("MatMul", ["narrow", "w"], ["h"]),
        helper.make_node("Cast", ["h"], ["wide"], to=FLOAT),
        helper.make_node("CastLike", ["x", "w"], ["like"]),
        helper.make_node("Cast", ["like"], ["as_int"], to=onnx.TensorProto.INT64),
        helper.make_node("Cast", ["as_int"], ["back"], to=FLOAT),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["d"]),
        helper.make_node("Sum", ["wide", "back", "d"], ["y"]),
    ]
    array = weights(3, 3).astype(NUMPY[kind])
    arrays = {"w": array, "q": np.array([1, -2, 3], np.int8), "scale": np.array(0.5, np.float32)}
    again = widened(
        tmp_path, model_of(nodes, [info("x", [2, 3])], [info("y", [2, 3])], arrays, opset=19, ir=9)
    )
    x = 3 * weights(2, 3, seed=4)
    expected = x @ array.astype(np.float32) + np.trunc(x) + np.array([0.5, -1, 1.5])
    np.testing.assert_allclose(run(again, {"x": x})["y"], expected, rtol=1e-5)
    assert [i.type.tensor_type.elem_type for i in again.graph.input] == [FLOAT]


@TYPES
def test_attributes_that_name_a_type(tmp_path, kind):
    filled = numpy_helper.from_array(np.array([2.5], NUMPY[kind]))
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["a"], value=filled),
        helper.make_node("EyeLike", ["a"], ["b"], dtype=kind),
        helper.make_node("RandomNormal", [], ["c"], dtype=kind, shape=[2, 2], scale=1e-20),
        helper.make_node("RandomUniformLike", ["a"], ["d"], dtype=kind, high=1e-20),
        helper.make_node("Bernoulli", ["zero"], ["drawn"], dtype=kind),
        helper.make_node("Mul", ["drawn", "zero"], ["e"]),
        helper.make_node("Cast", ["i"], ["f"], to=kind),
        helper.make_node("Sum", ["a", "b", "c", "d", "e", "f"], ["y"]),
    ]
    arrays = {"s": np.array([2, 2]), "i": np.array(7), "zero": np.zeros((2, 2), NUMPY[kind])}
    again = widened(tmp_path, model_of(nodes, [], [info("y", [2, 2], kind)], arrays))
    np.testing.assert_array_equal(run(again, {})["y"], 9.5 + np.eye(2, dtype=np.float32))


def test_attributes_of_other_types_and_of_custom_operators_stay(tmp_path):
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=onnx.TensorProto.INT32),
        helper.make_node("Custom", ["a"], ["y"], domain="mine", dtype=HALF, to=DOUBLE),
    ]
    again = widened(tmp_path, model_of(nodes, [info("x", [2])], [info("y", [2])], domains=["mine"]))
    attributes = {a.name: a.i for node in again.graph.node for a in node.attribute if node.domain}
    assert attributes == {"dtype": HALF, "to": DOUBLE}
    assert again.graph.node[0].attribute[0].i == onnx.TensorProto.INT32


@TYPES
def test_subgraphs_and_functions(tmp_path, kind):
    dtype = NUMPY[kind]
    one = numpy_helper.from_array(np.array([1], dtype), "one")
    body = helper.make_graph(
        [helper.make_node("Add", ["h", "one"], ["in"])], "b", [], [info("in", [2], kind)], [one]
    )
    function = helper.make_function(
        "m",
        "F",
        ["a"],
        ["b"],
        [
            helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.array([2], dtype))),
            helper.make_node("Mul", ["a", "k"], ["b"]),
        ],
        [helper.make_opsetid("", 17)],
    )
    flag = helper.make_tensor("v", onnx.TensorProto.BOOL, [], [1])
    nodes = [
        helper.make_node("Constant", [], ["flag"], value=flag),
        helper.make_node("F", ["x"], ["h"], domain="m"),
        helper.make_node("If", ["flag"], ["y"], then_branch=body, else_branch=body),
    ]
    proto = model_of(
        nodes, [info("x", [2], kind)], [info("y", [2], kind)], functions=[function], domains=["m"]
    )
    for normalized in (False, True):
        again = widened(tmp_path, proto, normalized=normalized)
        np.testing.assert_array_equal(run(again, {"x": np.array([1, 2], np.float32)})["y"], [3, 5])


@TYPES
def test_sequences_and_optionals(tmp_path, kind):
    sequence = helper.make_sequence_type_proto(helper.make_tensor_type_proto(kind, [2]))
    nodes = [
        helper.make_node("SequenceConstruct", ["x", "x"], ["s"]),
        helper.make_node("SequenceEmpty", [], ["e"], dtype=kind),
        helper.make_node("SequenceInsert", ["e", "x"], ["t"]),
        helper.make_node("SequenceAt", ["s", "zero"], ["a"]),
        helper.make_node("SequenceAt", ["t", "zero"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
        helper.make_node("Optional", [], ["o"], type=sequence),
    ]
    proto = model_of(nodes, [info("x", [2], kind)], [info("y", [2], kind)], {"zero": np.array(0)})
    proto.graph.value_info.append(onnx.ValueInfoProto(name="s", type=sequence))
    proto.graph.output.append(onnx.ValueInfoProto(name="s", type=sequence))
    optional = onnx.TypeProto()
    optional.optional_type.elem_type.CopyFrom(sequence)
    proto.graph.output.append(onnx.ValueInfoProto(name="o", type=optional))
    again = ir.to_proto(to_float32(io.load(write(tmp_path / "in.onnx", proto)).ir))
    assert f"elem_type: {kind}\n" not in str(again)
    del again.graph.output[1:], again.graph.node[-1:]
    np.testing.assert_array_equal(run(again, {"x": np.array([1, 2], np.float32)})["y"], [2, 4])


def test_doubles_beyond_float32_stay_finite_and_infinities_infinite(tmp_path):
    array = np.array([1e300, -1e300, np.inf, -np.inf, np.nan, 1.5, 1e-300])
    proto = model_of([helper.make_node("Identity", ["w"], ["y"])], [], [info("y", [7], DOUBLE)], {"w": array})
    got = run(widened(tmp_path, proto), {})["y"]
    top = np.finfo(np.float32).max
    np.testing.assert_array_equal(got, np.array([top, -top, np.inf, -np.inf, np.nan, 1.5, 0], np.float32))


def test_weights_are_converted_only_when_they_are_used(tmp_path):
    (tmp_path / "w.bin").write_bytes(weights(4).astype(np.float16).tobytes())
    tensor = onnx.TensorProto(name="w", data_type=HALF, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="w.bin")
    proto = model_of([helper.make_node("Identity", ["w"], ["y"])], [], [info("y", [4], HALF)], [tensor])
    source = io.load(write(tmp_path / "in.onnx", proto)).ir
    copy = to_float32(source)
    assert source.graph.initializers["w"].const_value.raw is None
    expected = weights(4).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(copy.graph.initializers["w"].const_value.numpy(), expected)
