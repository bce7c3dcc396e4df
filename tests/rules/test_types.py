"""Weights and activations of other float types: masks and slices keep the type."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from rule_cases import axes

from onnxprune.testing import Activation, ModelBuilder, check_model, check_rule

TOLERANCE = {"float16": 1e-2, "float64": 1e-4}


def drawn(dtype, *shape):
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(dtype)


def test_convolution():
    check_rule(
        "Conv",
        inputs=[Activation((1, 6, 5, 5), "float16"), drawn("float16", 8, 6, 3, 3), drawn("float16", 8)],
        expect=axes("x0[1] x1[0,1] x2[0] y0[1]"),
        tolerance=TOLERANCE["float16"],
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_product(dtype):
    check_rule(
        "Gemm",
        inputs=[Activation((3, 6), dtype), drawn(dtype, 6, 8), drawn(dtype, 8)],
        expect=axes("x0[0,1] x1[0,1] x2[0] y0[0,1]"),
        tolerance=TOLERANCE[dtype],
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_product_of_activations(dtype):
    check_rule(
        "MatMul",
        inputs=[Activation((2, 4, 6), dtype), Activation((2, 6, 3), dtype)],
        expect=axes("x0[0,1,2] x1[0,1,2] y0[0,1,2]"),
        tolerance=TOLERANCE[dtype],
    )


@pytest.mark.parametrize("dtype", ["float64", "int32", "int64"])
def test_sum(dtype):
    check_rule(
        "ReduceSum",
        inputs=[Activation((4, 6), dtype, -9, 9), np.array([1])],
        expect=axes("x0[0,1] y0[0]"),
    )


def test_bfloat16_behind_a_cast():
    """Weights in bfloat16, as large models have them."""
    b = ModelBuilder(17)
    x = b.input("x", (2, 6))
    first = b.constant(drawn(np.float32, 6, 8).astype(ml_dtypes.bfloat16), "first")
    second = b.constant(drawn(np.float32, 8, 3).astype(ml_dtypes.bfloat16), "second")
    h = b.op("Sigmoid", b.op("MatMul", x, b.op("Cast", first, to=1)))
    checked = check_model(b.model(b.op("MatMul", h, b.op("Cast", second, to=1))))
    assert axes("first[1] second[0]") <= checked.prunable()


def test_masks_of_integers_are_cut():
    """A constant 0/1 table along the channels, as an integer."""
    b = ModelBuilder(17)
    x = b.input("x", (2, 6))
    h = b.op("MatMul", x, b.weight((6, 8), "in"))
    chosen = b.op("Cast", b.constant(np.array([1, 0, 1, 1, 0, 0, 1, 1], np.int32), "table"), to=9)
    h = b.op("Where", chosen, h, b.constant(np.float32(0.5)))
    checked = check_model(b.model(b.op("MatMul", h, b.weight((8, 3), "out"))))
    assert axes("in[1] table[0] out[0]") <= checked.prunable()
