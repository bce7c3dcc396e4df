"""Models with If, Loop and Scan from file to file: pruned, proven everywhere, counted, repaired, explained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper
from structures.control_nets import graphs_of, network, proto_of, units

import onnxprune
from onnxprune.errors import GradientError
from onnxprune.evaluate import soundness
from onnxprune.graph.axes import Axis
from onnxprune.rules import default_rules
from onnxprune.select import _first_convs

BRANCHES = """
main (float[n, 6] x, bool flag) => (float[n, 3] y) {
    h = MatMul (x, a)
    r = Relu (h)
    z = If (flag) <
        then_branch = yes () => (t) { p = MatMul (r, w)  q = Tanh (p)  t = MatMul (q, v) },
        else_branch = no () => (t) { p = MatMul (r, w)  q = Sigmoid (p)  t = Gemm (q, v, c) }>
    k = Relu (z)
    y = MatMul (k, b)
}
"""
SHAPES = {
    **{"a": (6, 32), "b": (24, 3), "yes:w": (32, 16), "yes:v": (16, 24)},
    **{"no:w": (32, 48), "no:v": (48, 24), "no:c": (24,)},
}
LOOP = """
main (float[n, 6] x) => (float[n, 3] y) {
    h = MatMul (x, a)
    count = Constant <value_int = 3> ()
    last = Loop (count, "", h) <body = step (int64 i, bool on, float[n, 32] s) => (bool still, float[n, 32] next) {
        still = Identity (on)
        p = MatMul (s, w)
        q = Tanh (p)
        next = MatMul (q, v)
    }>
    k = Relu (last)
    y = MatMul (k, b)
}
"""
LOOP_SHAPES = {"a": (6, 32), "b": (32, 3), "step:w": (32, 16), "step:v": (16, 32)}
SCAN = """
main (float[5, 2, 6] x) => (float[5, 2, 3] y) {
    zero = Constant <value_floats = [0.0]> ()
    size = Constant <value_ints = [2, 32]> ()
    start = Expand (zero, size)
    last, all = Scan <num_scan_inputs = 1,
        body = step (float[2, 32] s, float[2, 6] row) => (float[2, 32] next, float[2, 32] out) {
            e = MatMul (row, u)
            p = MatMul (s, w)
            q = Add (p, e)
            next = Tanh (q)
            out = Identity (next)
        }> (start, x)
    y = MatMul (all, b)
}
"""
SCAN_SHAPES = {"b": (32, 3), "step:u": (6, 32), "step:w": (32, 32)}


@pytest.fixture
def branches(tmp_path):
    return saved(tmp_path, BRANCHES, SHAPES)


def saved(tmp_path, text, shapes, **options):
    path = tmp_path / "net.onnx"
    onnx.save(proto_of(text, shapes, **options), path)
    return path


def feeds(flags, count=1):
    rng = np.random.default_rng(1)
    return [
        {"x": rng.standard_normal((4, 6)).astype(np.float32), "flag": np.array(flag)}
        for flag in flags
        for _ in range(count)
    ]


def run(path, feed):
    return onnxruntime.InferenceSession(path).run(None, feed)[0]


def weights(graph):
    return {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}


def bodies(path, op_type):
    (node,) = [node for node in onnx.load(path).graph.node if node.op_type == op_type]
    return {attribute.g.name: attribute.g for attribute in node.attribute if attribute.HasField("g")}


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


# --- the proof -------------------------------------------------------------------------------------------


def wrong_in(op_type):
    """Rules of which one ties positions in reverse."""
    rule = default_rules()["", op_type]

    def relate(op, relations):
        a, b = op.axis(op.input(0), -1), op.axis(op.output(), -1)
        n = op.extent(a)
        relations.tie(a, b, np.arange(n), np.arange(n)[::-1].copy())
        relations.tie(op.axis(op.input(0), 0), op.axis(op.output(), 0))

    return default_rules() | {("", op_type): replace(rule, relate=relate)}


@pytest.mark.parametrize("forced", [True, False])
def test_a_branch_that_no_sample_takes_is_proven(branches, monkeypatch, forced):
    """Only by forcing it: the samples all take the other one."""
    if not forced:
        monkeypatch.setattr(soundness, "forced_runs", lambda graph, kept: [])
    report = onnxprune.prune(
        branches,
        ratio=0.5,
        data=feeds([True], 3),
        rules=wrong_in("Sigmoid"),
        criterion="l2",
        best_effort=True,
        slim=False,
    ).report
    rejected = [group.name for group in report.groups if group.id in report.soundness.rejected_groups]
    assert rejected == (["no.matmul0"] if forced else [])
    assert report.soundness.branches == (2 if forced else 0)


def test_a_branch_that_cannot_run_is_named(tmp_path):
    """The else branch looks up a row that the samples do not have: it can be compared with nothing."""
    text = """
    main (float[n, 6] x, bool flag) => (float[n, 3] y) {
        h = MatMul (x, a)
        z = If (flag) <
            then_branch = yes () => (t) { r = Relu (h)  t = MatMul (r, w) },
            else_branch = no () => (t) {
                tenth = Constant <value_ints = [9]> ()
                r = Tanh (h)
                s = Gather (r, tenth)
                t = MatMul (s, w)
            }>
        k = Relu (z)
        y = MatMul (k, b)
    }
    """
    path = saved(tmp_path, text, {"a": (6, 32), "w": (32, 16), "b": (16, 3)})
    report = onnxprune.prune(path, ratio=0.5, data=feeds([True], 3), criterion="l2").report
    (line,) = [line for line in report.warnings if line.startswith("proven only as far")]
    assert report.target.met and report.soundness.branches == 1 and "If 'z' = false" in line


def test_an_if_inside_a_loop(tmp_path):
    text = LOOP.replace(
        "        q = Tanh (p)\n",
        """
        one = Constant <value_int = 1> ()
        first = Less (i, one)
        q = If (first) <then_branch = yes () => (t) { t = Tanh (p) }, else_branch = no () => (t) { t = Relu (p) }>
        """,
    )
    found = onnxprune.prune(saved(tmp_path, text, LOOP_SHAPES), ratio=0.5).report.soundness
    assert (found.branches, found.loops, found.unforced) == (2, 0, ())


@pytest.mark.parametrize("forced", [True, False])
def test_a_loop_that_no_sample_enters_is_proven(tmp_path, monkeypatch, forced):
    """Its number of iterations is an input, zero in all samples."""
    if not forced:
        monkeypatch.setattr(soundness, "forced_runs", lambda graph, kept: [])
    path = saved(tmp_path, counted(), LOOP_SHAPES)
    data = [{"x": np.ones((2, 6), np.float32), "count": np.array(0)}]
    options = {"data": data, "criterion": "l2", "rules": wrong_in("Tanh"), "best_effort": True, "slim": False}
    report = onnxprune.prune(path, ratio=0.5, **options).report
    rejected = [group.name for group in report.groups if group.id in report.soundness.rejected_groups]
    assert rejected == (["step.matmul1"] if forced else [])
    assert report.soundness.loops == (1 if forced else 0)


def counted():
    """The Loop with its number of iterations as an input."""
    text = LOOP.replace("main (float[n, 6] x)", "main (float[n, 6] x, int64 count)")
    return text.replace("    count = Constant <value_int = 3> ()\n", "")


# --- costs -----------------------------------------------------------------------------------------------


def test_macs_of_the_costlier_branch(branches):
    analysis = onnxprune.analyze(branches, bindings={"n": 1})
    always, yes, no = 6 * 32 + 24 * 3, 32 * 16 + 16 * 24, 32 * 48 + 48 * 24
    assert analysis.cost.macs == always + max(yes, no)
    assert analysis.cost.params == sum(int(np.prod(shape)) for shape in SHAPES.values())
    groups = {group.name: group for group in analysis.groups.values()}
    keep = np.zeros(48, bool)
    keep[:8] = True  # now the other branch costs more
    cost = analysis.costs.cost({groups["no.matmul0"].id: keep})
    assert cost.macs == always + max(yes, 32 * 8 + 8 * 24) == always + yes
    assert analysis.coverage.macs == 1.0 and [b.layers for b in analysis.blocked] == [("main.matmul4",)]


def test_macs_of_iterations(tmp_path):
    analysis = onnxprune.analyze(saved(tmp_path, LOOP, LOOP_SHAPES), bindings={"n": 1})
    assert analysis.cost.macs == 6 * 32 + 32 * 3 + 3 * (32 * 16 + 16 * 32)
    analysis = onnxprune.analyze(saved(tmp_path, SCAN, SCAN_SHAPES))
    assert analysis.cost.macs == 5 * 2 * (32 * 3 + 6 * 32 + 32 * 32)


def test_iterations_that_nobody_knows(tmp_path):
    path = saved(tmp_path, counted(), LOOP_SHAPES)
    assert onnxprune.analyze(path, bindings={"n": 1}).cost.macs == 6 * 32 + 32 * 3 + 32 * 16 + 16 * 32
    data = [{"x": np.ones((2, 6), np.float32), "count": np.array(2)}]
    report = onnxprune.prune(path, ratio=0.5, data=data, criterion="l2").report
    assert any(line.startswith("how often Loop") for line in report.warnings)


def test_the_target_counts_iterations(tmp_path):
    """Half of the MACs are asked for, and the body has most of them."""
    done = onnxprune.prune(saved(tmp_path, LOOP, LOOP_SHAPES), macs=0.5, round_to=1)
    real = onnxprune.analyze(write(tmp_path, done))
    assert real.cost.macs == done.report.after.macs <= 0.5 * done.report.before.macs


def write(tmp_path, done):
    path = tmp_path / "again.onnx"
    onnx.save(ir.to_proto(done.model), path)
    return path


# --- data ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["wanda", "obs", "auto", "flap"])
def test_criteria_that_look_at_activations(branches, tmp_path, criterion):
    """What layers in bodies see cannot be seen: their groups go by weights, and they are left unrepaired."""
    data = feeds([True, False], 20)
    report = onnxprune.prune(
        branches, ratio=0.5, data=data, criterion=criterion, scope="global", slim=False
    ).report
    assert report.target.met
    left = {
        layer.name: layer.why
        for layer in report.repairs
        if layer.kind == "none" and "inside the body" in layer.why
    }
    assert set(left) >= {"yes.matmul0", "yes.matmul2", "no.matmul0", "no.gemm2"}
    if criterion in ("wanda", "flap"):
        (note,) = [line for line in report.warnings if "went by l2" in line]
        assert "main.matmul0, yes.matmul0, no.matmul0" in note


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
    """They are cut, and left unrepaired with the reason that everything in a body has."""
    path = saved(tmp_path, RECURRENT, RECURRENT_SHAPES)
    report = onnxprune.prune(path, ratio=0.5, data=feeds([True, False], 20), criterion=criterion).report
    assert report.target.met and not report.soundness.rejected_groups
    assert any("gru" in layer.name and "inside the body" in layer.why for layer in report.repairs)


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


def test_sparsify_says_what_it_leaves(branches, tmp_path):
    result = onnxprune.sparsify(branches, tmp_path / "sparse.onnx", sparsity=0.5)
    assert {layer for layer, why in result.report.left.items() if "inside the body" in why} == {
        *("yes.matmul0", "yes.matmul2", "no.matmul0", "no.gemm2")
    }


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
    assert all(isinstance(axis, Axis) for axis in analysis.axis_graph.inner_sinks)


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
