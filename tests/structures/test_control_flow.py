"""If, Loop and Scan: channels go inside bodies, through them, and in what they read from outside."""

from __future__ import annotations

import pytest

from onnxprune.errors import Reason
from onnxprune.testing import check_model
from tests.structures.control_nets import network, units

# --- If --------------------------------------------------------------------------------------------------

BRANCHES = """
main (float[n, 6] x, bool flag) => (float[n, 3] y) {
    h = MatMul (x, a)
    r = Relu (h)
    z = If (flag) <
        then_branch = yes () => (t) { p = MatMul (r, w)  q = Tanh (p)  t = MatMul (q, v) },
        else_branch = no () => (t) { p = MatMul (r, w)  q = Sigmoid (p)  t = Gemm (q, v, c) }>
    y = MatMul (z, b)
}
"""
SHAPES = {
    "a": (6, 8),
    "b": (7, 3),
    "yes:w": (8, 5),
    "yes:v": (5, 7),
    "no:w": (8, 9),
    "no:v": (9, 7),
    "no:c": (7,),
}


def test_both_branches_and_what_they_see_from_outside():
    """Both branches have names in common; each has a width of its own, and both make one tensor."""
    checked = check_model(network(BRANCHES, SHAPES))
    assert units(checked.groups) == {"matmul0": 8, "yes.matmul0": 5, "yes.matmul2": 7, "no.matmul0": 9}
    made = next(group for group in checked.groups if group.name == "yes.matmul2")
    assert sorted(use.axis.name for use in made.sources) == ["c[0]", "v[1]", "v_1[1]"]
    assert [use.axis.name for use in made.sinks] == ["b[0]"]


def test_weights_shared_by_both_branches():
    text = BRANCHES.replace("MatMul (q, v) }", "MatMul (q, shared) }").replace(
        "Gemm (q, v, c)", "Gemm (q, shared, c)"
    )
    shapes = {**SHAPES, "shared": (5, 7), "no:w": (8, 5)}
    del shapes["yes:v"], shapes["no:v"]
    checked = check_model(network(text, shapes))
    assert units(checked.groups) == {"matmul0": 8, "yes.matmul0": 5, "yes.matmul2": 7}


def test_an_if_in_an_if():
    text = """
    main (float[n, 6] x, bool flag, bool other) => (float[n, 3] y) {
        h = MatMul (x, a)
        z = If (flag) <
            then_branch = yes () => (t) {
                u = If (other) <
                    then_branch = deep () => (d) { d = Relu (h) },
                    else_branch = deeper () => (d) { e = MatMul (h, w)  f = Tanh (e)  d = MatMul (f, v) }>
                t = Neg (u)
            },
            else_branch = no () => (t) { t = Abs (h) }>
        y = MatMul (z, b)
    }
    """
    checked = check_model(network(text, {"a": (6, 8), "b": (8, 3), "deeper:w": (8, 5), "deeper:v": (5, 8)}))
    assert units(checked.groups) == {"matmul0": 8, "deeper.matmul0": 5}


def test_branches_of_different_extents():
    """One branch makes eight channels, the other sixteen: what is inside goes, what they make stays."""
    text = """
    main (float[n, 6] x, bool flag) => (float[n, m] y) {
        y = If (flag) <
            then_branch = yes () => (float[n, 8] t) { p = MatMul (x, a)  q = Relu (p)  t = MatMul (q, b) },
            else_branch = no () => (float[n, 16] t) { p = MatMul (x, c)  t = Tanh (p) }>
    }
    """
    shapes = {"yes:a": (6, 5), "yes:b": (5, 8), "no:c": (6, 16)}
    checked = check_model(network(text, shapes))
    assert units(checked.groups) == {"yes.matmul0": 5}
    assert checked.reason("b[1]") is Reason.BODY_EXTENTS and checked.reason("c[1]") is Reason.BODY_EXTENTS


def test_a_branch_that_returns_its_weight():
    """A branch without nodes: its weight is tied like any tensor."""
    text = """
    main (float[n, 6] x, bool flag) => (float[n, 3] y) {
        rows = Constant <value_ints = [0]> ()
        h = MatMul (x, a)
        s = If (flag) <
            then_branch = yes () => (float[1, 8] kept) { },
            else_branch = no () => (float[1, 8] t) { t = ReduceSum (h, rows) }>
        m = Mul (h, s)
        y = MatMul (m, b)
    }
    """
    checked = check_model(network(text, {"a": (6, 8), "b": (8, 3), "yes:kept": (1, 8)}))
    assert units(checked.groups) == {"matmul1": 8}
    assert "kept[1]" in {use.axis.name for use in checked.groups[0].axes}


def test_an_if_that_keeps_its_condition():
    """The condition is computed from channels: they are summed over, so they can go."""
    text = """
    main (float[2, 6] x) => (float[2, 3] y) {
        h = MatMul (x, a)
        r = Relu (h)
        total = ReduceSum <keepdims = 0> (r)
        limit = Constant <value_float = 3.0> ()
        flag = Greater (total, limit)
        z = If (flag) <then_branch = yes () => (t) { t = Neg (r) }, else_branch = no () => (t) { t = Tanh (r) }>
        y = MatMul (z, b)
    }
    """
    checked = check_model(network(text, {"a": (6, 8), "b": (8, 3)}))
    assert units(checked.groups) == {"matmul0": 8}


# --- Loop ------------------------------------------------------------------------------------------------

LOOP = """
main (float[n, 6] x) => (float[n, 3] y, float[k, n, 2] each) {
    h = MatMul (x, a)
    count = Constant <value_int = 3> ()
    go = Constant <value = bool {1}> ()
    last, rows = Loop (count, go, h) <body = step (int64 i, bool on, float[n, 8] s) => (still, next, row) {
        still = Identity (on)
        p = MatMul (s, w)
        q = Tanh (p)
        r = MatMul (q, v)
        next = Add (r, h)
        row = MatMul (next, o)
    }>
    y = MatMul (last, b)
    each = MatMul (rows, e)
}
"""
LOOP_SHAPES = {"a": (6, 8), "b": (8, 3), "e": (4, 2), "step:w": (8, 5), "step:v": (5, 8), "step:o": (8, 4)}


def test_loop():
    """The state, what the body makes of it, and rows that are stacked."""
    checked = check_model(network(LOOP, LOOP_SHAPES))
    assert units(checked.groups) == {"step.matmul1": 5, "matmul0": 8, "step.matmul5": 4}


@pytest.mark.parametrize("start", ["", "go"])
def test_a_loop_that_ends_by_itself(start):
    """No number of iterations, a condition that the body computes."""
    text = """
    main (float[1, 6] x) => (float[1, 3] y) {
        h = MatMul (x, a)
        go = Constant <value = bool {1}> ()
        last = Loop ("", START, h) <body = step (int64 i, bool on, float[1, 8] s) => (still, next) {
            p = MatMul (s, w)
            q = Tanh (p)
            next = MatMul (q, v)
            most = Constant <value_int = 2> ()
            still = Less (i, most)
        }>
        y = MatMul (last, b)
    }
    """.replace("START", start or '""')
    shapes = {"a": (6, 8), "b": (8, 3), "step:w": (8, 5), "step:v": (5, 8)}
    checked = check_model(network(text, shapes))
    assert units(checked.groups) == {"step.matmul0": 5, "matmul0": 8}


def test_a_state_that_grows():
    """Each iteration appends to the state: along that axis it has no extent, along the other channels go."""
    text = """
    main (float[2, 6] x) => (float[m, 3] y) {
        h = MatMul (x, a)
        count = Constant <value_int = 3> ()
        last = Loop (count, "", h) <body = step (int64 i, bool on, float[k, 8] s) => (still, next) {
            still = Identity (on)
            next = Concat <axis = 0> (s, h)
        }>
        y = MatMul (last, b)
    }
    """
    checked = check_model(network(text, {"a": (6, 8), "b": (8, 3)}))
    assert units(checked.groups) == {"matmul0": 8}
    grows = network(
        text.replace("axis = 0", "axis = 1").replace("[m, 3]", "[2, 8]"), {"a": (6, 8), "b": (32, 8)}
    )
    checked = check_model(grows)
    assert not checked.groups and checked.reason("a[1]") is Reason.UNKNOWN_SHAPE


def test_a_loop_in_an_if_in_a_scan():
    text = """
    main (float[5, 2, 6] x, bool flag) => (float[5, 2, 3] y) {
        zero = Constant <value = float[1, 8] {0, 0, 0, 0, 0, 0, 0, 0}> ()
        one = Identity (zero)
        final, all = Scan <num_scan_inputs = 1,
            body = step (float[1, 8] s, float[2, 6] row) => (float[1, 8] next, float[2, 8] out) {
                h = MatMul (row, u)
                z = If (flag) <
                    then_branch = yes () => (t) {
                        count = Constant <value_int = 2> ()
                        t = Loop (count, "", h) <
                            body = inner (int64 i, bool on, float[2, 8] c) => (still, more) {
                                still = Identity (on)
                                m = MatMul (c, w)
                                k = Relu (m)
                                more = MatMul (k, v)
                            }>
                    },
                    else_branch = no () => (t) { t = Tanh (h) }>
                next = Add (s, one)
                out = Add (z, s)
            }> (zero, x)
        y = MatMul (all, b)
    }
    """
    shapes = {"b": (8, 3), "step:u": (6, 8), "inner:w": (8, 5), "inner:v": (5, 8)}
    checked = check_model(network(text, shapes))
    assert units(checked.groups) == {"step.matmul0": 8, "inner.matmul1": 5}


# --- Scan ------------------------------------------------------------------------------------------------

KERAS = """
main (float[n, 5, 6] x) => (float[n, 3] y, float[n, 5, 2] each) {
    batch = Shape <start = 0, end = 1> (x)
    width = Constant <value_ints = [8]> ()
    size = Concat <axis = 0> (batch, width)
    zero = ConstantOfShape (size)
    e = MatMul (x, u)
    last, all = Scan <num_scan_inputs = 1, scan_input_axes = [IN], scan_output_axes = [OUT],
        body = step (float[n, 8] s, float[n, 8] row) => (next, out) {
            p = MatMul (s, w)
            q = Add (p, row)
            next = Tanh (q)
            out = Identity (next)
        }> (zero, e)
    y = MatMul (last, b)
    each = MatMul (all, o)
}
"""


@pytest.mark.parametrize("axes", [(1, 1), (-2, -2)])
def test_recurrent_layer_as_scan(axes):
    """A simple recurrent layer: its hidden units go, with rows and columns of the recurrent weight."""
    text = KERAS.replace("IN", str(axes[0])).replace("OUT", str(axes[1]))
    checked = check_model(network(text, {"u": (6, 8), "b": (8, 3), "o": (8, 2), "step:w": (8, 8)}))
    assert units(checked.groups) == {"matmul4": 8}
    names = {use.axis.name for use in checked.groups[0].axes}
    assert {"w[0]", "w[1]", "u[1]", "b[0]", "o[0]"} <= names


def test_scan_of_opset_8():
    text = """
    main (float[1, 5, 6] x) => (float[1, 5, 3] y) <float[1, 5, 8] z> {
        h = MatMul (x, a)
        z = Scan <num_scan_inputs = 1, body = step (float[8] row) => (float[8] out) { out = Tanh (row) }> ("", h)
        q = MatMul (z, c)
        r = Tanh (q)
        y = MatMul (r, b)
    }
    """
    model = network(text, {"a": (6, 8), "c": (8, 7), "b": (7, 3)}, opset=8)
    checked = check_model(model)
    assert units(checked.groups) == {"matmul2": 7}
    assert checked.reason("a[1]") is Reason.SUBGRAPH
