"""Axes whose extent depends on the input."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.errors import Reason
from onnxprune.testing import check_model
from tests.nets import Net


def checked(net, *outputs, bindings=None):
    return check_model(net.model(*outputs, bindings=bindings), bindings=bindings, seeds=(0, 1))


def test_a_symbolic_batch():
    n = Net()
    x = n.relu(n.conv(n.image(batch="batch"), 8, name="conv"))
    result = checked(n, n.classify(x))
    assert {"conv.weight[0]", "fc.weight[1]"} <= result.prunable()
    assert result.axis_graph.shapes.bindings == {"batch": 1}


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_batch_and_heads_on_one_axis(batch):
    """(B, S, H, D) -> (B * H, S, D), as scaled dot product attention is often written."""
    n = Net()
    x = n.tokens(8, 5, batch="batch")
    parts = []
    for name in "qkv":
        y = n.reshape(n.linear(x, 12, name=name), 0, 0, 4, 3)
        parts.append(n.reshape(n.transpose(y, 0, 2, 1, 3), -1, 5, 3, name=f"{name}.fold"))
    q, k, v = parts
    scores = n.op("Softmax", n.op("MatMul", q, n.transpose(k, 0, 2, 1)), axis=-1)
    mixed = n.reshape(n.op("MatMul", scores, v, name="mix"), -1, 4, 5, 3, name="unfold")
    merged = n.reshape(n.transpose(mixed, 0, 2, 1, 3), 0, 0, -1, channels=12)
    result = checked(n, n.linear(merged, 8, name="proj"), bindings={"batch": batch})
    (heads,) = result.groups
    assert (heads.units, heads.width, len(heads.sources), len(heads.sinks)) == (4, 3, 6, 1)


def test_attention_over_tokens_first():
    """torch.nn.MultiheadAttention: (S, B, 3E) -> 3 x (S, B * H, D) -> (B * H, S, D) -> (S * B, E)."""
    n = Net()
    heads, depth, tokens = 4, 3, 5
    x = n.transpose(n.tokens(8, tokens, batch="batch"), 1, 0, 2, channels=8)
    qkv = n.linear(x, 3 * heads * depth, name="in_proj")
    batch = n.op("Shape", x, start=1, end=2, name="batch")
    folded = n.op("Mul", batch, n.constant([heads]), name="folded")
    qkv = n.op("Unsqueeze", n.reshape(qkv, tokens, -1, 3, heads * depth), n.constant([0]))
    qkv = n.op("Squeeze", n.transpose(qkv, 3, 1, 2, 0, 4), n.constant([3]))
    target = n.op("Concat", n.constant([tokens]), folded, n.constant([depth]), axis=0, name="target")
    parts = []
    for i in range(3):
        part = n.op("Gather", qkv, n.constant(np.array(i)), axis=0, name=f"part{i}")
        parts.append(n.transpose(n.op("Reshape", part, target, name=f"fold{i}"), 1, 0, 2))
    q, k, v = parts
    scores = n.op("Softmax", n.op("MatMul", q, n.transpose(k, 0, 2, 1)), axis=-1)
    mixed = n.transpose(n.op("MatMul", scores, v, name="mix"), 1, 0, 2)
    flat = n.reshape(mixed, -1, heads * depth, channels=heads * depth, name="flat")
    back = n.op("Concat", n.constant([tokens]), batch, n.constant([8]), axis=0, name="back")
    result = checked(n, n.op("Reshape", n.gemm(flat, 8, name="out_proj"), back))
    assert {(group.units, group.width) for group in result.groups} == {(heads, 3 * depth)}


def test_positions_of_batch_and_heads_are_not_heads():
    """Something that picks positions of the joint axis makes it a barrier."""
    n = Net()
    x = n.tokens(8, 5, batch="batch")
    y = n.transpose(n.reshape(n.linear(x, 12, name="q"), 0, 0, 4, 3), 0, 2, 1, 3)
    folded = n.reshape(y, -1, 5, 3, name="fold")
    first = n.op("Slice", folded, n.constant([0]), n.constant([2]), n.constant([0]), name="first")
    mixed = n.op("ReduceSum", n.op("MatMul", first, n.weight((3, 4), "mix")), n.constant([0]), name="sum")
    result = checked(n, mixed)
    assert all(group.units != 4 for group in (*result.groups, *result.partition.alternatives))


def test_a_reshape_that_only_fits_one_sample():
    """(B, C) -> (C, B) is a transposition for one sample and a scramble for two."""
    n = Net()
    x = n.mark(n.input("x", ("batch", 6)), 6)
    y = n.linear(x, 4, name="in")
    turned = n.reshape(y, 4, -1, name="turned")
    result = checked(n, n.op("MatMul", n.weight((3, 4), "out"), turned))
    assert not {"in.weight[1]", "out[1]"} & result.prunable()
    assert result.reason("in.weight[1]") is Reason.DYNAMIC


def test_a_table_of_positions_keeps_its_length():
    """table[:, :tokens]: positions beyond those of this input belong to longer ones."""
    n = Net()
    x = n.linear(n.tokens(8, "tokens"), 6, name="embed")
    table = n.weight((1, 12, 6), "table")
    end = n.op("Shape", x, start=1, end=2, name="end")
    part = n.op("Slice", table, n.constant([0]), end, n.constant([1]), name="part")
    result = checked(n, n.linear(n.add(x, part), 4, name="out"), bindings={"tokens": 5})
    assert "table[2]" in result.prunable()
    assert "table[1]" not in result.prunable()
    assert result.reason("table[1]") is Reason.DYNAMIC


def test_a_table_cropped_by_a_computed_pad():
    n = Net()
    x = n.linear(n.tokens(8, "tokens"), 6, name="embed")
    table = n.weight((1, 12, 6), "table")
    beyond = n.op("Sub", n.op("Shape", x, start=1, end=2, name="tokens"), n.constant([12]), name="beyond")
    pads = n.op("Concat", n.constant([0, 0, 0, 0]), beyond, n.constant([0]), axis=0, name="pads")
    part = n.op("Pad", table, pads, name="part")
    result = checked(n, n.linear(n.add(x, part), 4, name="out"), bindings={"tokens": 5})
    assert "table[2]" in result.prunable() and "table[1]" not in result.prunable()


def test_tokens_are_never_cut():
    n = Net()
    x = n.linear(n.tokens(8, "tokens", batch="batch"), 6, name="embed")
    y = n.linear(n.relu(x), 4, name="out")
    result = checked(n, n.op("ReduceSum", y, n.constant([1])), bindings={"tokens": 5})
    assert "relu_out[2]" in result.prunable()
    assert not {"relu_out[0]", "relu_out[1]"} & result.prunable()


def test_dynamic_images():
    """Heights and widths are symbolic: channels are cut, nothing else."""
    n = Net()
    x = n.mark(n.input("x", (1, 3, "height", "width")), 3)
    x = n.relu(n.conv(x, 8, stride=2, name="stem"))
    shape = n.op("Shape", x, start=2, end=4, name="size")
    area = n.op("ReduceProd", shape, keepdims=1, name="area")
    target = n.op("Concat", n.constant([0, 0]), area, axis=0, name="target")
    tokens = n.transpose(n.op("Reshape", x, target, name="flat"), 0, 2, 1, channels=8)
    pooled = n.mark(n.op("ReduceMean", n.linear(tokens, 6, name="fc1"), axes=[1], keepdims=0), 6)
    result = checked(n, n.linear(pooled, 4, name="fc2"), bindings={"height": 8, "width": 10})
    assert {group.units for group in result.groups} == {8, 6}


def test_images_that_have_to_be_divisible():
    """Halved, doubled and joined again: only even sizes fit, and channels are cut all the same."""
    n = Net()
    x = n.mark(n.input("x", ("batch", 3, "height", "width")), 3)
    skip = n.relu(n.conv(x, 6, name="down1"))
    deep = n.relu(n.conv(skip, 10, stride=2, name="down2"))
    up = n.op("Resize", deep, None, n.constant(np.float32([1, 1, 2, 2])), mode="nearest", name="up")
    y = n.conv(n.concat(skip, n.mark(up, 10)), 8, name="up1")
    result = checked(n, n.conv(y, 2, 1, name="out"), bindings={"height": 8, "width": 8})
    assert [group.units for group in result.groups] == [6, 10, 8]
    assert result.axis_graph.shapes.other


def test_patches_of_images():
    """A table for at least as many patches as there are: images of another size need the rest."""
    n = Net()
    x = n.mark(n.input("x", (1, 3, "height", "width")), 3)
    w = n.weight((6, 3, 4, 4), "patch.weight")
    x = n.op("Conv", x, w, strides=[4, 4], name="patch")
    x = n.transpose(n.reshape(x, 0, 6, -1), 0, 2, 1, channels=6)
    table = n.weight((1, 20, 6), "table")
    count = n.op("Shape", x, start=1, end=2, name="count")
    part = n.op("Slice", table, n.constant([0]), count, n.constant([1]), name="part")
    result = checked(n, n.linear(n.add(x, part), 4, name="out"), bindings={"height": 8, "width": 8})
    assert {"patch.weight[0]", "table[2]"} <= result.prunable()
    assert "table[1]" not in result.prunable()


@pytest.mark.parametrize("fixed", [4, 5])
def test_a_model_that_fits_one_length(fixed):
    """Tokens are symbolic, but the model takes one number of them; its batch is free."""
    n = Net()
    x = n.linear(n.mark(n.input("x", ("batch", "tokens", 8)), 8), 6, name="embed")
    x = n.add(x, n.weight((1, fixed, 6), "table"))
    heads = n.transpose(n.reshape(x, 0, 0, 3, 2), 0, 2, 1, 3)
    folded = n.op("Sigmoid", n.reshape(heads, -1, fixed, 2, name="fold"))
    merged = n.transpose(n.reshape(folded, -1, 3, fixed, 2), 0, 2, 1, 3)
    y = n.linear(n.reshape(merged, 0, 0, -1, channels=6), 4, name="out")
    result = checked(n, y, bindings={"tokens": fixed})
    assert {"embed.weight[1]", "table[2]", "out.weight[0]"} <= result.prunable()
    assert "table[1]" not in result.prunable()
    assert result.axis_graph.shapes.other  # at another batch


def test_extents_that_coincide():
    """As many tokens as channels: positions are told apart by their axis, not by their number."""
    n = Net()
    x = n.linear(n.tokens(6, 6), 6, name="a")
    turned = n.transpose(x, 0, 2, 1, channels=6)
    scores = n.op("MatMul", x, turned, name="gram")
    result = checked(n, n.op("MatMul", scores, n.weight((6, 3), "out")))
    assert "a.weight[1]" in result.prunable()
    assert np.all([group.units == 6 for group in result.groups])
