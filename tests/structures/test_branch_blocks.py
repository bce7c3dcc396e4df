"""Branches that are summed, gated or concatenated: SKNet, ResNeSt, CSP, C2f, ELAN, ghost modules, Inception."""

from __future__ import annotations

import numpy as np
import pytest
from block_nets import Blocks, check, others, pinned, used


def selective_kernel(n, x, how, channels=12):
    """Two branches, summed by weights that a softmax over the branches gives to every channel."""
    a, b = n.relu(n.conv(x, channels, 3, name="a")), n.relu(n.conv(x, channels, 5, name="b"))
    squeezed = n.relu(n.conv(n.pool(n.add(a, b)), 4, 1, name="squeeze"))
    if how == "separate":  # one projection per branch, stacked
        gates = [n.unsqueeze(n.conv(squeezed, channels, 1, name=f"gate_{i}"), 1) for i in "ab"]
        gate = n.op("Softmax", n.op("Concat", *gates, axis=1, name="gates"), axis=1, name="softmax")
    else:  # one projection, reshaped
        gate = n.conv(squeezed, 2 * channels, 1, name="gate")
        gate = n.op("Softmax", n.reshape(gate, 0, 2, channels, 1, 1, name="radix"), axis=1, name="softmax")
    stacked = n.op("Concat", n.unsqueeze(a, 1), n.unsqueeze(b, 1), axis=1, name="stack")
    mixed = n.op(
        "ReduceSum", n.op("Mul", stacked, gate, name="weigh"), n.constant([1]), keepdims=0, name="sum"
    )
    return n.mark(mixed, channels)


@pytest.mark.parametrize("how", ["separate", "reshaped"])
def test_selective_kernels(how):
    """A unit is a channel of both branches and of both gates."""
    n = Blocks()
    result = check(n, n.classify(selective_kernel(n, n.stem(), how)))
    gates = "gate_a gate_b" if how == "separate" else "gate"
    assert used(result) == [
        "stem: 8: stem[0]+bias -> a[1] b[1]",
        f"a: 12: a[0]+bias b[0]+bias {gates.replace(' ', '[0]+bias ')}[0]+bias -> squeeze[1] fc[1]",
        f"squeeze: 4: squeeze[0]+bias -> {gates.replace(' ', '[1] ')}[1]",
    ]
    assert others(result) == []


def split_attention(n, x, *, cardinality, how, channels=12, radix=2):
    """ResNeSt: a grouped convolution makes radix x channels, a softmax over the radix mixes them."""
    y = n.relu(n.conv(x, channels * radix, group=cardinality * radix, name="conv"))
    if how == "split":
        parts = n.split(y, *[channels] * radix)
        gap = n.add(*parts)
    else:
        whole = n.reshape(y, 0, radix, channels, 8, 8, name="split")
        gap = n.mark(n.op("ReduceSum", whole, n.constant([1]), keepdims=0, name="gap"), channels)
    gate = n.relu(n.conv(n.pool(gap), 8, 1, group=cardinality, name="fc1"))
    gate = n.conv(gate, channels * radix, 1, group=cardinality, name="fc2")
    if cardinality > 1:  # (cardinality, radix, channels): to radix first
        gate = n.reshape(gate, 0, cardinality, radix, channels // cardinality, name="to_radix")
        gate = n.op("Softmax", n.transpose(gate, 0, 2, 1, 3), axis=1, name="softmax")
    else:
        gate = n.op("Softmax", n.reshape(gate, 0, radix, channels, name="to_radix"), axis=1, name="softmax")
    if how == "split":
        gates = n.split(n.reshape(gate, 0, -1, 1, 1, name="gate"), *[channels] * radix)
        return n.add(*(n.mul(part, g) for part, g in zip(parts, gates, strict=True)))
    gate = n.reshape(gate, 0, radix, channels, 1, 1, name="gate")
    mixed = n.op("ReduceSum", n.op("Mul", whole, gate, name="weigh"), n.constant([1]), keepdims=0, name="mix")
    return n.mark(mixed, channels)


@pytest.mark.parametrize("how", ["split", "reshape"])
@pytest.mark.parametrize("cardinality", [1, 2])
def test_split_attention(cardinality, how):
    n = Blocks()
    result = check(n, n.classify(split_attention(n, n.stem(), cardinality=cardinality, how=how)))
    if cardinality == 1:
        assert used(result) == [
            "stem: 8 in 2 blocks: stem[0]+bias -> conv[1]",
            "conv: 12 of 2: conv[0]+bias fc2[0]+bias -> fc1[1] fc[1]",
            "fc1: 8: fc1[0]+bias -> fc2[1]",
        ]
    else:
        assert used(result) == [
            "stem: 8 in 4 blocks: stem[0]+bias -> conv[1]",
            "conv: 6 of 4: conv[0]+bias fc2[0]+bias -> fc1[1] fc[1]",
            "fc1: 8 in 2 blocks: fc1[0]+bias -> fc2[1]",
        ]


def bottleneck(n, x, inner, name):
    """Two convolutions with a residual connection."""
    y = n.relu(n.conv(x, inner, 1, name=f"{name}.conv1"))
    return n.add(n.relu(n.conv(y, n.extents[x], name=f"{name}.conv2")), x)


def test_cross_stage_partial():
    """CSP: one half of the channels goes through a block, both are concatenated."""
    n = Blocks()
    left, right = n.split(n.stem(12), 6, 6)
    joined = n.concat(bottleneck(n, right, 4, "block"), left)
    result = check(n, n.classify(n.conv(joined, 8, 1, name="transition")))
    assert used(result) == [
        "stem: 6: stem[0]+bias -> transition[1]",
        "stem: 6: stem[0]+bias block.conv2[0]+bias -> block.conv1[1] transition[1]",
        "block.conv1: 4: block.conv1[0]+bias -> block.conv2[1]",
        "transition: 8: transition[0]+bias -> fc[1]",
    ]


def test_cross_stage_partial_of_two_convolutions():
    """YOLOv5's C3: two 1x1 convolutions instead of a split."""
    n = Blocks()
    x = n.stem(12)
    left = n.silu(n.conv(x, 6, 1, name="cv2"))
    right = bottleneck(n, n.silu(n.conv(x, 6, 1, name="cv1")), 4, "block")
    result = check(n, n.classify(n.silu(n.conv(n.concat(right, left), 8, 1, name="cv3"))))
    assert used(result) == [
        "stem: 12: stem[0]+bias -> cv2[1] cv1[1]",
        "cv2: 6: cv2[0]+bias -> cv3[1]",
        "cv1: 6: cv1[0]+bias block.conv2[0]+bias -> block.conv1[1] cv3[1]",
        "block.conv1: 4: block.conv1[0]+bias -> block.conv2[1]",
        "cv3: 8: cv3[0]+bias -> fc[1]",
    ]


@pytest.mark.parametrize("how", ["split", "slices"])
def test_c2f(how):
    """YOLOv8: halves and every block's result are concatenated; a block is tied to its half."""
    n = Blocks()
    x = n.silu(n.conv(n.stem(), 12, 1, name="cv1"))
    parts = n.split(x, 6, 6) if how == "split" else [n.slice(x, 0, 6), n.slice(x, 6, 12)]
    for i in range(2):
        parts = [*parts, bottleneck(n, parts[-1], 4, f"m{i}")]
    result = check(n, n.classify(n.conv(n.concat(*parts), 8, 1, name="cv2")))
    assert used(result) == [
        "stem: 8: stem[0]+bias -> cv1[1]",
        "cv1: 6: cv1[0]+bias -> cv2[1]",
        "cv1: 6: cv1[0]+bias m0.conv2[0]+bias m1.conv2[0]+bias -> m0.conv1[1] m1.conv1[1] cv2[1]",
        "m0.conv1: 4: m0.conv1[0]+bias -> m0.conv2[1]",
        "m1.conv1: 4: m1.conv1[0]+bias -> m1.conv2[1]",
        "cv2: 8: cv2[0]+bias -> fc[1]",
    ]


def test_efficient_layer_aggregation():
    """ELAN of YOLOv7: every second result of a chain is concatenated."""
    n = Blocks()
    x = n.stem(12)
    parts = [n.silu(n.conv(x, 6, 1, name="cv1")), n.silu(n.conv(x, 6, 1, name="cv2"))]
    y = parts[-1]
    for i in range(2):
        y = n.silu(n.conv(n.silu(n.conv(y, 6, name=f"m{i}.a")), 6, name=f"m{i}.b"))
        parts.append(y)
    result = check(n, n.classify(n.conv(n.concat(*parts), 8, 1, name="out")))
    assert used(result) == [
        "stem: 12: stem[0]+bias -> cv1[1] cv2[1]",
        "cv1: 6: cv1[0]+bias -> out[1]",
        "cv2: 6: cv2[0]+bias -> m0.a[1] out[1]",
        "m0.a: 6: m0.a[0]+bias -> m0.b[1]",
        "m0.b: 6: m0.b[0]+bias -> m1.a[1] out[1]",
        "m1.a: 6: m1.a[0]+bias -> m1.b[1]",
        "m1.b: 6: m1.b[0]+bias -> out[1]",
        "out: 8: out[0]+bias -> fc[1]",
    ]


def test_spatial_pyramid_pooling():
    """SPPF: a channel and its three pooled copies are one unit."""
    n = Blocks()
    x = n.silu(n.conv(n.stem(), 6, 1, name="cv1"))
    parts = [x]
    for _ in range(3):
        parts.append(n.like("MaxPool", parts[-1], kernel_shape=[5, 5], pads=[2] * 4, strides=[1, 1]))
    result = check(n, n.classify(n.conv(n.concat(*parts), 8, 1, name="cv2")))
    assert used(result) == [
        "stem: 8: stem[0]+bias -> cv1[1]",
        "cv1: 6: cv1[0]+bias -> cv2[1]",
        "cv2: 8: cv2[0]+bias -> fc[1]",
    ]
    assert result.groups[1].sinks[0].unit.tolist() == list(range(6)) * 4


def ghost(n, x, channels, name, *, trimmed=None):
    """Half of the channels by a convolution, the other half from those by a cheap depthwise one."""
    first = n.relu(n.conv(x, channels // 2, 1, name=f"{name}.primary"))
    cheap = n.relu(n.conv(first, channels // 2, group=channels // 2, name=f"{name}.cheap"))
    y = n.concat(first, cheap, name=f"{name}.concat")
    return y if trimmed is None else n.slice(y, 0, trimmed)


def test_ghost_module():
    """A channel and its ghost go together."""
    n = Blocks()
    result = check(n, n.classify(ghost(n, n.stem(), 12, "ghost")))
    assert used(result) == [
        "stem: 8: stem[0]+bias -> ghost.primary[1]",
        "ghost.primary: 6: ghost.primary[0]+bias ghost.cheap[0]+bias -> fc[1]",
    ]
    assert result.groups[1].sinks[0].unit.tolist() == list(range(6)) * 2


def test_ghost_module_with_an_odd_width():
    """The last ghost is sliced off: that channel stands alone."""
    n = Blocks()
    result = check(n, n.classify(ghost(n, n.stem(), 12, "ghost", trimmed=11)))
    assert used(result) == [
        "stem: 8: stem[0]+bias -> ghost.primary[1]",
        "ghost.primary: 6: ghost.primary[0]+bias ghost.cheap[0]+bias -> fc[1]",
    ]


def test_ghost_bottleneck():
    """GhostNet: the residual connection ties two channels and two ghosts of both modules."""
    n = Blocks()
    x = n.stem(12)
    inner = ghost(n, x, 16, "expand")
    result = check(n, n.classify(n.add(ghost(n, inner, 12, "reduce"), x)))
    assert used(result) == [
        "stem: 6 of 2: stem[0]+bias reduce.primary[0]+bias reduce.cheap[0]+bias -> expand.primary[1] fc[1]",
        "expand.primary: 8: expand.primary[0]+bias expand.cheap[0]+bias -> reduce.primary[1]",
    ]


def test_inception():
    """Four branches, one of them pooled, concatenated twice."""
    n = Blocks()
    x = n.stem()
    for i in range(2):
        pooled = n.like("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1])
        double = n.relu(n.conv(n.relu(n.conv(x, 3, 1, name=f"i{i}.b1")), 4, 3, name=f"i{i}.b2"))
        branches = [n.relu(n.conv(x, 4, 1, name=f"i{i}.a")), double, n.conv(pooled, 3, 1, name=f"i{i}.pool")]
        x = n.concat(*branches, name=f"i{i}.concat")
    assert used(check(n, n.classify(x))) == [
        "stem: 8: stem[0]+bias -> i0.b1[1] i0.a[1] i0.pool[1]",
        "i0.b1: 3: i0.b1[0]+bias -> i0.b2[1]",
        "i0.b2: 4: i0.b2[0]+bias -> i1.b1[1] i1.a[1] i1.pool[1]",
        "i0.a: 4: i0.a[0]+bias -> i1.b1[1] i1.a[1] i1.pool[1]",
        "i0.pool: 3: i0.pool[0]+bias -> i1.b1[1] i1.a[1] i1.pool[1]",
        "i1.b1: 3: i1.b1[0]+bias -> i1.b2[1]",
        "i1.b2: 4: i1.b2[0]+bias -> fc[1]",
        "i1.a: 4: i1.a[0]+bias -> fc[1]",
        "i1.pool: 3: i1.pool[0]+bias -> fc[1]",
    ]


def test_split_in_scales():
    """Res2Net: each part is added to the result of the one before, then convolved."""
    n = Blocks()
    parts = n.split(n.relu(n.conv(n.stem(), 12, 1, name="conv1")), 4, 4, 4)
    y = n.relu(n.conv(parts[1], 4, name="scale1"))
    z = n.relu(n.conv(n.add(parts[2], y), 4, name="scale2"))
    result = check(n, n.classify(n.conv(n.concat(parts[0], y, z), 8, 1, name="conv3")))
    assert used(result) == [
        "stem: 8: stem[0]+bias -> conv1[1]",
        "conv1: 4: conv1[0]+bias -> conv3[1]",
        "conv1: 4: conv1[0]+bias -> scale1[1]",
        "conv1: 4: conv1[0]+bias scale1[0]+bias -> scale2[1] conv3[1]",
        "scale2: 4: scale2[0]+bias -> conv3[1]",
        "conv3: 8: conv3[0]+bias -> fc[1]",
    ]


def test_conditionally_parameterised_convolution():
    """Several dilations of one width are stacked and their mean is taken over the branches."""
    n = Blocks()
    x = n.stem()
    branches = [n.unsqueeze(n.conv(x, 6, 3, name=f"branch{i}"), 1) for i in range(3)]
    stacked = n.mark(n.op("Concat", *branches, axis=1, name="stack"), 6)
    result = check(n, n.classify(n.mean(stacked, 1, keep=False)))
    assert used(result) == [
        "stem: 8: stem[0]+bias -> branch0[1] branch1[1] branch2[1]",
        "branch0: 6: branch0[0]+bias branch1[0]+bias branch2[0]+bias -> fc[1]",
    ]


def test_layer_scale():
    """ConvNeXt: y * gamma + x; gamma is cut with the stream."""
    n = Blocks()
    x = n.stem()
    y = n.conv(n.relu(n.conv(x, 12, 1, name="up")), 8, 1, name="down")
    y = n.like("Mul", y, n.weight((8, 1, 1), "gamma"), name="scale")
    result = check(n, n.classify(n.add(y, x)))
    assert used(result) == [
        "stem: 8: stem[0]+bias down[0]+bias gamma[0] -> up[1] fc[1]",
        "up: 12: up[0]+bias -> down[1]",
    ]


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1), (1,), ()])
def test_scaled_residual(shape):
    """Stochastic depth at inference, or a learnt scalar per block: a number scales the branch."""
    n = Blocks()
    x = n.stem()
    y = n.conv(n.relu(n.conv(x, 6, name="conv1")), 8, name="conv2")
    y = n.like("Mul", y, n.constant(np.full(shape, 0.8, np.float32), "survival"), name="scale")
    result = check(n, n.classify(n.relu(n.add(x, y))))
    assert used(result) == [
        "stem: 8: stem[0]+bias conv2[0]+bias -> conv1[1] fc[1]",
        "conv1: 6: conv1[0]+bias -> conv2[1]",
    ]


def test_dropped_path_per_sample():
    """A random mask of one number per sample, drawn at run time: it touches no channel."""
    n = Blocks()
    x = n.stem()
    y = n.conv(n.relu(n.conv(x, 6, name="conv1")), 8, name="conv2")
    row = n.op("Concat", n.op("Shape", x, start=0, end=1), n.constant([1, 1, 1]), axis=0, name="row")
    mask = n.op("Expand", n.input("mask", ("n", 1, 1, 1)), row, name="mask_rows")
    result = check(n, n.classify(n.relu(n.add(x, n.like("Mul", y, mask)))))
    assert used(result) == [
        "stem: 8: stem[0]+bias conv2[0]+bias -> conv1[1] fc[1]",
        "conv1: 6: conv1[0]+bias -> conv2[1]",
    ]


def test_gated_branches_by_softmax_over_channels():
    """A softmax over the channels themselves: fewer of them share the sum, so they stay."""
    n = Blocks()
    x = n.conv(n.stem(), 12, name="conv")
    gate = n.softmax(n.conv(n.pool(x), 12, 1, name="gate"), 1)
    result = check(n, n.classify(n.mul(x, gate)))
    assert used(result) == ["stem: 8: stem[0]+bias -> conv[1]"]
    assert pinned(result, "conv.weight[0]", "gate.weight[1]") == ["SOFTMAX", "SOFTMAX"]
