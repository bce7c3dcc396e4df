"""Masks made at run time, and keys and values of earlier tokens that callers pass in and take out."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import onnxprune
from onnxprune.errors import Reason
from onnxprune.explanation import explain
from onnxprune.testing import check_model
from tests.structures.attention_nets import (
    DEPTH,
    EACH,
    FEED_FORWARD,
    HEADS,
    INNER,
    SEPARATE,
    TOKENS,
    WHOLE,
    WIDTH,
    Net,
    alternatives_are,
    digit,
    rows,
    units_are,
)

LOW = np.finfo(np.float32).min
DIMS = digit(HEADS, DEPTH, of=1)
ASKED, VALUES = rows("qk", DIMS), {**rows("v", DIMS), "proj.weight[0]": DIMS}


def checked(model, **options):
    return check_model(model, seeds=(0, 1), **options)


# --- masks -----------------------------------------------------------------------------------------------


def given(n):
    """Which tokens are real, (B, N)."""
    return n.input("mask", ("batch", TOKENS), ir.DataType.INT64)


def by_subtraction(n, scores):
    """BERT: (1 - mask[:, None, None]) * lowest"""
    mask = n.op("Cast", n.unsqueeze(given(n), 1, 2), to=ir.DataType.FLOAT)
    low = n.op("Mul", n.op("Sub", n.number(1), mask), n.number(LOW))
    return n.op("Add", scores, low)


def by_where(n, scores):
    """expand(mask, (B, 1, N, N)), inverted, where(inverted, lowest, inverted)"""
    mask = n.unsqueeze(given(n), 1, 2)
    batch = n.unsqueeze(n.pick(n.op("Shape", mask), 0, 0), 0)
    target = n.op("Concat", batch, n.constant([1, TOKENS, TOKENS]), axis=0)
    wide = n.op("Cast", n.op("Expand", mask, target), to=ir.DataType.FLOAT)
    other = n.op("Sub", n.number(1), wide)
    low = n.op("Where", n.op("Cast", other, to=ir.DataType.BOOL), n.number(LOW), other)
    return n.op("Add", scores, low)


def by_fill(n, scores):
    """DistilBERT: (mask == 0).view(B, 1, 1, N).expand_as(scores), masked_fill"""
    none = n.reshape(n.op("Equal", given(n), n.constant(0)), -1, 1, 1, TOKENS)
    return n.op("Where", n.op("Expand", none, n.op("Shape", scores)), n.number(LOW), scores)


def by_triangle(n, scores):
    """GPT-2: a triangle (1, 1, 16, 16), sliced to the number of tokens at run time."""
    triangle = n.constant(np.tril(np.ones((1, 1, 16, 16), bool)), "triangle")
    shape = n.op("Shape", scores)
    for dim in (2, 3):
        count = n.op("Slice", shape, n.constant([dim]), n.constant([dim + 1]))
        triangle = n.op("Slice", triangle, n.constant([0]), count, n.constant([dim]))
    return n.op("Where", triangle, scores, n.number(LOW))


def by_places(n, scores):
    """Place of the key <= place of the query, by Range and LessOrEqual."""
    count = n.pick(n.op("Shape", scores), 2, 0)
    place = n.op("Range", n.constant(0), count, n.constant(1))
    seen = n.op("LessOrEqual", n.unsqueeze(place, 0), n.unsqueeze(place, 1))
    return n.op("Where", n.unsqueeze(seen, 0, 1), scores, n.number(LOW))


def by_trilu(n, scores):
    """A full lowest (N, N) by ConstantOfShape, its upper triangle, Expand to (B, 1, N, N), the mask added."""
    shape = n.op("Shape", scores)
    size = n.op("Slice", shape, n.constant([2]), n.constant([4]))
    full = n.op("ConstantOfShape", size, value=ir.tensor(np.array([-1e4], np.float32)))
    batch = n.op("Slice", shape, n.constant([0]), n.constant([1]))
    target = n.op("Concat", batch, n.constant([1]), size, axis=0)
    upper = n.op("Expand", n.unsqueeze(n.op("Trilu", full, n.constant(1), upper=1), 0, 1), target)
    hidden = n.op("Equal", n.unsqueeze(given(n), 1, 2), n.constant(0))
    return n.op("Add", scores, n.op("Where", hidden, n.number(-1e4), upper))


def by_compressed(n, scores):
    """The mask times its transpose, as a bias for each pair."""
    mask = n.op("Cast", given(n), to=ir.DataType.FLOAT)
    pair = n.op("Mul", n.unsqueeze(mask, 1), n.unsqueeze(mask, 2))
    low = n.op("Mul", n.op("Sub", n.number(1), n.unsqueeze(pair, 1)), n.number(-1e4))
    return n.op("Add", scores, low)


def by_repeat(n, scores):
    """The mask spelt out for all heads: Expand to (B, H, N, N)."""
    mask = n.op("Cast", n.unsqueeze(given(n), 1, 2), to=ir.DataType.FLOAT)
    wide = n.op("Expand", mask, n.constant([1, HEADS, TOKENS, 1]))
    return n.op("Add", scores, n.op("Mul", n.op("Sub", n.number(1), wide), n.number(-1e4)))


MASKS = [
    by_subtraction,
    by_where,
    by_fill,
    by_triangle,
    by_places,
    by_trilu,
    by_compressed,
    by_repeat,
]


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: mask.__name__)
def test_masks(mask):
    n = Net()
    x = n.tokens()
    q, k, v = n.project(x)
    model = n.close(x, n.together(n.attend(q, k, v, lambda scores: mask(n, scores))))
    result = checked(model)
    units_are(result, SEPARATE, FEED_FORWARD)
    alternatives_are(result, ASKED, VALUES)


@pytest.mark.parametrize("what", ["bias", "weights", "mean"])
def test_heads_that_callers_see(what):
    """A bias per head as graph input, weights (or their mean over heads) as output: dimensions are left."""
    n = Net()
    x = n.tokens()
    q, k, v = n.project(x)
    scores = n.scores(q, k)
    if what == "bias":
        scores = n.op("Add", scores, n.input("bias", ("batch", HEADS, TOKENS, TOKENS)))
    weights = n.op("Softmax", scores, axis=-1)
    shown = [weights] if what == "weights" else []
    if what == "mean":
        shown = [n.op("ReduceMean", weights, n.constant([1]), keepdims=0)]
    result = checked(n.close(x, n.together(n.op("MatMul", weights, v)), INNER, *shown))
    units_are(result, ASKED, VALUES, FEED_FORWARD)
    expected = {"bias": Reason.GRAPH_INPUT, "weights": Reason.GRAPH_OUTPUT, "mean": Reason.REDUCED}
    assert result.reason("scores_out[1]") is expected[what]


# --- shifted scores --------------------------------------------------------------------------------------


def test_shifted_positions():
    """Transformer-XL, Conformer: biases (H, D), products with 2N-1 positions, shifted by Pad and Reshape."""
    n, span = Net(), 2 * TOKENS - 1
    x = n.tokens()
    q, k, v = (n.reshape(n.linear(x, WIDTH, INNER, name), 0, TOKENS, HEADS, DEPTH) for name in "qkv")
    content, place = (n.op("Add", q, n.weight((HEADS, DEPTH), name)) for name in ("u", "w"))
    content, place, k, v = (n.permute(part, 0, 2, 1, 3) for part in (content, place, k, v))
    positions = n.linear(n.input("positions", (1, span, WIDTH)), WIDTH, INNER, "p", bias=False)
    shifted = n.op("MatMul", place, n.permute(n.reshape(positions, 1, span, HEADS, DEPTH), 0, 2, 3, 1))
    shifted = n.op("Pad", shifted, n.constant([0, 0, 0, 1, 0, 0, 0, 0]))
    shifted = n.cut(n.reshape(shifted, 0, HEADS, span + 1, TOKENS), 1, 2**63 - 1, 2)
    shifted = n.cut(n.reshape(shifted, 0, HEADS, TOKENS, span), 0, TOKENS, 3)
    scores = n.op("Add", n.op("MatMul", content, n.permute(k, 0, 1, 3, 2)), shifted)
    mixed = n.op("MatMul", n.op("Softmax", scores, axis=-1), v)
    heads = {**SEPARATE, "p.weight[1]": WHOLE, "u[0]": EACH, "w[0]": EACH}
    units_are(checked(n.close(x, n.together(mixed))), heads, FEED_FORWARD)


def test_decomposed_positions():
    """Segment anything: batch and heads on one axis, Einsum of queries with tables (h, h, D) and (w, w, D)."""
    n, high, wide = Net(), 3, 2
    x = n.input("x", ("batch", high, wide, WIDTH))
    y = n.reshape(n.linear(x, WIDTH, 3 * INNER, "qkv"), -1, high * wide, 3, HEADS, DEPTH)
    y = n.reshape(n.permute(y, 2, 0, 3, 1, 4), 3, -1, high * wide, DEPTH)
    q, k, v = (n.pick(y, i, 0) for i in range(3))
    square = n.reshape(q, -1, high, wide, DEPTH)
    down = n.op("Einsum", square, n.weight((high, high, DEPTH), "down"), equation="bhwc,hkc->bhwk")
    across = n.op("Einsum", square, n.weight((wide, wide, DEPTH), "across"), equation="bhwc,wkc->bhwk")
    scores = n.reshape(n.op("MatMul", q, n.permute(k, 0, 2, 1)), -1, high, wide, high, wide)
    scores = n.op("Add", n.op("Add", scores, n.unsqueeze(down, 4)), n.unsqueeze(across, 3))
    weights = n.op("Softmax", n.reshape(scores, -1, high * wide, high * wide), axis=-1)
    mixed = n.reshape(n.op("MatMul", weights, v), -1, HEADS, high, wide, DEPTH)
    joined = n.reshape(n.permute(mixed, 0, 2, 3, 1, 4), -1, high, wide, INNER)
    result = checked(n.close(x, joined))
    fused = rows(["qkv"], np.tile(WHOLE, 3))
    units_are(result, {**fused, "proj.weight[0]": WHOLE}, FEED_FORWARD)


# --- keys and values of earlier tokens -------------------------------------------------------------------


def by_gather(n, y, shared):
    return n.op("Gather", y, n.constant(np.repeat(np.arange(shared), HEADS // shared)), axis=1)


def by_expand(n, y, shared):
    wide = n.op("Expand", n.unsqueeze(y, 2), n.constant([1, 1, HEADS // shared, 1, 1]))
    return n.op("Reshape", wide, n.constant([0, HEADS, -1, DEPTH]))


def cached(shared=HEADS, repeat=by_gather):
    """One step of a decoder: past keys and values in, concatenated, all of them out."""
    n = Net()
    x = n.tokens(tokens="new")
    q, k, v = (
        n.apart(n.linear(x, WIDTH, heads * DEPTH, name), heads, tokens=0)
        for name, heads in (("q", HEADS), ("k", shared), ("v", shared))
    )
    shape = ("batch", shared, "past", DEPTH)
    k, v = (
        n.op("Concat", n.input(f"past.{name}", shape), part, axis=2, name=f"present.{name}")
        for name, part in (("key", k), ("value", v))
    )
    presents = k, v
    if shared < HEADS:
        k, v = (repeat(n, part, shared) for part in presents)
    return n.close(x, n.together(n.attend(q, k, v), tokens=0), INNER, *presents, bindings=SIZES)


SIZES = {"new": 2, "past": 3}


def test_cache():
    """Callers rely on all heads; feed-forward layers are cut all the same."""
    result = checked(cached(), bindings=SIZES)
    units_are(result, FEED_FORWARD)
    alternatives_are(result)
    for name in ("k.weight[1]", "v.weight[1]", "q.weight[1]", "proj.weight[0]"):
        assert result.reason(name) in (Reason.GRAPH_INPUT, Reason.GRAPH_OUTPUT)


@pytest.mark.parametrize("shared", [HEADS, 2, 1])
def test_cache_is_explained(shared, tmp_path):
    """`analyze` and `explain` name the cache, not some operator on the way."""
    path = tmp_path / "decoder.onnx"
    ir.save(cached(shared), path)
    analysis = onnxprune.analyze(path, bindings=SIZES)
    held = {
        layer: blocked
        for blocked in analysis.blocked
        for layer in blocked.layers
        if blocked.reason in (Reason.GRAPH_INPUT, Reason.GRAPH_OUTPUT)
    }
    assert {"k", "v"} <= set(held)
    for name in "kv":
        said = str(explain(analysis, f"{name}.weight[1]"))
        assert "blocked, it is an axis of a graph" in said
        assert any(cache in said for cache in ("past.", "present."))
    assert "fc1" not in held


@pytest.mark.parametrize("shared", [2, 1])
def test_queries_of_a_shared_cache(shared):
    """Key heads stay; the same one of every key head's query heads can go where the copies have an axis."""
    result = checked(cached(shared, by_expand), bindings=SIZES)
    each = digit(shared, HEADS // shared, DEPTH, of=1)
    units_are(result, {**rows("q", each), "proj.weight[0]": each}, FEED_FORWARD)


def test_queries_leave_a_cache_of_one_head():
    """Multi-query attention with a cache (B, N, D): the cache has no axis of heads, so they can go."""
    n = Net()
    x = n.tokens(tokens="new")
    (q,) = (n.apart(n.linear(x, WIDTH, INNER, "q"), tokens=0),)
    presents = [
        n.op(
            "Concat",
            n.input(f"past.{name}", ("batch", "past", DEPTH)),
            n.linear(x, WIDTH, DEPTH, name),
            axis=1,
        )
        for name in "kv"
    ]
    k, v = (n.unsqueeze(part, 1) for part in presents)
    model = n.close(x, n.together(n.attend(q, k, v), tokens=0), INNER, *presents, bindings=SIZES)
    result = checked(model, bindings=SIZES)
    units_are(result, {**rows("q"), "proj.weight[0]": WHOLE}, FEED_FORWARD)
