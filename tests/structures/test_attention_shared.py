"""Query heads that share key and value heads: repeated by every operator that can, or broadcast.

A unit is a key and value head with its query heads. Where a query head alone can go from every key head, that
is listed as an alternative.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.testing import check_model
from tests.structures.attention_nets import (
    DEPTH,
    FEED_FORWARD,
    TOKENS,
    WIDTH,
    Net,
    alternatives_are,
    digit,
    rows,
    units_are,
    ways_are,
)

SHARED, EACH = 3, 2  # key heads, and query heads of each
QUERIES = SHARED * EACH
INNER = QUERIES * DEPTH


def checked(model, **options):
    return check_model(model, seeds=(0, 1), **options)


def heads(query, key):
    """Units of the query's channels, and of the key's and the value's; the projection follows the query."""
    return {**rows("q", query), **rows("kv", key), "proj.weight[0]": query}


def dims(queries, keys, **others):
    """The same dimension of every head: of Q and K, and of V and the projection."""
    q, k = (digit(count, DEPTH, of=1) for count in (queries, keys))
    return {**rows("q", q), **rows("k", k)}, {**rows("v", k), "proj.weight[0]": q}


# --- repeated --------------------------------------------------------------------------------------------


def by_expand(n, y):
    """Llama's repeat_kv: Unsqueeze, Expand, Reshape."""
    wide = n.op("Expand", n.unsqueeze(y, 2), n.constant([1, SHARED, EACH, TOKENS, DEPTH]))
    return n.reshape(wide, 0, QUERIES, TOKENS, DEPTH)


def by_lean_expand(n, y):
    """The same, with 1 for all that stays."""
    wide = n.op("Expand", n.unsqueeze(y, 2), n.constant([1, 1, EACH, 1, 1]))
    return n.reshape(wide, 0, -1, TOKENS, DEPTH)


def by_computed_expand(n, y):
    """As torch traces it: sizes by Shape, -1 replaced by 1 through ConstantOfShape, Mul, Equal and Where."""
    shape = n.op("Shape", y)
    b, h, t, d = (n.unsqueeze(n.pick(shape, axis, 0), 0) for axis in range(4))
    asked = n.op("Concat", b, h, n.constant([EACH]), t, d, axis=0)
    ones = n.op("ConstantOfShape", n.op("Shape", asked), value=ir.tensor(np.array([1])))
    minus = n.op("Equal", asked, n.op("Mul", ones, n.constant(-1)))
    wide = n.op("Expand", n.unsqueeze(y, 2), n.op("Where", minus, ones, asked))
    every = n.op("Mul", h, n.constant([EACH]))
    return n.op("Reshape", wide, n.op("Concat", b, every, t, d, axis=0))


def by_gather(n, y):
    """repeat_interleave: heads 0 0 1 1 2 2."""
    return n.op("Gather", y, n.constant(np.repeat(np.arange(SHARED), EACH)), axis=1)


def by_concat(n, y):
    return n.reshape(n.op("Concat", *[n.unsqueeze(y, 2)] * EACH, axis=2), 0, QUERIES, TOKENS, DEPTH)


def by_tile(n, y):
    wide = n.op("Tile", n.unsqueeze(y, 2), n.constant([1, 1, EACH, 1, 1]))
    return n.reshape(wide, 0, QUERIES, TOKENS, DEPTH)


def by_tile_of_heads(n, y):
    """Heads 0 1 2 0 1 2."""
    return n.op("Tile", y, n.constant([1, EACH, 1, 1]))


def by_concat_of_heads(n, y):
    return n.op("Concat", y, y, axis=1)


KEY = digit(SHARED, DEPTH, of=0)
INTERLEAVED = digit(SHARED, EACH * DEPTH, of=0)
TURNED = digit(EACH, SHARED, DEPTH, of=1)

REPEATS = {
    by_expand: INTERLEAVED,
    by_lean_expand: INTERLEAVED,
    by_computed_expand: INTERLEAVED,
    by_gather: INTERLEAVED,
    by_concat: INTERLEAVED,
    by_tile: INTERLEAVED,
    by_tile_of_heads: TURNED,
    by_concat_of_heads: TURNED,
}


@pytest.mark.parametrize("repeat", REPEATS, ids=lambda repeat: repeat.__name__)
def test_repeated(repeat):
    n = Net()
    x = n.tokens()
    q, k, v = n.project(x, {"q": QUERIES, "k": SHARED, "v": SHARED})
    result = checked(n.close(x, n.together(n.attend(q, repeat(n, k), repeat(n, v)), INNER), INNER))
    units_are(result, heads(REPEATS[repeat], KEY), FEED_FORWARD)


def test_one_query_head_of_every_key_head():
    """Where the copies lie on an axis of their own, the same one of each can go."""
    n = Net()
    x = n.tokens()
    q, k, v = n.project(x, {"q": QUERIES, "k": SHARED, "v": SHARED})
    result = checked(n.close(x, n.together(n.attend(q, by_expand(n, k), by_expand(n, v)), INNER), INNER))
    each = digit(SHARED, EACH, DEPTH, of=1)
    alternatives_are(result, {**rows("q", each), "proj.weight[0]": each}, *dims(QUERIES, SHARED))


def test_fused():
    """One projection of (H + 2 G) * D channels, Split."""
    n = Net()
    x = n.tokens()
    kv = SHARED * DEPTH
    q, k, v = n.split(n.linear(x, WIDTH, INNER + 2 * kv, "qkv"), INNER, kv, kv, axis=2)
    q, k, v = n.apart(q, QUERIES), by_expand(n, n.apart(k, SHARED)), by_expand(n, n.apart(v, SHARED))
    result = checked(n.close(x, n.together(n.attend(q, k, v), INNER), INNER))
    fused = np.concatenate([INTERLEAVED, KEY, KEY])
    units_are(result, {**rows(["qkv"], fused), "proj.weight[0]": INTERLEAVED}, FEED_FORWARD)


def test_five_axes():
    """Queries (B, G, R, N, D); keys and values (B, G, 1, N, D) broadcast by MatMul."""
    n = Net()
    x = n.tokens()
    q = n.reshape(n.linear(x, WIDTH, INNER, "q"), 0, TOKENS, SHARED, EACH, DEPTH)
    k, v = n.project(x, {"k": SHARED, "v": SHARED})
    scores = n.op("MatMul", n.permute(q, 0, 2, 3, 1, 4), n.unsqueeze(n.permute(k, 0, 1, 3, 2), 2))
    mixed = n.op("MatMul", n.op("Softmax", scores, axis=-1), n.unsqueeze(v, 2))
    joined = n.reshape(n.permute(mixed, 0, 3, 1, 2, 4), 0, TOKENS, INNER)
    result = checked(n.close(x, joined, INNER))
    units_are(result, heads(INTERLEAVED, KEY), FEED_FORWARD)
    each = digit(SHARED, EACH, DEPTH, of=1)
    alternatives_are(result, {**rows("q", each), "proj.weight[0]": each}, *dims(QUERIES, SHARED))


def test_grouped_einsum():
    """bgrid,bgjd->bgrij"""
    n = Net()
    x = n.tokens()
    q = n.reshape(n.linear(x, WIDTH, INNER, "q"), 0, TOKENS, SHARED, EACH, DEPTH)
    k, v = (n.reshape(n.linear(x, WIDTH, SHARED * DEPTH, name), 0, TOKENS, SHARED, DEPTH) for name in "kv")
    weights = n.op("Softmax", n.op("Einsum", q, k, equation="bigrd,bjgd->bgrij"), axis=-1)
    mixed = n.op("Einsum", weights, v, equation="bgrij,bjgd->bigrd")
    result = checked(n.close(x, n.reshape(mixed, 0, TOKENS, INNER), INNER))
    units_are(result, heads(INTERLEAVED, KEY), FEED_FORWARD)


# --- one key head for all --------------------------------------------------------------------------------

QUERY = digit(QUERIES, DEPTH, of=0)


def broadcast(n, y):
    return n.unsqueeze(y, 1)


def expanded(n, y):
    return n.op("Expand", n.unsqueeze(y, 1), n.constant([1, QUERIES, 1, 1]))


@pytest.mark.parametrize("share", [broadcast, expanded], ids=lambda share: share.__name__)
def test_multi_query(share):
    """Query heads alone, the key and value head stays for those that are left; or dimensions of all.

    The dimensions are in use, because they reach the weights of keys and values, too.
    """
    n = Net()
    x = n.tokens()
    (q,) = n.project(x, {"q": QUERIES})
    k, v = (share(n, n.linear(x, WIDTH, DEPTH, name)) for name in "kv")
    result = checked(n.close(x, n.together(n.attend(q, k, v), INNER), INNER))
    ways_are(result, {**rows("q", QUERY), "proj.weight[0]": QUERY}, *dims(QUERIES, 1), FEED_FORWARD)


def falcon(n, y, groups, each):
    """(B, N, groups * (each + 2) * D): the queries of a group, its key, its value."""
    y = n.reshape(y, 0, TOKENS, groups, each + 2, DEPTH)
    return n.cut(y, 0, -2, 3), n.cut(y, -2, -1, 3), n.cut(y, -1, 2**63 - 1, 3)


def test_multi_query_fused():
    """Falcon 7B: reshape(B, N, H + 2, D), Slices :-2, -2:-1 and -1:."""
    n = Net()
    x = n.tokens()
    y = n.reshape(n.linear(x, WIDTH, (QUERIES + 2) * DEPTH, "qkv"), 0, TOKENS, QUERIES + 2, DEPTH)
    parts = n.cut(y, 0, -2, 2), n.cut(y, -2, -1, 2), n.cut(y, -1, 2**63 - 1, 2)
    q, k, v = (n.permute(part, 0, 2, 1, 3) for part in parts)
    result = checked(n.close(x, n.together(n.attend(q, k, v), INNER), INNER))
    kept = np.full(2 * DEPTH, -1)
    units_are(result, {**rows(["qkv"], np.concatenate([QUERY, kept])), "proj.weight[0]": QUERY}, FEED_FORWARD)


@pytest.mark.parametrize("spread", ["MatMul", "Expand"])
def test_grouped_fused(spread):
    """Falcon 40B: a group's queries, key and value lie side by side."""
    n = Net()
    x = n.tokens()
    y = n.linear(x, WIDTH, SHARED * (EACH + 2) * DEPTH, "qkv")
    q, k, v = (n.permute(part, 0, 2, 3, 1, 4) for part in falcon(n, y, SHARED, EACH))
    if spread == "Expand":
        target = n.constant([1, SHARED, EACH, TOKENS, DEPTH])
        k, v = (n.op("Expand", part, target) for part in (k, v))
        q, k, v = (n.reshape(part, 0, QUERIES, TOKENS, DEPTH) for part in (q, k, v))
        joined = n.together(n.attend(q, k, v), INNER)
    else:
        scores = n.op("MatMul", q, n.permute(k, 0, 1, 2, 4, 3))
        mixed = n.op("MatMul", n.op("Softmax", scores, axis=-1), v)
        joined = n.reshape(n.permute(mixed, 0, 3, 1, 2, 4), 0, TOKENS, INNER)
    fused = digit(SHARED, (EACH + 2) * DEPTH, of=0)
    result = checked(n.close(x, joined, INNER))
    units_are(result, {**rows(["qkv"], fused), "proj.weight[0]": INTERLEAVED}, FEED_FORWARD)
