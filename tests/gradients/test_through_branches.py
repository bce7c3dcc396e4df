"""Gradients through an If, whose branches read values of the graph around it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune.calibrate.sessions import open_session, run
from onnxprune.errors import GradientError
from onnxprune.gradients import SquaredError, build_backward, gradient_name

ROWS = {"x": (4, 3), "w": (3, 3), "v": (3, 2), "u": (3, 2)}
TEXT = """
<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
g (float[n, 3] x, bool flag) => (float[n, 2] y) <float[3, 3] w, float[3, 2] v, float[3, 2] u>
{
    h = MatMul (x, w)
    made = If (flag) <
        then_branch = yes () => (float[n, 2] a) {
            inner = Tanh (h)
            a = MatMul (inner, v)
        },
        else_branch = no () => (float[n, 2] b) {
            two = Constant <value = float[1] {2.0}> ()
            squared = Mul (h, h)
            product = MatMul (squared, u)
            b = Mul (product, two)
        }
    >
    y = Tanh (made)
}
"""


def model(text=TEXT, declared=True):
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for tensor in list(proto.graph.initializer):
        proto.graph.initializer.remove(tensor)
    for name in ("w", "v", "u"):
        array = rng.uniform(-1, 1, ROWS[name]).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    if not declared:
        del proto.graph.value_info[:]
    return proto


def expected(proto, flag, x, teacher):
    """Gradients of sum (y - teacher)^2, by hand."""
    w, v, u = (onnx.numpy_helper.to_array(t).astype(np.float64) for t in proto.graph.initializer)
    h = x @ w
    made = np.tanh(h) @ v if flag else 2 * (h * h) @ u
    y = np.tanh(made)
    g = 2 * (y - teacher) * (1 - y * y)
    dv, du = np.zeros_like(v), np.zeros_like(u)
    if flag:
        dv, dh = np.tanh(h).T @ g, (g @ v.T) * (1 - np.tanh(h) ** 2)
    else:
        du, dh = 2 * (h * h).T @ g, 2 * (g @ u.T) * 2 * h
    return {"w": x.T @ dh, "v": dv, "u": du, "x": dh @ w.T}


def differentiated(proto, wrt=("w", "v", "u", "x")):
    built = build_backward(ir.from_proto(proto), SquaredError(), list(wrt))
    onnx.checker.check_model(ir.to_proto(built), full_check=True)
    return built


@pytest.mark.parametrize("flag", [True, False])
def test_each_branch_has_its_own_gradients(flag):
    proto, rng = model(), np.random.default_rng(1)
    x, teacher = rng.uniform(-1, 1, (4, 3)), rng.standard_normal((4, 2))
    feed = {"x": x.astype(np.float32), "flag": np.array(flag), "teacher": teacher.astype(np.float32)}
    found = run(open_session(differentiated(proto), threads=1), feed)
    for name, gradient in expected(proto, flag, x, teacher).items():
        np.testing.assert_allclose(found[gradient_name(name)], gradient, rtol=0, atol=1e-5, err_msg=name)


NESTED = TEXT.replace(
    "inner = Tanh (h)",
    """sizes = ReduceMax <keepdims = 0> (h)
            zero = Constant <value = float {1e9}> ()
            low = Less (sizes, zero)
            inner = If (low) <
                then_branch = below () => (float[n, 3] c) { c = Tanh (h) },
                else_branch = above () => (float[n, 3] d) { d = Relu (h) }
            >""",
)


@pytest.mark.parametrize("flag", [True, False])
def test_a_branch_in_a_branch(flag):
    proto, rng = model(NESTED), np.random.default_rng(2)
    x, teacher = rng.uniform(-1, 1, (4, 3)), rng.standard_normal((4, 2))
    feed = {"x": x.astype(np.float32), "flag": np.array(flag), "teacher": teacher.astype(np.float32)}
    found = run(open_session(differentiated(proto), threads=1), feed)
    for name, gradient in expected(proto, flag, x, teacher).items():
        np.testing.assert_allclose(found[gradient_name(name)], gradient, rtol=0, atol=1e-5, err_msg=name)


def test_fused_operators_inside_a_branch():
    """QuickGelu with a small alpha is near x / 2; what counts is that it is passed at all."""
    proto, rng = (
        model(TEXT.replace("Tanh (h)", "com.microsoft.QuickGelu <alpha = 1e-4> (h)")),
        np.random.default_rng(3),
    )
    x, teacher = rng.uniform(-1, 1, (4, 3)), rng.standard_normal((4, 2))
    feed = {"x": x.astype(np.float32), "flag": np.array(True), "teacher": teacher.astype(np.float32)}
    built = build_backward(ir.from_proto(proto), SquaredError(), ["w"])
    found = run(open_session(built, threads=1), feed)
    w, v, _ = (onnx.numpy_helper.to_array(t).astype(np.float64) for t in proto.graph.initializer)
    y = np.tanh(x @ w @ v / 2)
    g = 2 * (y - teacher) * (1 - y * y)
    np.testing.assert_allclose(found[gradient_name("w")], x.T @ (g @ v.T) / 2, rtol=0, atol=1e-3)


WEIGHT_INSIDE = TEXT.replace(
    "inner = Tanh (h)",
    """k = Constant <value = float[3, 3] {1.0, 0.5, 0.0, 0.0, 1.0, 0.5, 0.5, 0.0, 1.0}> ()
            turned = MatMul (h, k)
            inner = Tanh (turned)""",
)


@pytest.mark.parametrize("flag", [True, False])
def test_weights_of_a_branch_have_gradients(flag):
    proto, rng = model(WEIGHT_INSIDE), np.random.default_rng(4)
    x, teacher = rng.uniform(-1, 1, (4, 3)), rng.standard_normal((4, 2))
    feed = {"x": x.astype(np.float32), "flag": np.array(flag), "teacher": teacher.astype(np.float32)}
    found = run(open_session(differentiated(proto, ["k"]), threads=1), feed)[gradient_name("k")]
    w, v, _ = (onnx.numpy_helper.to_array(t).astype(np.float64) for t in proto.graph.initializer)
    k = np.array([[1, 0.5, 0], [0, 1, 0.5], [0.5, 0, 1]])
    inner = np.tanh(x @ w @ k)
    y = np.tanh(inner @ v)
    g = 2 * (y - teacher) * (1 - y * y)
    slope = (x @ w).T @ ((g @ v.T) * (1 - inner**2))
    np.testing.assert_allclose(found, slope if flag else np.zeros((3, 3)), rtol=0, atol=1e-5)


def test_shapes_behind_an_if_come_from_its_branches():
    """Nothing declares the If's output; a sum over broadcast axes behind it needs its rank."""
    text = TEXT.replace("y = Tanh (made)", "one = ReduceMean <keepdims = 1> (made)\n    y = Mul (made, one)")
    built = differentiated(model(text, declared=False), ["w"])
    assert built.graph.outputs[-1].name == gradient_name("w")


def test_what_a_branch_holds_is_named_where_it_stops():
    text = TEXT.replace("inner = Tanh (h)", "inner = com.microsoft.Unheard (h)")
    with pytest.raises(GradientError, match="Unheard"):
        build_backward(ir.from_proto(model(text)), SquaredError(), ["w"])
