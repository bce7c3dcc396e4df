"""Models with If, Loop and Scan from file to file: pruned, repaired, explained."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from control_files import (
    BRANCHES,
    LOOP,
    LOOP_SHAPES,
    SCAN,
    SCAN_SHAPES,
    SHAPES,
    bodies,
    feeds,
    run,
    saved,
    weights,
)
from onnx import numpy_helper
from structures.control_nets import graphs_of, network, units

import onnxprune
from onnxprune.errors import GradientError
from onnxprune.select import _first_convs


@pytest.fixture
def branches(tmp_path):
    return saved(tmp_path, BRANCHES, SHAPES)


# --- files -----------------------------------------------------------------------------------------------


def test_bodies_get_their_weights_and_names_back(branches, tmp_path):
    out = tmp_path / "out.onnx"
    done = onnxprune.prune(branches, out, ratio=0.5, round_to=8)
    onnx.checker.check_model(str(out), full_check=True)
    inside = bodies(out, "If")
    first, yes, made, no = (group.kept for group in done.report.groups)
    assert done.report.target.met and max(first / 32, yes / 16, no / 48) < 1
    assert weights(inside["yes"]) == {"w": (first, yes), "v": (yes, made)}
    assert weights(inside["no"]) == {"w": (first, no), "v": (no, made), "c": (made,)}
    assert weights(onnx.load(out).graph) == {"a": (6, first), "b": (made, 3)}
    assert [node.output[0] for node in inside["no"].node] == ["p", "q", "t"]
    for feed in feeds([True, False]):
        masked = {"x": feed["x"], "flag": feed["flag"]}
        assert run(out, masked).shape == (4, 3)
    assert done.report.soundness.branches == 2 and not done.report.soundness.unforced


def test_what_is_not_cut_comes_back_as_it_was(branches, tmp_path):
    out = tmp_path / "out.onnx"
    onnxprune.prune(branches, out, ratio=0.5, ignore=["*"], best_effort=True, slim=False)
    original = onnx.load(branches)
    for graph in graphs_of(original.graph):
        for node in graph.node:
            node.ClearField("domain")  # written as an empty one by onnx's parser
    assert onnx.load(out) == original


def test_masked_is_the_same_function_as_removed(branches, tmp_path):
    """By hand: the units that the plan drops are zeroed in the weights of the original."""
    out = tmp_path / "out.onnx"
    done = onnxprune.prune(branches, out, ratio=0.5, slim=False)
    proto = onnx.load(branches)
    masked = onnxprune.apply(branches, done.plan, mode="mask").model
    onnx.save(ir.to_proto(masked), tmp_path / "masked.onnx")
    assert weights(onnx.load(tmp_path / "masked.onnx").graph) == weights(proto.graph)
    for feed in feeds([True, False]):
        want = run(tmp_path / "masked.onnx", feed)
        np.testing.assert_allclose(run(out, feed), want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(("text", "shapes"), [(LOOP, LOOP_SHAPES), (SCAN, SCAN_SHAPES)])
def test_loops_are_pruned(tmp_path, text, shapes):
    path, out = saved(tmp_path, text, shapes), tmp_path / "out.onnx"
    report = onnxprune.prune(path, out, ratio=0.5).report
    assert report.target.met and not report.soundness.rejected_groups
    onnx.checker.check_model(str(out), full_check=True)
    (body,) = bodies(out, "Loop" if text is LOOP else "Scan").values()
    assert weights(body)["w"] == ((16, 8) if text is LOOP else (16, 16))
    state = body.input[-1] if text is LOOP else body.input[0]
    declared = [value.type.tensor_type.shape.dim[-1].dim_value for value in (state, body.output[-1])]
    assert declared == [16, 16]


def test_an_old_file(tmp_path):
    """Before IR version 4 every initializer is an input: bodies get theirs as Constant nodes."""
    model = network(BRANCHES, {**SHAPES}, opset=8)
    for name in ("a", "b"):
        model.graph.inputs.append(model.graph.initializers[name])
    for body in (
        attribute.as_graph()
        for node in model.graph
        if node.op_type == "If"
        for attribute in node.attributes.values()
    ):
        for name, value in tuple(body.initializers.items()):
            node = ir.node("Constant", [], attributes={"value": value.const_value})
            node.outputs[0].name = f"{name}_made"
            del body.initializers[name]
            value.replace_all_uses_with(node.outputs[0])
            body.insert_before(body[0], node)
    model.ir_version = 3
    path, out = tmp_path / "old.onnx", tmp_path / "out.onnx"
    onnx.save(ir.to_proto(model), path)
    onnxprune.prune(path, out, ratio=0.5)
    before, after = onnx.load(path), onnx.load(out)
    assert [value.name for value in after.graph.input] == [value.name for value in before.graph.input]
    for feed in feeds([True, False]):
        assert run(out, feed).shape == run(path, feed).shape


# --- data ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["wanda", "obs", "auto", "flap"])
def test_criteria_that_look_at_activations(branches, tmp_path, criterion):
    """What layers in bodies see in the runs that samples take is what they are scored by and fitted to."""
    data = feeds([True, False], 20)
    report = onnxprune.prune(
        branches, ratio=0.5, data=data, criterion=criterion, scope="global", slim=False
    ).report
    assert report.target.met
    lost = [layer for layer in report.repairs if layer.lost]
    assert {layer.kind for layer in lost} == {"affine"} and len(lost) > 2
    assert all(layer.after < layer.before for layer in lost)
    assert not any("went by l2" in line for line in report.warnings)


def test_what_no_sample_takes_is_left_as_it_is(branches):
    """The other branch goes by weights, and is not repaired."""
    report = onnxprune.prune(
        branches, ratio=0.5, data=feeds([True], 20), criterion="wanda", scope="global", slim=False
    ).report
    left = {layer.name: layer.why for layer in report.repairs if layer.kind == "none"}
    assert {name for name, why in left.items() if "no sample takes" in why} == {"no.matmul0", "no.gemm2"}
    assert {layer.name for layer in report.repairs if layer.kind == "affine"} >= {
        "yes.matmul0",
        "yes.matmul2",
    }
    (note,) = [line for line in report.warnings if "went by l2" in line]
    assert ": main.matmul0, no.matmul0 went" in note


RECURRENT = """
main (float[n, 6] x, bool flag) => (float[n, 3] y) {
    h = MatMul (x, a)
    z = If (flag) <
        then_branch = yes () => (t) {
            zero = Constant <value_ints = [0]> ()
            row = Unsqueeze (h, zero)
            all, last = GRU <hidden_size = 24, linear_before_reset = 1> (row, w, r, s)
            t = Squeeze (last, zero)
        },
        else_branch = no () => (t) { p = MatMul (h, v)  t = Relu (p) }>
    y = MatMul (z, b)
}
"""
RECURRENT_SHAPES = {
    **{"a": (6, 16), "b": (24, 3), "yes:w": (1, 72, 16), "yes:r": (1, 72, 24), "yes:s": (1, 144)},
    "no:v": (16, 24),
}


@pytest.mark.parametrize("criterion", ["wanda", "obs", "auto"])
def test_recurrent_layers_in_branches(tmp_path, criterion):
    """They are cut, and both of their products are fitted to what they see."""
    path = saved(tmp_path, RECURRENT, RECURRENT_SHAPES)
    report = onnxprune.prune(path, ratio=0.5, data=feeds([True, False], 20), criterion=criterion).report
    assert report.target.met and not report.soundness.rejected_groups
    repaired = {layer.name for layer in report.repairs if layer.kind == "affine"}
    assert {"yes.gru2 (W)", "yes.gru2 (R)"} <= repaired


@pytest.mark.parametrize("criterion", ["fisher", "taylor", "snip"])
def test_criteria_that_read_gradients(branches, criterion):
    report = onnxprune.prune(
        branches, ratio=0.5, data=feeds([True, False], 20), criterion=criterion, slim=False
    ).report
    assert report.target.met


def test_no_gradient_through_a_loop(tmp_path):
    path = saved(tmp_path, LOOP, LOOP_SHAPES)
    data = {"x": np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32)}
    with pytest.raises(GradientError, match="Loop"):
        onnxprune.prune(path, ratio=0.5, data=data, criterion="snip")
    report = onnxprune.prune(path, ratio=0.5, data=data, criterion="fisher").report
    assert report.target.met and any("went by l2" in line for line in report.warnings)
    assert onnxprune.prune(path, ratio=0.5, data=data).report.target.met


# --- what else looks at a model --------------------------------------------------------------------------


def test_names_of_bodies_are_names(branches):
    report = onnxprune.prune(branches, ratio=0.5, only=["yes.*"], best_effort=True, slim=False).report
    assert {group.name for group in report.groups if group.kept < group.units} == {
        "yes.matmul0",
        "yes.matmul2",
    }
    found = onnxprune.explain(onnxprune.analyze(branches), "no.matmul0")
    assert found.axes


INSIDE = {"yes.matmul0", "yes.matmul2", "no.matmul0", "no.gemm2"}


def test_layers_in_branches_get_sparse(branches, tmp_path):
    """By their weights alone without samples; with samples those that some sample runs, fitted to what they see."""
    path = tmp_path / "sparse.onnx"
    result = onnxprune.sparsify(branches, path, sparsity=0.5)
    assert not result.report.left and {layer.name for layer in result.report.layers} >= INSIDE
    for body in bodies(path, "If").values():
        for tensor in body.initializer:
            array = numpy_helper.to_array(tensor)
            assert array.ndim == 1 or 0.3 < (array == 0).mean() < 0.7
    result = onnxprune.sparsify(
        branches, path, sparsity=0.5, data=feeds([True], 40), solver="sparsegpt", force=True
    )
    assert {layer for layer, why in result.report.left.items() if "no sample takes" in why} == {
        *("no.matmul0", "no.gemm2")
    }
    solved = {layer.name: layer for layer in result.report.layers}
    assert all(solved[name].after < solved[name].before for name in ("yes.matmul0", "yes.matmul2"))
    result = onnxprune.sparsify(
        branches, path, sparsity=0.5, data=feeds([True], 20), criterion="snip", force=True
    )
    assert {layer for layer, why in result.report.left.items() if "inside the body" in why} == INSIDE


def test_slimming_leaves_bodies_alone(branches, tmp_path):
    """A unit that is zero for all that bodies read goes; what a body makes is not followed."""
    proto = onnx.load(branches)
    for tensor in proto.graph.initializer:
        if tensor.name == "a":
            array = numpy_helper.to_array(tensor).copy()
            array[:, 3] = 0
            tensor.CopyFrom(numpy_helper.from_array(array, "a"))
    onnx.save(proto, branches)
    out = tmp_path / "slim.onnx"
    onnxprune.slim(branches, out)
    for feed in feeds([True, False]):
        want = run(branches, feed)
        np.testing.assert_allclose(run(out, feed), want, atol=1e-5 * np.abs(want).max())


def test_axes_of_bodies_in_the_analysis(branches):
    analysis = onnxprune.analyze(branches)
    assert units(analysis.groups.values()) == {
        "matmul0": 32,
        "yes.matmul0": 16,
        "yes.matmul2": 24,
        "no.matmul0": 48,
    }
    inner = {op.node.name for op in analysis.axis_graph.inner_ops}
    assert {"yes.matmul0", "no.gemm2"} <= inner and "main.matmul0" not in inner
    sinks = {sink.where.node.name for sink in analysis.axis_graph.inner_sinks}
    assert sinks == {"yes.matmul0", "yes.matmul2", "no.matmul0", "no.gemm2"}


@pytest.mark.parametrize("inside", [True, False])
def test_the_first_convolution_may_be_in_a_branch(tmp_path, inside):
    """Or behind one: the preset that leaves first convolutions whole finds both."""
    first, second = ("Conv (s, w)", "Relu (s)") if inside else ("Relu (s)", "Neg (s)")
    text = f"""
    main (float[1, 3, 8, 8] x, bool flag) => (float[1, 2, 8, 8] y) {{
        s = Relu (x)
        z = If (flag) <then_branch = yes () => (t) {{ t = {first} }}, else_branch = no () => (t) {{ t = {second} }}>
        k = Relu (z)
        c = Conv (k, v)
        y = Conv (c, b)
    }}
    """
    shapes = {"yes:w": (3, 3, 1, 1), "v": (16, 3, 1, 1), "b": (2, 16, 1, 1)}
    if not inside:
        del shapes["yes:w"]
    analysis = onnxprune.analyze(saved(tmp_path, text, shapes))
    heads = {node.name for node in _first_convs(analysis.axis_graph)}
    assert heads == ({"yes.conv0", "main.conv3"} if inside else {"main.conv3"})
