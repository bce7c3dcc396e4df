"""Attention in windows: images are cut into windows or grids, rolled and masked; heads stay units."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.testing import check_model
from tests.structures.attention_nets import (
    DEPTH,
    EACH,
    FEED_FORWARD,
    FFN,
    HEADS,
    INNER,
    WHOLE,
    WIDTH,
    Net,
    rows,
    units_are,
)

HIGH, WIDE, WINDOW = 6, 9, 3
DOWN, ACROSS, PLACES = HIGH // WINDOW, WIDE // WINDOW, WINDOW**2
COUNT = DOWN * ACROSS
FUSED = {**rows(["qkv"], np.tile(WHOLE, 3)), "proj.weight[0]": WHOLE}


def checked(model, **options):
    return check_model(model, seeds=(0, 1), **options)


def roll(n, x, shift, axis):
    """torch.roll, as exported: two Slices and a Concat."""
    parts = n.cut(x, shift, 2**63 - 1, axis), n.cut(x, 0, shift, axis)
    return n.op("Concat", *parts, axis=axis)


def windows(n, x):
    """(B, H, W, C) -> (B * windows, places, C)"""
    x = n.reshape(x, -1, DOWN, WINDOW, ACROSS, WINDOW, WIDTH)
    return n.reshape(n.permute(x, 0, 1, 3, 2, 4, 5), -1, PLACES, WIDTH)


def back(n, x):
    x = n.reshape(x, -1, DOWN, ACROSS, WINDOW, WINDOW, WIDTH)
    return n.reshape(n.permute(x, 0, 1, 3, 2, 4, 5), -1, HIGH, WIDE, WIDTH)


def grid(n, x):
    """MaxViT: the same place of every window attends to each other."""
    x = n.reshape(x, -1, WINDOW, DOWN, WINDOW, ACROSS, WIDTH)
    return n.reshape(n.permute(x, 0, 2, 4, 1, 3, 5), -1, PLACES, WIDTH)


def grid_back(n, x):
    x = n.reshape(x, -1, DOWN, ACROSS, WINDOW, WINDOW, WIDTH)
    return n.reshape(n.permute(x, 0, 3, 1, 4, 2, 5), -1, HIGH, WIDE, WIDTH)


def table(n):
    """Swin's bias: a table of (2w-1)^2 rows of H numbers, looked up by place."""
    places = np.stack(np.meshgrid(*[np.arange(WINDOW)] * 2, indexing="ij")).reshape(2, -1)
    apart = places[:, :, None] - places[:, None] + WINDOW - 1
    index = n.constant((apart[0] * (2 * WINDOW - 1) + apart[1]).ravel())
    taken = n.op("Gather", n.weight(((2 * WINDOW - 1) ** 2, HEADS), "table"), index, name="lookup")
    return n.unsqueeze(n.permute(n.reshape(taken, PLACES, PLACES, HEADS), 2, 0, 1), 0)


def masked(n, scores):
    """Windows that were rolled over the edge: (windows, N, N), to scores (B, windows, H, N, N)."""
    mask = np.where(np.random.default_rng(0).uniform(size=(COUNT, PLACES, PLACES)) < 0.5, -100, 0)
    scores = n.reshape(scores, -1, COUNT, HEADS, PLACES, PLACES)
    mask = n.unsqueeze(n.constant(mask.astype(np.float32), "mask"), 0, 2)
    return n.reshape(n.op("Add", scores, mask), -1, HEADS, PLACES, PLACES)


def attention(n, x, name="", shifted=False):
    """On windows (B * windows, places, C)."""
    y = n.reshape(n.linear(x, WIDTH, 3 * INNER, f"{name}qkv"), -1, PLACES, 3, HEADS, DEPTH)
    q, k, v = (n.pick(n.permute(y, 2, 0, 3, 1, 4), i, 0) for i in range(3))
    bias = table(n)

    def score(scores):
        scores = n.op("Add", scores, bias)
        return masked(n, scores) if shifted else scores

    mixed = n.together(n.attend(q, k, v, score), tokens=PLACES)
    return n.linear(mixed, INNER, WIDTH, f"{name}proj")


def close(n, x, y):
    """(B, H, W, C): residual connection and feed-forward layers."""
    x = n.op("Add", x, y)
    y = n.op("Relu", n.linear(x, WIDTH, FFN, "fc1"))
    return n.model(n.op("Add", x, n.linear(y, FFN, WIDTH, "fc2")))


@pytest.mark.parametrize("batch", [1, "batch"])
@pytest.mark.parametrize("shifted", [False, True])
def test_shifted_windows(shifted, batch):
    n = Net()
    x = y = n.input("x", (batch, HIGH, WIDE, WIDTH))
    if shifted:
        y = roll(n, roll(n, y, 1, 1), 1, 2)
    y = back(n, attention(n, windows(n, y), shifted=shifted))
    if shifted:
        y = roll(n, roll(n, y, -1, 1), -1, 2)
    result = checked(close(n, x, y))
    units_are(result, {**FUSED, "table[1]": EACH}, FEED_FORWARD)


@pytest.mark.parametrize("pair", [(windows, back), (grid, grid_back)], ids=["block", "grid"])
@pytest.mark.parametrize("batch", [1, "batch"])
def test_blocks_and_grids(pair, batch):
    """MaxViT."""
    n = Net()
    x = n.input("x", (batch, HIGH, WIDE, WIDTH))
    there, home = pair
    result = checked(close(n, x, home(n, attention(n, there(n, x)))))
    units_are(result, {**FUSED, "table[1]": EACH}, FEED_FORWARD)


def test_batch_computed_from_the_windows():
    """int(windows.shape[0] / count): Shape, Cast, Div, Cast."""
    n = Net()
    x = n.input("x", ("batch", HIGH, WIDE, WIDTH))
    y = attention(n, windows(n, x), shifted=True)
    count = n.op("Cast", n.pick(n.op("Shape", y), 0, 0), to=ir.DataType.FLOAT)
    batch = n.op("Cast", n.op("Div", count, n.number(COUNT)), to=ir.DataType.INT64)
    batch = n.unsqueeze(batch, 0)
    target = n.op("Concat", batch, n.constant([DOWN, ACROSS, WINDOW, WINDOW, -1]), axis=0)
    y = n.permute(n.op("Reshape", y, target), 0, 1, 3, 2, 4, 5)
    y = n.op("Reshape", y, n.op("Concat", batch, n.constant([HIGH, WIDE, -1]), axis=0))
    units_are(checked(close(n, x, y)), {**FUSED, "table[1]": EACH}, FEED_FORWARD)


def test_one_after_the_other():
    """Windows, rolled windows and a grid on one stream: three groups of heads."""
    n = Net()
    x = n.input("x", ("batch", HIGH, WIDE, WIDTH))
    y = n.op("Add", x, back(n, attention(n, windows(n, x), "a.")))
    rolled = back(n, attention(n, windows(n, roll(n, y, 1, 1)), "b.", shifted=True))
    y = n.op("Add", y, roll(n, rolled, -1, 1))
    result = checked(close(n, y, grid_back(n, attention(n, grid(n, y), "c."))))
    parts = {group.name: group for group in result.groups}
    assert {name: (g.units, g.width) for name, g in parts.items()} == {
        "a.qkv": (HEADS, 3 * DEPTH),
        "b.qkv": (HEADS, 3 * DEPTH),
        "c.qkv": (HEADS, 3 * DEPTH),
        "fc1": (FFN, 1),
    }
    for name in "abc":
        sinks = {use.axis.name: use.unit.tolist() for use in parts[f"{name}.qkv"].sinks}
        assert sinks == {f"{name}.proj.weight[0]": WHOLE.tolist()}


def test_cosine_attention():
    """Swin v2: queries and keys of length 1 over D, a temperature per head, a bias made by two layers."""
    n = Net()
    x = n.input("x", ("batch", HIGH, WIDE, WIDTH))
    y = n.reshape(n.linear(windows(n, x), WIDTH, 3 * INNER, "qkv"), -1, PLACES, 3, HEADS, DEPTH)
    q, k, v = (n.pick(n.permute(y, 2, 0, 3, 1, 4), i, 0) for i in range(3))
    q, k = (
        n.op("Div", part, n.op("Max", n.op("ReduceL2", part, n.constant([-1])), n.number(1e-6)))
        for part in (q, k)
    )
    heat = n.op("Exp", n.op("Min", n.weight((HEADS, 1, 1), "logit_scale"), n.number(4)))
    scores = n.op("Mul", n.op("MatMul", q, n.permute(k, 0, 1, 3, 2)), heat)
    coordinates = n.weight((PLACES * PLACES, 2), "coordinates")
    hidden = n.op("Relu", n.linear(coordinates, 2, 8, "cpb1"))
    bias = n.reshape(n.linear(hidden, 8, HEADS, "cpb2", bias=False), PLACES, PLACES, HEADS)
    bias = n.op("Mul", n.number(16), n.op("Sigmoid", n.permute(bias, 2, 0, 1)))
    weights = n.op("Softmax", n.op("Add", scores, n.unsqueeze(bias, 0)), axis=-1)
    mixed = n.together(n.op("MatMul", weights, v), tokens=PLACES)
    result = checked(close(n, x, back(n, n.linear(mixed, INNER, WIDTH, "proj"))))
    heads = {**FUSED, "cpb2.weight[1]": EACH, "exp_out[0]": EACH}  # constants are folded first
    hidden = {**rows(["cpb1"], np.arange(8)), "cpb2.weight[0]": np.arange(8)}
    plane = dict.fromkeys(("coordinates[1]", "cpb1.weight[0]"), np.arange(2))
    units_are(result, heads, hidden, plane, FEED_FORWARD)
