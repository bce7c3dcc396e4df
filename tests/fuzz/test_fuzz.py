"""The first 200 seeds, and what the fuzzer reaches."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.graph.relations import Relations
from onnxprune.rules import builtin_rules, default_rules
from tests.fuzz.check import check_seed
from tests.fuzz.generate import OPSETS, generate
from tests.fuzz.minimise import failure_of, shrink
from tests.fuzz.templates import is_pointwise, templates, usable

SEEDS, CHUNK = 200, 10
NEVER = {
    ("com.microsoft", name): "onnxruntime's CPU provider has no kernel for it"
    for name in ("BiasAdd", "BiasSplitGelu", "GroupNorm", "SkipGroupNorm", "NhwcConv", "NhwcFusedConv")
}
"""Operators that have a rule and are never drawn, each with its reason."""


def test_every_operator_is_drawn():
    drawn = {key for opset in OPSETS for key in usable(opset, True)}
    assert set(builtin_rules()) - drawn == set(NEVER)


def test_pointwise_templates_fit_any_shape():
    found = {case.op_type for case in templates() if is_pointwise(case)}
    assert {"Add", "Relu", "Where", "Clip", "Cast"} & found == {"Add", "Relu", "Where", "Cast"} & found
    assert not {"Softmax", "CumSum", "Transpose", "MatMul"} & found


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_graphs(first):
    outcomes = [check_seed(seed) for seed in range(first, first + CHUNK)]
    failures = [(outcome.seed, *outcome.failure) for outcome in outcomes if outcome.failure]
    assert not failures, f"run `python -m tests.fuzz --from SEED --count 1 --minimise`: {failures}"
    assert sum(outcome.groups > 0 for outcome in outcomes) >= CHUNK // 2
    assert sum(outcome.dropped > 0 for outcome in outcomes) >= CHUNK // 2
    assert sum(len(outcome.redraws) for outcome in outcomes) <= CHUNK // 2
