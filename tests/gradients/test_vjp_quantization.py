"""Rounding is passed straight through where it does not saturate: no difference quotient shows that."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from onnxprune.calibrate.sessions import open_session, run
from onnxprune.gradients import SquaredError, build_backward, gradient_name
from onnxprune.testing import ModelBuilder


@dataclass(frozen=True)
class Pair:
    op_type: str
    domain: str


CASES = [
    Pair(op, domain) for op in ("QuantizeLinear", "DequantizeLinear") for domain in ("", "com.microsoft")
] + [Pair("DynamicQuantizeLinear", "")]

X = np.array([[-3.0, -1.29, -1.2, 0.0, 0.004, 1.0, 1.26, 2.9]], np.float32)


def gradient(make, x, weights):
    """Of `sum(weights x rounded x)` with respect to what is rounded: that of a squared distance here."""
    b = ModelBuilder(21, {"com.microsoft": 1})
    inner = b.ops("Identity", b.input("x", x.shape), outputs=["inner"])[0]
    made = make(b, inner)
    model = b.model(made)
    built = build_backward(model, SquaredError(), ["inner"])
    rounded = run(open_session(model), {"x": x})[str(made.name)]
    feed = {"x": x, "teacher": rounded - weights / 2}
    return run(open_session(built), feed)[gradient_name("inner")]


@pytest.mark.parametrize("domain", ["", "com.microsoft"])
@pytest.mark.parametrize(("dtype", "zero"), [(np.int8, 0), (np.uint8, 128), (np.uint8, 0), (np.int8, 100)])
def test_straight_through_inside_the_range(dtype, zero, domain):
    def make(b, x):
        given = b.constant(np.float32(0.01)), b.constant(dtype(zero))
        stored = b.op("QuantizeLinear", x, *given, domain=domain)
        return b.op("DequantizeLinear", stored, *given, domain=domain)

    weights = np.arange(1, 9, dtype=np.float32)[None]
    info = np.iinfo(dtype)
    exact = X.astype(np.float64) / 0.01 + zero
    inside = (exact > info.min - 0.5) & (exact < info.max + 0.5)
    assert inside.any() and not inside.all()
    np.testing.assert_allclose(gradient(make, X, weights), np.where(inside, weights, 0), rtol=1e-4)


def test_scales_per_axis():
    scales = np.array([0.01, 0.02], np.float32)

    def make(b, x):
        given = b.constant(scales), b.constant(np.zeros(2, np.int8))
        return b.op("DequantizeLinear", b.op("QuantizeLinear", x, *given, axis=0), *given, axis=0)

    x = np.array([[1.2, 1.3, 2.5], [1.2, 1.3, 2.6]], np.float32)
    expected = np.array([[1, 0, 0], [1, 1, 0]], np.float32)
    np.testing.assert_allclose(gradient(make, x, np.ones((2, 3), np.float32)), expected, rtol=1e-4)


def test_what_moves_stored_numbers_moves_gradients():
    def make(b, x):
        given = b.constant(np.float32(0.01)), b.constant(np.int8(0))
        turned = b.op("Transpose", b.op("QuantizeLinear", x, *given), perm=[1, 0])
        return b.op("Transpose", b.op("DequantizeLinear", turned, *given), perm=[1, 0])

    x = np.array([[0.1, 5.0], [0.2, -0.3]], np.float32)
    weights = np.array([[1, 2], [3, 4]], np.float32)
    np.testing.assert_allclose(gradient(make, x, weights), [[1, 0], [3, 4]], rtol=1e-4)


def test_a_range_found_at_run_time_saturates_nothing():
    def make(b, x):
        return b.op("DequantizeLinear", *b.ops("DynamicQuantizeLinear", x, outputs=3))

    weights = np.arange(1, 9, dtype=np.float32)[None]
    np.testing.assert_allclose(gradient(make, X, weights), weights, rtol=1e-4)
