"""Channels that change places: shuffles, pixel shuffles, patch merging, focus layers, windows, flattening."""

from __future__ import annotations

import numpy as np
import pytest
from block_nets import Blocks, check, others, pinned, used


def shuffled(n, x, groups, how):
    """Interleave `groups` runs of channels."""
    c = n.extents[x]
    if how == "gather":
        return n.gather(x, np.arange(c).reshape(groups, -1).T.ravel(), name="shuffle")
    if how == "slices":
        return n.concat(*(n.slice(x, i, c, 1, c // groups, channels=groups) for i in range(c // groups)))
    if how == "rank4":  # spatial axes are merged
        x = n.reshape(x, 0, groups, c // groups, -1, name="split")
        x = n.transpose(x, 0, 2, 1, 3)
    else:
        x = n.reshape(x, 0, groups, c // groups, 8, 8, name="split")
        x = n.transpose(x, 0, 2, 1, 3, 4)
    return n.reshape(x, 0, c, 8, 8, channels=c, name="merge")


@pytest.mark.parametrize("how", ["rank5", "rank4", "gather", "slices"])
def test_channel_shuffle(how):
    """Between two convolutions: each channel is a unit, or the same one of every run where runs are reshaped."""
    n = Blocks()
    x = shuffled(n, n.stem(12), 2, how)
    result = check(n, n.classify(n.relu(n.conv(x, 8, name="next"))))
    if how == "gather":
        assert used(result) == ["stem: 12: stem[0]+bias -> next[1]", "next: 8: next[0]+bias -> fc[1]"]
    elif how == "slices":  # each of the six slices keeps a channel
        assert used(result) == [*["stem: 2: stem[0]+bias -> next[1]"] * 6, "next: 8: next[0]+bias -> fc[1]"]
    else:
        assert used(result) == [
            "stem: 6 of 2: stem[0]+bias -> next[1]",
            "next: 8: next[0]+bias -> fc[1]",
        ]
    assert others(result) == (["stem: 2 of 6: stem[0]+bias -> next[1]"] if "rank" in how else [])


@pytest.mark.parametrize("how", ["rank5", "rank4", "gather"])
def test_shuffle_between_grouped_convolutions(how):
    """ShuffleNet v1: grouped 1x1, shuffle, depthwise, grouped 1x1, residual sum."""
    n = Blocks()
    x = n.stem(18)
    y = n.relu(n.conv(x, 18, 1, group=3, name="g1"))
    y = n.conv(shuffled(n, y, 3, how), 18, group=18, name="depthwise")
    y = n.conv(y, 18, 1, group=3, name="g2")
    result = check(n, n.classify(n.relu(n.add(x, y))))
    if how == "gather":
        assert used(result) == [
            "stem: 18 in 3 blocks: stem[0]+bias g2[0]+bias -> g1[1] fc[1]",
            "g1: 18 in 9 blocks: g1[0]+bias depthwise[0]+bias -> g2[1]",
        ]
    else:
        assert used(result) == [
            "stem: 18 in 3 blocks: stem[0]+bias g2[0]+bias -> g1[1] fc[1]",
            "g1: 6 of 3 in 3 blocks: g1[0]+bias depthwise[0]+bias -> g2[1]",
        ]


def shuffle_up(n, x, how):
    """Double the resolution, a quarter of the channels."""
    c = n.extents[x] // 4
    if how in ("DCR", "CRD"):
        return n.mark(n.op("DepthToSpace", x, blocksize=2, mode=how, name="shuffle"), c)
    six = (0, 2, 2, c, 8, 8) if how == "dcr" else (0, c, 2, 2, 8, 8)
    order = (0, 3, 4, 1, 5, 2) if how == "dcr" else (0, 1, 4, 2, 5, 3)
    x = n.transpose(n.reshape(x, *six, name="split"), *order)
    return n.reshape(x, 0, c, 16, 16, channels=c, name="merge")


@pytest.mark.parametrize("how", ["DCR", "CRD", "dcr", "crd"])
def test_pixel_shuffle(how):
    """ESPCN: a channel after the shuffle is four before it."""
    n = Blocks()
    x = shuffle_up(n, n.conv(n.stem(), 24, name="expand"), how)
    result = check(n, n.conv(n.relu(x), 3, name="out"))
    assert used(result) == [
        "stem: 8: stem[0]+bias -> expand[1]",
        "expand: 6 of 4: expand[0]+bias -> out[1]",
    ]
    first = result.groups[1].sources[0].unit.tolist()
    assert first == (list(range(6)) * 4 if how.lower() == "dcr" else np.repeat(range(6), 4).tolist())


@pytest.mark.parametrize("how", ["DCR", "crd"])
def test_pixel_shuffle_to_the_output(how):
    """The last layer of a super-resolution network: its channels are the image."""
    n = Blocks()
    result = check(n, shuffle_up(n, n.conv(n.stem(), 12, name="last"), how))
    assert used(result) == ["stem: 8: stem[0]+bias -> last[1]"]
    assert pinned(result, "last.weight[0]") == ["GRAPH_OUTPUT"]


def shuffle_down(n, x, how):
    """Half the resolution, four times the channels."""
    c = n.extents[x]
    if how == "SpaceToDepth":
        y = n.op("SpaceToDepth", x, blocksize=2, name="unshuffle")
    elif how == "slices":
        rows = [n.slice(x, i, 2**31, 2, 2, channels=c) for i in range(2)]
        return n.concat(*(n.slice(r, j, 2**31, 3, 2, channels=c) for j in range(2) for r in rows))
    else:  # PixelUnshuffle
        y = n.transpose(n.reshape(x, 0, c, 4, 2, 4, 2, name="split"), 0, 1, 3, 5, 2, 4)
        y = n.reshape(y, 0, 4 * c, 4, 4, name="merge")
    return n.mark(y, 4 * c)


@pytest.mark.parametrize("how", ["SpaceToDepth", "slices", "reshape"])
def test_pixel_unshuffle(how):
    """A channel becomes four columns of the next convolution."""
    n = Blocks()
    result = check(n, n.classify(n.conv(shuffle_down(n, n.stem(6), how), 8, name="next")))
    assert used(result) == [
        "stem: 6: stem[0]+bias -> next[1]",
        "next: 8: next[0]+bias -> fc[1]",
    ]
    columns = result.groups[0].sinks[0].unit.tolist()
    assert columns == (np.repeat(range(6), 4).tolist() if how == "reshape" else list(range(6)) * 4)


@pytest.mark.parametrize("how", ["SpaceToDepth", "slices", "reshape"])
def test_focus(how):
    """YOLOv5's focus on the image: its channels stay, those of the convolution do not."""
    n = Blocks()
    x = n.relu(n.conv(shuffle_down(n, n.picture(), how), 8, name="conv"))
    result = check(n, n.classify(x))
    assert used(result) == ["conv: 8: conv[0]+bias -> fc[1]"]
    assert pinned(result, "conv.weight[1]") == ["GRAPH_INPUT"]


def merge_patches(n, x, how, width):
    """Swin: the features of 2x2 patches side by side; tokens are (batch, 4, 4, width)."""
    if how == "slices":
        parts = []
        for j in range(2):
            for i in range(2):
                starts, ends, axes, steps = [i, j], [2**31, 2**31], [1, 2], [2, 2]
                part = n.op("Slice", x, *(n.constant(v) for v in (starts, ends, axes, steps)), name="patch")
                parts.append(n.mark(part, width))
        y = n.concat(*parts, axis=-1, name="patches")
    elif how == "two slices":
        parts = []
        for j in range(2):
            for i in range(2):
                row = n.slice(x, i, 2**31, 1, 2, channels=width)
                parts.append(n.slice(row, j, 2**31, 2, 2, channels=width))
        y = n.concat(*parts, axis=-1, name="patches")
    else:  # (h, 2, w, 2, c) to (h, w, 2, 2, c)
        y = n.transpose(n.reshape(x, 0, 2, 2, 2, 2, width, name="split"), 0, 1, 3, 4, 2, 5)
        y = n.reshape(y, 0, 2, 2, 4 * width, name="merge")
    return n.mark(n.reshape(y, 0, -1, 4 * width, name="rows"), 4 * width)


@pytest.mark.parametrize("normal", [False, True])
@pytest.mark.parametrize("how", ["slices", "two slices", "reshape"])
def test_patch_merging(how, normal):
    """Features are four columns of the reduction each; LayerNormalization in between holds them."""
    n = Blocks()
    x = n.linear(n.reshape(n.sequence(4, 16), 0, 4, 4, 4, channels=4), 6, name="embed")
    y = merge_patches(n, x, how, 6)
    if normal:
        y = n.layer_norm(y, "norm")
    y = n.linear(n.relu(n.linear(y, 10, bias=False, name="reduction")), 5, name="head")
    result = check(n, y)
    if normal:
        assert used(result) == ["reduction: 10: reduction[1] -> head[0]"]
        assert pinned(result, "embed.weight[1]") == ["NORMALIZED"]
    else:
        assert used(result) == [
            "embed: 6: embed[1]+bias -> reduction[0]",
            "reduction: 10: reduction[1] -> head[0]",
        ]


@pytest.mark.parametrize("how", ["flatten", "reshape", "reshape computed"])
def test_flattened_features(how):
    """Pooled to 4x4 and flattened: a channel is 16 columns of the classifier."""
    n = Blocks()
    x = n.like("AveragePool", n.stem(6), kernel_shape=[2, 2], strides=[2, 2])
    if how == "flatten":
        x = n.flatten(x, 16)
    elif how == "reshape":
        x = n.reshape(x, 0, -1, channels=96)
    else:  # x.view(x.size(0), -1)
        batch = n.op(
            "Unsqueeze", n.op("Gather", n.op("Shape", x), n.constant(np.array(0)), axis=0), n.constant([0])
        )
        x = n.mark(n.op("Reshape", x, n.op("Concat", batch, n.constant([-1]), axis=0)), 96)
    result = check(n, n.gemm(n.relu(n.gemm(x, 10, name="fc1")), 5, name="fc2"))
    assert used(result) == [
        "stem: 6: stem[0]+bias -> fc1[1]",
        "fc1: 10: fc1[0]+bias -> fc2[1]",
    ]
    assert result.groups[0].sinks[0].unit.tolist() == np.repeat(range(6), 16).tolist()


def test_unflattened_features():
    """A generator: a linear layer makes 6x4x4, so a channel is 16 of its rows."""
    n = Blocks()
    x = n.relu(n.gemm(n.mark(n.input("z", ("n", 5)), 5), 96, name="fc"))
    x = n.up_conv(n.reshape(x, 0, 6, 4, 4, channels=6, name="grid"), 8, name="up")
    result = check(n, n.conv(n.relu(x), 3, name="out"))
    assert used(result) == [
        "fc: 6 of 16: fc[0]+bias -> up[0]",
        "up: 8: up[1]+bias -> out[1]",
    ]
    assert result.groups[0].sources[0].unit.tolist() == np.repeat(range(6), 16).tolist()


def test_windows():
    """Window partition and its reverse leave the features alone."""
    n = Blocks()
    x = n.linear(n.sequence(4, 16), 6, name="embed")
    y = n.transpose(n.reshape(x, 0, 2, 2, 2, 2, 6, name="part"), 0, 1, 3, 2, 4, 5)
    y = n.reshape(y, -1, 4, 6, channels=6, name="windows")
    y = n.relu(n.linear(y, 6, name="mix"))
    y = n.transpose(n.reshape(y, -1, 2, 2, 2, 2, 6, name="unpart"), 0, 1, 3, 2, 4, 5)
    y = n.reshape(y, -1, 16, 6, channels=6, name="back")
    result = check(n, n.linear(n.add(x, y), 5, name="head"))
    assert used(result) == ["embed: 6: embed[1]+bias mix[1]+bias -> mix[0] head[0]"]


@pytest.mark.parametrize("how", ["roll", "shift"])
def test_shifted_features(how):
    """Swin's cyclic shift over tokens; TSM's shift of some channels over time."""
    n = Blocks()
    x = n.linear(n.sequence(), 8, name="embed")
    if how == "roll":
        y = n.concat(n.slice(x, 2, 2**31, channels=8), n.slice(x, 0, 2, channels=8), axis=1)
        y = n.mark(y, 8)
    else:
        ahead, still = n.slice(x, 0, 2, axis=2), n.slice(x, 2, 8, axis=2)
        ahead = n.slice(ahead, 1, 2**31, channels=2)
        ahead = n.mark(n.op("Pad", ahead, n.constant([0, 0, 0, 0, 1, 0]), name="pad"), 2)
        y = n.concat(ahead, still, axis=2)
    result = check(n, n.linear(n.relu(y), 5, name="head"))
    parts = [8] if how == "roll" else [2, 6]  # what is shifted, and what stays
    assert used(result) == [f"embed: {units}: embed[1]+bias -> head[0]" for units in parts]


def test_patch_embedding_of_an_image():
    """A vision transformer's first layer: convolution, rows of tokens, class token, positions."""
    n = Blocks()
    x = n.mark(
        n.op("Conv", n.picture(), n.weight((6, 3, 4, 4), "patch.weight"), strides=[4, 4], name="patch"), 6
    )
    x = n.transpose(n.reshape(x, 0, 6, -1, name="rows"), 0, 2, 1, channels=6)
    shape = n.op("Concat", n.op("Shape", x, end=1), n.constant([-1, -1]), axis=0)
    batch = n.op("Where", n.op("Equal", shape, n.constant([-1])), n.constant([1, 1, 1]), shape)
    token = n.mark(n.op("Expand", n.weight((1, 1, 6), "token"), batch, name="expand"), 6)
    x = n.like(
        "Add", n.mark(n.op("Concat", token, x, axis=1, name="tokens"), 6), n.weight((1, 5, 6), "positions")
    )
    result = check(n, n.linear(x, 5, name="head"))
    assert used(result) == ["patch: 6: patch[0] token[2] positions[2] -> head[0]"]
