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
from onnxprune.testing import Activation, ModelBuilder, Weight, check_model

W, A = Weight, Activation
SPATIAL, AUXILIARY, INDEXED, ORDERED = Reason.SPATIAL, Reason.AUXILIARY, Reason.INDEXED, Reason.ORDERED


def ints(*values):
    return np.array(values, np.int64)


def boxes(*corners):
    return np.array(corners, np.float32)


def deformable(x, w, *, channels, groups=1, runs=1, opset=19, mask=True, bias=True, note, **kw):
    """A 3 x 3 kernel on (batch, channels, 5, 5), without padding."""
    batch = x[0]
    return case(
        "DeformConv",
        x,
        W(w),
        A((batch, runs * 18, 3, 3), low=-1, high=1),
        W((w[0],)) if bias else None,
        *([A((batch, runs * 9, 3, 3), low=0, high=1)] if mask else []),
        expect=" ".join(["x0[0,1] x2[0] y0[0,1]", channels] + ["x3[0]"] * bias + ["x4[0]"] * mask),
        group=groups,
        offset_group=runs,
        kernel_shape=[3, 3],
        opset=opset,
        note=note,
        **kw,
    )


THETA = np.array([[[1, 0.1, 0], [0.2, 1, 0]], [[0.5, 0, 0.1], [0, 2, 0]]], np.float32)
CASES = [
    # DeformConv
    *(
        deformable((2, 4, 5, 5), (6, 4, 3, 3), channels="x1[0,1]", groups=1, opset=o, note="")
        for o in (19, 22)
    ),
    deformable((2, 4, 5, 5), (6, 4, 3, 3), channels="x1[0,1]", mask=False, bias=False, note="plain"),
    deformable((2, 8, 5, 5), (6, 8, 3, 3), channels="x1[0,1]", runs=2, note="runs"),
    deformable((2, 8, 5, 5), (8, 4, 3, 3), channels="x1[0,1]", groups=2, note="groups"),
    deformable((2, 8, 5, 5), (8, 4, 3, 3), channels="x1[0,1]", groups=2, runs=2, note="groups-and-runs"),
    deformable((2, 8, 5, 5), (8, 2, 3, 3), channels="x1[0,1]", groups=4, runs=2, note="more-groups"),
    deformable((2, 6, 5, 5), (6, 1, 3, 3), channels="x1[0]", groups=6, note="depthwise"),
    deformable((2, 6, 5, 5), (6, 1, 3, 3), channels="x1[0]", groups=6, runs=2, note="depthwise-runs"),
    # GridSample
    *(
        case(
            "GridSample",
            (2, 3, 4, 4),
            A((2, 3, 5, 2), low=-1, high=1),
            expect="x0[0,1] x1[0] y0[0,1]",
            groups=2,
            opset=o,
            pinned={"x0[2]": SPATIAL, "x1[1]": SPATIAL, "y0[3]": SPATIAL, "x1[3]": AUXILIARY},
            note=mode,
            mode=mode,
            padding_mode="border",
        )
        for o, mode in ((16, "bilinear"), (16, "nearest"), (20, "linear"), (22, "cubic"))
    ),
    case(
        "GridSample",
        (2, 3, 4, 4, 4),
        A((2, 2, 2, 2, 3), low=-1, high=1),
        expect="x0[0,1] x1[0] y0[0,1]",
        opset=20,
        note="volume",
    ),
    # AffineGrid
    case("AffineGrid", A((3, 2, 3)), ints(3, 5, 4, 4), expect="x0[0] y0[0]", opset=20),
    case("AffineGrid", A((3, 3, 4)), ints(3, 5, 2, 3, 4), expect="x0[0] y0[0]", opset=20, note="volume"),
    # RoiAlign, MaxRoiPool
    *(
        case(
            "RoiAlign",
            (2, 6, 8, 8),
            A((5, 4), low=0, high=7),
            A((5,), "int64", 0, 1.9),
            expect="x0[1] x1[0] x2[0] y0[0,1]",
            groups=2,
            opset=o,
            pinned={"x0[0]": INDEXED, "x0[2]": SPATIAL, "x1[1]": AUXILIARY},
            output_height=2,
            output_width=3,
            sampling_ratio=2,
        )
        for o in (10, 16)
    ),
    case(
        "RoiAlign",
        (1, 6, 8, 8),
        boxes([0, 0, 4, 4], [1, 2, 7, 6]),
        ints(0, 0),
        expect="x0[1] x1[0] x2[0] y0[0,1]",
        mode="max",
        note="constant",
    ),
    case(
        "MaxRoiPool",
        (2, 6, 8, 8),
        boxes([0, 0, 0, 4, 4], [1, 1, 2, 7, 6], [0, 3, 3, 7, 7]),
        expect="x0[1] x1[0] y0[0,1]",
        pooled_shape=[2, 2],
        opset=11,
        pinned={"x0[0]": INDEXED},
    ),
    # Col2Im
    case(
        "Col2Im",
        (2, 3 * 4, 9),
        ints(4, 4),
        ints(2, 2),
        expect="x0[0,1] y0[0,1]",
        groups=2,
        pinned={"x0[2]": SPATIAL, "y0[2]": SPATIAL},
    ),
    case("Col2Im", (1, 12, 4), ints(4, 4), ints(2, 2), expect="x0[1] y0[1]", strides=[2, 2], note="strides"),
    case("Col2Im", (2, 4, 9), ints(4, 4), ints(2, 2), expect="x0[0] y0[0]", note="one-channel"),
    # CenterCropPad
    case(
        "CenterCropPad",
        (2, 6, 5),
        ints(3),
        expect="x0[0,1] y0[0,1]",
        axes=[-1],
        pinned={"x0[2]": ORDERED, "y0[2]": ORDERED},
        note="crop",
    ),
    case("CenterCropPad", (2, 6, 5), ints(8, 5), expect="x0[0,2] y0[0,2]", axes=[1, 2], note="pad"),
    case("CenterCropPad", (2, 6, 5), ints(2, 6, 4), expect="x0[0,1] y0[0,1]", note="all"),
    case("CenterCropPad", (2, 6), ints(2, 6), expect="x0[0,1] y0[0,1]", note="nothing"),
    # MaxUnpool
    case(
        "MaxUnpool",
        (1, 1, 2, 2),
        ints(0, 3, 8, 10).reshape(1, 1, 2, 2),
        expect="",
        kernel_shape=[2, 2],
        strides=[2, 2],
        opset=11,
        pinned={"x0[2]": INDEXED, "x1[2]": INDEXED, "y0[3]": INDEXED},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=identify)
def test_vision(case):
    case.check()


def test_deformable_block():
    """Offsets come from a convolution over the same image: it stays whole at its output."""
    b = ModelBuilder(19)
    x = b.op("Conv", b.input("x", (1, 3, 6, 6)), b.weight((8, 3, 3, 3), "in"))
    x = b.op("Relu", x)
    offset = b.op("Conv", x, b.weight((18, 8, 3, 3), "offset", low=-0.1, high=0.1))
    h = b.op("DeformConv", x, b.weight((6, 8, 3, 3), "deformed"), offset, name="deformed")
    model = b.model(b.op("Conv", b.op("Relu", h), b.weight((4, 6, 1, 1), "out")))
    checked = check_model(model)
    assert [group.units for group in checked.groups] == [8, 6]
    assert checked.reason("offset[0]") is AUXILIARY
    model = normalize(model)
    graph = build_axis_graph(model, infer_shapes(model), default_rules())
    assert graph.parameters[model.graph.initializers["deformed"]].kind == "weight"
    macs = 4 * 4 * 8 * 27 + 2 * 2 * 8 * 9 * (18 + 6) + 2 * 2 * 6 * 4
    assert CostModel(graph, partition(graph)).full.macs == macs


def test_unpooling_blocks_what_it_counts_through():
    """The indices of MaxPool are numbers of elements of the whole tensor."""
    b = ModelBuilder(18)
    h = b.op("Conv", b.input("x", (1, 3, 4, 4)), b.weight((6, 3, 1, 1), "in"))
    pooled, indices = b.ops("MaxPool", h, outputs=["pooled", "indices"], kernel_shape=[2, 2], strides=[2, 2])
    h = b.op("MaxUnpool", pooled, indices, kernel_shape=[2, 2], strides=[2, 2])
    checked = check_model(b.model(b.op("Conv", h, b.weight((2, 6, 1, 1), "out"))), seeds=(0,))
    assert not checked.groups and checked.reason("in[0]") is INDEXED


def test_regions_of_a_detector():
    """Backbone channels go through RoiAlign into the box head."""
    b = ModelBuilder(18)
    h = b.op("Conv", b.input("x", (1, 3, 8, 8)), b.weight((8, 3, 1, 1), "in"))
    regions, sample = b.input("regions", ("n", 4)), b.input("sample", ("n",), ir.DataType.INT64)
    h = b.op("RoiAlign", b.op("Relu", h), regions, sample, output_height=2, output_width=2)
    h = b.op("Flatten", h)
    out = b.op("Gemm", h, b.weight((32, 5), "head"))
    feeds = {
        "x": np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32),
        "regions": boxes([0, 0, 4, 4], [1, 2, 7, 6]),
        "sample": ints(0, 0),
    }
    checked = check_model(b.model(out), bindings={"n": 2}, feeds=feeds, seeds=(0,))
    assert [group.units for group in checked.groups] == [8]


def test_sampling_along_a_grid_of_a_transform():
    """AffineGrid and GridSample: a spatial transformer."""
    b = ModelBuilder(20)
    h = b.op("Conv", b.input("x", (2, 3, 4, 4)), b.weight((6, 3, 1, 1), "in"))
    grid = b.op("AffineGrid", b.constant(THETA), b.constant([2, 6, 3, 3]))
    out = b.op("Conv", b.op("GridSample", h, grid), b.weight((4, 6, 1, 1), "out"))
    checked = check_model(b.model(out))
    assert [group.units for group in checked.groups] == [6]
