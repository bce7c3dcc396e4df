"""Operators with and without a VJP, from the rule table."""

from __future__ import annotations

from dataclasses import dataclass

import onnx.defs

from onnxprune.rules import builtin_rules

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
    *("AffineGrid", "CenterCropPad", "Col2Im", "Compress", "CumProd", "DFT", "DeformConv", "Det"),
    *("GridSample", "MaxRoiPool", "MaxUnpool", "RoiAlign", "STFT", "TensorScatter"),
}
"""Differentiable, and not covered yet."""

CONVERTED = {"Scatter", "Upsample"}
"""Gone at opset 18, to which models are brought first."""

HANDLED = {"Constant", "If"}
"""Made initializers, or decided, before a model is looked at, so they need no rule."""


@dataclass(frozen=True)
class Support:
    """Operators of the rule table by what gradients do with them.

    Attributes
    ----------
    covered
        Have a VJP.
    missing
        Differentiable, without one.
    foreign
        Differentiable, without one, of other domains than the standard one.
    flat
        No gradient passes them.
    unknown
        Standard operators without a rule.
    """

    covered: list[str]
    missing: list[str]
    foreign: list[str]
    flat: list[str]
    unknown: list[str]


def support() -> Support:
    """What the rule table holds."""
    rules = builtin_rules()
    covered = [_name(*key) for key, rule in rules.items() if rule.vjp is not None]
    without = [key for key, rule in rules.items() if rule.vjp is None]
    flat = NO_FLOATS | CONSTANT
    standard = {op for domain, op in without if not domain}
    return Support(
        sorted(covered),
        sorted(standard - flat - CONVERTED),
        sorted(_name(domain, op) for domain, op in without if domain),
        sorted(standard & flat),
        sorted(_standard() - {op for domain, op in rules if not domain} - HANDLED),
    )


def _standard() -> set[str]:
    return {one.name for one in onnx.defs.get_all_schemas() if not one.domain and not one.deprecated}


def _name(domain: str, op: str) -> str:
    return f"{domain}::{op}" if domain else op
