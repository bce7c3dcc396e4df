"""Norms as exporters write them: over groups of channels, over channels first or last, over space, over weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from block_nets import Blocks, check, others, pinned, used


def group_norm(n, x, groups, how):
    """GroupNorm of (n, c, 8, 8) in several spellings."""
    c = n.extents[x]
    if how == "operator":
        parts = [n.weight((c,), f"gn.{part}") for part in ("weight", "bias")]
        y = n.like("GroupNormalization", x, *parts, num_groups=groups, name="gn")
        y.type, y.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", c, 8, 8])  # onnx infers neither
        return y
    if how == "primitive":
        y = n.reshape(x, 0, groups, -1, name="gn.split")
        mean = n.op("ReduceMean", y, n.constant([2]), name="gn.mean")
        centred = n.op("Sub", y, mean)
        spread = n.op("ReduceMean", n.op("Mul", centred, centred), n.constant([2]), name="gn.spread")
        y = n.op("Div", centred, n.op("Sqrt", n.op("Add", spread, n.scalar(1e-5))), name="gn.div")
    else:
        y = n.reshape(x, 0, groups, -1, name="gn.split")
        ones, zeros = (n.constant(np.full(groups, v, np.float32), "gn.fill") for v in (1, 0))
        y = n.op("InstanceNormalization", y, ones, zeros, name="gn.norm")
    back = [n.op("Shape", x)] if how == "shape" else [n.constant([0, c, 8, 8])]
    y = n.mark(n.op("Reshape", y, *back, name="gn.merge"), c)
    y = n.like("Mul", y, n.weight((c, 1, 1), "gn.weight"), name="gn.scale")
    return n.like("Add", y, n.weight((c, 1, 1), "gn.bias"), name="gn.shift")


@pytest.mark.parametrize("how", ["shape", "constant", "primitive", "operator"])
def test_group_norm(how):
    """Statistics are taken over groups of 4 channels: whole groups go, single channels would change them."""
    n = Blocks(opset=21)
    result = check(n, n.classify(n.relu(group_norm(n, n.conv(n.stem(), 12, name="conv"), 3, how))))
    norm = {"primitive": "gn[0]+bias", "operator": "gn[0]+bias"}.get(how, "gn.fill[0]+fill_1+weight+bias")
    assert used(result) == ["stem: 8: stem[0]+bias -> conv[1]", f"conv: 3 of 4: conv[0]+bias {norm} -> fc[1]"]
    assert others(result) == []


def test_group_norm_of_single_channels():
    """As many groups as channels: an instance norm."""
    n = Blocks(opset=21)
    result = check(n, n.classify(n.relu(group_norm(n, n.conv(n.stem(), 12, name="conv"), 12, "constant"))))
    assert used(result) == [
        "stem: 8: stem[0]+bias -> conv[1]",
        "conv: 12: conv[0]+bias gn.fill[0]+fill_1+weight+bias -> fc[1]",
    ]


def test_instance_norm():
    n = Blocks()
    x = n.conv(n.stem(), 12, name="conv")
    x = n.like(
        "InstanceNormalization", x, n.weight((12,), "in.weight"), n.weight((12,), "in.bias"), name="in"
    )
    assert used(check(n, n.classify(n.relu(x)))) == [
        "stem: 8: stem[0]+bias -> conv[1]",
        "conv: 12: conv[0]+bias in[0]+bias -> fc[1]",
    ]


def test_adaptive_instance_norm():
    """StyleGAN: a style vector gives scale and shift of every channel, in two halves of one layer."""
    n = Blocks()
    x = n.conv(n.stem(), 12, name="conv")
    ones, zeros = (n.constant(np.full(12, v, np.float32), "fill") for v in (1, 0))
    y = n.like("InstanceNormalization", x, ones, zeros, name="in")
    style = n.gemm(n.relu(n.gemm(n.mark(n.input("z", ("n", 5)), 5), 7, name="map")), 24, name="style")
    scale, shift = n.split(n.reshape(style, 0, 24, 1, 1, channels=24), 12, 12)
    y = n.add(n.mul(y, n.like("Add", scale, n.scalar(1))), shift)
    result = check(n, n.classify(n.relu(y)))
    assert used(result) == [
        "stem: 8: stem[0]+bias -> conv[1]",
        "conv: 12: conv[0]+bias fill[0] fill_1[0] style[0]+bias -> fc[1]",
        "map: 7: map[0]+bias -> style[1]",
    ]


def test_feature_wise_modulation():
    """FiLM on pooled features: scale and shift from a second input."""
    n = Blocks()
    x = n.gemm(n.mark(n.input("x", ("n", 6)), 6), 10, name="trunk")
    context = n.mark(n.input("context", ("n", 4)), 4)
    y = n.add(n.mul(x, n.gemm(context, 10, name="gamma")), n.gemm(context, 10, name="beta"))
    assert used(check(n, n.gemm(n.relu(y), 3, name="head"))) == [
        "trunk: 10: trunk[0]+bias gamma[0]+bias beta[0]+bias -> head[1]"
    ]


def layer_norm_2d(n, x, how):
    """Normalise channels of (n, c, 8, 8) at every place."""
    c = n.extents[x]
    if how == "transposed":
        y = n.layer_norm(n.transpose(x, 0, 2, 3, 1, channels=c), "norm")
        return n.transpose(y, 0, 3, 1, 2, channels=c)
    centred = n.like("Sub", x, n.mean(x, 1, name="norm.mean"))
    spread = n.mean(n.like("Pow", centred, n.scalar(2)), 1, name="norm.spread")
    y = n.mark(n.op("Div", centred, n.op("Sqrt", n.op("Add", spread, n.scalar(1e-6)))), c)
    y = n.like("Mul", n.weight((c, 1, 1), "norm.weight"), y, name="norm.scale")
    return n.mark(n.op("Add", y, n.weight((c, 1, 1), "norm.bias"), name="norm.shift"), c)


@pytest.mark.parametrize("how", ["transposed", "decomposed"])
def test_layer_norm_of_channels(how):
    """ConvNeXt: the stream stays under the norm, the width inside a block does not."""
    n = Blocks()
    x = n.stem(8)
    y = n.conv(x, 8, 7, group=8, name="depthwise")
    y = n.conv(n.relu(n.conv(layer_norm_2d(n, y, how), 12, 1, name="pw1")), 8, 1, name="pw2")
    y = n.mark(n.op("Mul", n.weight((8, 1, 1), "gamma"), y), 8)
    result = check(n, n.classify(n.add(x, y)))
    assert used(result) == ["pw1: 12: pw1[0]+bias -> pw2[1]"]
    reason = "NORMALIZED" if how == "transposed" else "REDUCED"
    assert pinned(result, "stem.weight[0]", "depthwise.weight[0]") == [reason, reason]


@pytest.mark.parametrize("how", ["l2", "decomposed"])
def test_unit_length(how):
    """Embeddings of length 1: the norm sums squares, to which a dropped dimension adds nothing."""
    n = Blocks()
    x = n.gemm(n.relu(n.gemm(n.mark(n.input("x", ("n", 6)), 6), 10, name="fc1")), 8, name="embed")
    if how == "l2":
        size = n.op("Clip", n.op("ReduceL2", x, axes=[1], keepdims=1), n.scalar(1e-9))
    else:
        size = n.op("Sqrt", n.op("ReduceSum", n.op("Mul", x, x), n.constant([1]), keepdims=1))
    y = n.mark(n.op("Div", x, size, name="unit"), 8)
    result = check(n, n.gemm(y, 3, name="classes"))
    assert used(result) == [
        "fc1: 10: fc1[0]+bias -> embed[1]",
        "embed: 8: embed[0]+bias -> classes[1]",
    ]


def test_global_response_norm():
    """ConvNeXt V2: norms over space, divided by their mean over channels."""
    n = Blocks()
    x = n.relu(n.conv(n.stem(8), 12, 1, name="pw1"))
    size = n.mark(n.op("ReduceL2", x, axes=[2, 3], keepdims=1, name="grn.size"), 12)
    share = n.like("Div", size, n.op("Add", n.mean(size, 1, name="grn.mean"), n.scalar(1e-6)))
    y = n.add(n.like("Mul", n.mul(x, share), n.weight((1, 12, 1, 1), "grn.weight")), x)
    result = check(n, n.classify(n.conv(y, 6, 1, name="pw2")))
    assert used(result) == [
        "stem: 8: stem[0]+bias -> pw1[1]",
        "pw2: 6: pw2[0]+bias -> fc[1]",
    ]
    assert pinned(result, "pw1.weight[0]") == ["REDUCED"]


def test_standardised_weights():
    """BiT: the graph normalises every filter of a weight; that is constant, so it is folded and cut afterwards."""
    n = Blocks()
    x = n.stem(6)
    w = n.weight((8, 6, 3, 3), "conv.weight")
    centred = n.op("Sub", w, n.op("ReduceMean", w, axes=[1, 2, 3], keepdims=1))
    spread = n.op("ReduceMean", n.op("Mul", centred, centred), axes=[1, 2, 3], keepdims=1)
    w = n.op("Div", centred, n.op("Sqrt", n.op("Add", spread, n.scalar(1e-5))), name="standard")
    y = n.mark(n.op("Conv", x, w, pads=[1] * 4, name="conv"), 8)
    result = check(n, n.classify(n.relu(y)))
    assert used(result) == [
        "stem: 6: stem[0]+bias -> standard_out[1]",
        "conv: 8: standard_out[0] -> fc[1]",
    ]


@pytest.mark.parametrize("how", ["input", "weight"])
def test_modulated_convolution(how):
    """StyleGAN2: styles scale the input channels, and the demodulation sums over them."""
    n = Blocks()
    x = n.stem(6)
    style = n.gemm(n.mark(n.input("z", ("n", 5)), 5), 6, name="style")
    w = n.weight((8, 6, 3, 3), "conv.weight")
    y = n.mark(n.op("Conv", n.mul(x, n.unsqueeze(style, 2, 3)), w, pads=[1] * 4, name="conv"), 8)
    if how == "weight":
        power = n.op("ReduceSum", n.op("Mul", w, w), n.constant([2, 3]), keepdims=0, name="power")  # (8, 6)
        power = n.op("MatMul", n.op("Mul", style, style), n.op("Transpose", power, perm=[1, 0]), name="demod")
        scale = n.op("Reciprocal", n.op("Sqrt", n.op("Add", power, n.scalar(1e-8))))
        y = n.mul(y, n.op("Unsqueeze", scale, n.constant([2, 3])))
    result = check(n, n.classify(n.relu(y)))
    assert used(result) == [
        "stem: 6: stem[0]+bias style[0]+bias -> conv[1]",
        "conv: 8: conv[0] -> fc[1]",
    ]
