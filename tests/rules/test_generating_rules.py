from __future__ import annotations

import numpy as np
import pytest
from rule_cases import case, identify

from onnxprune.errors import Reason
from onnxprune.graph.build import build_axis_graph
from onnxprune.graph.explain import nearest_barriers
from onnxprune.graph.groups import partition
from onnxprune.model.normalize import normalize
from onnxprune.model.shapes import infer_shapes
from onnxprune.rules import default_rules
from onnxprune.testing import ModelBuilder

AUXILIARY, ORDERED, RANDOM = Reason.AUXILIARY, Reason.ORDERED, Reason.RANDOM


def number(value, dtype=np.int64):
    return np.array(value, dtype)


def window(op_type):
    return case(op_type, number(8), expect="", opset=17, pinned={"y0[0]": AUXILIARY})


def drawn(op_type, *inputs, **kw):
    """With a seed, so that the model reproduces itself."""
    return case(op_type, *inputs, expect="", seed=1.0, **kw)


CASES = [
    case("Range", number(0), number(9), number(2), expect="", pinned={"y0[0]": AUXILIARY}),
    case("Range", *(number(x, np.float32) for x in (0, 2, 0.5)), expect="", note="floats"),
    window("HannWindow"),
    window("HammingWindow"),
    window("BlackmanWindow"),
    case(
        "MelWeightMatrix",
        number(4),
        number(64),
        number(8000),
        number(0, np.float32),
        number(4000, np.float32),
        expect="",
        opset=17,
        pinned={"y0[0]": AUXILIARY, "y0[1]": AUXILIARY},
    ),
    case("EyeLike", (4, 5), expect="", pinned={"x0[0]": ORDERED, "y0[1]": ORDERED}),
    drawn("RandomNormal", shape=[3, 4], pinned={"y0[0]": RANDOM}),
    drawn("RandomUniform", shape=[3, 4], pinned={"y0[1]": RANDOM}),
    drawn("RandomNormalLike", (3, 4), pinned={"x0[0]": RANDOM, "y0[1]": RANDOM}),
    drawn("RandomUniformLike", (3, 4), pinned={"x0[0]": RANDOM, "y0[1]": RANDOM}),
    drawn("Bernoulli", (3, 4), pinned={"x0[1]": RANDOM, "y0[1]": RANDOM}),
    drawn("Multinomial", (3, 4), dtype=7, sample_size=5, pinned={"x0[1]": RANDOM, "y0[1]": RANDOM}),
]


@pytest.mark.parametrize("case", CASES, ids=identify)
def test_generating(case):
    case.check()


def test_noise_without_a_seed_blocks_its_channels_only():
    b = ModelBuilder(17)
    h = b.op("Relu", b.op("MatMul", b.input("x", (2, 6)), b.weight((6, 8), "in")))
    h = b.op("MatMul", h, b.weight((8, 5), "mid"))
    h = b.op("Add", h, b.op("RandomNormalLike", h))
    model = normalize(b.model(b.op("MatMul", h, b.weight((5, 3), "out"))))
    graph = build_axis_graph(model, infer_shapes(model), default_rules())
    assert [group.units for group in partition(graph).groups] == [8]
    barriers = {axis.name: barrier.reason for axis, barrier in nearest_barriers(graph.graph).items()}
    assert barriers["mid[1]"] is RANDOM
