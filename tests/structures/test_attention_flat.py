"""Batch and heads on one axis: products of three axes, (B*H, N, D). Heads are units all the same."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.testing import check_model
from tests.structures.attention_nets import (
    DEPTH,
    FEED_FORWARD,
    HEADS,
    INNER,
    SEPARATE,
    TOKENS,
    WHOLE,
    WIDTH,
    Net,
    rows,
    units_are,
)


def checked(model, **options):
    return check_model(model, seeds=(0, 1), **options)


def flat_heads(n, y, batch):
    """(B, N, H*D) -> (B*H, N, D)."""
    return n.reshape(n.apart(y), batch * HEADS if batch > 0 else -1, TOKENS, DEPTH)


@pytest.mark.parametrize("batch", [1, 2, "batch"])
def test_batch_and_heads_on_one_axis(batch):
    """BART: products of three axes (B*H, N, D)."""
    n = Net()
    x = n.tokens(batch=batch)
    count = batch if isinstance(batch, int) else -1
    q, k, v = (flat_heads(n, n.linear(x, WIDTH, INNER, name), count) for name in "qkv")
    weights = n.op("Softmax", n.op("MatMul", q, n.permute(k, 0, 2, 1)), axis=-1)
    mixed = n.reshape(n.op("MatMul", weights, v), count, HEADS, TOKENS, DEPTH)
    units_are(checked(n.close(x, n.together(mixed))), SEPARATE, FEED_FORWARD)


def test_batch_and_heads_with_a_mask():
    """Scores go back to (B, H, N, N) for a mask and flat again."""
    n = Net()
    x = n.tokens()
    mask = n.input("mask", ("batch", 1, TOKENS, TOKENS))
    q, k, v = (flat_heads(n, n.linear(x, WIDTH, INNER, name), -1) for name in "qkv")
    scores = n.reshape(n.op("MatMul", q, n.permute(k, 0, 2, 1)), -1, HEADS, TOKENS, TOKENS)
    scores = n.reshape(n.op("Add", scores, mask), -1, TOKENS, TOKENS)
    mixed = n.op("MatMul", n.op("Softmax", scores, axis=-1), v)
    mixed = n.reshape(mixed, -1, HEADS, TOKENS, DEPTH)
    units_are(checked(n.close(x, n.together(mixed))), SEPARATE, FEED_FORWARD)


def test_tokens_first():
    """Multi-head attention of a tensor library: (N, B, C) to (N, B*H, D)."""
    n = Net()
    x = n.input("x", (TOKENS, "batch", WIDTH))
    y = n.linear(x, WIDTH, 3 * INNER, "qkv")
    y = n.unsqueeze(n.reshape(y, TOKENS, -1, 3, INNER), 0)
    y = n.op("Squeeze", n.permute(y, 3, 1, 2, 0, 4), n.constant([3]))
    parts = [n.permute(n.reshape(n.pick(y, i, 0), TOKENS, -1, DEPTH), 1, 0, 2) for i in range(3)]
    q, k, v = parts
    weights = n.op("Softmax", n.op("MatMul", q, n.permute(k, 0, 2, 1)), axis=-1)
    mixed = n.reshape(n.permute(n.op("MatMul", weights, v), 1, 0, 2), TOKENS, -1, INNER)
    result = checked(n.close(x, mixed))
    units_are(result, {**rows(["qkv"], np.tile(WHOLE, 3)), "proj.weight[0]": WHOLE}, FEED_FORWARD)


def test_mask_repeated_for_all_heads():
    """A mask (B, N, N), expanded to (B, H, N, N) and flat."""
    n = Net()
    x = n.tokens()
    mask = n.unsqueeze(n.input("mask", ("batch", TOKENS, TOKENS)), 1)
    mask = n.reshape(n.op("Expand", mask, n.constant([1, HEADS, 1, 1])), -1, TOKENS, TOKENS)
    q, k, v = (flat_heads(n, n.linear(x, WIDTH, INNER, name), -1) for name in "qkv")
    weights = n.op("Softmax", n.op("Add", n.op("MatMul", q, n.permute(k, 0, 2, 1)), mask), axis=-1)
    mixed = n.reshape(n.op("MatMul", weights, v), -1, HEADS, TOKENS, DEPTH)
    units_are(checked(n.close(x, n.together(mixed))), SEPARATE, FEED_FORWARD)


@pytest.mark.parametrize("tokens", ["constant", "computed", "-1"])
def test_size_computed_from_the_batch(tokens):
    """view(B * H, N, D), the first by Mul of Shape and a constant."""
    n = Net()
    x = n.tokens(tokens="tokens" if tokens == "computed" else TOKENS)
    batch, count = (n.pick(n.op("Shape", x), axis, 0) for axis in (0, 1))
    both = n.unsqueeze(n.op("Mul", batch, n.constant(HEADS)), 0)
    batch, count = n.unsqueeze(batch, 0), n.unsqueeze(count, 0)
    wide = {"constant": n.constant([TOKENS]), "computed": count, "-1": n.constant([-1])}[tokens]
    target = n.op("Concat", both, wide, n.constant([DEPTH]), axis=0)
    parts = [n.apart(n.linear(x, WIDTH, INNER, name), tokens=0) for name in "qkv"]
    q, k, v = (n.op("Reshape", part, target) for part in parts)
    mixed = n.op("MatMul", n.op("Softmax", n.op("MatMul", q, n.permute(k, 0, 2, 1)), axis=-1), v)
    back = n.op("Concat", batch, n.constant([HEADS]), count, n.constant([DEPTH]), axis=0)
    bindings = {"tokens": TOKENS} if tokens == "computed" else None
    joined = n.together(n.op("Reshape", mixed, back), tokens=0)
    result = checked(n.close(x, joined, bindings=bindings), bindings=bindings)
    units_are(result, SEPARATE, FEED_FORWARD)
