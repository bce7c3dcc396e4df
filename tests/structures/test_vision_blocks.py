"""Vision operators and heads: sampling, regions, suppression, transposed and depthwise layers, masks."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from block_nets import Blocks, check, pinned, used


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_transposed_convolution_with_groups(groups):
    """Balanced blocks on both sides."""
    n = Blocks()
    x = n.relu(n.up_conv(n.stem(8), 12, group=groups, name="up"))
    result = check(n, n.classify(x))
    blocks = "" if groups == 1 else f" in {groups} blocks"
    assert used(result) == [
        f"stem: 8{blocks}: stem[0]+bias -> up[0]",
        f"up: 12{blocks}: up[1]+bias -> fc[1]",
    ]


def test_transposed_depthwise_convolution():
    """Learnt up-sampling of every channel by itself."""
    n = Blocks()
    x = n.relu(n.up_conv(n.stem(8), 8, group=8, name="up"))
    assert used(check(n, n.classify(n.conv(x, 6, 1, name="next")))) == [
        "stem: 8: stem[0]+bias up[0]+bias -> next[1]",
        "next: 6: next[0]+bias -> fc[1]",
    ]


def test_depthwise_with_a_multiplier():
    """Three results per channel: they go together."""
    n = Blocks()
    x = n.relu(n.conv(n.stem(6), 18, group=6, name="depthwise"))
    assert used(check(n, n.classify(n.conv(x, 8, 1, name="pointwise")))) == [
        "stem: 6: stem[0]+bias depthwise[0]+bias -> pointwise[1]",
        "pointwise: 8: pointwise[0]+bias -> fc[1]",
    ]


def test_inverted_residual():
    """MobileNetV2: expansion, depthwise, projection, with BatchNormalization each."""
    n = Blocks()
    x = n.stem(6)
    y = n.like(
        "Clip", n.batch_norm(n.conv(x, 12, 1, bias=False, name="expand"), "bn1"), n.scalar(0), n.scalar(6)
    )
    y = n.batch_norm(n.conv(y, 12, group=12, bias=False, name="depthwise"), "bn2")
    y = n.batch_norm(n.conv(n.like("HardSwish", y), 6, 1, bias=False, name="project"), "bn3")
    assert used(check(n, n.classify(n.add(x, y)))) == [
        "stem: 6: stem[0]+bias project[0] bn3[0]+bias+mean+var -> expand[1] fc[1]",
        "expand: 12: expand[0] bn1[0]+bias+mean+var depthwise[0] bn2[0]+bias+mean+var -> project[1]",
    ]


@pytest.mark.parametrize("padding", ["zeros", "reflect"])
def test_blur_before_pooling(padding):
    """BlurPool: one constant kernel, repeated for every channel; it is cut with them."""
    n = Blocks()
    x = n.stem(6)
    line = np.float32([1, 2, 1])
    kernel = np.tile(np.outer(line, line) / 16, (6, 1, 1, 1)).astype(np.float32)
    if padding == "reflect":
        x = n.like("Pad", x, n.constant([0, 0, 1, 1, 0, 0, 1, 1]), mode="reflect")
    pads = [0 if padding == "reflect" else 1] * 4
    x = n.like("Conv", x, n.constant(kernel, "kernel"), group=6, strides=[2, 2], pads=pads, name="blur")
    assert used(check(n, n.classify(n.conv(x, 8, name="next")))) == [
        "stem: 6: stem[0]+bias kernel[0] -> next[1]",
        "next: 8: next[0]+bias -> fc[1]",
    ]


def test_blur_with_an_expanded_kernel():
    """The kernel is expanded to as many channels as the activation has at run time."""
    n = Blocks()
    x = n.stem(6)
    kernel = n.constant(np.full((1, 1, 3, 3), 1 / 9, np.float32), "kernel")
    channels = n.op("Slice", n.op("Shape", x), n.constant([1]), n.constant([2]), n.constant([0]))
    target = n.op("Concat", channels, n.constant([1, 3, 3]), axis=0)
    wide = n.op("Expand", kernel, target, name="wide")
    x = n.like("Conv", x, wide, group=6, strides=[2, 2], pads=[1] * 4, name="blur")
    result = check(n, n.classify(n.conv(x, 8, name="next")))
    assert used(result) == [
        "stem: 6: stem[0]+bias -> next[1]",
        "next: 8: next[0]+bias -> fc[1]",
    ]


def test_fixed_edge_filter():
    """A Sobel filter of the image beside a learnt convolution: the constant weight is cut like a learnt one."""
    n = Blocks()
    x = n.picture()
    sobel = n.constant(np.float32(n.rng.integers(-2, 3, (4, 3, 3, 3))), "sobel.weight")
    edges = n.mark(n.op("Conv", x, sobel, pads=[1] * 4, name="sobel"), 4)
    result = check(n, n.classify(n.conv(n.concat(edges, n.conv(x, 6, name="conv")), 8, name="next")))
    assert used(result) == [
        "sobel: 4: sobel[0] -> next[1]",
        "conv: 6: conv[0]+bias -> next[1]",
        "next: 8: next[0]+bias -> fc[1]",
    ]


@pytest.mark.parametrize("offset_groups", [1, 2])
@pytest.mark.parametrize("masked", [True, False])
def test_deformable_convolution(offset_groups, masked):
    """Offsets come from a convolution of their own and keep their number; channels around go."""
    n = Blocks(opset=19)
    x = n.stem(8)
    taps = 9 * offset_groups
    offset = n.conv(n.relu(n.conv(x, 6, name="where")), 2 * taps, name="offset")
    inputs = [x, n.weight((12, 8, 3, 3), "deform.weight"), offset, n.weight((12,), "deform.bias")]
    if masked:
        inputs.append(n.op("Sigmoid", n.conv(x, taps, name="mask")))
    y = n.op(
        "DeformConv", *inputs, offset_group=offset_groups, kernel_shape=[3, 3], pads=[1] * 4, name="deform"
    )
    result = check(n, n.classify(n.relu(n.mark(y, 12))))
    blocks, mask = "" if offset_groups == 1 else " in 2 blocks", "mask[1] " if masked else ""
    assert used(result) == [
        f"stem: 8{blocks}: stem[0]+bias -> where[1] {mask}deform[1]",
        "where: 6: where[0]+bias -> offset[1]",
        "deform: 12: deform[0]+bias -> fc[1]",
    ]
    assert pinned(result, "offset.weight[0]") == ["AUXILIARY"]


@pytest.mark.parametrize("opset", [16, 20])
def test_grid_sample(opset):
    """A spatial transformer moves all channels alike; even a term of its six numbers is a unit, if an odd one."""
    n = Blocks(opset=opset)
    x = n.stem(6)
    theta = n.gemm(n.relu(n.gemm(n.flatten(n.pool(x)), 5, name="where")), 6, name="theta")
    base = n.constant(n.rng.uniform(-1, 1, (3, 64)).astype(np.float32), "base")
    grid = n.op("MatMul", n.reshape(theta, -1, 2, 3, name="affine"), base, name="places")
    grid = n.op("Reshape", n.op("Transpose", grid, perm=[0, 2, 1]), n.constant([-1, 8, 8, 2]), name="grid")
    y = n.like("GridSample", x, grid, name="sample")
    result = check(n, n.classify(n.relu(n.conv(y, 8, name="next"))))
    assert used(result) == [
        "stem: 6: stem[0]+bias -> where[1] next[1]",
        "where: 5: where[0]+bias -> theta[1]",
        "theta: 3 of 2: theta[0]+bias -> base[0]",
        "next: 8: next[0]+bias -> fc[1]",
    ]


def test_flow_warping():
    """Features of one picture are sampled where a flow says, and compared with those of another."""
    n = Blocks(opset=16)
    weight, bias = n.weight((6, 3, 3, 3), "encoder.weight"), n.weight((6,), "encoder.bias")
    a, b = (
        n.mark(n.op("Relu", n.op("Conv", n.input(name, ("n", 3, 8, 8)), weight, bias, pads=[1] * 4)), 6)
        for name in ("first", "second")
    )
    flow = n.op("Tanh", n.conv(n.relu(n.conv(n.concat(a, b), 5, name="flow1")), 2, name="flow2"))
    warped = n.like("GridSample", b, n.op("Transpose", flow, perm=[0, 2, 3, 1]), name="warp")
    correlation = n.op("ReduceSum", n.mul(a, warped), n.constant([1]), keepdims=1, name="correlation")
    result = check(n, correlation, n.conv(n.like("Sub", a, warped), 3, name="refine"))
    assert used(result) == [
        "conv: 6: encoder[0]+bias+bias/shared_1 -> flow1[1] refine[1]",
        "flow1: 5: flow1[0]+bias -> flow2[1]",
    ]


def test_regions():
    """Boxes are given: channels pass RoiAlign, a region is flattened into a box head."""
    n = Blocks(opset=16)
    x = n.conv(n.stem(8), 6, name="fpn")
    boxes = n.input("boxes", (4, 4))
    which = n.input("which", (4,), ir.DataType.INT64)
    regions = n.like("RoiAlign", x, boxes, which, output_height=2, output_width=2, name="regions")
    y = n.relu(n.gemm(n.flatten(regions, 4), 10, name="fc1"))
    feeds = {
        "boxes": np.float32([[0, 0, 5, 5], [1, 2, 7, 6], [2, 0, 6, 7], [0, 3, 4, 7]]),
        "which": np.zeros(4, np.int64),
    }
    result = check(n, n.gemm(y, 5, name="cls"), n.gemm(y, 4, name="box"), feeds=feeds)
    assert used(result) == [
        "stem: 8: stem[0]+bias -> fpn[1]",
        "fpn: 6: fpn[0]+bias -> fc1[1]",
        "fc1: 10: fc1[0]+bias -> cls[1] box[1]",
    ]


@pytest.mark.parametrize("selected", [True, False])
def test_suppression(selected):
    """Boxes and scores stay as they are ranked; backbone and towers in front of them are cut."""
    n = Blocks(opset=17)
    x = n.relu(n.conv(n.stem(8), 10, stride=2, name="backbone"))
    heads = []
    for name, columns in (("box", 4), ("cls", 3)):
        y = n.conv(n.relu(n.conv(x, 6, name=f"{name}.tower")), columns, 1, name=name)
        heads.append(n.op("Reshape", n.op("Transpose", y, perm=[0, 2, 3, 1]), n.constant([0, -1, columns])))
    boxes, scores = n.op("Exp", heads[0]), n.op("Sigmoid", n.op("Transpose", heads[1], perm=[0, 2, 1]))
    limits = (n.constant(np.array([5])), n.constant(np.float32([0.5])), n.constant(np.float32([0.1])))
    kept = n.op("NonMaxSuppression", boxes, scores, *limits, name="nms")
    if selected:
        where = n.op("Gather", kept, n.constant([0, 2]), axis=1)
        result = check(n, n.op("GatherND", boxes, where, name="chosen"), scores)
    else:
        result = check(n, boxes, scores, kept)
    assert used(result) == [
        "stem: 8: stem[0]+bias -> backbone[1]",
        "backbone: 10: backbone[0]+bias -> box.tower[1] cls.tower[1]",
        "box.tower: 6: box.tower[0]+bias -> box[1]",
        "cls.tower: 6: cls.tower[0]+bias -> cls[1]",
    ]


def test_suppression_alone_holds_boxes():
    """Where only the chosen indices are an output, boxes and classes stay because of the ranking."""
    n = Blocks(opset=17)
    x = n.stem(8)
    boxes = n.op("Transpose", n.reshape(n.conv(x, 4, 1, name="box"), 0, 4, -1), perm=[0, 2, 1])
    scores = n.op("Sigmoid", n.reshape(n.conv(x, 3, 1, name="cls"), 0, 3, -1))
    limits = (n.constant(np.array([5])), n.constant(np.float32([0.5])), n.constant(np.float32([0.1])))
    kept = n.op("NonMaxSuppression", boxes, scores, *limits, name="nms")
    result = check(n, n.op("Cast", kept, to=1, name="float"), alive=False)
    assert used(result) == ["stem: 8: stem[0]+bias -> box[1] cls[1]"]
    assert pinned(result, "box.weight[0]", "cls.weight[0]") == ["SELECTED", "SELECTED"]


def test_heat_map_peaks():
    """CenterNet: peaks by MaxPool and Equal, the best by TopK; the features in front of it are cut."""
    n = Blocks()
    x = n.relu(n.conv(n.stem(8), 6, name="tower"))
    heat = n.like("Sigmoid", n.conv(x, 3, 1, name="heat"))
    peak = n.op("MaxPool", heat, kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1], name="peak")
    same = n.op("Cast", n.op("Equal", heat, peak), to=1)
    flat = n.op("Flatten", n.op("Mul", heat, same))
    values, indices = n.ops("TopK", flat, n.constant([4]), axis=1, outputs=2, name="best")
    sizes = n.reshape(n.conv(x, 2, 1, name="size"), 0, 2, -1)
    place = n.op("Mod", indices, n.constant(np.array(64)))
    place = n.op("Expand", n.op("Unsqueeze", place, n.constant([1])), n.constant([1, 2, 1]), name="places")
    result = check(n, values, n.op("GatherElements", sizes, place, axis=2, name="chosen"))
    assert used(result) == [
        "stem: 8: stem[0]+bias -> tower[1]",
        "tower: 6: tower[0]+bias -> heat[1] size[1]",
    ]


def test_distribution_of_box_sides():
    """YOLOv8: softmax over bins of every side, then their mean by a fixed 1x1 convolution."""
    n = Blocks()
    x = n.relu(n.conv(n.stem(8), 6, name="tower"))
    bins = n.reshape(n.conv(x, 16, 1, name="dfl"), 0, 4, 4, 64, name="bins")
    bins = n.softmax(n.op("Transpose", bins, perm=[0, 2, 1, 3]), 1)
    steps = n.constant(np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1), "steps")
    sides = n.op("Reshape", n.op("Conv", bins, steps, name="mean"), n.constant([0, 4, 64]))
    result = check(n, sides)
    assert used(result) == [
        "stem: 8: stem[0]+bias -> tower[1]",
        "tower: 6: tower[0]+bias -> dfl[1]",
    ]
    assert pinned(result, "dfl.weight[0]") == ["GRAPH_OUTPUT"]  # sides; its bins meet the softmax before


def test_where_with_masks():
    """A mask from the input, a mask from the features, and a fill: channels pass Where."""
    n = Blocks()
    x = n.conv(n.stem(8), 6, name="conv")
    given = n.op("Greater", n.input("mask", ("n", 1, 8, 8)), n.scalar(0))
    x = n.like("Where", given, x, n.scalar(-1), name="fill")
    y = n.mark(
        n.op("Where", n.op("Less", x, n.scalar(0.2)), n.like("Mul", x, n.scalar(0.1)), x, name="leaky"), 6
    )
    y = n.mark(n.op("Where", given, y, n.weight((1, 6, 1, 1), "token"), name="mask_token"), 6)
    result = check(n, n.classify(n.conv(y, 7, name="next")))
    assert used(result) == [
        "stem: 8: stem[0]+bias -> conv[1]",
        "conv: 6: conv[0]+bias token[1] -> next[1]",
        "next: 7: next[0]+bias -> fc[1]",
    ]


def test_masked_pooling():
    """Sums over the given area, divided by its size."""
    n = Blocks()
    x = n.conv(n.stem(8), 6, name="conv")
    mask = n.input("mask", ("n", 1, 8, 8))
    area = n.op("ReduceSum", n.op("Abs", mask), n.constant([2, 3]), keepdims=0)
    total = n.op("ReduceSum", n.mul(x, mask), n.constant([2, 3]), keepdims=0, name="total")
    mean = n.mark(n.op("Div", total, area), 6)
    assert used(check(n, n.gemm(mean, 5, name="fc"))) == [
        "stem: 8: stem[0]+bias -> conv[1]",
        "conv: 6: conv[0]+bias -> fc[1]",
    ]


def test_generalised_mean_pooling():
    """(mean x^p)^(1/p) over the area."""
    n = Blocks()
    x = n.like("Clip", n.conv(n.stem(8), 6, name="conv"), n.scalar(1e-3))
    x = n.like("Pow", n.pool(n.like("Pow", x, n.scalar(3))), n.scalar(1 / 3))
    assert used(check(n, n.gemm(n.flatten(x), 5, name="fc"))) == [
        "stem: 8: stem[0]+bias -> conv[1]",
        "conv: 6: conv[0]+bias -> fc[1]",
    ]


def test_max_and_mean_pooling():
    """Two poolings of the same channels side by side: a channel is two columns."""
    n = Blocks()
    x = n.stem(6)
    joined = n.concat(n.like("GlobalMaxPool", x), n.pool(x))
    result = check(n, n.gemm(n.flatten(joined), 5, name="fc"))
    assert used(result) == ["stem: 6: stem[0]+bias -> fc[1]"]
    assert result.groups[0].sinks[0].unit.tolist() == list(range(6)) * 2
