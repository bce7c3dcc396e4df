"""Sequences, optionals and bodies of operators that nobody knows: barriers with a reason, never errors."""

from __future__ import annotations

import pytest

from onnxprune.errors import Reason
from onnxprune.testing import check_model
from tests.structures.control_nets import network, units


def test_sequences_are_barriers():
    text = """
    main (float[2, 6] x) => (float[2, 3] y) <float[2, 16] z> {
        h = MatMul (x, a)
        g = Relu (h)
        both = SequenceConstruct (h, g)
        one = SequenceMap (both) <body = each (float[2, 8] e) => (float[2, 8] f) { f = Tanh (e) }>
        z = ConcatFromSequence <axis = 1> (one)
        q = MatMul (z, c)
        r = Tanh (q)
        y = MatMul (r, b)
    }
    """
    checked = check_model(network(text, {"a": (6, 8), "c": (16, 7), "b": (7, 3)}))
    assert units(checked.groups) == {"matmul5": 7}


def test_a_split_sequence_and_a_loop_over_it():
    text = """
    main (float[4, 6] x) => (float[2, 3] y) <float[2, 8] last> {
        two = Constant <value_int = 2> ()
        shape = Constant <value_ints = [2, 8]> ()
        h = MatMul (x, a)
        parts = SplitToSequence <axis = 0> (h, two)
        count = Constant <value_int = 2> ()
        zero = ConstantOfShape (shape)
        last, more = Loop (count, "", zero, parts) <
            body = step (int64 i, bool on, float[2, 8] s, seq(float[2, 8]) p) => (still, next, q) {
                still = Identity (on)
                part = SequenceAt (p, i)
                next = Add (s, part)
                q = Identity (p)
            }>
        r = Tanh (last)
        k = MatMul (r, c)
        t = Relu (k)
        y = MatMul (t, b)
    }
    """
    checked = check_model(network(text, {"a": (6, 8), "c": (8, 7), "b": (7, 3)}))
    assert units(checked.groups) == {"matmul8": 7}


def test_optionals():
    text = """
    main (float[2, 6] x) => (float[2, 3] y) <float[2, 8] z> {
        h = MatMul (x, a)
        maybe = Optional (h)
        has = OptionalHasElement (maybe)
        z = If (has) <
            then_branch = yes () => (t) { t = OptionalGetElement (maybe) },
            else_branch = no () => (t) { t = Neg (h) }>
        q = MatMul (z, c)
        r = Tanh (q)
        y = MatMul (r, b)
    }
    """
    checked = check_model(network(text, {"a": (6, 8), "c": (8, 7), "b": (7, 3)}, opset=18))
    assert units(checked.groups) == {"matmul4": 7}
    assert checked.reason("a[1]") is not None


def test_inside_the_body_of_an_operator_that_nobody_knows():
    """What SequenceMap hands its body stays; what is inside goes."""
    text = """
    main (float[2, 6] x) => (float[4, 3] y) <float[4, 8] z> {
        h = MatMul (x, a)
        g = Relu (h)
        both = SequenceConstruct (h, g)
        one = SequenceMap (both) <
            body = each (float[2, 8] e) => (float[2, 8] f) { p = MatMul (e, w)  q = Tanh (p)  f = MatMul (q, v) }>
        z = ConcatFromSequence <axis = 0> (one)
        y = MatMul (z, b)
    }
    """
    checked = check_model(network(text, {"a": (6, 8), "b": (8, 3), "each:w": (8, 5), "each:v": (5, 8)}))
    assert units(checked.groups) == {"each.matmul0": 5}
    assert checked.reason("w[0]") is Reason.SUBGRAPH


@pytest.mark.parametrize(
    ("kind", "make", "take"),
    [
        ("seq", "SequenceConstruct", "SequenceAt (s, first)"),
        ("optional", "Optional", "OptionalGetElement (s)"),
    ],
)
def test_branches_that_return_no_tensors(kind, make, take):
    text = f"""
    main (float[2, 6] x, bool flag) => (float[2, 3] y) <float[2, 8] z> {{
        first = Constant <value_int = 0> ()
        h = MatMul (x, a)
        s = If (flag) <
            then_branch = yes () => ({kind}(float[2, 8]) t) {{ t = {make} (h) }},
            else_branch = no () => ({kind}(float[2, 8]) t) {{ g = Relu (h)  t = {make} (g) }}>
        z = {take}
        q = MatMul (z, c)
        r = Tanh (q)
        y = MatMul (r, b)
    }}
    """
    checked = check_model(network(text, {"a": (6, 8), "c": (8, 7), "b": (7, 3)}, opset=18))
    assert units(checked.groups) == {"matmul4": 7}
    assert "a[1]" not in checked.prunable()


def test_a_loop_that_appends_to_a_sequence():
    """As scripted modules collect results: what an iteration appends stays, its hidden units go."""
    text = """
    main (float[4, 6] x) => (float[4, 3] y) <float[4, 8] z> {
        count = Constant <value_int = 4> ()
        u = MatMul (x, a)
        h = Tanh (u)
        none = SequenceEmpty <dtype = 1> ()
        s = Loop (count, "", none) <
            body = step (int64 i, bool on, seq(float[1, 8]) l) => (still, more) {
                still = Identity (on)
                zero = Constant <value_ints = [0]> ()
                k = Unsqueeze (i, zero)
                row = Gather <axis = 0> (h, k)
                d = MatMul (row, w)
                f = Relu (d)
                o = MatMul (f, v)
                more = SequenceInsert (l, o)
            }>
        z = ConcatFromSequence <axis = 0> (s)
        y = MatMul (z, b)
    }
    """
    checked = check_model(network(text, {"a": (6, 8), "b": (8, 3), "step:w": (8, 5), "step:v": (5, 8)}))
    assert units(checked.groups) == {"matmul1": 8, "step.matmul4": 5}
    assert "v[1]" not in checked.prunable()
