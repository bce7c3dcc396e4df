"""What must keep all positions, and the reason that people are told."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.errors import Reason
from onnxprune.graph.build import build_axis_graph
from onnxprune.graph.groups import partition
from onnxprune.model.normalize import normalize
from onnxprune.model.shapes import infer_shapes
from onnxprune.rules import Rule, default_rules
from onnxprune.rules.helpers import tie_axes
from onnxprune.testing import ModelBuilder, check_model


class Between:
    """in (6 -> 8) -> something -> out (8 -> 3), on (2, 5, 6)."""

    def __init__(self, opset=17):
        self.b = ModelBuilder(opset)
        self.x = self.b.input("x", (2, 5, 6))
        self.h = self.b.op("MatMul", self.x, self.b.weight((6, 8), "in"))

    def check(self, value, *more, width=8, **kw):
        out = self.b.op("MatMul", value, self.b.weight((width, 3), "out"))
        return check_model(self.b.model(out, *more), seeds=(0,), **kw)


def op(op_type, *constants, **attributes):
    return lambda t: t.b.op(op_type, t.h, *(t.b.constant(c) for c in constants), **attributes)


def scaled(op_type):
    return lambda t: t.b.op(op_type, t.h, t.b.weight((8,), "scale"), axis=-1)


REASONS = {
    "softmax": (op("Softmax", axis=-1), Reason.SOFTMAX),
    "log softmax": (op("LogSoftmax", axis=2), Reason.SOFTMAX),
    "layer norm": (scaled("LayerNormalization"), Reason.NORMALIZED),
    "cumulative sum": (op("CumSum", np.array(2)), Reason.ORDERED),
    "reversed": (op("Slice", np.array([-1]), np.array([-99]), np.array([2]), np.array([-1])), None),
    "reflected": (op("Pad", np.array([0, 0, 0, 0, 0, 0]), mode="reflect"), None),
    "triangle": (op("Trilu"), Reason.ORDERED),
    "random numbers": (op("RandomNormalLike", seed=1.0), Reason.RANDOM),
}


@pytest.mark.parametrize("name", REASONS)
def test_over_the_axis(name):
    make, reason = REASONS[name]
    t = Between()
    checked = t.check(make(t))
    assert ("in[1]" in checked.prunable()) == (reason is None)
    assert checked.reason("in[1]") is reason


REDUCED = {
    "mean": (op("ReduceMean", axes=[2], keepdims=1), Reason.REDUCED),
    "largest": (op("ReduceMax", axes=[-1], keepdims=1), Reason.REDUCED),
    "product": (op("ReduceProd", axes=[2], keepdims=1), Reason.REDUCED),
    "log-sum-exp": (op("ReduceLogSumExp", axes=[2], keepdims=1), Reason.REDUCED),
}


@pytest.mark.parametrize("name", REDUCED)
def test_reduced(name):
    make, reason = REDUCED[name]
    t = Between()
    checked = t.check(make(t), width=1)
    assert "in[1]" not in checked.prunable()
    assert checked.reason("in[1]") is reason


def spread(t):
    """x - mean(x), and its mean square."""
    centred = t.b.op("Sub", t.h, t.b.op("ReduceMean", t.h, axes=[-1]))
    return centred, t.b.op("ReduceMean", t.b.op("Pow", centred, t.b.constant(np.float32(2))), axes=[-1])


def test_layer_norm_by_hand():
    """ReduceMean, Sub, Pow, ReduceMean, Add, Sqrt, Div, Mul, Add."""
    t = Between()
    centred, variance = spread(t)
    root = t.b.op("Sqrt", t.b.op("Add", variance, t.b.constant(np.float32(1e-5))))
    scale, shift = t.b.weight((8,), "scale"), t.b.weight((8,), "shift")
    checked = t.check(t.b.op("Add", t.b.op("Mul", t.b.op("Div", centred, root), scale), shift))
    assert not checked.groups
    assert {checked.reason(name) for name in ("in[1]", "out[0]", "scale[0]", "shift[0]")} == {Reason.REDUCED}


def test_root_mean_square_norm_by_hand():
    t = Between()
    square = t.b.op("ReduceMean", t.b.op("Mul", t.h, t.h), axes=[-1])
    root = t.b.op("Sqrt", t.b.op("Add", square, t.b.constant(np.float32(1e-5))))
    checked = t.check(t.b.op("Mul", t.b.op("Div", t.h, root), t.b.weight((8,), "scale")))
    assert not checked.groups and checked.reason("in[1]") is Reason.REDUCED


def test_euclidean_norm_by_hand_is_exact():
    """A sum of squares without a division by their number: zeros add nothing."""
    t = Between()
    root = t.b.op("Sqrt", t.b.op("ReduceSumSquare", t.h, axes=[-1]))
    checked = t.check(t.b.op("Div", t.h, root))
    assert [group.units for group in checked.groups] == [8]


@pytest.mark.parametrize("op_type", ["ArgMax", "ArgMin"])
def test_the_winner(op_type):
    t = Between()
    winner = t.b.op("Cast", t.b.op(op_type, t.h, axis=2), to=1)
    checked = t.check(winner, width=1)
    assert checked.reason("in[1]") is Reason.SELECTED


def test_local_response_normalisation():
    b = ModelBuilder(17)
    x = b.op("Conv", b.input("x", (1, 3, 4, 4)), b.weight((6, 3, 1, 1), "in"))
    checked = check_model(b.model(b.op("Conv", b.op("LRN", x, size=3), b.weight((2, 6, 1, 1), "out"))))
    assert checked.reason("in[0]") is Reason.NORMALIZED


def test_graph_output():
    t = Between()
    checked = t.check(t.b.op("Relu", t.h), t.h)
    assert not checked.groups and checked.reason("in[1]") is Reason.GRAPH_OUTPUT


def test_graph_input():
    t = Between()
    checked = t.check(t.b.op("Add", t.h, t.b.input("y", (8,))))
    assert checked.reason("in[1]") is Reason.GRAPH_INPUT


def test_weight_as_graph_output():
    t = Between()
    checked = t.check(t.b.op("Relu", t.h), t.b.op("Identity", t.b.op("Neg", t.h.producer().inputs[1])))
    assert checked.reason("in[1]") is Reason.GRAPH_OUTPUT


def test_custom_operator():
    """An operator of an unknown domain: everything it touches stays, the rest is cut."""
    b = ModelBuilder(17, {"my.domain": 1})
    x = b.input("x", (2, 6))
    h = b.op("MatMul", x, b.weight((6, 8), "in"))
    h = b.op("MyOp", b.op("Relu", h), domain="my.domain")
    h.type, h.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape((2, 8))
    y = b.op("MatMul", b.op("Relu", b.op("MatMul", h, b.weight((8, 6), "mid"))), b.weight((6, 3), "out"))
    model = normalize(b.model(y))
    mine = default_rules() | {
        ("my.domain", "MyOp"): Rule(lambda op, relations: tie_axes(op, relations, op.input(0), op.output()))
    }
    for rules, names in ((default_rules(), ["matmul_1"]), (mine, ["matmul", "matmul_1"])):
        graph = build_axis_graph(model, infer_shapes(model), rules)
        assert [group.name for group in partition(graph).groups] == names


@pytest.mark.parametrize("declare", [True, False])
def test_used_inside_a_subgraph(declare):
    """A branch of If sees the channels: they stay, whether or not their shape is declared."""
    b = ModelBuilder(17)
    x, flag = b.input("x", (2, 6)), b.input("flag", (), ir.DataType.BOOL)
    h = b.op("MatMul", x, b.weight((6, 8), "in"))
    bodies = []
    for name, op_type in (("then", "Neg"), ("else", "Abs")):
        node = ir.node(op_type, [h])
        out = node.outputs[0]
        out.name, out.type, out.shape = f"{name}_out", ir.TensorType(ir.DataType.FLOAT), ir.Shape((2, 8))
        bodies.append(ir.Graph([], [out], nodes=[node], name=name))
    inner = b.op("If", flag, then_branch=bodies[0], else_branch=bodies[1])
    inner.type, inner.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape((2, 8))
    y = b.op("MatMul", b.op("Add", h, inner), b.weight((8, 4), "mid"))
    y = b.op("MatMul", b.op("Sigmoid", y), b.weight((4, 3), "out"))
    checked = check_model(b.model(y, declare=declare), seeds=(0,))
    assert [group.units for group in checked.groups] == [4]
    assert "in[1]" not in checked.prunable()


def test_default_domain_by_its_other_name():
    """`ai.onnx` is the default domain: the same groups, the same opset."""
    t = Between()
    out = t.b.op("MatMul", t.b.op("Softmax", t.h, axis=1), t.b.weight((8, 3), "out"))
    model = t.b.model(out)
    model.graph.opset_imports["ai.onnx"] = model.graph.opset_imports.pop("")
    normal = normalize(model)
    groups = partition(build_axis_graph(normal, infer_shapes(normal), default_rules())).groups
    assert [group.units for group in groups] == [8]


def test_old_broadcasting_is_not_guessed_at():
    """Before opset 7 an attribute aligns the operands."""
    b = ModelBuilder(6)
    h = b.op("MatMul", b.input("x", (2, 8, 6)), b.weight((6, 8), "in"))
    h = b.op("Add", h, b.weight((8,), "bias"), broadcast=1, axis=1)  # along the tokens, not the channels
    model = normalize(b.model(b.op("MatMul", h, b.weight((8, 3), "out"))))
    graph = build_axis_graph(model, infer_shapes(model), default_rules())
    assert not partition(graph).groups
