"""Weights of few bits that a file spells as Cast and Mul: quantised weights like any others."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.model.finalize import finalize
from onnxprune.model.normalize import normalize
from onnxprune.model.quantized import QuantizedTensor

FLOAT = TensorProto.FLOAT
SIZES = {"w1": (16, 32), "w2": (32, 32), "w3": (32, 5)}
FORMS = {
    "tensor": {"scales": ()},
    "tensor of rank 2": {"scales": (1, 1)},
    "columns": {"scales": (-1,)},
    "columns of rank 2": {"scales": (1, -1)},
    "rows": {"scales": (-1, 1)},
    "scale first": {"scales": (-1,), "flipped": True},
    "zero point": {"scales": (-1,), "zero": (-1,), "dtype": np.uint8},
    "one zero point": {"scales": (-1,), "zero": (), "dtype": np.int8},
    "16 bits": {"scales": (), "dtype": np.int16},
    "turned": {"scales": (-1, 1), "turned": True},
}


def spelled(name, shape, rng, *, scales, zero=None, dtype=np.int8, flipped=False, turned=False, to=FLOAT):
    """Nodes and constants that make a weight, and the weight."""
    shape = shape[::-1] if turned else shape
    span = np.iinfo(dtype)
    stored = rng.integers(span.min + 1, span.max, shape).astype(dtype)

    def operand(dims, draw):
        lined = (*(1,) * (2 - len(dims)), *dims)
        extents = tuple(shape[axis] if extent == -1 else 1 for axis, extent in enumerate(lined))
        return draw(extents[2 - len(dims) :])

    scale = operand(
        scales, lambda dims: rng.uniform(0.5, 1.0, dims).astype(np.float32) / np.float32(span.max)
    )
    scale = scale.astype(helper.tensor_dtype_to_np_dtype(to))
    constants = {f"{name}_q": stored, f"{name}_scale": np.asarray(scale)}
    nodes = [helper.make_node("Cast", [f"{name}_q"], [f"{name}_f"], name=f"{name}_cast", to=to)]
    meaning, last = stored.astype(np.float32), f"{name}_f"
    if zero is not None:
        points = operand(zero, lambda dims: np.asarray(rng.integers(span.max // 3, span.max // 2, dims)))
        constants[f"{name}_zero"] = points.astype(np.float32)
        nodes.append(helper.make_node("Sub", [last, f"{name}_zero"], [f"{name}_less"], name=f"{name}_sub"))
        meaning, last = meaning - points, f"{name}_less"
    factors = [f"{name}_scale", last] if flipped else [last, f"{name}_scale"]
    nodes.append(helper.make_node("Mul", factors, [f"{name}_t" if turned else name], name=f"{name}_mul"))
    if turned:
        nodes.append(helper.make_node("Transpose", [f"{name}_t"], [name], name=f"{name}_turn", perm=[1, 0]))
    weight = (meaning * scale).astype(np.float32)
    return nodes, constants, weight.T if turned else weight


def network(path, **form):
    """Three layers, each with such a weight."""
    rng = np.random.default_rng(0)
    nodes, constants, weights = [], {}, {}
    for name, shape in SIZES.items():
        made, given, weights[name] = spelled(name, shape, rng, **form)
        nodes, constants = [*nodes, *made], {**constants, **given}
    to = form.get("to", FLOAT)
    for number, name in enumerate(SIZES, 1):
        before = f"r{number - 1}" if number > 1 else "x"
        nodes.append(helper.make_node("MatMul", [before, name], [f"m{number}"], name=f"layer{number}"))
        if number < len(SIZES):
            nodes.append(helper.make_node("Relu", [f"m{number}"], [f"r{number}"]))
    x = helper.make_tensor_value_info("x", to, ("n", 16))
    y = helper.make_tensor_value_info("m3", to, ("n", 5))
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], initializers)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)
    return path, weights


def run(path):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (value,) = session.get_inputs()
    dtype = np.float16 if "16" in value.type else np.float32
    return session.run(None, {"x": np.random.default_rng(7).standard_normal((6, 16)).astype(dtype)})[0]


def operators(path):
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("name", FORMS)
def test_they_are_the_floats_that_they_mean(tmp_path, name):
    path, weights = network(tmp_path / "net.onnx", **FORMS[name])
    graph = normalize(ir.load(path)).graph
    assert [node.op_type for node in graph] == ["MatMul", "Relu", "MatMul", "Relu", "MatMul"]
    for weight, expected in weights.items():
        tensor = graph.initializers[weight].const_value
        assert isinstance(tensor, QuantizedTensor)
        np.testing.assert_array_equal(tensor.numpy(), expected)


@pytest.mark.parametrize("name", FORMS)
def test_they_are_written_as_they_were(tmp_path, name):
    path, _ = network(tmp_path / "net.onnx", **FORMS[name])
    again = tmp_path / "again.onnx"
    ir.save(finalize(normalize(ir.load(path))), again)
    before, after = onnx.load(path), onnx.load(again)
    assert sorted(n.SerializeToString() for n in before.graph.node) == sorted(
        n.SerializeToString() for n in after.graph.node
    )
    old, new = (
        {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer} for proto in (before, after)
    )
    assert old.keys() == new.keys()
    for key, array in old.items():
        assert array.dtype == new[key].dtype
        np.testing.assert_array_equal(array, new[key])


@pytest.mark.parametrize("name", FORMS)
def test_they_are_scored_cut_and_written_in_their_form(tmp_path, name):
    path, weights = network(tmp_path / "net.onnx", **FORMS[name])
    small = tmp_path / "small.onnx"
    report = onnxprune.prune(path, small, ratio=0.5, criterion="l2", scope="local").report
    assert report.before.params == sum(weight.size for weight in weights.values())
    assert report.quantised is not None and report.quantised.count == 3 and report.soundness.checked
    assert operators(small) == operators(path)
    kept = [np.arange(16)]
    for number, weight in ((1, "w1"), (2, "w2")):
        norms = np.square(weights[weight].astype(np.float64)).sum(axis=0)
        kept.append(np.sort(np.argsort(-norms, kind="stable")[:16]))
        assert number and len(kept[-1]) == 16
    expected = np.random.default_rng(7).standard_normal((6, 16)).astype(np.float32)
    for number, weight in enumerate(weights.values(), 1):
        columns = kept[number] if number < 3 else np.arange(5)
        expected = expected @ weight[np.ix_(kept[number - 1], columns)]
        expected = np.maximum(expected, 0) if number < 3 else expected
    np.testing.assert_allclose(run(small), expected, rtol=1e-4, atol=1e-4)
    stored = {t.name: t for t in onnx.load(small).graph.initializer}
    assert list(stored["w2_q"].dims) == [16, 16] and stored["w2_q"].data_type not in (FLOAT, 0)


def test_repair_rounds_them_again(tmp_path):
    path, _ = network(tmp_path / "net.onnx", **FORMS["columns of rank 2"])
    data = np.random.default_rng(3).standard_normal((64, 16)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=data)
    report = onnxprune.prune(path, tmp_path / "small.onnx", ratio=0.5, data=tmp_path / "data.npz").report
    assert report.quantised is not None and report.quantised.requantised
    proto = onnx.load(tmp_path / "small.onnx")
    stored = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    assert stored["w2_q"].dtype == np.int8 and stored["w2_scale"].shape == (1, 16)
    assert operators(tmp_path / "small.onnx") - Counter(["Add"] * 2) == operators(path)  # biases are new
    plain = onnxprune.prune(
        path, tmp_path / "plain.onnx", ratio=0.5, data=tmp_path / "data.npz", compensate="none"
    )
    assert report.fidelity.outputs[0].cosine > plain.report.fidelity.outputs[0].cosine


def test_slim_keeps_every_bit(tmp_path):
    path, _ = network(tmp_path / "net.onnx", **FORMS["rows"])
    onnxprune.slim(path, tmp_path / "slim.onnx")
    np.testing.assert_array_equal(run(tmp_path / "slim.onnx"), run(path))
    assert operators(tmp_path / "slim.onnx") == operators(path)


def test_what_was_masked_slims_away(tmp_path):
    path, _ = network(tmp_path / "net.onnx", **FORMS["zero point"])
    masked, slim = tmp_path / "masked.onnx", tmp_path / "slim.onnx"
    onnxprune.prune(path, masked, ratio=0.5, mode="mask")
    assert onnxprune.slim(masked, slim).report.after.macs < 0.5 * onnxprune.slim(path).report.after.macs
    np.testing.assert_allclose(run(slim), run(masked), rtol=1e-5, atol=1e-5)


LEFT = {
    "unsigned without a zero point": {"scales": (), "dtype": np.uint8},
    "32 bits": {"scales": (), "dtype": np.int32},
}


@pytest.mark.parametrize("name", LEFT)
def test_numbers_that_are_not_quantised_are_left_alone(tmp_path, name):
    path, _ = network(tmp_path / "net.onnx", **LEFT[name])
    graph = normalize(ir.load(path)).graph
    assert not any(isinstance(v.const_value, QuantizedTensor) for v in graph.initializers.values())
    onnxprune.slim(path, tmp_path / "slim.onnx")
    np.testing.assert_array_equal(run(tmp_path / "slim.onnx"), run(path))


def test_halves(tmp_path):
    path, _ = network(tmp_path / "net.onnx", scales=(-1,), to=TensorProto.FLOAT16)
    report = onnxprune.prune(path, tmp_path / "small.onnx", ratio=0.5).report
    assert report.quantised is not None and report.quantised.count == 3
    assert run(tmp_path / "small.onnx").dtype == np.float16
    onnxprune.slim(path, tmp_path / "slim.onnx")
    np.testing.assert_array_equal(run(tmp_path / "slim.onnx"), run(path))
