"""The first 300 seeds, and what the fuzzer reaches."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.model.serialize import to_bytes
from onnxprune.rules import builtin_rules, default_rules
from onnxprune.rules.integer import RULES as INTEGER
from tests.fuzz import blocks
from tests.fuzz.check import check_seed
from tests.fuzz.generate import LEAST, MOST, OPSETS, Graph, finish, generate
from tests.fuzz.minimise import failure_of, shrink
from tests.fuzz.templates import every_case, is_pointwise, templates, usable
from tests.fuzz.walk import At, Walk

SEEDS, CHUNK, CONFORM = 300, 10, 10
NEVER = {
    ("com.microsoft", name): "onnxruntime's CPU provider has no kernel for it"
    for name in ("BiasAdd", "BiasSplitGelu", "GroupNorm", "SkipGroupNorm", "NhwcConv", "NhwcFusedConv")
} | {
    ("", name): "onnxruntime runs no opset that has it"
    for name in ("SwiGLU", "CausalConvWithState", "LinearAttention")
}
"""Operators that have a rule and are never drawn, each with its reason."""
NEVER |= dict.fromkeys(INTEGER, "it is said in floats, or keeps all its positions: no unit ends there")


def test_every_operator_is_drawn():
    """Those that have a line in the tables of tests/rules; others stay whole, or have bodies."""
    drawn = {key for opset in OPSETS for key in usable(opset, True)}
    lines = {(case.domain, case.op_type) for case in every_case()}
    assert set(builtin_rules()) & lines - drawn == set(NEVER) & lines
    assert set(NEVER) <= set(builtin_rules())


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
    """Every other graph is also masked back and forth; the campaigns do that with all."""
    outcomes = [check_seed(seed, CONFORM, thorough=seed % 2 == 0) for seed in range(first, first + CHUNK)]
    failures = [(outcome.seed, *outcome.failure) for outcome in outcomes if outcome.failure]
    assert not failures, f"run `python -m tests.fuzz --from SEED --count 1 --minimise`: {failures}"
    assert sum(outcome.dropped > 0 for outcome in outcomes) >= CHUNK * 0.6
    assert sum(len(outcome.redraws) for outcome in outcomes) <= CHUNK // 2


def test_what_is_drawn():
    """Sizes, types, opsets and clothes of the first seeds."""
    graphs = [generate(seed) for seed in range(120)]
    nodes = sorted(graph.nodes for graph in graphs)
    assert (nodes[0], nodes[-1]) >= (LEAST, 50) and nodes[-1] <= MOST
    assert nodes[len(nodes) // 2] > 15
    assert {graph.dtype for graph in graphs} == {"float32", "float16", "double", "bfloat16"}
    assert {trait for graph in graphs for trait in graph.traits} == {"constants", "listed", "side"}
    assert {graph.model.opset_imports[""] for graph in graphs} == set(OPSETS)
    assert sum(len(graph.model.graph.outputs) > 1 for graph in graphs) > 30
    assert sum(any(v.uses() for v in graph.model.graph.outputs) for graph in graphs) > 3
    shapes = [tuple(v.shape) for graph in graphs for v in graph.model.graph.inputs if v.shape]
    assert sum(any(not isinstance(extent, int) for extent in shape) for shape in shapes) > 30
    assert sum(any(len(v.uses()) > 1 for v in weights_of(graph.model)) for graph in graphs) > 20


def weights_of(model):
    """Matrices that are initializers or Constants."""
    constants = [node.outputs[0] for node in model.graph if node.op_type == "Constant"]
    values = [*model.graph.initializers.values(), *constants]
    return [v for v in values if v.dtype.is_floating_point() and len(v.shape) > 1]
