"""Attention that is more than softmax(q k^T) v: mixed heads, one query, linear, normalised, gated."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.errors import Reason
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

DIMS = digit(HEADS, DEPTH, of=1)
VALUES = {**rows("v", DIMS), "proj.weight[0]": DIMS}
"""The same dimension of every head's values."""


def checked(model, **options):
    return check_model(model, seeds=(0, 1), **options)


# --- heads that see each other ---------------------------------------------------------------------------


def mixed_by_matmul(n, scores, name):
    y = n.linear(n.permute(scores, 0, 2, 3, 1), HEADS, HEADS, name)
    return n.permute(y, 0, 3, 1, 2)


def mixed_by_conv(n, scores, name):
    w, b = n.weight((HEADS, HEADS, 1, 1), f"{name}.weight"), n.weight((HEADS,), f"{name}.bias")
    return n.op("Conv", scores, w, b, kernel_shape=[1, 1], name=name)


@pytest.mark.parametrize(("mix", "rank"), [(mixed_by_matmul, 2), (mixed_by_conv, 4)])
def test_talking_heads(mix, rank):
    """CaiT: layers over the axis of heads before and after softmax part it into three sets of heads."""
    n = Net()
    x = n.tokens()
    q, k, v = n.project(x)
    weights = n.op("Softmax", mix(n, n.scores(q, k), "before"), axis=-1)
    weights = mix(n, weights, "after")
    result = checked(n.close(x, n.together(n.op("MatMul", weights, v))))
    made, read = (1, 0) if rank == 2 else (0, 1)
    units_are(
        result,
        {**rows("qk"), f"before.weight[{read}]": EACH},
        {f"before.weight[{made}]": EACH, "before.bias[0]": EACH, f"after.weight[{read}]": EACH},
        {f"after.weight[{made}]": EACH, "after.bias[0]": EACH, **rows("v"), "proj.weight[0]": WHOLE},
        FEED_FORWARD,
    )


# --- few queries, other keys -----------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["Gather", "Slice"])
def test_class_attention(by):
    """CaiT: the first token alone asks; the others pass."""
    n = Net()
    x = n.tokens()
    first = n.cut(x, 0, 1, 1)
    asking = first if by == "Slice" else n.unsqueeze(n.pick(x, 0, 1), 1)
    asking = n.linear(asking, WIDTH, INNER, "q")
    k, v = n.project(x, ("k", "v"))
    mixed = n.together(n.attend(n.apart(asking, tokens=1), k, v), tokens=1)
    first = n.op("Add", first, n.linear(mixed, INNER, WIDTH, "out"))
    y = n.op("Concat", first, n.cut(x, 1, 2**63 - 1, 1), axis=1)
    out = {**SEPARATE, "out.weight[0]": WHOLE}
    del out["proj.weight[0]"]
    units_are(checked(n.close(x, y, WIDTH)), out, FEED_FORWARD)


def test_cross_attention():
    n, memory = Net(), 9
    x, context = n.tokens(), n.tokens("context", memory, 8)
    (q,) = n.project(x, "q")
    k, v = (n.apart(n.linear(context, 8, INNER, name), tokens=memory) for name in "kv")
    units_are(checked(n.close(x, n.together(n.attend(q, k, v)))), SEPARATE, FEED_FORWARD)


def test_learned_queries():
    """A set of latent queries (1, M, C) asks the tokens; its projection is folded before."""
    n, count = Net(), 3
    x = n.tokens()
    latents = n.weight((1, count, WIDTH), "latents")
    q = n.reshape(n.linear(latents, WIDTH, INNER, "q"), 0, count, HEADS, DEPTH)
    q = n.permute(q, 0, 2, 1, 3, name="queries")
    k, v = n.project(x, ("k", "v"))
    mixed = n.together(n.attend(q, k, v), tokens=count)
    result = checked(n.model(n.linear(mixed, INNER, WIDTH, "proj")))
    units_are(result, {**rows("kv"), "queries_out[1]": EACH, "proj.weight[0]": WHOLE})


@pytest.mark.parametrize("name", ["null", "sink"])
def test_learned_keys(name):
    """A key and a value (H, 1, D) that no token makes; or gpt-oss: one logit (H) that softmax sees, too."""
    n = Net()
    x = n.tokens()
    q, k, v = n.project(x)
    batch = n.unsqueeze(n.pick(n.op("Shape", x), 0, 0), 0)
    if name == "null":
        target = n.op("Concat", batch, n.constant([HEADS, 1, DEPTH]), axis=0)
        extra = [n.op("Expand", n.weight((1, HEADS, 1, DEPTH), f"null_{part}"), target) for part in "kv"]
        k, v = (n.op("Concat", one, y, axis=2) for one, y in zip(extra, (k, v), strict=True))
        mixed, more = n.attend(q, k, v), ("null_k[1]", "null_v[1]")
    else:
        target = n.op("Concat", batch, n.constant([HEADS, TOKENS, 1]), axis=0)
        logit = n.reshape(n.weight((HEADS,), "sink"), 1, -1, 1, 1, name="sinks")
        logit = n.op("Expand", logit, target)
        scores = n.op("Concat", n.scores(q, k), logit, axis=-1)
        scores = n.op("Sub", scores, n.op("ReduceMax", scores, n.constant([-1]), keepdims=1))
        weights = n.cut(n.op("Softmax", scores, axis=-1), 0, -1, 3)
        mixed, more = n.op("MatMul", weights, v), ("sinks_out[1]",)
    result = checked(n.close(x, n.together(mixed)))
    units_are(result, {**SEPARATE, **dict.fromkeys(more, EACH)}, FEED_FORWARD)


# --- linear in the number of tokens ----------------------------------------------------------------------


def soft(n, q, k, v):
    """Softmax of queries over D and of keys over tokens."""
    q, k = n.op("Softmax", q, axis=-1), n.op("Softmax", k, axis=2)
    return n.op("MatMul", q, n.op("MatMul", n.permute(k, 0, 1, 3, 2), v))


def positive(n, q, k, v):
    """relu(q) (relu(k)^T v) over relu(q) (sum of relu(k))"""
    q, k = n.op("Relu", q), n.op("Relu", k)
    summed = n.unsqueeze(n.op("ReduceSum", k, n.constant([2]), keepdims=0), 3)
    mass = n.op("Add", n.op("MatMul", q, summed), n.number(1))
    return n.op("Div", n.op("MatMul", q, n.op("MatMul", n.permute(k, 0, 1, 3, 2), v)), mass)


def padded(n, q, k, v):
    """EfficientViT: a column of ones beside the values gives the denominator."""
    q, k = n.op("Relu", q), n.op("Relu", k)
    v = n.op("Pad", v, n.constant([0, 0, 0, 0, 0, 0, 0, 1]), n.number(1))
    both = n.op("MatMul", q, n.op("MatMul", n.permute(k, 0, 1, 3, 2), v))
    mass = n.op("Add", n.cut(both, -1, 2**63 - 1, 3), n.number(1))
    return n.op("Div", n.cut(both, 0, -1, 3), mass)


def elu(n, q, k, v):
    """elu(x) + 1, products by Einsum."""
    q, k = (n.op("Add", n.op("Elu", part), n.number(1)) for part in (q, k))
    both = n.op("Einsum", k, v, equation="bhnd,bhne->bhde")
    mass = n.op("Einsum", q, n.op("ReduceSum", k, n.constant([2]), keepdims=0), equation="bhnd,bhd->bhn")
    return n.op("Div", n.op("Einsum", q, both, equation="bhnd,bhde->bhne"), n.unsqueeze(mass, 3))


ASKED = rows("qk", DIMS)
"""The same dimension of every head's queries and keys."""


@pytest.mark.parametrize(
    ("form", "others"),
    [(soft, [VALUES]), (positive, [ASKED, VALUES]), (padded, [ASKED, VALUES]), (elu, [ASKED, VALUES])],
)
def test_linear_attention(form, others):
    n = Net()
    x = n.tokens()
    result = checked(n.close(x, n.together(form(n, *n.project(x)))))
    units_are(result, SEPARATE, FEED_FORWARD)
    alternatives_are(result, *others)


def unit_length(n, x):
    """x / max(norm(x), eps) over the last axis, as exporters write it."""
    norm = n.op("Clip", n.op("ReduceL2", x, n.constant([-1]), keepdims=1), n.number(1e-6))
    return n.op("Div", x, n.op("Expand", norm, n.op("Shape", x)))


def test_channel_attention():
    """XCiT: q, k, v of (B, H, D, N), of length 1 over tokens; a temperature per head; softmax over D."""
    n = Net()
    x = n.tokens()
    y = n.reshape(n.linear(x, WIDTH, 3 * INNER, "qkv"), 0, TOKENS, 3, HEADS, DEPTH)
    q, k, v = (n.permute(n.pick(n.permute(y, 2, 0, 3, 1, 4), i, 0), 0, 1, 3, 2) for i in range(3))
    products = n.op("MatMul", unit_length(n, q), n.permute(unit_length(n, k), 0, 1, 3, 2))
    weights = n.op("Softmax", n.op("Mul", products, n.weight((HEADS, 1, 1), "temperature")), axis=-1)
    mixed = n.op("MatMul", weights, v)
    joined = n.reshape(n.permute(mixed, 0, 3, 1, 2), 0, TOKENS, INNER)
    fused = rows(["qkv"], np.tile(WHOLE, 3))
    result = checked(n.close(x, joined))
    units_are(result, {**fused, "temperature[0]": EACH, "proj.weight[0]": WHOLE}, FEED_FORWARD)


# --- normalised, capped, gated ---------------------------------------------------------------------------


def rms(n, x, size, name):
    """x * weight / sqrt(mean(x^2) + eps), node by node."""
    mean = n.op("ReduceMean", n.op("Pow", x, n.number(2)), n.constant([-1]), keepdims=1)
    root = n.op("Sqrt", n.op("Add", mean, n.number(1e-6)))
    return n.op("Mul", n.weight((size,), name, low=0.5), n.op("Div", x, root))


def layer(n, x, size, name):
    scale, shift = n.weight((size,), name, low=0.5), n.weight((size,), f"{name}.shift")
    return n.op("LayerNormalization", x, scale, shift, axis=-1)


@pytest.mark.parametrize("norm", [rms, layer])
@pytest.mark.parametrize("when", ["before", "after"])
def test_normalised_queries_and_keys(norm, when):
    """Over D, before or after heads are turned to the front; the weights (D) stay."""
    n = Net()
    x = n.tokens()
    parts = []
    for name in "qk":
        y = n.reshape(n.linear(x, WIDTH, INNER, name), 0, TOKENS, HEADS, DEPTH)
        if when == "before":
            y = norm(n, y, DEPTH, f"{name}_norm")
        y = n.permute(y, 0, 2, 1, 3)
        parts.append(y if when == "before" else norm(n, y, DEPTH, f"{name}_norm"))
    result = checked(n.close(x, n.together(n.attend(*parts, *n.project(x, "v")))))
    units_are(result, SEPARATE, FEED_FORWARD)
    alternatives_are(result, VALUES)
    assert result.reason("q_norm[0]") in (Reason.REDUCED, Reason.NORMALIZED)


@pytest.mark.parametrize("norm", [rms, layer])
def test_normalised_over_all_heads(norm):
    """OLMo 2: over H * D at once, which no head can leave; dimensions of values are left."""
    n = Net()
    x = n.tokens()
    q, k = (n.apart(norm(n, n.linear(x, WIDTH, INNER, name), INNER, f"{name}_norm")) for name in "qk")
    result = checked(n.close(x, n.together(n.attend(q, k, *n.project(x, "v")))))
    units_are(result, VALUES, FEED_FORWARD)
    assert result.reason("k.weight[1]") is {rms: Reason.REDUCED, layer: Reason.NORMALIZED}[norm]


def test_normalised_output():
    """Each head's result for itself, as in retention; over D, without weights."""
    n = Net()
    x = n.tokens()
    mixed = n.permute(n.attend(*n.project(x)), 0, 2, 1, 3)
    mean = n.op("ReduceMean", n.op("Mul", mixed, mixed), n.constant([-1]), keepdims=1)
    mixed = n.op("Div", mixed, n.op("Sqrt", n.op("Add", mean, n.number(1e-6))))
    result = checked(n.close(x, n.reshape(mixed, 0, TOKENS, INNER)))
    units_are(result, SEPARATE, FEED_FORWARD)


def test_capped_logits():
    """Gemma 2: tanh(scores / cap) * cap"""
    n = Net()
    x = n.tokens()

    def capped(scores):
        return n.op("Mul", n.op("Tanh", n.op("Div", scores, n.number(5))), n.number(5))

    q, k, v = n.project(x)
    units_are(checked(n.close(x, n.together(n.attend(q, k, v, capped)))), SEPARATE, FEED_FORWARD)


@pytest.mark.parametrize("wide", [True, False], ids=["channels", "heads"])
def test_gated_output(wide):
    """A Sigmoid gate for every channel, or one for every head, made from the stream."""
    n = Net()
    x = n.tokens()
    mixed = n.attend(*n.project(x))
    gate = n.op("Sigmoid", n.linear(x, WIDTH, INNER if wide else HEADS, "gate"))
    if wide:
        joined = n.op("Mul", n.together(mixed), gate)
    else:
        joined = n.together(n.op("Mul", mixed, n.unsqueeze(n.permute(gate, 0, 2, 1), 3)))
    units = rows(["gate"], WHOLE if wide else EACH)
    units_are(checked(n.close(x, joined)), {**SEPARATE, **units}, FEED_FORWARD)


def test_difference_of_two_maps():
    """Differential attention: two pairs of queries and keys for each head, one weighed by a parameter."""
    n = Net()
    x = n.tokens()
    maps = []
    for names in (("q1", "k1"), ("q2", "k2")):
        q, k = n.project(x, names)
        maps.append(n.op("Softmax", n.scores(q, k), axis=-1))
    left, right = maps
    weights = n.op("Sub", left, n.op("Mul", n.weight((1,), "lambda"), right))
    (v,) = n.project(x, "v")
    result = checked(n.close(x, n.together(n.op("MatMul", weights, v))))
    heads = {**rows(["q1", "q2", "k1", "k2", "v"]), "proj.weight[0]": WHOLE}
    units_are(result, heads, FEED_FORWARD)


def test_two_halves_of_a_head():
    """The same, queries and keys of (B, N, 2*H, D), maps of (B, H, 2, N, N): a unit is both maps."""
    n = Net()
    x = n.tokens()
    q, k = (n.apart(n.linear(x, WIDTH, 2 * INNER, name), 2 * HEADS) for name in "qk")
    weights = n.reshape(n.op("Softmax", n.scores(q, k), axis=-1), 0, HEADS, 2, TOKENS, TOKENS)
    weights = n.op("Sub", n.pick(weights, 0, 2), n.op("Mul", n.weight((1,), "lambda"), n.pick(weights, 1, 2)))
    (v,) = n.project(x, "v")
    result = checked(n.close(x, n.together(n.op("MatMul", weights, v))))
    both = digit(HEADS, 2 * DEPTH, of=0)
    units_are(result, {**rows("qk", both), **rows("v"), "proj.weight[0]": WHOLE}, FEED_FORWARD)
