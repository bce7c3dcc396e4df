"""Gated units: two projections, one projection cut in halves, gates over channels, time and space."""

from __future__ import annotations

import numpy as np
import pytest
from block_nets import Blocks, check, others, pinned, used


def test_two_projections():
    """SwiGLU of large language models."""
    n = Blocks()
    x = n.sequence()
    gate, up = n.silu(n.linear(x, 12, bias=False, name="gate")), n.linear(x, 12, bias=False, name="up")
    result = check(n, n.linear(n.mul(gate, up), 8, name="down"))
    assert used(result) == ["gate: 12: gate[1] up[1] -> down[0]"]
    assert others(result) == []


def halves(n, x, how):
    """Cut 12 features in two, in the ways of exporters."""
    if how == "split":
        return n.split(x, 6, 6, axis=-1)
    if how == "slices":
        return n.slice(x, 0, 6, axis=2), n.slice(x, 6, 2**62, axis=2, channels=6)
    if how == "strides":
        return n.slice(x, 0, 12, 2, 2, channels=6), n.slice(x, 1, 12, 2, 2, channels=6)
    pairs = n.reshape(x, 0, 0, 2, 6, name="pairs")
    return [n.mark(n.op("Gather", pairs, n.constant(np.array(i)), axis=2), 6) for i in range(2)]


@pytest.mark.parametrize("how", ["split", "slices", "strides", "reshape"])
@pytest.mark.parametrize("act", ["Sigmoid", "Erf"])
def test_one_projection_in_halves(how, act):
    """GLU and GeGLU: a unit is a row of the gate and a row of the value."""
    n = Blocks()
    value, gate = halves(n, n.linear(n.sequence(), 12, name="both"), how)
    result = check(n, n.linear(n.mul(value, n.like(act, gate)), 8, name="down"))
    assert used(result) == ["both: 6 of 2: both[1]+bias -> down[0]"]
    assert others(result) == []
    group = result.groups[0]
    assert group.sources[0].unit.tolist() == (
        np.repeat(range(6), 2).tolist() if how == "strides" else list(range(6)) * 2
    )


def test_gelu_written_out():
    """x * 0.5 * (1 + erf(x / sqrt 2)) on the gate."""
    n = Blocks()
    value, gate = n.split(n.linear(n.sequence(), 12, name="both"), 6, 6, axis=2)
    phi = n.like("Erf", n.like("Div", gate, n.scalar(2**0.5)))
    gelu = n.like("Mul", n.mul(gate, n.like("Add", phi, n.scalar(1))), n.scalar(0.5))
    result = check(n, n.linear(n.mul(value, gelu), 8, name="down"))
    assert used(result) == ["both: 6 of 2: both[1]+bias -> down[0]"]


def test_chunk_of_channels():
    """A convolutional GLU, and NAFNet's simple gate: no activation at all."""
    n = Blocks()
    x = n.conv(n.stem(), 12, 1, name="expand")
    left, right = n.split(n.conv(x, 12, group=12, name="depthwise"), 6, 6)
    result = check(n, n.classify(n.conv(n.mul(left, right), 8, 1, name="project")))
    assert used(result) == [
        "stem: 8: stem[0]+bias -> expand[1]",
        "expand: 6 of 2: expand[0]+bias depthwise[0]+bias -> project[1]",
        "project: 8: project[0]+bias -> fc[1]",
    ]


def test_max_of_halves():
    """Max-feature-map (LightCNN)."""
    n = Blocks()
    result = check(n, n.classify(n.like("Max", *n.split(n.conv(n.stem(), 12, name="conv"), 6, 6))))
    assert used(result) == [
        "stem: 8: stem[0]+bias -> conv[1]",
        "conv: 6 of 2: conv[0]+bias -> fc[1]",
    ]


def squeeze(n, x, how):
    """Squeeze-and-excitation over the channels of x."""
    c = n.extents[x]
    if how == "conv":
        gate = n.conv(n.relu(n.conv(n.pool(x), 4, 1, name="reduce")), c, 1, name="expand")
        return n.like("Sigmoid", gate)
    if how == "hard":
        gate = n.conv(n.relu(n.conv(n.mean(x, 2, 3), 4, 1, name="reduce")), c, 1, name="expand")
        return n.like("HardSigmoid", gate, alpha=1 / 6)
    if how == "clip":
        gate = n.conv(n.relu(n.conv(n.pool(x), 4, 1, name="reduce")), c, 1, name="expand")
        shifted = n.like("Add", gate, n.scalar(3))
        return n.like("Div", n.like("Clip", shifted, n.scalar(0), n.scalar(6)), n.scalar(6))
    gate = n.gemm(n.relu(n.gemm(n.flatten(n.pool(x)), 4, name="reduce")), c, name="expand")
    gate = n.like("Sigmoid", gate)
    if how == "gemm":
        return n.unsqueeze(gate, 2, 3)
    return n.reshape(gate, -1 if how == "free" else 0, c, 1, 1, channels=c)


@pytest.mark.parametrize("how", ["conv", "hard", "clip", "gemm", "reshape", "free"])
def test_squeeze_and_excitation(how):
    """The gate's channels are those that it scales: they count once."""
    n = Blocks()
    x = n.conv(n.stem(), 12, name="conv")
    result = check(n, n.classify(n.mul(x, squeeze(n, x, how))))
    assert used(result) == [
        "stem: 8: stem[0]+bias -> conv[1]",
        "conv: 12: conv[0]+bias expand[0]+bias -> reduce[1] fc[1]",
        "reduce: 4: reduce[0]+bias -> expand[1]",
    ]


def test_squeeze_and_excitation_in_a_residual_block():
    n = Blocks()
    x = n.stem()
    y = n.batch_norm(n.conv(n.relu(n.conv(x, 6, name="conv1")), 8, name="conv2"), "bn2")
    result = check(n, n.classify(n.relu(n.add(n.mul(y, squeeze(n, y, "gemm")), x))))
    assert used(result) == [
        "stem: 8: stem[0]+bias conv2[0]+bias bn2[0]+bias+mean+var expand[0]+bias -> conv1[1] reduce[1] fc[1]",
        "conv1: 6: conv1[0]+bias -> conv2[1]",
        "reduce: 4: reduce[0]+bias -> expand[1]",
    ]


def test_efficient_channel_attention():
    """ECA: a convolution slides over the channels, so they stay; what it scales is read by others."""
    n = Blocks()
    x = n.conv(n.stem(), 12, name="conv")
    row = n.op("Transpose", n.op("Squeeze", n.pool(x), n.constant([3])), perm=[0, 2, 1])
    gate = n.conv_nd(n.mark(row, 1), 1, (3,), name="eca", pads=[1, 1])
    gate = n.op("Sigmoid", n.op("Unsqueeze", n.op("Transpose", gate, perm=[0, 2, 1]), n.constant([3])))
    result = check(n, n.classify(n.mul(x, gate)))
    assert used(result) == ["stem: 8: stem[0]+bias -> conv[1]"]
    assert pinned(result, "conv.weight[0]") == ["SPATIAL"]


def test_spatial_attention():
    """CBAM: mean and maximum over the channels; a mean of fewer channels is another mean."""
    n = Blocks()
    x = n.conv(n.stem(), 12, name="conv")
    peak = n.mark(n.op("ReduceMax", x, axes=[1], name="peak"), 1)
    both = n.concat(n.mark(n.mean(x, 1), 1), peak)
    gate = n.op("Sigmoid", n.conv(both, 1, name="gate"))
    result = check(n, n.classify(n.conv(n.mul(x, gate), 8, name="next")))
    assert used(result) == [
        "stem: 8: stem[0]+bias -> conv[1]",
        "next: 8: next[0]+bias -> fc[1]",
    ]
    assert pinned(result, "conv.weight[0]") == ["REDUCED"]


def test_spatial_gate_by_convolution():
    """A one-channel map scales all channels: it ties nothing."""
    n = Blocks()
    x = n.conv(n.stem(), 12, name="conv")
    gate = n.op("Sigmoid", n.conv(n.relu(n.conv(x, 6, 1, name="squeeze")), 1, 1, name="gate"))
    result = check(n, n.classify(n.mul(x, gate)))
    assert used(result) == [
        "stem: 8: stem[0]+bias -> conv[1]",
        "conv: 12: conv[0]+bias -> squeeze[1] fc[1]",
        "squeeze: 6: squeeze[0]+bias -> gate[1]",
    ]


def test_gated_mlp():
    """gMLP: one half of the channels is normalised, mixed over tokens, and gates the other."""
    n = Blocks()
    x = n.sequence()
    value, gate = n.split(n.like("Erf", n.linear(x, 12, name="fc1")), 6, 6, axis=2)
    gate = n.transpose(n.layer_norm(gate, "norm"), 0, 2, 1, channels=6)
    mixed = n.op("MatMul", gate, n.weight((6, 6), "spatial.weight"), name="spatial")
    mixed = n.op("Add", mixed, n.weight((6,), "spatial.bias"), name="spatial.add")
    result = check(n, n.linear(n.mul(value, n.transpose(mixed, 0, 2, 1, channels=6)), 8, name="fc2"))
    assert used(result) == []
    assert pinned(result, "fc1.weight[1]", "spatial.weight[1]") == ["NORMALIZED", "GRAPH_OUTPUT"]


def test_gated_mlp_without_norm():
    """The same without LayerNormalization, mixed by a convolution of width 1 that has tokens as channels."""
    n = Blocks()
    value, gate = n.split(n.linear(n.sequence(tokens=6), 12, name="fc1"), 6, 6, axis=2)
    w = n.weight((6, 6, 1), "spatial.weight")
    mixed = n.op("Conv", gate, w, n.weight((6,), "spatial.bias"), name="spatial")
    result = check(n, n.linear(n.mul(value, mixed), 8, name="fc2"))
    assert used(result) == ["fc1: 6 of 2: fc1[1]+bias -> fc2[0]"]


def test_highway():
    """y = t * h + (1 - t) * x: transform, gate and carried input are one width."""
    n = Blocks()
    x = n.linear(n.sequence(), 12, name="embed")
    h = n.relu(n.linear(x, 12, name="transform"))
    t = n.like("Sigmoid", n.linear(x, 12, name="gate"))
    carry = n.mul(n.mark(n.op("Sub", n.scalar(1), t), 12), x)
    result = check(n, n.linear(n.add(n.mul(t, h), carry), 5, name="head"))
    assert used(result) == [
        "embed: 12: embed[1]+bias transform[1]+bias gate[1]+bias -> transform[0] gate[0] head[0]"
    ]
