"""Which differentiable operators of the rule table have no VJP, and that each VJP is in a table of tests."""

from __future__ import annotations

import importlib

from benchmarks.gradients_operators import (
    CONSTANT,
    CONVERTED,
    HANDLED,
    INTEGERS,
    LOOPS,
    NO_FLOATS,
    RECURRENCES,
)
from onnxprune.rules import builtin_rules

CHECKED_IN = [
    "elementwise",
    "linear",
    "conv",
    "normalization",
    "movement",
    "more",
    "vision",
    "fused",
    "gated",
    "quantization",
]


def cases():
    for name in CHECKED_IN:
        module = importlib.import_module(f"test_vjp_{name}")
        for table in ("CASES", "POOLS", "RECURRENT", "CACHED"):
            yield from getattr(module, table, [])
        yield from (case for case, _ in getattr(module, "WITHOUT_KERNEL", []))


def test_what_gradients_do_not_pass_is_known():
    rules = builtin_rules().items()
    without = {key for key, rule in rules if rule.vjp is None and rule.lower is None}
    known = NO_FLOATS | CONSTANT | CONVERTED | LOOPS | (HANDLED - {"Constant"})
    assert without == {("", op) for op in known} | RECURRENCES | INTEGERS


def test_every_vjp_is_checked():
    with_one = {
        key for key, rule in builtin_rules().items() if rule.vjp is not None or rule.lower is not None
    }
    assert with_one - {(case.domain, case.op_type) for case in cases()} == set()
