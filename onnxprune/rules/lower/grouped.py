"""onnxruntime's GroupQueryAttention and RotaryEmbedding (com.microsoft).

Sample `b` has `seqlens_k[b] + 1` keys, of which the last are those of the tokens that came in; the others lie
in the cache, whose tail is padding. The present cache has the keys of the cache first and the new ones behind them.

Specification: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxprune.rules.expr import Expr, vector
from onnxprune.rules.lower.attention import apart, attend, together
from onnxprune.rules.op import Op
from onnxprune.rules.rule import Key
from onnxprune.rules.site import Lower, Site
from onnxprune.rules.vjp.elementwise import number

_Outputs = list[Expr | None]


def _rotated(x: Expr, cos: Expr, sin: Expr, angles: int, width: int, interleaved: bool) -> Expr:
    """Turn pairs of the first `2 x angles` dims.

    Parameters
    ----------
    x
        (..., width).
    cos, sin
        (..., angles), broadcast to the other axes of `x`.
    angles, width
        How many pairs are turned, and dims there are.
    interleaved
        Pairs are neighbours; otherwise halves lie one behind the other.
    """
    concat, turned = x.builder.concat, 2 * angles
    front = x if turned == width else x.slice(-1, 0, turned)
    if interleaved:
        pairs = [front.slice(-1, n, turned, 2) for n in (0, 1)]
    else:
        pairs = [front.slice(-1, n * angles, (n + 1) * angles) for n in (0, 1)]
    made = [pairs[0] * cos - pairs[1] * sin, pairs[1] * cos + pairs[0] * sin]
    if interleaved:
        whole = concat([part.unsqueeze(-1) for part in made], -1)
        shape = concat([pairs[0].op("Shape", end=-1), x.builder.ints(turned)], 0)
        front = whole.reshape(shape)
    else:
        front = concat(made, -1)
    return front if turned == width else concat([front, x.slice(-1, turned, width)], -1)


def _rotary(op: Op, site: Site) -> _Outputs:
    """X is (B, S, heads x D) or (B, heads, S, D); position ids are (B, S), or the one of the first token."""
    if op.int("is_packed_batching", 0):
        raise site.refusal("its batch is packed")
    x, flat = site.x(), site.rank(op.input(0)) == 3
    angles, width = site.dims(op.input(2))[-1], site.dims(op.input(0))[-1]
    if angles is None or width is None:
        raise site.refusal("the width of its heads is not fixed")
    heads = op.int("num_heads", 0)
    if flat:
        heads = heads or width // (2 * angles)
        x, width = apart(x, heads), width // heads
    ids = site.x(1)
    if site.rank(op.input(1)) == 1:
        ids = (ids + site.count_up(x.op("Shape", start=2, end=3))).unsqueeze(0)
    cos, sin = (site.x(slot).op("Gather", ids, axis=0).unsqueeze(1) for slot in (2, 3))
    y = _rotated(x, cos, sin, angles, width, bool(op.int("interleaved", 0)))
    factor = number(op, "scale", 1.0)
    y = y if factor == 1.0 else y * factor
    return [together(y) if flat else y]


def _grouped(op: Op, site: Site) -> _Outputs:
    if any(op.has(slot) for slot in (12, 13, 14, 15)):
        raise site.refusal("its cache is quantised, or it normalises queries and keys")
    heads = op.int("num_heads", 1), op.int("kv_num_heads", 1)
    q, k, v, width = _parts(op, site, heads)
    tokens, total = q.op("Shape", start=2, end=3), site.x(6).op("Cast", to=ir.DataType.INT64).reshape([1])
    known = site.x(5).op("Cast", to=ir.DataType.INT64).reshape([-1, 1, 1, 1]) + site.builder.ints(1)
    first = tokens.op("Equal", total)  # a prompt begins at position 0, however long each is
    past = first.op("Where", site.builder.ints(0), known - tokens)  # (B, 1, 1, 1)
    rows = site.count_up(tokens).unsqueeze(-1) + past  # (B, 1, S, 1)
    if op.int("do_rotary", 0):
        q, k = _turned(op, site, (q, k), rows, width)
    if op.has(3) and op.has(4):
        k, v = _extended(op, site, (k, v), past, known, total)
    keys = site.count_up(k.op("Shape", start=2, end=3))
    allowed = [keys.op("Less", known)]
    if op.int("causal", 1):
        allowed.append(keys.op("LessOrEqual", rows))
    window = op.int("local_window_size", -1)
    if window > 0:
        allowed.append((rows - keys).op("Less", site.builder.constant(np.int64(window))))
    scale = number(op, "scale", 0.0) or 1 / math.sqrt(width)
    made = attend(
        *(site, q, k, v, heads, scale),
        biases=[site.x(10)] if op.has(10) else [],
        allowed=allowed,
        softcap=number(op, "softcap", 0.0),
        sink=_sink(op, site),
    )
    return [together(made.y), k, v, None]


def _sink(op: Op, site: Site) -> Expr | None:
    """A score whose weight falls to no key: one per head, or 0."""
    if op.has(11):
        return site.x(11).reshape([1, -1, 1, 1])
    if op.int("smooth_softmax", 0) > 0:
        return site.builder.constant(np.zeros((1, 1, 1, 1), np.float32))
    return None


def _parts(op: Op, site: Site, heads: tuple[int, int]) -> tuple[Expr, Expr, Expr, int]:
    """Q, K and V as (batch, heads, tokens, dims), and how many dims."""
    columns = site.dims(op.input(0))[-1]
    if columns is None:
        raise site.refusal("the width of its heads is not fixed")
    if op.has(1):
        made = [site.x(slot) for slot in (0, 1, 2)]
        width = columns // heads[0]
    else:
        width = columns // (heads[0] + 2 * heads[1])
        sizes = site.builder.ints(heads[0] * width, heads[1] * width, heads[1] * width)
        made = list(site.builder.ops("Split", [site.x(), sizes], 3, axis=2))
    q, k, v = (apart(part, n) for part, n in zip(made, (heads[0], heads[1], heads[1]), strict=True))
    return q, k, v, width


def _turned(op: Op, site: Site, parts: tuple[Expr, Expr], rows: Expr, width: int) -> list[Expr]:
    angles = site.dims(op.input(7))[-1]
    if angles is None:
        raise site.refusal("the width of its angles is not fixed")
    ids = site.x(9).unsqueeze(1) if op.has(9) else rows.squeeze(-1)  # (B, 1, S)
    cos, sin = (site.x(slot).op("Gather", ids, axis=0) for slot in (7, 8))
    return [_rotated(x, cos, sin, angles, width, bool(op.int("rotary_interleaved", 0))) for x in parts]


def _extended(op: Op, site: Site, new: tuple[Expr, Expr], past: Expr, known: Expr, total: Expr) -> list[Expr]:
    """Keys and values of the cache up to `past`, and the new ones behind them, per sample; then zeros."""
    made = []
    for slot, fresh in zip((3, 4), new, strict=True):
        room = site.x(slot).op("Shape", start=2, end=3)
        whole = site.builder.concat([site.x(slot), fresh], 2)
        length = room.op("Max", total)
        steps = site.count_up(length).unsqueeze(-1)  # (T, 1)
        index = steps.op("Less", past).op("Where", steps, steps - past + room)  # (B, 1, T, 1)
        last = whole.op("Shape", start=2, end=3) - site.builder.ints(1)
        index = index.op("Min", last)
        sizes = [whole.op("Shape", start=0, end=2), length, whole.op("Shape", start=3, end=4)]
        rows = whole.op("GatherElements", index.expand(vector(site.builder, sizes)), axis=2)
        made.append(rows.where(steps.op("Less", known)))
    return made


LOWERS: dict[Key, Lower] = {
    ("com.microsoft", "GroupQueryAttention"): _grouped,
    ("com.microsoft", "RotaryEmbedding"): _rotary,
}
