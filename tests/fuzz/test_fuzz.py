"""The first 200 seeds, and what the fuzzer reaches."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.model.serialize import to_bytes
from onnxprune.rules import builtin_rules, default_rules
from onnxprune.rules.integer import RULES as INTEGER
from tests.fuzz import blocks
from tests.fuzz.check import check_seed
from tests.fuzz.generate import OPSETS, Graph, finish, generate
from tests.fuzz.minimise import failure_of, shrink
from tests.fuzz.templates import is_pointwise, templates, usable
from tests.fuzz.walk import At, Walk

SEEDS, CHUNK = 200, 10
NEVER = {
    ("com.microsoft", name): "onnxruntime's CPU provider has no kernel for it"
    for name in ("BiasAdd", "BiasSplitGelu", "GroupNorm", "SkipGroupNorm", "NhwcConv", "NhwcFusedConv")
}
"""Operators that have a rule and are never drawn, each with its reason."""
NEVER |= dict.fromkeys(INTEGER, "it is said in floats, or keeps all its positions: no unit ends there")


def test_every_operator_is_drawn():
    drawn = {key for opset in OPSETS for key in usable(opset, True)}
    assert set(builtin_rules()) - drawn == set(NEVER)


def test_pointwise_templates_fit_any_shape():
    found = {case.op_type for case in templates() if is_pointwise(case)}
    assert found >= {"Add", "Relu", "Where", "Cast", "Clip", "Greater"}
    assert not found & {"Softmax", "CumSum", "Transpose", "Einsum", "MatMul"}


def built(*steps):
    """A graph of given steps."""
    w = Walk(np.random.default_rng(0), 18, contrib=False)
    x = w.b.input("x", ("batch", 5))
    w.values.append(blocks.linear(w, At(x, ("batch", 5)), 8))
    for step in steps:
        step(w)
    model = w.b.model(*finish(w))
    return Graph(0, model, w.drawn, w.highs, checker=True, half=False, redraws=())


def test_a_seed_is_a_graph():
    first, second = (to_bytes(generate(7).model, external_above=1 << 30)[0] for _ in range(2))
    assert first == second


def softmax(w):
    at = w.values[-1]
    w.push(w.op("Softmax", at.value, axis=-1), at.shape, 1.0)


def test_a_wrong_rule_is_found_and_made_small():
    """Softmax as an element-wise operator: it would sum over what is cut."""
    graph = built(softmax, blocks.dense, blocks.dense)
    wrong = default_rules() | {("", "Softmax"): default_rules()["", "Sigmoid"]}
    assert failure_of(graph) is None
    kind = failure_of(graph, wrong)
    assert kind == "rejected"
    small = [node.op_type for node in shrink(graph, kind, wrong).model.graph]
    assert "Softmax" in small and len(small) <= 4


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_graphs(first):
    outcomes = [check_seed(seed) for seed in range(first, first + CHUNK)]
    failures = [(outcome.seed, *outcome.failure) for outcome in outcomes if outcome.failure]
    assert not failures, f"run `python -m tests.fuzz --from SEED --count 1 --minimise`: {failures}"
    assert sum(outcome.groups > 0 for outcome in outcomes) >= CHUNK // 2
    assert sum(outcome.dropped > 0 for outcome in outcomes) >= CHUNK // 2
    assert sum(len(outcome.redraws) for outcome in outcomes) <= CHUNK // 2
