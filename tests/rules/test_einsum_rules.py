from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from rule_cases import case, identify

from onnxprune.allocate.cost import CostModel
from onnxprune.errors import Reason
from onnxprune.graph.build import build_axis_graph
from onnxprune.graph.groups import partition
from onnxprune.model.normalize import normalize
from onnxprune.model.shapes import infer_shapes
from onnxprune.rules import default_rules
from onnxprune.testing import ModelBuilder, Weight, check_model

W = Weight
LAYER = "x0[0,1] x1[0,1] y0[0,1]"


def einsum(equation, *inputs, **kw):
    return case("Einsum", *inputs, equation=equation, note=kw.pop("note", equation), **kw)


CASES = [
    # one operand: transposes and sums
    einsum("bij->bji", (2, 3, 4), expect="x0[0,1,2] y0[0,1,2]", groups=3),
    einsum("bij->bj", (2, 3, 4), expect="x0[0,1,2] y0[0,1]", groups=3),
    einsum("bij->ij", W((2, 3, 4)), expect="x0[1,2] y0[0,1]", groups=2, note="sum-of-a-weight"),
    einsum("ij->", (3, 4), expect="x0[0,1]", note="everything"),
    einsum("ba", (3, 4), expect="x0[0,1] y0[0,1]", groups=2, note="implicit-transpose"),
    einsum("ii->i", (4, 4), expect="", pinned={"x0[0]": Reason.NOT_MENTIONED}, note="diagonal"),
    einsum("bii->b", (3, 4, 4), expect="x0[0] y0[0]", note="trace"),
    # two operands
    *(einsum("ij,jk->ik", (3, 6), W((6, 5)), expect=LAYER, groups=3, opset=o) for o in (12, 18)),
    einsum("ij,jk->ik", W((5, 6)), (6, 3), expect=LAYER, groups=3, note="weight-first"),
    einsum("ij,jk->ik", W((5, 6)), W((6, 3)), expect=LAYER, groups=3, note="two-weights"),
    einsum("ij,jk->ik", (3, 6), (6, 5), expect=LAYER, groups=3, note="two-activations"),
    einsum("ij,jk", (3, 6), W((6, 5)), expect=LAYER, groups=3, note="implicit"),
    einsum(" i j , j k -> i k ", (3, 6), W((6, 5)), expect=LAYER, groups=3, note="spaces"),
    einsum("jI,Ik->jk", (3, 6), W((6, 5)), expect=LAYER, groups=3, note="capital"),
    einsum("bhid,bhjd->bhij", *[(2, 3, 4, 5)] * 2, expect="x0[0,1,2,3] x1[0,1,2,3] y0[0,1,2,3]", groups=5),
    einsum("bthd,hde->bte", (2, 4, 3, 5), W((3, 5, 6)), expect="x0[0,1,2,3] x1[0,1,2] y0[0,1,2]", groups=5),
    einsum("btc,chd->bhtd", (2, 4, 6), W((6, 3, 5)), expect="x0[0,1,2] x1[0,1,2] y0[0,1,2,3]", groups=5),
    einsum("bchw,bkc->bkhw", (2, 4, 3, 3), (2, 5, 4), expect="x0[0,1,2,3] x1[0,1,2] y0[0,1,2,3]", groups=5),
    einsum("i,j->ij", (3,), (4,), expect="x0[0] x1[0] y0[0,1]", groups=2, note="outer"),
    einsum("ij,ij->", (3, 4), (3, 4), expect="x0[0,1] x1[0,1]", groups=2, note="inner"),
    einsum("ij,ik->i", (3, 4), (3, 5), expect="x0[0,1] x1[0,1] y0[0]", groups=3, note="sums-of-one-operand"),
    einsum("ij,jk->ik", (3, 1), (4, 5), expect="x0[0] x1[0,1] y0[0,1]", groups=3, note="broadcast"),
    einsum("ii,ij->j", (4, 4), (4, 5), expect="x1[1] y0[0]", note="diagonal-of-one"),
    # three operands
    einsum(
        "ij,jk,kl->il",
        (3, 4),
        W((4, 5)),
        W((5, 2)),
        expect="x0[0,1] x1[0,1] x2[0,1] y0[0,1]",
        groups=4,
    ),
    einsum("ij,j,jk->ik", (3, 6), (6,), W((6, 5)), expect="x0[0,1] x1[0] x2[0,1] y0[0,1]", groups=3),
    einsum("bi,bi,bi->b", *[(3, 6)] * 3, expect="x0[0,1] x1[0,1] x2[0,1] y0[0]", groups=2),
    # ellipsis
    einsum("...j,jk->...k", (2, 3, 6), W((6, 5)), expect="x0[0,1,2] x1[0,1] y0[0,1,2]", groups=4),
    einsum("...ij,...jk->...ik", (2, 3, 4), (2, 4, 5), expect="x0[0,1,2] x1[0,1,2] y0[0,1,2]", groups=4),
    einsum("...ij,...jk", (1, 3, 4), (2, 4, 5), expect="x0[1,2] x1[0,1,2] y0[0,1,2]", note="widened"),
    einsum("b...->...b", (2, 3, 4), expect="x0[0,1,2] y0[0,1,2]", groups=3),
    einsum("...->...", (2, 3), expect="x0[0,1] y0[0,1]", groups=2),
]


@pytest.mark.parametrize("case", CASES, ids=identify)
def test_einsum(case):
    case.check()


def attention():
    """Multi-head attention with all products written as Einsum, on (2, 5, 6)."""
    b = ModelBuilder(17)
    x = b.input("x", (2, 5, 6))
    heads = [b.op("Einsum", x, b.weight((6, 3, 4), n), equation="btc,chd->bhtd", name=n) for n in "qkv"]
    scores = b.op("Einsum", *heads[:2], equation="bhid,bhjd->bhij")
    mixed = b.op("Einsum", b.op("Softmax", scores, axis=-1), heads[2], equation="bhij,bhjd->bihd")
    return b.model(b.op("Einsum", mixed, b.weight((3, 4, 7), "o"), equation="bihd,hde->bie", name="o"))


def test_heads_and_their_dimensions():
    checked = check_model(attention())
    assert sorted(group.units for group in checked.groups) == [3, 4, 4]
    assert {"q[1]", "k[1]", "v[1]", "o[0]", "q[2]", "v[2]", "o[1]"} <= checked.prunable()


def test_weights_are_scored_and_macs_counted():
    model = normalize(attention())
    graph = build_axis_graph(model, infer_shapes(model), default_rules())
    assert {v.name: p.kind for v, p in graph.parameters.items()} == dict.fromkeys("qkvo", "weight")
    costs = CostModel(graph, partition(graph))
    tokens, pairs = 2 * 5, 2 * 5 * 5
    assert costs.full.macs == tokens * 6 * 12 * 3 + pairs * 12 * 2 + tokens * 12 * 7


def test_sums_multiply_nothing():
    b = ModelBuilder(17)
    h = b.op("MatMul", b.input("x", (2, 6)), b.weight((6, 8)))
    model = normalize(b.model(b.op("Einsum", h, equation="ij->i")))
    graph = build_axis_graph(model, infer_shapes(model), default_rules())
    assert CostModel(graph, partition(graph)).full.macs == 2 * 6 * 8


@pytest.mark.parametrize("equation", ["ij,jk,kl->il", "ijk,jk->ik", "i,jk->ik", "ij,jk->iz", "aB,Bc"])
def test_equations_that_are_not_understood_pin(equation):
    """They do not fit the operands, or ONNX does not say what they mean."""
    b = ModelBuilder(17)
    h = b.op("MatMul", b.input("x", (2, 6)), b.weight((6, 8), "in"))
    out = b.op("Einsum", h, b.constant(np.ones((8, 3), np.float32)), equation=equation)
    out.shape = ir.Shape((2, 3))
    model = normalize(b.model(out))
    graph = build_axis_graph(model, infer_shapes(model), default_rules())
    assert not partition(graph).groups
