"""An If that always takes the same branch is no barrier."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune


def branch(name, op_type, source, result, *more, axes=None):
    """A body of one node, with a constant of its own."""
    nodes, inputs = [], [source, *more]
    if axes is not None:
        nodes.append(
            helper.make_node("Constant", [], ["axes"], value=numpy_helper.from_array(np.array(axes)))
        )
        inputs.append("axes")
    nodes.append(helper.make_node(op_type, inputs, [result], name=f"{name}_node"))
    return helper.make_graph(
        nodes, name, [], [helper.make_tensor_value_info(result, TensorProto.FLOAT, None)]
    )


def squeezing(middle, *, at_the_end=False):
    """`x @ a -> squeeze(1) if its extent is 1 -> @ b`, as exporters write it for an extent they do not know."""
    rng = np.random.default_rng(0)
    weights = {"a": (8, 16), "b": (16, 4)}
    initializers = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in weights.items()
    ]
    initializers.append(numpy_helper.from_array(np.array(1), "one"))
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
        helper.make_node("Shape", ["h"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["extent"]),
        helper.make_node("Equal", ["extent", "one"], ["alone"]),
        helper.make_node(
            "If",
            ["alone"],
            ["y" if at_the_end else "s"],
            name="if",
            then_branch=branch("then", "Squeeze", "h", "squeezed", axes=[1])
            if middle == 1
            else branch("then", "Neg", "h", "negative"),
            else_branch=branch("otherwise", "Identity", "h", "same"),
        ),
    ]
    if not at_the_end:
        nodes.append(helper.make_node("MatMul", ["s", "b"], ["y"], name="second"))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", middle, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(path, x):
    return onnxruntime.InferenceSession(path).run(None, {"x": x})[0]


@pytest.mark.parametrize("middle", [1, 3])
def test_the_branch_that_is_taken(tmp_path, middle):
    path, out = tmp_path / "net.onnx", tmp_path / "out.onnx"
    onnx.save(squeezing(middle), path)
    analysis = onnxprune.analyze(path)
    assert [group.units for group in analysis.groups.values()] == [16]
    report = onnxprune.prune(path, out, ratio=0.5).report
    assert report.soundness.rejected_groups == () and report.target.achieved == 0.5
    x = np.random.default_rng(1).standard_normal((2, middle, 8)).astype(np.float32)
    assert run(out, x).shape == run(path, x).shape
    assert "If" not in {node.op_type for node in onnx.load(out).graph.node}


@pytest.mark.parametrize("middle", [1, 3])
def test_nothing_else_changes(tmp_path, middle):
    """Cut by nothing, the file computes what it did."""
    path, out = tmp_path / "net.onnx", tmp_path / "out.onnx"
    onnx.save(squeezing(middle), path)
    onnxprune.prune(path, out, ratio=0.01, scope="global", round_to=16, best_effort=True)
    x = np.random.default_rng(1).standard_normal((2, middle, 8)).astype(np.float32)
    np.testing.assert_array_equal(run(out, x), run(path, x))


def test_the_name_of_an_output_stays(tmp_path):
    path, out = tmp_path / "net.onnx", tmp_path / "out.onnx"
    onnx.save(squeezing(1, at_the_end=True), path)
    onnxprune.prune(path, out, ratio=0.5, best_effort=True)
    x = np.random.default_rng(1).standard_normal((2, 1, 8)).astype(np.float32)
    assert onnxruntime.InferenceSession(out).get_outputs()[0].name == "y"
    np.testing.assert_array_equal(run(out, x), run(path, x))


def test_an_extent_of_the_input_decides_at_run_time(tmp_path):
    path, out = tmp_path / "net.onnx", tmp_path / "out.onnx"
    onnx.save(squeezing("m"), path)
    assert [group.units for group in onnxprune.analyze(path).groups.values()] == [16]
    report = onnxprune.prune(path, out, ratio=0.5).report
    assert report.soundness.rejected_groups == () and report.target.achieved == 0.5
    for size in (1, 3):
        x = np.random.default_rng(1).standard_normal((2, size, 8)).astype(np.float32)
        assert run(out, x).shape == run(path, x).shape
    assert "If" in {node.op_type for node in onnx.load(out).graph.node}


def test_a_condition_that_agrees_at_two_sizes_by_chance(tmp_path):
    """One frame per 64 samples: up to 64 there is one, whatever the size, and beyond another branch is taken."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    main (float[1, 2, t] x) => (float[1, 3] y) {
        two = Constant <value_ints = [2]> ()
        one = Constant <value_int = 1> ()
        c = Conv <strides = [64]> (x, a)
        shape = Shape (c)
        frames = Gather (shape, two)
        alone = Equal (frames, one)
        z = If (alone) <
            then_branch = single () => (s) { s = Squeeze (c, two) },
            else_branch = several () => (m) { m = ReduceMean <axes = [2], keepdims = 0> (c) }>
        y = MatMul (z, b)
    }
    """
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in {"a": (8, 2, 1), "b": (8, 3)}.items():
        proto.graph.initializer.append(
            numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        )
    path, out = tmp_path / "net.onnx", tmp_path / "out.onnx"
    onnx.save(proto, path)
    analysis = onnxprune.analyze(path, bindings={"t": 16})
    assert "If" in {op.node.op_type for op in analysis.axis_graph.ops}
    assert [group.units for group in analysis.groups.values()] == [8]
    onnxprune.prune(path, out, ratio=0.5, round_to=1, bindings={"t": 16})
    for size in (16, 200):
        x = rng.standard_normal((1, 2, size)).astype(np.float32)
        assert run(out, x).shape == (1, 3)
