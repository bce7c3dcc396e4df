"""Multi-head attention: heads are units however queries, keys and values are projected and taken apart."""

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
    digit,
    rows,
    units_are,
)

FUSED_WHOLE = np.tile(WHOLE, 3)
"""The head of every channel of a fused projection (3, H, D)."""


def checked(model, **options):
    return check_model(model, seeds=(0, 1), **options)


def sizes(result):
    """Units and width of all ways of cutting the attention, those in use first."""
    every = (*result.partition.groups, *result.partition.alternatives)
    return [(group.units, group.width) for group in every if group.name != "fc1"]


# --- separate projections --------------------------------------------------------------------------------


def separate(n, x, **options):
    return n.close(x, n.together(n.attend(*n.project(x))), **options)


@pytest.mark.parametrize("batch", ["batch", 1, 3])
def test_separate(batch):
    n = Net()
    result = checked(separate(n, n.tokens(batch=batch)))
    units_are(result, SEPARATE, FEED_FORWARD)
    assert sizes(result) == [(HEADS, DEPTH), (DEPTH, HEADS), (DEPTH, HEADS)]  # whole; of Q and K; of V


def test_separate_without_declared_shapes():
    n = Net()
    units_are(checked(separate(n, n.tokens(), declare=False)), SEPARATE, FEED_FORWARD)


def test_gemm_on_flattened_tokens():
    """As a tensor library writes Linear on 3 axes: flatten to (B*N, C), Gemm, and back."""
    n = Net()
    x = n.tokens()
    flat = n.reshape(x, -1, WIDTH)
    parts = []
    for name in "qkv":
        w, b = n.weight((INNER, WIDTH), f"{name}.weight"), n.weight((INNER,), f"{name}.bias")
        y = n.op("Gemm", flat, w, b, transB=1, name=name)
        parts.append(n.permute(n.reshape(y, -1, TOKENS, HEADS, DEPTH), 0, 2, 1, 3))
    result = checked(n.close(x, n.together(n.attend(*parts))))
    gemm = {f"{name}.{part}": WHOLE for name in "qkv" for part in ("weight[0]", "bias[0]")}
    units_are(result, {**gemm, "proj.weight[0]": WHOLE}, FEED_FORWARD)


def test_sizes_computed_from_the_input():
    """view(B, N, H, D) with B and N from Shape; the merged width from Mul of two constants."""
    n = Net()
    x = n.tokens()
    shape = n.op("Shape", x)
    lead = [n.unsqueeze(n.pick(shape, axis, 0), 0) for axis in (0, 1)]
    apart = n.op("Concat", *lead, n.constant([HEADS]), n.constant([DEPTH]), axis=0)
    parts = [n.permute(n.op("Reshape", n.linear(x, WIDTH, INNER, name), apart), 0, 2, 1, 3) for name in "qkv"]
    inner = n.op("Mul", n.constant([HEADS]), n.constant([DEPTH]))
    together = n.op("Concat", *lead, inner, axis=0)
    joined = n.op("Reshape", n.permute(n.attend(*parts), 0, 2, 1, 3), together)
    units_are(checked(n.close(x, joined)), SEPARATE, FEED_FORWARD)


def test_heads_counted_by_minus_one():
    """Reshape to (0, 0, -1, D), as decoders are exported; the number of heads is nowhere written down."""
    n = Net()
    x = n.tokens()
    parts = [
        n.permute(n.reshape(n.linear(x, WIDTH, INNER, name), 0, 0, -1, DEPTH), 0, 2, 1, 3) for name in "qkv"
    ]
    joined = n.reshape(n.permute(n.attend(*parts), 0, 2, 1, 3), 0, 0, -1)
    units_are(checked(n.close(x, joined)), SEPARATE, FEED_FORWARD)


def test_symbolic_tokens():
    n = Net()
    x = n.tokens(tokens="tokens")
    parts = [n.apart(n.linear(x, WIDTH, INNER, name), tokens=0) for name in "qkv"]
    model = n.close(x, n.together(n.attend(*parts), tokens=0), bindings={"tokens": TOKENS})
    units_are(checked(model, bindings={"tokens": TOKENS}), SEPARATE, FEED_FORWARD)


def test_query_scaled_and_key_turned_once():
    """q * s, and K by one Transpose to (B, H, D, N)."""
    n = Net()
    x = n.tokens()
    q, k, v = (n.reshape(n.linear(x, WIDTH, INNER, name), 0, TOKENS, HEADS, DEPTH) for name in "qkv")
    q = n.op("Mul", n.permute(q, 0, 2, 1, 3), n.number(0.2))
    weights = n.op("Softmax", n.op("MatMul", q, n.permute(k, 0, 2, 3, 1)), axis=-1)
    mixed = n.op("MatMul", weights, n.permute(v, 0, 2, 1, 3))
    units_are(checked(n.close(x, n.together(mixed))), SEPARATE, FEED_FORWARD)


def test_queries_and_values_of_different_depth():
    """D of queries and keys, E of values: a unit is D rows of Q and K, E rows of V and columns of the rest."""
    n = Net()
    x, deep = n.tokens(), 9
    q, k = n.project(x, ("q", "k"))
    v = n.apart(n.linear(x, WIDTH, HEADS * deep, "v"), depth=deep)
    result = checked(n.close(x, n.together(n.attend(q, k, v), HEADS * deep), HEADS * deep))
    values = digit(HEADS, deep, of=0)
    units_are(result, {**rows("qk"), **rows("v", values), "proj.weight[0]": values}, FEED_FORWARD)


def test_one_head():
    """Nothing is whole heads here: dimensions of Q and K, and those of V."""
    n = Net()
    x = n.tokens()
    q, k, v = (n.linear(x, WIDTH, DEPTH, name) for name in "qkv")
    weights = n.op("Softmax", n.op("MatMul", q, n.permute(k, 0, 2, 1)), axis=-1)
    result = checked(n.close(x, n.op("MatMul", weights, v), DEPTH))
    each = np.arange(DEPTH)
    units_are(result, rows("qk", each), {**rows("v", each), "proj.weight[0]": each}, FEED_FORWARD)


def test_two_layers_do_not_hang_together():
    n = Net()
    x = n.tokens()
    for layer in "ab":
        y = n.together(n.attend(*n.project(x, [f"{layer}.{part}" for part in "qkv"])))
        x = n.op("Add", x, n.linear(y, INNER, WIDTH, f"{layer}.out"))
    result = checked(n.close(x, x, WIDTH))
    layers = [
        {**rows([f"{layer}.{part}" for part in "qkv"]), f"{layer}.out.weight[0]": WHOLE} for layer in "ab"
    ]
    units_are(result, *layers, FEED_FORWARD)


# --- one projection for all three ------------------------------------------------------------------------


def by_split(n, y):
    return [n.apart(part) for part in n.split(y, INNER, INNER, INNER, axis=2)]


def by_slices(n, y):
    return [n.apart(n.cut(y, i * INNER, (i + 1) * INNER, 2)) for i in range(3)]


def by_open_slices(n, y):
    """The last one runs to the end of int64."""
    ends = (INNER, 2 * INNER, 2**63 - 1)
    return [n.apart(n.cut(y, i * INNER, end, 2)) for i, end in enumerate(ends)]


def by_unbind(n, y):
    """reshape(B, N, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0)"""
    y = n.permute(n.reshape(y, 0, TOKENS, 3, HEADS, DEPTH), 2, 0, 3, 1, 4)
    return [n.pick(y, i, 0) for i in range(3)]


def by_unbind_slices(n, y):
    """The same, taken apart by Slice and Squeeze."""
    y = n.permute(n.reshape(y, 0, TOKENS, 3, HEADS, DEPTH), 2, 0, 3, 1, 4)
    return [n.op("Squeeze", n.cut(y, i, i + 1, 0), n.constant([0])) for i in range(3)]


def by_unbind_split(n, y):
    """The same, taken apart by Split and Squeeze."""
    y = n.permute(n.reshape(y, 0, TOKENS, 3, HEADS, DEPTH), 2, 0, 3, 1, 4)
    return [n.op("Squeeze", part, n.constant([0])) for part in n.split(y, 1, 1, 1, axis=0)]


def by_late_gather(n, y):
    """Gather on the third axis, each transposed for itself."""
    y = n.reshape(y, 0, TOKENS, 3, HEADS, DEPTH)
    return [n.permute(n.pick(y, i, 2), 0, 2, 1, 3) for i in range(3)]


def by_head_split(n, y):
    """GPT-NeoX: reshape(B, N, H, 3*D), transpose, Split of the last axis."""
    y = n.permute(n.reshape(y, 0, TOKENS, HEADS, 3 * DEPTH), 0, 2, 1, 3)
    return n.split(y, DEPTH, DEPTH, DEPTH, axis=3)


def by_head_pick(n, y):
    """BLOOM: reshape(B, N, H, 3, D), each part by Gather."""
    y = n.reshape(y, 0, TOKENS, HEADS, 3, DEPTH)
    return [n.permute(n.pick(y, i, 3), 0, 2, 1, 3) for i in range(3)]


def by_last_axis(n, y):
    """reshape(B, N, H, D, 3), each part by Gather."""
    y = n.reshape(y, 0, TOKENS, HEADS, DEPTH, 3)
    return [n.permute(n.pick(y, i, 4), 0, 2, 1, 3) for i in range(3)]


def by_depth_first(n, y):
    """einops 'b n (d k h) -> k b h n d' with k = 3."""
    y = n.permute(n.reshape(y, 0, TOKENS, DEPTH, 3, HEADS), 3, 0, 4, 1, 2)
    return [n.pick(y, i, 0) for i in range(3)]


FUSED = {
    by_split: FUSED_WHOLE,
    by_slices: FUSED_WHOLE,
    by_open_slices: FUSED_WHOLE,
    by_unbind: FUSED_WHOLE,
    by_unbind_slices: FUSED_WHOLE,
    by_unbind_split: FUSED_WHOLE,
    by_late_gather: FUSED_WHOLE,
    by_head_split: digit(HEADS, 3 * DEPTH, of=0),
    by_head_pick: digit(HEADS, 3 * DEPTH, of=0),
    by_last_axis: digit(HEADS, 3 * DEPTH, of=0),
    by_depth_first: digit(DEPTH, 3, HEADS, of=2),
}


@pytest.mark.parametrize("parts", FUSED, ids=lambda parts: parts.__name__)
def test_fused(parts):
    n = Net()
    x = n.tokens()
    result = checked(n.close(x, n.together(n.attend(*parts(n, n.linear(x, WIDTH, 3 * INNER, "qkv"))))))
    units_are(result, {**rows(["qkv"], FUSED[parts]), "proj.weight[0]": WHOLE}, FEED_FORWARD)


def test_fused_keys_and_values():
    """Q for itself, K and V from one projection: reshape(B, N, 2, H, D)."""
    n = Net()
    x = n.tokens()
    (q,) = n.project(x, "q")
    both = n.permute(
        n.reshape(n.linear(x, WIDTH, 2 * INNER, "kv"), 0, TOKENS, 2, HEADS, DEPTH), 2, 0, 3, 1, 4
    )
    result = checked(n.close(x, n.together(n.attend(q, n.pick(both, 0, 0), n.pick(both, 1, 0)))))
    heads = {**rows("q"), **rows(["kv"], np.tile(WHOLE, 2)), "proj.weight[0]": WHOLE}
    units_are(result, heads, FEED_FORWARD)


def test_bias_of_queries_and_values_only():
    """BEiT: the bias is Concat(q_bias, zeros, v_bias)."""
    n = Net()
    x = n.tokens()
    y = n.op("MatMul", x, n.weight((WIDTH, 3 * INNER), "qkv.weight"), name="qkv")
    zeros = n.constant(np.zeros(INNER, np.float32), "k_bias")
    bias = n.op("Concat", n.weight((INNER,), "q_bias"), zeros, n.weight((INNER,), "v_bias"), axis=0)
    y = n.op("Add", bias, y)
    result = checked(n.close(x, n.together(n.attend(*by_unbind(n, y)))))
    fused = {"qkv.weight[1]": FUSED_WHOLE, "concat_out[0]": FUSED_WHOLE}  # constants are folded first
    units_are(result, {**fused, "proj.weight[0]": WHOLE}, FEED_FORWARD)


def test_convolutions():
    """1x1 convolutions on (B, C, H, W), flattened to (B, heads, D, N): attention of a vision backbone."""
    n, side = Net(), 3
    x = n.input("x", ("batch", WIDTH, side, side))
    w, b = n.weight((3 * INNER, WIDTH, 1, 1), "qkv.weight"), n.weight((3 * INNER,), "qkv.bias")
    y = n.reshape(n.op("Conv", x, w, b, name="qkv"), 0, HEADS, 3 * DEPTH, side * side)
    q, k, v = n.split(y, DEPTH, DEPTH, DEPTH, axis=2)
    weights = n.op("Softmax", n.op("MatMul", n.permute(q, 0, 1, 3, 2), k), axis=-1)
    mixed = n.reshape(n.op("MatMul", v, n.permute(weights, 0, 1, 3, 2)), 0, INNER, side, side)
    place = n.weight((INNER, 1, 3, 3), "place.weight")
    again = n.op("Conv", n.reshape(v, 0, INNER, side, side), place, group=INNER, pads=[1] * 4, name="place")
    out = n.op("Conv", n.op("Add", mixed, again), n.weight((WIDTH, INNER, 1, 1), "proj.weight"), name="proj")
    result = checked(n.model(n.op("Add", x, out)))
    fused = dict.fromkeys(("qkv.weight[0]", "qkv.bias[0]"), digit(HEADS, 3 * DEPTH, of=0))
    units_are(result, {**fused, "place.weight[0]": WHOLE, "proj.weight[1]": WHOLE})


# --- products by Einsum ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("perm", "first", "second"),
    [
        ((0, 2, 1, 3), "bhid,bhjd->bhij", "bhij,bhjd->bhid"),
        ((0, 1, 2, 3), "bqhd,bkhd->bhqk", "bhqk,bkhd->bqhd"),
        ((2, 0, 1, 3), "h b i d, h b j d -> h b i j", "h b i j, h b j d -> h b i d"),
    ],
)
def test_einsum(perm, first, second):
    n = Net(opset=17)
    x = n.tokens()
    q, k, v = (
        n.permute(n.reshape(n.linear(x, WIDTH, INNER, name), 0, TOKENS, HEADS, DEPTH), *perm)
        for name in "qkv"
    )
    weights = n.op("Softmax", n.op("Einsum", q, k, equation=first), axis=-1)
    mixed = n.permute(n.op("Einsum", weights, v, equation=second), *np.argsort(perm).tolist())
    result = checked(n.close(x, n.reshape(mixed, 0, TOKENS, INNER)))
    units_are(result, SEPARATE, FEED_FORWARD)


def test_einsum_projections():
    """DenseGeneral of a functional library: weights (C, H, D) and (H, D, C), biases (H, D)."""
    n = Net()
    x = n.tokens()
    parts = []
    for name in "qkv":
        y = n.op("Einsum", x, n.weight((WIDTH, HEADS, DEPTH), f"{name}.weight"), equation="bnc,chd->bnhd")
        parts.append(n.op("Add", y, n.weight((HEADS, DEPTH), f"{name}.bias")))
    q, k, v = parts
    weights = n.op("Softmax", n.op("Einsum", q, k, equation="bqhd,bkhd->bhqk"), axis=-1)
    mixed = n.op("Einsum", weights, v, equation="bhqk,bkhd->bqhd")
    out = n.op("Einsum", mixed, n.weight((HEADS, DEPTH, WIDTH), "out.weight"), equation="bnhd,hdc->bnc")
    result = checked(n.close(x, n.op("Add", x, out), WIDTH))
    heads = np.arange(HEADS)
    each = {f"{name}.{part}": heads for name in "qkv" for part in ("weight[1]", "bias[0]")}
    dims = np.arange(DEPTH)
    asked = {f"{name}.{part}": dims for name in "qk" for part in ("weight[2]", "bias[1]")}
    mixed_dims = {"v.weight[2]": dims, "v.bias[1]": dims, "out.weight[1]": dims}
    units_are(result, {**each, "out.weight[0]": heads}, asked, mixed_dims, FEED_FORWARD)
