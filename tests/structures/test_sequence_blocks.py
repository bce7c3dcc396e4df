"""Layers over time: Mamba, gated causal convolutions, temporal convolutions, text CNN, 1-D and 3-D nets."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from block_nets import Blocks, check, others, pinned, used


def causal_conv(n, x, kernel, name, *, how="slice", dilation=1):
    """A depthwise convolution over time that sees the past only: (n, channels, time)."""
    c, time = n.extents[x], 6
    reach = (kernel - 1) * dilation
    if how == "slice":  # padded on both sides, cut at the end
        y = n.conv_nd(x, c, (kernel,), group=c, pads=[reach, reach], dilations=[dilation], name=name)
        return n.slice(y, 0, time, 2, channels=c)
    if how == "tail":  # the same, counted from the end
        y = n.conv_nd(x, c, (kernel,), group=c, pads=[reach, reach], dilations=[dilation], name=name)
        return n.slice(y, 0, -reach, 2, channels=c)
    if how == "pad":
        x = n.like("Pad", x, n.constant([0, 0, reach, 0, 0, 0]), name=f"{name}.pad")
        return n.conv_nd(x, c, (kernel,), group=c, dilations=[dilation], name=name)
    return n.conv_nd(x, c, (kernel,), group=c, pads=[reach, 0], dilations=[dilation], name=name)


def turned(n, x):
    return n.transpose(x, 0, 2, 1, channels=n.extents[x])


@pytest.mark.parametrize("how", ["slice", "tail", "pad", "pads"])
def test_gated_causal_convolution(how):
    """Mamba without its scan: in_proj, Split, convolution over time, SiLU, gate, out_proj."""
    n = Blocks()
    x = n.linear(n.sequence(5), 8, name="embed")
    value, gate = n.split(n.linear(n.layer_norm(x, "norm"), 24, bias=False, name="in_proj"), 12, 12, axis=2)
    y = n.silu(turned(n, causal_conv(n, turned(n, value), 4, "conv", how=how)))
    y = n.linear(n.mul(y, n.silu(gate)), 8, bias=False, name="out_proj")
    result = check(n, n.linear(n.add(x, y), 3, name="head"))
    assert used(result) == ["in_proj: 12 of 2: in_proj[1] conv[0]+bias -> out_proj[0]"]
    assert others(result) == []
    assert pinned(result, "embed.weight[1]") == ["NORMALIZED"]


def scan(n, x, how, states=3, time=6):
    """h[t] = exp(delta A) h[t-1] + delta B x, y = C h + D x, over (n, time, channels)."""
    c = n.extents[x]
    params = n.linear(x, 4 + 2 * states, bias=False, name="x_proj")
    low, b, mix = n.split(params, 4, states, states, axis=2, name="params")
    delta = n.like("Softplus", n.linear(low, c, name="dt_proj"))
    a = n.op("Neg", n.op("Exp", n.weight((c, states), "A_log")))
    decay = n.op("Exp", n.op("Mul", n.unsqueeze(delta, 3), a, name="delta_a"))  # (n, time, c, states)
    drive = n.op("Mul", n.unsqueeze(delta, 3), n.op("Unsqueeze", b, n.constant([2])), name="delta_b")
    drive = n.op("Mul", drive, n.unsqueeze(x, 3), name="delta_bu")
    if how == "unrolled":
        h, steps = None, []
        for t in range(time):
            now, keep = (n.op("Gather", v, n.constant(np.array(t)), axis=1) for v in (drive, decay))
            h = now if h is None else n.op("Add", n.op("Mul", keep, h), now)
            c_t = n.op("Unsqueeze", n.op("Gather", mix, n.constant(np.array(t)), axis=1), n.constant([2]))
            y = n.op("MatMul", h, c_t, name=f"read{t}")  # (n, c, 1)
            steps.append(n.op("Transpose", y, perm=[0, 2, 1]))
        y = n.op("Concat", *steps, axis=1, name="steps")
    else:  # in closed form by a running sum of logarithms, as parallel scans do
        logs = n.op("CumSum", n.op("Log", decay), n.constant(np.array(1)), name="logs")
        h = n.op(
            "Mul",
            n.op("CumSum", n.op("Div", drive, n.op("Exp", logs)), n.constant(np.array(1))),
            n.op("Exp", logs),
        )
        y = n.op("MatMul", h, n.op("Unsqueeze", mix, n.constant([3])), name="read")
        y = n.op("Squeeze", y, n.constant([3]))
    skip = n.like("Mul", x, n.weight((c,), "D"), name="skip")
    return n.mark(n.op("Add", y, skip, name="scanned"), c)


@pytest.mark.parametrize("how", ["unrolled", "cumsum"])
def test_selective_scan(how):
    """The state of a channel is its own, so channels can go; the states they share are read by all of them."""
    n = Blocks()
    value, gate = n.split(n.linear(n.sequence(5), 16, bias=False, name="in_proj"), 8, 8, axis=2)
    y = n.silu(turned(n, causal_conv(n, turned(n, value), 4, "conv")))
    y = n.mul(scan(n, y, how), n.silu(gate))
    result = check(n, n.linear(y, 3, name="out_proj"))
    assert used(result) == [
        "in_proj: 8 of 2: in_proj[1] conv[0]+bias dt_proj[1]+bias neg_out[0] D[0] -> x_proj[0] out_proj[0]",
        "x_proj: 4: x_proj[1] -> dt_proj[0]",
        "x_proj: 3 of 2: x_proj[1] neg_out[1] -> ",
    ]
    assert others(result) == []


def test_scan_in_a_loop():
    """The recurrence as ONNX Scan: what its body reads stays, the layers around it do not."""
    n = Blocks()
    x = n.relu(n.linear(n.sequence(5), 8, name="before"))
    h = ir.Value(name="h", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", 8]))
    step = ir.Value(name="step", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", 8]))
    total = ir.node("Add", [h, step], name="body_add")
    shown = ir.node("Tanh", total.outputs, name="body_tanh")
    for node, name in ((total, "total"), (shown, "shown")):
        node.outputs[0].name = name
        node.outputs[0].type, node.outputs[0].shape = h.type, h.shape
    body = ir.Graph([h, step], [total.outputs[0], shown.outputs[0]], nodes=[total, shown], name="body")
    first = n.op("ReduceSum", x, n.constant([1]), keepdims=0, name="first")
    state, y = n.ops(
        "Scan",
        first,
        x,
        outputs=2,
        name="scan",
        body=body,
        num_scan_inputs=1,
        scan_input_axes=[1],
        scan_output_axes=[1],
    )
    for value, shape in ((state, ["n", 8]), (y, ["n", 6, 8])):
        value.type, value.shape = h.type, ir.Shape(shape)
    y = n.relu(n.linear(n.mark(y, 8), 7, name="after"))
    result = check(n, n.linear(y, 3, name="head"))
    assert used(result) == ["before: 8: before[1]+bias -> after[0]", "after: 7: after[1]+bias -> head[0]"]


def test_temporal_convolution_network():
    """Dilated causal convolutions with a residual connection of width 1."""
    n = Blocks()
    x = turned(n, n.sequence(5))
    for i, channels in enumerate((8, 10)):
        d = 2**i
        y = n.conv_nd(x, channels, (3,), pads=[2 * d, 0], dilations=[d], name=f"b{i}.conv1")
        y = n.conv_nd(n.relu(y), channels, (3,), pads=[2 * d, 0], dilations=[d], name=f"b{i}.conv2")
        x = n.relu(n.add(y, n.conv_nd(x, channels, (1,), name=f"b{i}.down")))
    last = n.op("Squeeze", n.slice(x, -1, 2**31, 2, channels=10), n.constant([2]))
    result = check(n, n.gemm(n.mark(last, 10), 3, name="head"))
    assert used(result) == [
        "b0.conv1: 8: b0.conv1[0]+bias -> b0.conv2[1]",
        "b0.conv2: 8: b0.conv2[0]+bias b0.down[0]+bias -> b1.conv1[1] b1.down[1]",
        "b1.conv1: 10: b1.conv1[0]+bias -> b1.conv2[1]",
        "b1.conv2: 10: b1.conv2[0]+bias b1.down[0]+bias -> head[1]",
    ]


def test_wavenet():
    """Tanh and sigmoid gates, a residual and a skip connection per layer."""
    n = Blocks()
    x = n.conv_nd(turned(n, n.sequence(5)), 8, (1,), name="start")
    skips = []
    for i in range(2):
        y = n.conv_nd(x, 12, (2,), pads=[1 + i, 0], dilations=[1 + i], name=f"l{i}.dilated")
        left, right = n.split(y, 6, 6)
        y = n.mul(n.like("Tanh", left), n.like("Sigmoid", right))
        skips.append(n.conv_nd(y, 7, (1,), name=f"l{i}.skip"))
        x = n.add(x, n.conv_nd(y, 8, (1,), name=f"l{i}.res"))
    result = check(n, n.conv_nd(n.relu(n.add(*skips)), 3, (1,), name="end"))
    assert used(result) == [
        "start: 8: start[0]+bias l0.res[0]+bias -> l0.dilated[1] l1.dilated[1]",
        "l0.dilated: 6 of 2: l0.dilated[0]+bias -> l0.skip[1] l0.res[1]",
        "l0.skip: 7: l0.skip[0]+bias l1.skip[0]+bias -> end[1]",
        "l1.dilated: 6 of 2: l1.dilated[0]+bias -> l1.skip[1]",
    ]


def embedding(n, rows=9, width=8, tokens=6):
    ids = n.input("ids", ("n", tokens), ir.DataType.INT64)
    return n.mark(n.op("Gather", n.weight((rows, width), "table"), ids, name="embed"), width), {"ids": rows}


def test_text_convolutions():
    """Kim's text CNN: windows of several widths, maximum over time, concatenated."""
    n = Blocks()
    x, highs = embedding(n)
    parts = []
    for k in (2, 3):
        y = n.relu(n.conv_nd(turned(n, x), 5, (k,), name=f"conv{k}"))
        parts.append(n.mark(n.op("ReduceMax", y, axes=[2], keepdims=0, name=f"max{k}"), 5))
    result = check(n, n.gemm(n.concat(*parts), 3, name="head"), highs=highs)
    assert used(result) == [
        "embed: 8: table[1] -> conv2[1] conv3[1]",
        "conv2: 5: conv2[0]+bias -> head[1]",
        "conv3: 5: conv3[0]+bias -> head[1]",
    ]


def test_text_convolutions_over_two_axes():
    """The same with the sentence as an image of one channel: kernels cover the whole width, which stays."""
    n = Blocks()
    x, highs = embedding(n)
    y = n.conv_nd(n.mark(n.op("Unsqueeze", x, n.constant([1])), 1), 5, (3, 8), name="conv")
    y = n.relu(n.mark(n.op("Squeeze", y, n.constant([3])), 5))
    y = n.op("Squeeze", n.op("MaxPool", y, kernel_shape=[4], name="max"), n.constant([2]))
    result = check(n, n.gemm(n.mark(y, 5), 3, name="head"), highs=highs)
    assert used(result) == ["conv: 5: conv[0]+bias -> head[1]"]
    assert pinned(result, "table[1]") == ["SPATIAL"]


def test_embedding_width():
    """The columns of a table are units; its rows are words."""
    n = Blocks()
    x, highs = embedding(n)
    result = check(n, n.linear(n.relu(n.linear(x, 6, name="fc")), 3, name="head"), highs=highs)
    assert used(result) == [
        "embed: 8: table[1] -> fc[0]",
        "fc: 6: fc[1]+bias -> head[0]",
    ]
    assert pinned(result, "table[0]") == ["INDEXED"]


@pytest.mark.parametrize("how", ["transposed", "gemm"])
def test_tied_embeddings(how):
    """One table for input and output: its columns go on both sides at once."""
    n = Blocks()
    table = n.weight((9, 8), "table")
    ids = n.input("ids", ("n", 6), ir.DataType.INT64)
    x = n.mark(n.op("Gather", table, ids, name="embed"), 8)
    x = n.add(x, n.linear(n.relu(n.linear(x, 10, name="up")), 8, name="down"))
    if how == "transposed":
        logits = n.op("MatMul", x, n.op("Transpose", table, perm=[1, 0], name="turned"), name="logits")
    else:
        logits = n.op("Gemm", n.reshape(x, -1, 8, channels=8), table, transB=1, name="logits")
    result = check(n, logits, highs={"ids": 9})
    spans = "down[1]+bias -> table[1] up[0]" if how == "gemm" else "table[1] down[1]+bias -> up[0]"
    assert used(result) == [f"down: 8: {spans}", "up: 10: up[1]+bias -> down[0]"]
    assert pinned(result, "table[0]") == ["INDEXED"]


def test_tied_embeddings_behind_a_projection():
    """ALBERT: the table is narrow, a projection leads to the stream and another one back."""
    n = Blocks()
    table = n.weight((9, 4), "table")
    ids = n.input("ids", ("n", 6), ir.DataType.INT64)
    x = n.linear(n.mark(n.op("Gather", table, ids, name="embed"), 4), 8, name="widen")
    x = n.linear(n.relu(x), 4, name="narrow")
    logits = n.op("MatMul", x, n.op("Transpose", table, perm=[1, 0], name="turned"), name="logits")
    assert used(check(n, logits, highs={"ids": 9})) == [
        "narrow: 4: table[1] narrow[1]+bias -> widen[0]",
        "widen: 8: widen[1]+bias -> narrow[0]",
    ]


def test_sum_of_embeddings():
    """BERT: words, positions and types share one width."""
    n = Blocks()
    words, highs = embedding(n)
    positions = n.mark(
        n.op("Gather", n.weight((6, 8), "positions"), n.constant([range(6)]), name="positions"), 8
    )
    types = n.mark(
        n.op("Gather", n.weight((2, 8), "types"), n.input("types", ("n", 6), ir.DataType.INT64)), 8
    )
    x = n.add(n.add(words, types), positions)
    result = check(n, n.linear(x, 3, name="head"), highs={**highs, "types": 2})
    assert used(result) == ["embed: 8: table[1] positions[1] types[1] -> head[0]"]


@pytest.mark.parametrize("dims", [1, 3])
def test_convolutions_of_other_ranks(dims):
    """A residual net over sequences and over volumes."""
    n = Blocks()
    x = n.mark(n.input("x", ("n", 2, *[4] * dims)), 2)
    ones, cube = [1] * 2 * dims, [3] * dims
    x = n.relu(n.batch_norm(n.conv_nd(x, 6, cube, pads=ones, name="stem"), "bn"))
    y = n.relu(n.conv_nd(x, 8, [1] * dims, name="up"))
    y = n.relu(n.conv_nd(y, 8, cube, pads=ones, group=8, name="depthwise"))
    x = n.add(x, n.conv_nd(y, 6, [1] * dims, name="down"))
    x = n.like("MaxPool", x, kernel_shape=[2] * dims, strides=[2] * dims)
    assert used(check(n, n.classify(x))) == [
        "stem: 6: stem[0]+bias bn[0]+bias+mean+var down[0]+bias -> up[1] fc[1]",
        "up: 8: up[0]+bias depthwise[0]+bias -> down[1]",
    ]
