"""Layers in front of a Relu or Clip: what the activation hides need not be right."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_nets import Net

import onnxprune
from onnxprune.calibrate.sessions import open_session, run
from onnxprune.model.io import load
from onnxprune.repair import sequence
from onnxprune.repair.flat import Flat, flat_behind

SAMPLES = 400


def behind(*ops):
    """The flat parts behind a Conv whose output the operators see, in this order; those named `end` are outputs."""
    n = Net()
    h = n.conv(n.data("x", ("batch", 3, 6, 6)), "conv", (4, 3, 3, 3))
    outs = [make(n, h) for make in ops]
    total = outs[0] if len(outs) == 1 else n.op("Concat", *outs, axis=1)
    model = n.model(n.conv(total, "last", (2, 4 * len(outs), 1, 1)))
    node = next(node for node in model.graph if node.op_type == "Conv")
    return flat_behind(node.outputs[0])


def relu(n, h):
    return n.op("Relu", h)


def clip(low, high):
    def make(n, h):
        bounds = [n.constant(np.float32(b)) if b is not None else None for b in (low, high)]
        return n.op("Clip", h, *bounds)

    return make


@pytest.mark.parametrize(
    "ops, expected",
    [
        ([relu], Flat(0.0, math.inf)),
        ([clip(0.0, 6.0)], Flat(0.0, 6.0)),
        ([clip(-1.0, None)], Flat(-1.0, math.inf)),
        ([clip(None, 2.0)], Flat(-math.inf, 2.0)),
        ([clip(None, None)], None),
        ([clip(3.0, 1.0)], None),
        ([relu, relu], Flat(0.0, math.inf)),
        ([relu, clip(0.0, 6.0)], None),
        ([relu, lambda n, h: n.op("Sigmoid", h)], None),
        ([lambda n, h: n.op("LeakyRelu", h)], None),
        ([lambda n, h: n.op("Clip", h, n.op("ReduceMin", h, keepdims=0))], None),
    ],
)
def test_where_an_activation_is_flat(ops, expected):
    assert behind(*ops) == expected


def test_bounds_were_attributes_once():
    x = ir.Value(name="x")
    node = ir.node("Clip", [x], {"min": 0.0, "max": 6.0})
    assert flat_behind(x) == Flat(0.0, 6.0)
    assert node.outputs[0].uses() == ()


def nearest(goal, made, flat):
    found = np.where(goal <= flat.low, np.minimum(made, flat.low), goal)
    return np.where(goal >= flat.high, np.maximum(made, flat.high), found)


FLATS = st.sampled_from([Flat(0.0, math.inf), Flat(0.0, 6.0), Flat(-1.0, 1.0), Flat(-math.inf, 0.5)])


@given(st.integers(0, 2**32 - 1), FLATS)
def test_the_new_targets_bound_the_error_behind_the_activation(seed, flat):
    """The claim of the module's docstring, with numbers: for other outputs a bound, and a tight one for these."""
    rng = np.random.default_rng(seed)
    goal, made, other = 4 * rng.standard_normal((3, 200))
    z = nearest(goal, made, flat)
    np.testing.assert_array_equal(np.clip(z, flat.low, flat.high), np.clip(goal, flat.low, flat.high))
    for outputs in (made, other):
        hidden = np.clip(outputs, flat.low, flat.high) - np.clip(goal, flat.low, flat.high)
        assert (np.abs(z - outputs) >= np.abs(hidden) - 1e-12).all()
    reachable = np.minimum(np.abs(goal - made), np.abs(z - made))
    np.testing.assert_array_equal(reachable, np.abs(z - made))  # no farther than the plain target


def network(activation, seed=3, residual=False):
    """A wide layer that loses channels, a layer in front of the activation, and a last one."""
    n = Net(seed=seed)
    x = n.data("x", ("batch", 3, 6, 6))
    h = n.op("Relu", n.conv(x, "up", (16, 3, 3, 3)))
    h = n.conv(h, "down", (8, 16, 3, 3))
    if residual:
        h = n.op("Add", h, n.conv(x, "skip", (8, 3, 1, 1)))
    seen = str(h.name)
    h = activation(n, h)
    return n.model(n.conv(h, "last", (4, 8, 1, 1))), seen


def value_of(path, name, array):
    model = load(path).ir
    model.graph.outputs[:] = [v for node in model.graph for v in node.outputs if v.name == name]
    return run(open_session(model, threads=1), {"x": array})[name].astype(np.float64)


def images(seed):
    return np.random.default_rng(seed).standard_normal((SAMPLES, 3, 6, 6)).astype(np.float32)


def cut(path, out):
    return onnxprune.prune(
        path,
        out,
        data={"x": images(0)},
        test={"x": images(1)[:5]},
        ratio=0.5,
        round_to=1,
        criterion="l2",
        only=["up*"],
    )


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation, low, high", [(relu, 0.0, np.inf), (clip(-0.2, 0.4), -0.2, 0.4)])
def test_less_error_behind_the_activation_on_fresh_samples(
    tmp_path, monkeypatch, activation, low, high, residual
):
    model, seen = network(activation, residual=residual)
    path, flat, plain = (tmp_path / f"{name}.onnx" for name in ("model", "flat", "plain"))
    ir.save(model, path)
    cut(path, flat)
    monkeypatch.setattr(sequence, "again", lambda _seen, _held, found, _stored: found)
    cut(path, plain)
    fresh = images(2)
    goal = value_of(path, seen, fresh)

    def error(other):
        hidden = np.clip(goal, low, high) - np.clip(value_of(other, seen, fresh), low, high)
        return float(np.square(hidden).mean())

    assert error(flat) < error(plain)


def test_a_layer_in_front_of_another_activation_is_fitted_as_before(tmp_path, monkeypatch):
    model, _ = network(lambda n, h: n.op("Sigmoid", h))
    path, one, other = (tmp_path / f"{name}.onnx" for name in ("model", "one", "other"))
    ir.save(model, path)
    cut(path, one)
    monkeypatch.setattr(sequence, "again", None)
    cut(path, other)
    assert one.read_bytes() == other.read_bytes()


def test_the_step_is_that_of_the_rows_themselves(tmp_path, monkeypatch):
    """Moments of the new targets against numpy, on all rows (there are fewer than are drawn at most)."""
    model, seen = network(relu)
    path, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    ir.save(model, path)
    given_to = []
    original = sequence.again

    def spy(first, held, found, stored):
        given_to.append((first, held, found))
        return original(first, held, found, stored)

    monkeypatch.setattr(sequence, "again", spy)
    cut(path, out)
    ((first, held, found),) = given_to
    goal = np.moveaxis(value_of(path, seen, images(0)), 1, -1)
    name = next(n.inputs[0].name for n in load(out).ir.graph if n.name == "down")
    x = np.pad(value_of(out, name, images(0)), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))  # (n, c, h, w, 3, 3)
    rows = windows.transpose(0, 2, 3, 4, 5, 1).reshape(SAMPLES, 36, -1)
    made = rows @ found.weight[0].T + found.bias[0]
    z = nearest(goal.reshape(SAMPLES, 36, -1), made, Flat(0.0, math.inf))
    held_out = np.arange(SAMPLES) // 32 % 5 == 4
    for moments, flags in ((first, ~held_out), (held, held_out)):
        both = np.concatenate([rows, z], axis=2)[flags].reshape(-1, rows.shape[2] + 8)
        assert moments.count == len(both)
        np.testing.assert_allclose(moments.gram[0], both.T @ both, rtol=1e-3, atol=1e-2)
        np.testing.assert_allclose(moments.total[0], both.sum(axis=0), rtol=1e-3, atol=1e-2)


def test_operators_of_an_old_opset(tmp_path):
    """LessOrEqual came with opset 12."""
    n = Net(opset=9)
    x = n.op("Relu", n.conv(n.data("x", ("batch", 3, 6, 6)), "one", (16, 3, 3, 3)))
    x = n.op("Relu", n.conv(x, "two", (16, 16, 3, 3)))
    path = tmp_path / "model.onnx"
    ir.save(n.model(n.head(x, 16)), path)
    report = onnxprune.prune(
        path, macs=0.6, criterion="l2", data={"x": images(1)}, provider="cpu", round_to=1
    ).report
    assert any(layer.name == "two" and layer.kind == "affine" for layer in report.repairs)
