"""Which differentiable operators of the rule table have no VJP, and that each VJP is in a table of tests."""

from __future__ import annotations

import importlib

from onnxprune.rules import builtin_rules

CHECKED_IN = ["elementwise", "linear", "conv", "normalization", "movement", "more"]

NO_FLOATS = {
    *("And", "ArgMax", "ArgMin", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Equal"),
    *("Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "NonMaxSuppression", "NonZero"),
    *("Not", "Or", "Shape", "Size", "Unique", "Xor"),
}
"""Their outputs are integers or truth values: no gradient passes."""

CONSTANT = {
    *("Bernoulli", "BlackmanWindow", "ConstantOfShape", "EyeLike", "HammingWindow", "HannWindow", "Hardmax"),
    *("MelWeightMatrix", "Multinomial", "OneHot", "RandomNormal", "RandomNormalLike", "RandomUniform"),
    *("RandomUniformLike", "Range"),
}
"""Their outputs do not depend on float inputs, or do so in steps."""

MISSING = {
    *(
        "AffineGrid",
        "CenterCropPad",
        "Col2Im",
        "Compress",
        "CumProd",
        "DFT",
        "DeformConv",
        "Det",
        "GridSample",
    ),
    *("MaxRoiPool", "MaxUnpool", "RoiAlign", "STFT", "TensorScatter"),
}
"""Differentiable, and not covered yet."""

CONVERTED = {"Scatter", "Upsample"}
"""Gone at opset 18, to which models are brought first."""


def cases():
    for name in CHECKED_IN:
        module = importlib.import_module(f"test_vjp_{name}")
        for table in ("CASES", "POOLS", "RECURRENT"):
            yield from getattr(module, table, [])


def test_what_has_no_vjp_is_known():
    without = {op for (domain, op), rule in builtin_rules().items() if not domain and rule.vjp is None}
    assert without == NO_FLOATS | CONSTANT | MISSING | CONVERTED


def test_every_vjp_is_checked():
    with_one = {key for key, rule in builtin_rules().items() if rule.vjp is not None}
    assert with_one - {(case.domain, case.op_type) for case in cases()} == set()
