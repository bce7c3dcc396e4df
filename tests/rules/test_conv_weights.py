"""Weights of grouped convolutions that are shared, computed or used by others, too."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from rule_cases import axes

from onnxprune.testing import ModelBuilder, check_model


class Grouped:
    def __init__(self):
        self.b = ModelBuilder(17)
        self.x = self.b.input("x", (1, 3, 6, 6))
        self.w = self.b.weight((12, 4, 3, 3), "grouped/weight")

    def stem(self, name="stem"):
        return self.b.op("Conv", self.x, self.b.weight((8, 3, 1, 1), f"{name}/weight"), name=name)

    def head(self, value, name="head"):
        return self.b.op("Conv", value, self.b.weight((5, 12, 1, 1), f"{name}/weight"), name=name)

    def conv(self, value, weight=None, group=2, **kw):
        return self.b.op("Conv", value, self.w if weight is None else weight, group=group, **kw)

    def check(self, *outputs):
        checked = check_model(self.b.model(*outputs))
        return checked, checked.prunable()


def test_alone():
    g = Grouped()
    checked, prunable = g.check(g.head(g.conv(g.stem())))
    assert axes("stem/weight[0] grouped/weight[0,1] head/weight[1]") <= prunable
    assert [group.block_count for group in checked.groups] == [2, 2]


def test_shared_by_two_convolutions():
    """Siamese branches: both divide the weight in the same way."""
    g = Grouped()
    left, right = g.conv(g.stem("left"), name="a"), g.conv(g.stem("right"), name="b")
    checked, prunable = g.check(g.head(left, "h1"), g.head(right, "h2"))
    assert axes("left/weight[0] right/weight[0] grouped/weight[0,1] h1/weight[1] h2/weight[1]") <= prunable
    assert [group.units for group in checked.groups] == [8, 12]


def test_shared_by_two_different_divisions():
    """(12, 4, 3, 3) is 2 groups over 8 channels for one, 3 groups over 12 for the other."""
    g = Grouped()
    wide = g.b.op("Conv", g.x, g.b.weight((12, 3, 1, 1), "wide/weight"), name="wide")
    _, prunable = g.check(g.head(g.conv(g.stem(), name="a")), g.head(g.conv(wide, group=3, name="b"), "h2"))
    assert axes("head/weight[1] h2/weight[1] grouped/weight[0]") <= prunable
    assert not axes("stem/weight[0] wide/weight[0]") & prunable


@pytest.mark.parametrize("op_type", ["Identity", "Cast", "Erf"])
def test_computed(op_type):
    """The weight behind a node: its columns cannot be cut differently per group there."""
    g = Grouped()
    attributes = {"to": ir.DataType.FLOAT.value} if op_type == "Cast" else {}
    weight = g.b.op(op_type, g.w, **attributes)
    checked, prunable = g.check(g.head(g.conv(g.stem(), weight)))
    assert axes("grouped/weight[0] head/weight[1]") <= prunable
    if op_type != "Identity":  # which is read through
        assert "stem/weight[0]" not in prunable
        assert [group.block_count for group in checked.groups] == [2]


def test_used_by_another_operator():
    """A norm of the weight is an output, too."""
    g = Grouped()
    norm = g.b.op("ReduceL2", g.w, axes=[0, 1, 2, 3], keepdims=0, name="norm")
    _, prunable = g.check(g.head(g.conv(g.stem())), norm)
    assert "stem/weight[0]" not in prunable


def test_normalized_weight():
    """Weight normalisation of an ungrouped convolution: folded into a weight like any other."""
    b = ModelBuilder(17)
    x = b.input("x", (1, 3, 6, 6))
    h = b.op("Conv", x, b.weight((8, 3, 1, 1), "stem/weight"), name="stem")
    v = b.weight((6, 8, 3, 3), "v")
    norm = b.op("ReduceL2", v, axes=[1, 2, 3], keepdims=1, name="norm")
    w = b.op("Mul", b.weight((6, 1, 1, 1), "g"), b.op("Div", v, norm, name="unit"), name="scaled")
    y = b.op("Conv", h, w, b.weight((6,), "bias"), name="conv")
    checked = check_model(b.model(b.op("Conv", y, b.weight((4, 6, 1, 1), "head/weight"), name="head")))
    assert axes("stem/weight[0] scaled_out[0,1] bias[0] head/weight[1]") <= checked.prunable()


def test_groups_of_constant_shape():
    """Groups in the middle of a shuffle keep working when only one is left per block."""
    g = Grouped()
    h = g.conv(g.stem())
    shape = g.b.constant(np.array([1, 2, 6, 4, 4]))
    split = g.b.op("Transpose", g.b.op("Reshape", h, shape), perm=[0, 2, 1, 3, 4], name="turn")
    shuffled = g.b.op("Reshape", split, g.b.constant([1, 12, 4, 4]), name="shuffled")
    second = g.b.op("Conv", shuffled, g.b.weight((9, 4, 1, 1), "second/weight"), group=3, name="second")
    last = g.b.op("Conv", second, g.b.weight((5, 9, 1, 1), "last/weight"), name="last")
    _, prunable = g.check(last)
    assert axes("stem/weight[0] grouped/weight[0] second/weight[0,1] last/weight[1]") <= prunable
