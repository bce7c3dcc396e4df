"""Operators with and without a VJP, from the rule table."""

from __future__ import annotations

from dataclasses import dataclass

import onnx.defs

from onnxprune.rules import builtin_rules, integer

NO_FLOATS = {
    *(
        "And",
        "ArgMax",
        "ArgMin",
        "BitCast",
        "BitShift",
        "BitwiseAnd",
        "BitwiseNot",
        "BitwiseOr",
        "BitwiseXor",
        "Equal",
    ),
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

CONVERTED = {"Scatter", "Upsample"}
"""Gone at opset 18, to which models are brought first."""

RECURRENCES = {("", "LinearAttention"), ("com.microsoft", "LinearAttention")}
"""A matrix is carried from token to token: no VJP yet."""

INTEGERS = frozenset(integer.RULES)
"""Said in float operators before gradients are asked for; what stays as it is calculates on integers alone."""

HANDLED = {"Constant", "If"}
"""Made initializers, or passed branch by branch, so they need no VJP."""

LOOPS = {"Loop", "Scan"}
"""What a body carries from step to step is not followed back."""


REFUSED: dict[str, str] = {
    "Attention": "onnxruntime's with rotation, a cache in a shared buffer, or a mask of one column or rank 4",
    "Det": "more than 6 rows: needs an inverse or a factorisation, and powers of the matrix lose float32's digits",
    "DFT": "opset 20's inverse of one side, which gives real numbers",
    "GroupQueryAttention": "a quantised cache, norms of queries and keys, and the scores as an output",
    "LSTM, GRU, RNN": "peepholes, clip, activations other than the usual ones, layout 1, coupled gates",
    "MaxUnpool": "an output larger than what its windows span",
    "MultiHeadAttention": "a cache in a shared buffer, and the scores as an output",
    "RoiAlign": "mode max, which takes the largest of weighted corners",
    "RotaryEmbedding": "packed batches",
    "Loop, Scan": "what a body carries from step to step is not followed back",
}
"""Variants that stay an error, and why."""


@dataclass(frozen=True)
class Support:
    """Operators of the rule table by what gradients do with them.

    Attributes
    ----------
    covered
        Have a VJP.
    lowered
        Said in standard operators that have one, before gradients pass.
    missing
        Differentiable, without either.
    flat
        No gradient passes them.
    unknown
        Standard operators without a rule.
    """

    covered: list[str]
    lowered: list[str]
    missing: list[str]
    flat: list[str]
    unknown: list[str]


def support() -> Support:
    """What the rule table holds."""
    rules = builtin_rules()
    covered = {key for key, rule in rules.items() if rule.vjp is not None}
    lowered = {key for key, rule in rules.items() if rule.lower is not None} - covered
    without = set(rules) - covered - lowered
    flat = NO_FLOATS | CONSTANT
    standard = {op for domain, op in without if not domain}
    missing = {("", op) for op in standard - flat - CONVERTED - HANDLED} | {key for key in without if key[0]}
    missing -= INTEGERS
    return Support(
        sorted(_name(*key) for key in covered),
        sorted(_name(*key) for key in lowered),
        sorted(_name(*key) for key in missing),
        sorted(standard & flat),
        sorted(_standard() - {op for domain, op in rules if not domain} - HANDLED),
    )


def _standard() -> set[str]:
    return {one.name for one in onnx.defs.get_all_schemas() if not one.domain and not one.deprecated}


def _name(domain: str, op: str) -> str:
    return f"{domain}::{op}" if domain else op
