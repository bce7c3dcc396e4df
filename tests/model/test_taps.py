"""Values inside bodies as outputs: every run's in order, and no other output is another one."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from control_files import BRANCHES, LOOP, LOOP_SHAPES, SCAN, SCAN_SHAPES, SHAPES
from structures.control_nets import proto_of

import onnxprune
from onnxprune.calibrate.sessions import open_session, run
from onnxprune.model.nested import every_graph, every_node
from onnxprune.model.taps import CHOICE_IN_SCAN, OLD_SCAN, UNKNOWN_BODY, Tap, add_taps, owners, unshown

NESTED = """
main (float[n, 6] x, int64 count) => (float[n, 6] y, float[k, n, 6] all) {
    yes = Constant <value_int = 1> ()
    on = Cast <to = 9> (yes)
    y, all = Loop (count, on, x) <
        body = step (int64 i, bool go, float[n, 6] s) => (bool still, float[n, 6] next, float[n, 6] each) {
        still = Identity (go)
        two = Constant <value_int = 2> ()
        m = Mod (i, two)
        b = Cast <to = 9> (m)
        next = If (b) <
            then_branch = odd () => (t) { p = MatMul (s, w)  t = Tanh (p) },
            else_branch = even () => (u) { q = MatMul (s, v)  u = Neg (q) }>
        each = Neg (s)
    }>
}
"""
NESTED_SHAPES = {"odd:w": (6, 6), "even:v": (6, 6)}


def tapped(path, feed, names):
    """What the taps of values give, by the values' names; asserts that all outputs are the same floats."""
    model = onnxprune.analyze(path).axis_graph.model
    places = {
        value.name: (value, body)
        for body in every_graph(model.graph)
        for value in (*body.inputs, *(out for node in body for out in node.outputs))
    }
    taps = [Tap(*places[name]) for name in names]
    clone = model.clone()
    made = add_taps(clone.graph, taps)
    clone.graph.outputs.extend(made.values())
    before, after = (run(open_session(each), feed) for each in (model, clone))
    for name, array in before.items():
        np.testing.assert_array_equal(array, after[name])
    return [after[str(made[tap.name].name)] for tap in taps]


def saved(tmp_path, text, shapes, **options):
    path = tmp_path / "net.onnx"
    onnx.save(proto_of(text, shapes, **options), path)
    arrays = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for graph in (onnx.load(path).graph, *_bodies(onnx.load(path).graph))
        for tensor in graph.initializer
    }
    return path, arrays


def _bodies(graph):
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
                yield from _bodies(attribute.g)


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)


@pytest.mark.parametrize("flag", [True, False])
def test_a_branch_that_is_not_taken_has_nothing(tmp_path, x, flag):
    path, _ = saved(tmp_path, BRANCHES, SHAPES)
    yes, no, outside = tapped(path, {"x": x, "flag": np.array(flag)}, ["p", "p_1", "t"])
    assert (yes.size, no.size) == ((4 * 16, 0) if flag else (0, 4 * 48))
    assert outside.size == (4 * 24 if flag else 0)


def test_every_run_of_a_loop(tmp_path, x):
    path, w = saved(tmp_path, LOOP, LOOP_SHAPES)
    state, product = tapped(path, {"x": x}, ["s", "p"])
    s, states, products = x @ w["a"], [], []
    for _ in range(3):
        states.append(s)
        products.append(s @ w["w"])
        s = np.tanh(products[-1]) @ w["v"]
    np.testing.assert_allclose(state, np.ravel(states), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(product, np.ravel(products), rtol=1e-4, atol=1e-5)


def test_every_run_of_a_scan(tmp_path):
    path, w = saved(tmp_path, SCAN, SCAN_SHAPES)
    x = np.random.default_rng(0).standard_normal((5, 2, 6)).astype(np.float32)
    row, made = tapped(path, {"x": x}, ["row", "e"])
    np.testing.assert_array_equal(row, x.ravel())
    np.testing.assert_allclose(made, (x @ w["u"]).ravel(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_branches_in_a_loop(tmp_path, x, count):
    """Of runs that take the one branch or the other, or of none at all."""
    path, w = saved(tmp_path, NESTED, NESTED_SHAPES)
    found = tapped(path, {"x": x, "count": np.array(count)}, ["p", "q", "s"])
    s, want = x, ([], [], [])
    for number in range(count):
        want[2].append(s)
        want[0 if number % 2 else 1].append(s @ w["w" if number % 2 else "v"])
        s = np.tanh(want[0][-1]) if number % 2 else -want[1][-1]
    for array, rows in zip(found, want, strict=True):
        np.testing.assert_allclose(array, np.ravel(rows), rtol=1e-4, atol=1e-5)


CHOICE = """
main (float[5, 2, 6] x) => (float[5, 2, 4] y) {
    y = Scan <num_scan_inputs = 1, body = step (float[2, 6] row) => (float[2, 4] out) {
        most = ReduceMax <keepdims = 0> (row)
        zero = Constant <value_float = 0.0> ()
        b = Less (zero, most)
        out = If (b) <
            then_branch = yes () => (t) { t = MatMul (row, w) }, else_branch = no () => (u) { u = MatMul (row, v) }>
    }> (x)
}
"""
OLD = """
main (float[1, 5, 6] x) => (float[1, 5, 4] y) {
    y = Scan <num_scan_inputs = 1, body = step (float[6] row) => (float[4] out) { out = MatMul (row, w) }> ("", x)
}
"""
MAPPED = """
main (float[4, 6] x) => (float[4, 4] y) {
    s = SplitToSequence <axis = 0> (x)
    m = SequenceMap (s) <body = step (float[1, 6] row) => (float[1, 4] out) { out = MatMul (row, w) }>
    y = ConcatFromSequence <axis = 0> (m)
}
"""


@pytest.mark.parametrize(
    ("text", "shapes", "opset", "why"),
    [
        (CHOICE, {"yes:w": (6, 4), "no:v": (6, 4)}, 17, CHOICE_IN_SCAN.format("an If")),
        (OLD, {"step:w": (6, 4)}, 8, OLD_SCAN),
        (MAPPED, {"step:w": (6, 4)}, 17, UNKNOWN_BODY.format("SequenceMap")),
    ],
    ids=["if in scan", "opset 8", "unknown"],
)
def test_what_cannot_be_shown_says_why(text, shapes, opset, why):
    import onnx_ir as ir

    model = ir.from_proto(proto_of(text, shapes, opset=opset))
    known = owners(model.graph)
    found = {
        unshown(node, known, model.opset_imports)
        for node in every_node(model.graph)
        if node.op_type == "MatMul"
    }
    assert found == {why}
