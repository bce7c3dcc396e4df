"""Attention whose heads cannot go, so that dims of queries and keys do, as exporters write it."""

from __future__ import annotations

import numpy as np

import onnxprune
from tests.structures.attention_nets import DEPTH, HEADS, INNER, TOKENS, WIDTH, Net


def tokens(count=60, seed=0, rank=3):
    """Tokens in a subspace, so that queries and keys have more dims than they need."""
    rng, basis = np.random.default_rng(seed), np.random.default_rng(99).standard_normal((rank, WIDTH)) / 4
    return [{"x": (rng.standard_normal((1, TOKENS, rank)) @ basis).astype(np.float32)} for _ in range(count)]


def same(_, q, k):
    return q, k


def closed(n, x, q, k, v, *others):
    """Heads are averaged, so that they cannot go; dims can."""
    products = n.op("MatMul", q, n.permute(k, 0, 1, 3, 2), name="scores")
    products = n.op("Div", products, n.number(5.0))
    mixed = n.op("MatMul", n.op("Softmax", products, axis=-1), v)
    mean = n.op("ReduceMean", mixed, n.constant([1]), keepdims=0)
    return n.model(n.op("Add", x, n.linear(mean, DEPTH, WIDTH, "proj")), *others)


def separate(change=same):
    n = Net()
    x = n.tokens()
    q, k, v = n.project(x)
    return closed(n, x, *change(n, q, k), v)


def fused():
    """Queries and keys from one projection, taken apart by Split."""
    n = Net()
    x = n.tokens()
    both = n.split(n.linear(x, WIDTH, 2 * INNER, "qk"), INNER, INNER, axis=2)
    q, k = (n.apart(part) for part in both)
    return closed(n, x, n.op("Mul", q, n.number(2.0)), k, n.apart(n.linear(x, WIDTH, INNER, "v")))


def unbound():
    """(B, N, 3, H, D): queries, keys and values share the dims that go."""
    n = Net()
    x = n.tokens()
    y = n.reshape(n.linear(x, WIDTH, 3 * INNER, "qkv"), 0, TOKENS, 3, HEADS, DEPTH)
    q, k, v = (n.pick(n.permute(y, 2, 0, 3, 1, 4), i, 0) for i in range(3))
    return closed(n, x, q, k, v)


def gemm():
    """On flattened tokens, heads on the leading axis of a 3-D product."""
    n = Net()
    x = n.tokens()
    flat = n.reshape(x, -1, WIDTH)
    parts = []
    for name in "qkv":
        y = n.op(
            "Gemm",
            flat,
            n.weight((INNER, WIDTH), f"{name}.weight"),
            n.weight((INNER,), f"{name}.bias"),
            transB=1,
        )
        parts.append(n.permute(n.reshape(y, -1, TOKENS, HEADS, DEPTH), 0, 2, 1, 3))
    q, k, v = parts
    q, k = n.reshape(q, -1, TOKENS, DEPTH), n.reshape(k, -1, TOKENS, DEPTH)
    weights = n.op("Softmax", n.op("MatMul", q, n.permute(k, 0, 2, 1), name="scores"), axis=-1)
    mixed = n.op("MatMul", n.reshape(weights, -1, HEADS, TOKENS, TOKENS), v)
    mean = n.op("ReduceMean", mixed, n.constant([1]), keepdims=0)
    return n.model(n.op("Add", x, n.linear(mean, DEPTH, WIDTH, "proj")))


def shared_keys():
    """One head of keys for all queries."""
    n = Net()
    x = n.tokens()
    q, v = n.project(x, ("q", "v"))
    return closed(n, x, q, n.apart(n.linear(x, WIDTH, DEPTH, "k"), 1), v)


def expanded_keys():
    """Two heads of keys, each for two of queries, by Expand."""
    n = Net()
    x = n.tokens()
    q, v = n.project(x, ("q", "v"))
    k = n.unsqueeze(n.apart(n.linear(x, WIDTH, 2 * DEPTH, "k"), 2), 2)
    k = n.op("Expand", k, n.constant([1, 2, 2, TOKENS, DEPTH]))
    return closed(n, x, q, n.reshape(k, 0, HEADS, TOKENS, DEPTH), v)


def without_bias():
    n = Net()
    x = n.tokens()
    q, k = (n.apart(n.linear(x, WIDTH, INNER, name, bias=False)) for name in "qk")
    return closed(n, x, q, k, n.apart(n.linear(x, WIDTH, INNER, "v")))


def convolved():
    """1x1 convolutions on (B, C, H, W)."""
    n = Net()
    x = n.input("x", ("batch", TOKENS, WIDTH))
    image = n.unsqueeze(n.permute(x, 0, 2, 1), 3)
    parts = []
    for name in "qkv":
        y = n.op(
            "Conv",
            image,
            n.weight((INNER, WIDTH, 1, 1), f"{name}.weight"),
            n.weight((INNER,), f"{name}.bias"),
        )
        parts.append(n.permute(n.reshape(y, 0, HEADS, DEPTH, TOKENS), 0, 1, 3, 2))
    return closed(n, x, *parts)


MODELS = (separate, fused, unbound, gemm, shared_keys, expanded_keys, without_bias, convolved)


def prune(path, out, compensate, **options):
    """Cut the first group alone, which is that of queries and keys."""
    group = next(iter(onnxprune.analyze(path).groups.values()))
    options = {"ratio": 0.34, "round_to": 1, "criterion": "obs", "only": [group.name], **options}
    return onnxprune.prune(path, out, data=tokens(), compensate=compensate, **options)


def repairs_of(done):
    return {layer.name: layer for layer in done.report.repairs}
