"""Which differentiable operators of the rule table have no VJP, and that each VJP is in a table of tests."""

from __future__ import annotations

import importlib

from benchmarks.gradients_operators import CONSTANT, CONVERTED, MISSING, NO_FLOATS
from onnxprune.rules import builtin_rules

CHECKED_IN = ["elementwise", "linear", "conv", "normalization", "movement", "more"]


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
