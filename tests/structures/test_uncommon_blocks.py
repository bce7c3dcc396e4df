"""Weights computed at run time, products of channels with channels, channels as a batch, loops and recurrence."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from block_nets import Blocks, check, others, pinned, used


def test_conditional_convolution():
    """CondConv: a softmax mixes four kernels, as one row each; cut by results, or by inputs of the kernel."""
    n = Blocks()
    x = n.relu(n.conv(n.image(), 6, name="stem"))
    share = n.softmax(n.gemm(n.flatten(n.pool(x)), 4, name="router"), -1)
    flat = n.op("MatMul", share, n.weight((4, 8 * 6 * 9), "kernels"), name="mix")
    kernel = n.op("Reshape", flat, n.constant([8, 6, 3, 3]), name="kernel")
    y = n.mark(n.op("Conv", x, kernel, pads=[1] * 4, name="conv"), 8)
    result = check(n, n.classify(n.relu(y)))
    assert used(result) == ["mix: 8 of 54: kernels[1] -> fc[1]"]
    assert others(result) == ["stem: 6: stem[0]+bias kernels[1] -> router[1]"]
    assert pinned(result, "router.weight[0]") == ["SOFTMAX"]


def test_conditional_convolution_of_a_batch():
    """The same for a batch: samples are groups of one convolution, so what enters it stays."""
    n = Blocks()
    x = n.relu(n.conv(n.image(batch=2), 6, name="stem"))
    share = n.op("Sigmoid", n.gemm(n.flatten(n.pool(x)), 4, name="router"))
    flat = n.op("MatMul", share, n.weight((4, 8 * 6 * 9), "kernels"), name="mix")
    kernel = n.op("Reshape", flat, n.constant([16, 6, 3, 3]), name="kernel")
    y = n.op("Conv", n.reshape(x, 1, 12, 8, 8, name="fold"), kernel, group=2, pads=[1] * 4, name="conv")
    y = n.reshape(y, 2, 8, 8, 8, channels=8, name="unfold")
    result = check(n, n.classify(n.relu(n.conv(n.relu(y), 7, name="next"))))
    assert used(result) == [
        "router: 4: router[0]+bias -> kernels[0]",
        "mix: 8 of 54: kernels[1] -> next[1]",
        "next: 7: next[0]+bias -> fc[1]",
    ]


def test_predicted_kernel():
    """A depthwise kernel per channel is predicted from the pooled features and multiplied place by place."""
    n = Blocks()
    x = n.stem(6)
    kernel = n.softmax(n.reshape(n.conv(n.pool(x), 54, 1, name="predict"), 0, 6, 9, 1, name="kernel"), 2)
    taps = [
        n.slice(n.like("Pad", x, n.constant([0, 0, 1, 1, 0, 0, 1, 1])), i, i + 8, 2, channels=6)
        for i in range(3)
    ]
    taps = [n.slice(t, j, j + 8, 3, channels=6) for t in taps for j in range(3)]
    stacked = n.op("Concat", *(n.unsqueeze(t, 2) for t in taps), axis=2, name="taps")
    weighed = n.op("Mul", stacked, n.op("Unsqueeze", kernel, n.constant([4])), name="weigh")
    y = n.mark(n.op("ReduceSum", weighed, n.constant([2]), keepdims=0, name="filtered"), 6)
    result = check(n, n.classify(n.conv(y, 8, name="next")))
    assert used(result) == [
        "stem: 6: stem[0]+bias predict[0]+bias -> predict[1] next[1]",
        "next: 8: next[0]+bias -> fc[1]",
    ]


@pytest.mark.parametrize("how", ["two", "one"])
def test_bilinear_pooling(how):
    """Products of channels with channels: one side is cut; a channel on both sides of the square stays."""
    n = Blocks()
    x = n.stem(6)
    a = n.conv(x, 5, 1, name="a")
    b = a if how == "one" else n.conv(x, 4, 1, name="b")
    rows = n.reshape(a, 0, 5, -1, name="rows")
    columns = n.op("Transpose", n.reshape(b, 0, n.extents[b], -1, name="columns"), perm=[0, 2, 1])
    gram = n.mark(n.op("MatMul", rows, columns, name="gram"), 0)
    flat = n.mark(n.op("Flatten", gram, name="flat"), 5 * n.extents[b])
    result = check(n, n.gemm(flat, 3, name="fc"))
    if how == "two":
        assert used(result) == [
            "stem: 6: stem[0]+bias -> a[1] b[1]",
            "a: 5: a[0]+bias -> fc[1]",
        ]
        assert others(result) == ["b: 4: b[0]+bias -> fc[1]"]
    else:
        assert used(result) == ["stem: 6: stem[0]+bias -> a[1]"]


def test_gram_matrix_summed():
    """The same square, summed over one side."""
    n = Blocks()
    rows = n.reshape(n.conv(n.stem(6), 5, 1, name="a"), 0, 5, -1, name="rows")
    gram = n.op("MatMul", rows, n.op("Transpose", rows, perm=[0, 2, 1]), name="gram")
    total = n.mark(n.op("ReduceSum", gram, n.constant([2]), keepdims=0, name="total"), 5)
    result = check(n, n.gemm(n.relu(total), 3, name="fc"))
    assert used(result) == [
        "stem: 6: stem[0]+bias -> a[1]",
        "a: 5: a[0]+bias -> fc[1]",
    ]


def test_outer_product_of_two_codes():
    """Bilinear fusion of two inputs, (n, 4, 1) x (n, 1, 5), flattened: one of the two is cut."""
    n = Blocks()
    a = n.unsqueeze(n.gemm(n.mark(n.input("a", ("n", 3)), 3), 4, name="a"), 2)
    b = n.unsqueeze(n.gemm(n.mark(n.input("b", ("n", 3)), 3), 5, name="b"), 1)
    flat = n.reshape(n.op("Mul", a, b, name="outer"), 0, 20, channels=20, name="flat")
    result = check(n, n.gemm(n.relu(flat), 2, name="fc"))
    assert used(result) == ["b_1: 5: b[0]+bias -> fc[1]"]
    assert others(result) == ["a_1: 4: a[0]+bias -> fc[1]"]


@pytest.mark.parametrize("batch", ["n", 2])
def test_channels_as_a_batch(batch):
    """One filter for all channels: (n, c, h, w) to (n * c, 1, h, w), convolved, and back."""
    n = Blocks()
    x = n.relu(n.conv(n.image(batch=batch), 6, name="stem"))
    y = n.reshape(x, -1, 1, 8, 8, channels=1, name="fold")
    y = n.op("Conv", y, n.weight((1, 1, 3, 3), "blur"), pads=[1] * 4, name="filter")
    y = n.reshape(y, -1, 6, 8, 8, channels=6, name="unfold")
    result = check(n, n.classify(n.conv(y, 8, name="next")))
    assert used(result) == [
        "stem: 6: stem[0]+bias -> next[1]",
        "next: 8: next[0]+bias -> fc[1]",
    ]


def test_frames_as_a_batch():
    """A video: (n, t, c, h, w) to (n * t, c, h, w), an image network, mean over frames."""
    n = Blocks()
    x = n.reshape(n.input("x", ("n", 4, 3, 8, 8)), -1, 3, 8, 8, channels=3, name="frames")
    x = n.flatten(n.pool(n.relu(n.conv(n.relu(n.conv(x, 6, name="conv1")), 8, name="conv2"))))
    x = n.mean(n.reshape(x, -1, 4, 8, channels=8, name="clips"), 1, keep=False)
    result = check(n, n.gemm(x, 3, name="fc"))
    assert used(result) == [
        "conv1: 6: conv1[0]+bias -> conv2[1]",
        "conv2: 8: conv2[0]+bias -> fc[1]",
    ]


def test_maxout():
    """The largest of three rows: a unit is all three."""
    n = Blocks()
    x = n.linear(n.sequence(5), 24, name="pieces")
    y = n.mark(
        n.op("ReduceMax", n.reshape(x, 0, 0, 8, 3, name="triples"), axes=[3], keepdims=0, name="max"), 8
    )
    result = check(n, n.linear(y, 3, name="head"))
    assert used(result) == ["pieces: 8 of 3: pieces[1]+bias -> head[0]"]
    assert others(result) == []


def test_coordinates():
    """CoordConv: constant planes of coordinates beside the channels are units of their own."""
    n = Blocks()
    planes = n.constant(np.float32(np.mgrid[0:8, 0:8])[None] / 8, "planes")
    x = n.relu(n.conv(n.image(), 6, name="stem"))
    joined = n.concat(x, n.mark(planes, 2))
    result = check(n, n.classify(n.conv(joined, 8, name="next")))
    assert used(result) == [
        "stem: 6: stem[0]+bias -> next[1]",
        "concat: 2: planes[1] -> next[1]",
        "next: 8: next[0]+bias -> fc[1]",
    ]


@pytest.mark.parametrize("how", ["tile", "expand"])
def test_repeated_channels(how):
    """x.repeat and repeat_interleave: copies of a channel are cut with it."""
    n = Blocks()
    x = n.stem(6)
    if how == "tile":
        y = n.mark(n.op("Tile", x, n.constant([1, 2, 1, 1]), name="repeat"), 12)
    else:
        shape = n.op("Concat", n.op("Shape", x, end=1), n.constant([6, 2, 8, 8]), axis=0)
        y = n.reshape(
            n.op("Expand", n.unsqueeze(x, 2), shape, name="wide"), 0, 12, 8, 8, channels=12, name="repeat"
        )
    result = check(n, n.classify(n.conv(y, 8, name="next")))
    assert used(result) == [
        "stem: 6: stem[0]+bias -> next[1]",
        "next: 8: next[0]+bias -> fc[1]",
    ]


def test_mixer():
    """MLP-Mixer without norms: tokens are mixed by their own hidden width."""
    n = Blocks()
    x = n.linear(n.sequence(5, 6), 8, name="embed")
    y = n.linear(n.relu(n.linear(n.transpose(x, 0, 2, 1, channels=6), 7, name="token1")), 6, name="token2")
    x = n.add(x, n.transpose(y, 0, 2, 1, channels=8))
    x = n.add(x, n.linear(n.relu(n.linear(x, 10, name="channel1")), 8, name="channel2"))
    result = check(n, n.linear(n.mean(x, 1, keep=False), 3, name="head"))
    assert used(result) == [
        "embed: 8: embed[1]+bias channel2[1]+bias -> channel1[0] head[0]",
        "token1: 7: token1[1]+bias -> token2[0]",
        "channel1: 10: channel1[1]+bias -> channel2[0]",
    ]


def test_branches_of_a_repeated_block():
    """RepVGG in training form: 3x3, 1x1 and identity with their norms."""
    n = Blocks()
    x = n.stem(6)
    wide = n.batch_norm(n.conv(x, 6, bias=False, name="wide"), "wide.bn")
    narrow = n.batch_norm(n.conv(x, 6, 1, bias=False, name="narrow"), "narrow.bn")
    y = n.relu(n.add(n.add(wide, narrow), n.batch_norm(x, "same.bn")))
    assert used(check(n, n.classify(y))) == [
        (
            "stem: 6: stem[0]+bias wide[0] wide.bn[0]+bias+mean+var narrow[0] narrow.bn[0]+bias+mean+var "
            "same.bn[0]+bias+mean+var -> wide[1] narrow[1] fc[1]"
        )
    ]


def test_segmentation_by_the_best_class():
    """Classes are compared with each other and stay; everything before is cut."""
    n = Blocks()
    scores = n.resize(n.conv(n.relu(n.conv(n.stem(8), 6, stride=2, name="conv")), 4, 1, name="classes"))
    best = n.op("ArgMax", scores, axis=1, keepdims=0, name="best")
    result = check(n, best, scores)
    assert used(result) == [
        "stem: 8: stem[0]+bias -> conv[1]",
        "conv: 6: conv[0]+bias -> classes[1]",
    ]


def test_convolutions_before_a_recurrent_layer():
    """CRNN: the features of a column are the inputs of an LSTM, which sums over them and over its own units."""
    n = Blocks()
    x = n.like("MaxPool", n.stem(6), kernel_shape=[8, 1], strides=[1, 1])
    x = n.op("Transpose", n.op("Squeeze", x, n.constant([2])), perm=[2, 0, 1], name="time_first")
    w, r, b = (n.weight(s, f"lstm.{p}") for p, s in (("w", (1, 20, 6)), ("r", (1, 20, 5)), ("b", (1, 40))))
    y, *_ = n.ops("LSTM", x, w, r, b, outputs=3, hidden_size=5, name="lstm")
    y = n.relu(n.linear(n.mark(n.op("Squeeze", y, n.constant([1])), 5), 7, name="fc1"))
    result = check(n, n.linear(y, 3, name="fc2"))
    assert used(result) == [
        "stem: 6: stem[0]+bias -> lstm.w[2]",
        "lstm: 5: lstm.w[1] lstm.r[1] lstm.b[1] -> lstm.r[2] fc1[0]",
        "fc1: 7: fc1[1]+bias -> fc2[0]",
    ]
    assert pinned(result, "lstm.r[1]", "lstm.r[2]") == ["free", "free"]


def test_loop_that_reads_from_outside():
    """A scripted recurrence: its body looks into a value of the main graph."""
    n = Blocks()
    x = n.relu(n.linear(n.tokens(5, 6), 8, name="before"))
    number = ir.Value(name="i", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    going = ir.Value(name="going", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    h = ir.Value(name="h", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, 8]))
    step = ir.node("Gather", [x, number], {"axis": 1}, name="body_step")
    total = ir.node("Add", [h, step.outputs[0]], name="body_add")
    same = ir.node("Identity", [going], name="body_going")
    for node, name, like in ((step, "now", h), (total, "total", h), (same, "still", going)):
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = name, like.type, like.shape
    body = ir.Graph(
        [number, going, h], [same.outputs[0], total.outputs[0]], nodes=[step, total, same], name="body"
    )
    zeros = n.constant(np.zeros((1, 8), np.float32), "zeros")
    y = n.op("Loop", n.constant(np.array(6)), n.constant(np.array(True)), zeros, body=body, name="loop")
    y.type, y.shape = h.type, h.shape
    y = n.relu(n.linear(n.mark(y, 8), 7, name="after"))
    result = check(n, n.linear(y, 3, name="head"))
    assert used(result) == [
        "before: 8: before[1]+bias zeros[1] -> after[0]",
        "after: 7: after[1]+bias -> head[0]",
    ]
