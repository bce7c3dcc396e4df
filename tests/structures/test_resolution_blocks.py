"""Features at several resolutions: HRNet, FPN, U-Net, and heads shared by levels."""

from __future__ import annotations

import numpy as np
import pytest
from block_nets import Blocks, check, others, pinned, used


def spatial(n, x, name):
    """Height and width of a value, as Shape and Slice give them."""
    whole = n.op("Shape", x, name=f"{name}.shape")
    return n.op("Slice", whole, n.constant([2]), n.constant([4]), n.constant([0]), name=f"{name}.spatial")


def upsample(n, x, like, how, name, to=(8, 8)):
    """Resize to the resolution of another value."""
    if how == "scales":
        return n.resize(x, 2, name=name)
    if how == "linear":
        scales = n.constant(np.float32([1, 1, 2, 2]))
        return n.like("Resize", x, None, scales, name=name, mode="linear")
    size = spatial(n, like, name)
    if how == "computed":  # (batch, channels) of x, then the size of the other
        lead = n.op("Slice", n.op("Shape", x), n.constant([0]), n.constant([2]), n.constant([0]))
        size = n.op("Concat", lead, size, axis=0, name=f"{name}.size")
        return n.like("Resize", x, None, None, size, name=name, mode="nearest")
    if how == "constant":
        size = n.op(
            "Concat", n.op("Shape", x, end=1), n.constant([n.extents[x], *to]), axis=0, name=f"{name}.size"
        )
        return n.like("Resize", x, None, None, size, name=name, mode="nearest")
    floats = [n.op("Cast", s, to=1) for s in (size, spatial(n, x, f"{name}.own"))]
    scales = n.op(
        "Concat", n.constant(np.float32([1, 1])), n.op("Div", *floats), axis=0, name=f"{name}.scales"
    )
    return n.like("Resize", x, None, scales, name=name, mode="nearest")


WAYS = ["scales", "linear", "computed", "constant", "divided"]


@pytest.mark.parametrize("how", WAYS)
def test_high_resolution_fusion(how):
    """HRNet: every branch is the sum of all branches, brought to its resolution."""
    n = Blocks()
    fine = n.stem(6)
    coarse = n.relu(n.conv(fine, 10, stride=2, name="transition"))
    fine, coarse = n.relu(n.conv(fine, 6, name="fine")), n.relu(n.conv(coarse, 10, name="coarse"))
    up = upsample(n, n.conv(coarse, 6, 1, name="up"), fine, how, "resize")
    down = n.conv(fine, 10, stride=2, name="down")
    a, b = n.relu(n.add(fine, up)), n.relu(n.add(coarse, down))
    joined = n.concat(a, upsample(n, b, a, how, "last"))
    result = check(n, n.conv(joined, 3, 1, name="head"))
    assert used(result) == [
        "stem: 6: stem[0]+bias -> transition[1] fine[1]",
        "transition: 10: transition[0]+bias -> coarse[1]",
        "fine: 6: fine[0]+bias up[0]+bias -> down[1] head[1]",
        "coarse: 10: coarse[0]+bias down[0]+bias -> up[1] head[1]",
    ]
    assert others(result) == []


@pytest.mark.parametrize("how", WAYS)
def test_feature_pyramid(how):
    """Top-down sums tie the laterals of all levels into one width; each level has its own output."""
    n = Blocks()
    c0 = n.stem(6)
    c1 = n.relu(n.conv(c0, 10, stride=2, name="c1"))
    c2 = n.relu(n.conv(c1, 14, stride=2, name="c2"))
    p2 = n.conv(c2, 8, 1, name="lateral2")
    p1 = n.conv(c1, 8, 1, name="lateral1")
    p1 = n.add(p1, upsample(n, p2, p1, how, "up1", (4, 4)))
    p0 = n.conv(c0, 8, 1, name="lateral0")
    p0 = n.add(p0, upsample(n, p1, p0, how, "up0"))
    smooth = [n.conv(p, 6, name=f"smooth{i}") for i, p in enumerate((p0, p1, p2))]
    result = check(n, *(n.conv(s, 3, 1, name=f"out{i}") for i, s in enumerate(smooth)))
    assert used(result) == [
        "stem: 6: stem[0]+bias -> c1[1] lateral0[1]",
        "c1: 10: c1[0]+bias -> c2[1] lateral1[1]",
        "c2: 14: c2[0]+bias -> lateral2[1]",
        "lateral2: 8: lateral2[0]+bias lateral1[0]+bias lateral0[0]+bias -> smooth0[1] smooth1[1] smooth2[1]",
        "smooth0: 6: smooth0[0]+bias -> out0[1]",
        "smooth1: 6: smooth1[0]+bias -> out1[1]",
        "smooth2: 6: smooth2[0]+bias -> out2[1]",
    ]


def test_weighted_pyramid():
    """BiFPN: levels are summed by learnt weights that share one norm."""
    n = Blocks()
    fine = n.stem(6)
    coarse = n.resize(n.conv(fine, 6, stride=2, name="coarse"))
    w = n.op("Relu", n.weight((2,), "fusion", low=0.1))
    w = n.op("Div", w, n.op("Add", n.op("ReduceSum", w, n.constant([0])), n.scalar(1e-4)), name="share")
    fused = n.add(n.like("Mul", fine, n.gather(w, [0], 0)), n.like("Mul", coarse, n.gather(w, [1], 0)))
    result = check(n, n.classify(n.conv(n.silu(fused), 8, name="after")))
    assert used(result) == [
        "stem: 6: stem[0]+bias coarse[0]+bias -> coarse[1] after[1]",
        "after: 8: after[0]+bias -> fc[1]",
    ]


@pytest.mark.parametrize("how", ["resize", "transposed", "shuffle"])
def test_unet(how):
    """Skips are concatenated: each side of the concatenation is a group of its own."""
    n = Blocks()
    skips = [n.stem(6)]
    for i, channels in enumerate((8, 10)):
        pooled = n.like("MaxPool", skips[-1], kernel_shape=[2, 2], strides=[2, 2])
        skips.append(n.relu(n.conv(pooled, channels, name=f"down{i}")))
    x = skips.pop()
    for i in (1, 0):
        if how == "resize":
            x = n.resize(x)
        elif how == "transposed":
            x = n.up_conv(x, 6, name=f"up{i}")
        else:
            x = n.op("DepthToSpace", n.conv(x, 24, 1, name=f"up{i}"), blocksize=2, name=f"shuffle{i}")
            x = n.mark(x, 6)
        x = n.relu(n.conv(n.concat(skips[i], x), 8, name=f"dec{i}"))
    result = check(n, n.conv(x, 2, 1, name="out"))
    if how == "resize":
        assert used(result) == [
            "stem: 6: stem[0]+bias -> down0[1] dec0[1]",
            "down0: 8: down0[0]+bias -> down1[1] dec1[1]",
            "down1: 10: down1[0]+bias -> dec1[1]",
            "dec1: 8: dec1[0]+bias -> dec0[1]",
            "dec0: 8: dec0[0]+bias -> out[1]",
        ]
    elif how == "transposed":
        assert used(result) == [
            "stem: 6: stem[0]+bias -> down0[1] dec0[1]",
            "down0: 8: down0[0]+bias -> down1[1] dec1[1]",
            "down1: 10: down1[0]+bias -> up1[0]",
            "up1: 6: up1[1]+bias -> dec1[1]",
            "dec1: 8: dec1[0]+bias -> up0[0]",
            "up0: 6: up0[1]+bias -> dec0[1]",
            "dec0: 8: dec0[0]+bias -> out[1]",
        ]
    else:
        assert used(result) == [
            "stem: 6: stem[0]+bias -> down0[1] dec0[1]",
            "down0: 8: down0[0]+bias -> down1[1] dec1[1]",
            "down1: 10: down1[0]+bias -> up1[1]",
            "up1: 6 of 4: up1[0]+bias -> dec1[1]",
            "dec1: 8: dec1[0]+bias -> up0[1]",
            "up0: 6 of 4: up0[0]+bias -> dec0[1]",
            "dec0: 8: dec0[0]+bias -> out[1]",
        ]


def test_unet_with_sums():
    """LinkNet: skips are added, which ties encoder and decoder."""
    n = Blocks()
    skip = n.stem(6)
    deep = n.relu(n.conv(skip, 10, stride=2, name="down"))
    x = n.relu(n.add(n.up_conv(deep, 6, name="up"), skip))
    assert used(check(n, n.conv(x, 2, 1, name="out"))) == [
        "stem: 6: stem[0]+bias up[1]+bias -> down[1] out[1]",
        "down: 10: down[0]+bias -> up[0]",
    ]


def test_unet_with_cropped_skips():
    """The skip is sliced to the size of the decoder, as for convolutions without padding."""
    n = Blocks()
    skip = n.stem(6)
    deep = n.relu(n.conv(n.like("MaxPool", skip, kernel_shape=[2, 2], strides=[2, 2]), 8, name="down"))
    inner = n.like("Slice", skip, *(n.constant(v) for v in ([1, 1], [7, 7], [2, 3])))
    up = n.like("Slice", n.resize(deep), *(n.constant(v) for v in ([1, 1], [-1, -1], [2, 3])))
    result = check(n, n.conv(n.relu(n.conv(n.concat(inner, up), 6, name="dec")), 2, 1, name="out"))
    assert used(result) == [
        "stem: 6: stem[0]+bias -> down[1] dec[1]",
        "down: 8: down[0]+bias -> dec[1]",
        "dec: 6: dec[0]+bias -> out[1]",
    ]


def test_head_shared_by_levels():
    """RetinaNet: the same two convolutions read every level, so all levels share one width."""
    n = Blocks()
    fine = n.stem(8)
    coarse = n.relu(n.conv(fine, 8, stride=2, name="coarse"))
    tower, final = (
        n.weight(s, name) for s, name in (((6, 8, 3, 3), "tower.weight"), ((4, 6, 1, 1), "final.weight"))
    )
    outputs = []
    for level in (fine, coarse):
        y = n.op("Relu", n.op("Conv", level, tower, pads=[1] * 4, name="tower"))
        y = n.op("Transpose", n.op("Conv", y, final, name="final"), perm=[0, 2, 3, 1])
        outputs.append(n.op("Reshape", y, n.constant([0, -1, 4]), name="rows"))
    result = check(n, n.op("Concat", *outputs, axis=1, name="boxes"))
    assert used(result) == [
        "stem: 8: stem[0]+bias coarse[0]+bias -> coarse[1] tower[1]",
        "tower: 6: tower[0] -> final[1]",
    ]


def test_auxiliary_and_early_exits():
    """Classifiers on several depths: every exit reads its stage, only classes stay."""
    n = Blocks()
    x = n.stem()
    exits = [n.classify(x, "exit0")]
    for i in (1, 2):
        x = n.relu(n.conv(x, 8 + 2 * i, stride=2, name=f"stage{i}"))
        exits.append(n.classify(x, f"exit{i}"))
    result = check(n, *exits)
    assert used(result) == [
        "stem: 8: stem[0]+bias -> exit0[1] stage1[1]",
        "stage1: 10: stage1[0]+bias -> exit1[1] stage2[1]",
        "stage2: 12: stage2[0]+bias -> exit2[1]",
    ]


def test_features_as_an_output():
    """A backbone that also returns a stage: that stage stays, what comes before and after does not."""
    n = Blocks()
    x = n.relu(n.conv(n.stem(), 10, name="shown"))
    result = check(n, x, n.classify(n.relu(n.conv(x, 6, name="hidden"))))
    assert used(result) == [
        "stem: 8: stem[0]+bias -> shown[1]",
        "hidden: 6: hidden[0]+bias -> fc[1]",
    ]
    assert pinned(result, "shown.weight[0]") == ["GRAPH_OUTPUT"]


def test_laplacian_residual():
    """The difference to an up-sampled average of itself: one width."""
    n = Blocks()
    x = n.stem(6)
    low = n.resize(n.like("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2]))
    result = check(n, n.classify(n.conv(n.like("Sub", x, low), 8, name="next")))
    assert used(result) == [
        "stem: 6: stem[0]+bias -> next[1]",
        "next: 8: next[0]+bias -> fc[1]",
    ]
