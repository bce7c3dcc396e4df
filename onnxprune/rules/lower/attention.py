"""Attention by its parts: S = scale Q K' + bias, P = softmax(S), Y = P V, with caches of keys and values.

ONNX's own Attention has a VJP; it is spelled out where it keeps a cache, knows lengths of sequences or windows, or
shows its scores. onnxruntime's Attention and MultiHeadAttention always are.

Specification: https://onnx.ai/onnx/operators/onnx__Attention.html,
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.rules.expr import Expr, vector
from onnxprune.rules.op import Op
from onnxprune.rules.rule import Key
from onnxprune.rules.site import Lower, Site
from onnxprune.rules.vjp.elementwise import number

_Outputs = list[Expr | None]
_NOTHING = -1e30
"""What a score is that has no part; finite, because the difference of two infinities is no number."""


@dataclass(frozen=True)
class Attended:
    """What attention makes on the way, each (batch, heads, queries, keys) but for `y`.

    Attributes
    ----------
    scores, capped, biased, weights
        The products, softly capped, with masks, and after softmax.
    y
        (batch, heads, queries, dims of V).
    """

    scores: Expr
    capped: Expr
    biased: Expr
    weights: Expr
    y: Expr


def attend(
    site: Site,
    q: Expr,
    k: Expr,
    v: Expr,
    heads: tuple[int, int],
    scale: float,
    *,
    biases: Sequence[Expr] = (),
    allowed: Sequence[Expr] = (),
    softcap: float = 0.0,
    sink: Expr | None = None,
) -> Attended:
    """Attend.

    Parameters
    ----------
    site
        Where nodes go.
    q, k, v
        (batch, heads, tokens, dims).
    heads
        Of queries, and of keys, which divide them.
    scale
        Of the products.
    biases, allowed
        Added to the scores, and truth values of those that have a part; broadcast to (batch, heads, queries, keys).
    softcap
        Bounds the products by `c tanh(s / c)` where it is not 0.
    sink
        One more score, (1, heads, 1, 1), whose weight falls to nobody.
    """
    count, shared = heads
    keys = k.op("Shape", start=2, end=3)
    scores = (_folded(q, count, shared) * scale) @ k.transpose([0, 1, 3, 2])
    whole = [count, -1] if count != shared else None
    if whole is not None:
        scores = scores.reshape(vector(site.builder, [0, count, -1, keys]))
    capped = softcap * (scores / softcap).op("Tanh") if softcap else scores
    biased = capped
    for bias in biases:
        biased = biased + bias
    for condition in allowed:
        biased = condition.op("Where", biased, _NOTHING)
    if sink is None:
        weights = biased.op("Softmax", axis=-1)
    else:
        one = biased.slice(3, 0, 1) * 0.0 + sink
        weights = site.builder.concat([biased, one], 3).op("Softmax", axis=-1).slice(3, 0, -1)
    for condition in allowed:  # a query without a key reads nothing
        weights = weights.where(condition)
    y = _folded(weights, count, shared) @ v
    if whole is not None:
        y = y.reshape(vector(site.builder, [0, count, -1, v.op("Shape", start=3, end=4)]))
    return Attended(scores, capped, biased, weights, y)


def _folded(x: Expr, count: int, shared: int) -> Expr:
    """Heads that share keys one behind the other, as further rows of one head."""
    if count == shared:
        return x
    width = x.op("Shape", start=3, end=4)
    return x.reshape(vector(x.builder, [0, shared, -1, width]))


def apart(x: Expr, heads: int) -> Expr:
    """(B, S, heads x D) as (B, heads, S, D)."""
    return x.reshape([0, 0, heads, -1]).transpose([0, 2, 1, 3])


def together(y: Expr) -> Expr:
    """(B, heads, S, D) as (B, S, heads x D)."""
    return y.transpose([0, 2, 1, 3]).reshape([0, 0, -1])


def places(site: Site, q: Expr, k: Expr, offset: Expr | None) -> tuple[Expr, Expr]:
    """Positions of queries (..., S, 1) and of keys (T); the queries' begin at `offset`."""
    rows = site.count_up(q.op("Shape", start=2, end=3)).unsqueeze(-1)
    return rows if offset is None else rows + offset, site.count_up(k.op("Shape", start=2, end=3))


# --- ONNX's operator -------------------------------------------------------------------------------------


def _attention(op: Op, site: Site) -> _Outputs | None:
    shown = [
        slot
        for slot, value in enumerate(op.node.outputs)
        if slot and (value.uses() or value.is_graph_output())
    ]
    windows = [op.int(name, -1) for name in ("left_window_size", "right_window_size")]
    if not any(op.has(slot) for slot in (4, 5, 6)) and not shown and max(windows) < 0:
        return None
    flat = site.rank(op.input(0)) == 3
    heads = (op.int("q_num_heads", 1), op.int("kv_num_heads", 1)) if flat else _axes_of_heads(op, site)
    q = apart(site.x(0), heads[0]) if flat else site.x(0)
    k, v = (apart(site.x(slot), heads[1]) if flat else site.x(slot) for slot in (1, 2))
    offset = None
    if op.has(4) and op.has(5):
        offset = site.x(4).op("Shape", start=2, end=3)
        k, v = (site.builder.concat([site.x(slot), new], 2) for slot, new in ((4, k), (5, v)))
    allowed: list[Expr] = []
    if op.has(6):
        known = site.x(6).op("Cast", to=ir.DataType.INT64).unsqueeze(1, 2, 3)
        keys = site.count_up(k.op("Shape", start=2, end=3))
        allowed.append(keys.op("Less", known))
        offset = known - q.op("Shape", start=2, end=3)
    rows, keys = places(site, q, k, offset)
    if op.int("is_causal", 0):
        allowed.append(keys.op("LessOrEqual", rows))
    if windows[0] >= 0:
        allowed.append((rows - keys).op("LessOrEqual", site.builder.constant(np.int64(windows[0]))))
    if windows[1] >= 0:
        allowed.append((keys - rows).op("LessOrEqual", site.builder.constant(np.int64(windows[1]))))
    biases = _given_mask(op, site, k, allowed)
    softcap = number(op, "softcap", 0.0)
    scale = number(op, "scale", 0.0) or 1 / math.sqrt(_width(op, site, 0) // (heads[0] if flat else 1))
    made = attend(site, q, k, v, heads, scale, biases=biases, allowed=allowed, softcap=softcap)
    modes = (made.scores, made.capped, made.biased, made.weights)
    seen = modes[op.int("qk_matmul_output_mode", 0)]
    return [together(made.y) if flat else made.y, k, v, seen]


def _given_mask(op: Op, site: Site, k: Expr, allowed: list[Expr]) -> list[Expr]:
    """The mask that is added; one of truth values joins `allowed`. One that is too short ends in nothing."""
    if not op.has(3):
        return []
    mask, rank = site.x(3), site.rank(op.input(3))
    if op.has(6):
        short = k.op("Shape", start=2, end=3) - mask.op("Shape", start=rank - 1)
        widths = vector(site.builder, [*[0] * (2 * rank - 1), short])
        truth = op.input(3).dtype == ir.DataType.BOOL
        fill = site.builder.constant(np.asarray(False) if truth else np.float32(_NOTHING))
        mask = mask.op("Pad", widths, fill)
    if op.input(3).dtype == ir.DataType.BOOL:
        allowed.append(mask)
        return []
    return [mask]


def _axes_of_heads(op: Op, site: Site) -> tuple[int, int]:
    q, k = site.dims(op.input(0))[1], site.dims(op.input(1))[1]
    if q is None or k is None:
        raise site.refusal("its number of heads is not fixed")
    return q, k


def _width(op: Op, site: Site, slot: int) -> int:
    width = site.dims(op.input(slot))[-1]
    if width is None:
        raise site.refusal("the width of its heads is not fixed")
    return width


# --- onnxruntime's ---------------------------------------------------------------------------------------


def _packed(op: Op, site: Site) -> _Outputs:
    """One weight makes Q, K and V."""
    if op.int("do_rotary", 0) or op.int("past_present_share_buffer", 0):
        raise site.refusal("it rotates, or shares the buffer of its cache")
    heads, columns = op.int("num_heads", 1), _width(op, site, 1)
    widths = op.ints("qkv_hidden_sizes") or [columns // 3] * 3
    made = site.x() @ site.x(1)
    made = made + site.x(2) if op.has(2) else made
    q, k, v = (apart(part, heads) for part in _split(site, made, 2, widths))
    offset = None
    if op.has(4):
        past = [site.x(4).op("Gather", site.builder.constant(np.int64(n)), axis=0) for n in (0, 1)]
        offset = past[0].op("Shape", start=2, end=3)
        k, v = (site.builder.concat([old, new], 2) for old, new in zip(past, (k, v), strict=True))
    biases = _filters(op, site, 3, q, k, offset)
    if op.has(5):
        biases.append(site.x(5))
    scale = number(op, "scale", 0.0) or 1 / math.sqrt(widths[0] // heads)
    y = together(attend(site, q, k, v, (heads, heads), scale, biases=biases).y)
    shown = len(op.node.outputs) > 1
    return [y, site.builder.concat([k.unsqueeze(0), v.unsqueeze(0)], 0) if shown else None]


def _split(site: Site, x: Expr, axis: int, widths: Sequence[int]) -> list[Expr]:
    return site.builder.ops("Split", [x, site.builder.ints(*widths)], len(widths), axis=axis)


def _filters(op: Op, site: Site, slot: int, q: Expr, k: Expr, offset: Expr | None) -> list[Expr]:
    """What is added where a mask, lengths of sequences or the order of tokens rule a key out."""
    low = number(op, "mask_filter_value", -10000.0)
    biases: list[Expr] = []
    if op.has(slot):
        mask, rank, dims = site.x(slot), site.rank(op.input(slot)), op.dims(op.input(slot)) or ()
        keys = site.count_up(k.op("Shape", start=2, end=3))
        zero = site.builder.constant(np.int64(0))
        wide = mask.op("Cast", to=ir.DataType.INT64)
        numbers = _numbers_per_sample(op, slot) if rank == 1 else None
        if numbers in (1, 2):
            parts = [wide] if numbers == 1 else site.builder.ops("Split", [wide], 2, num_outputs=2)
            kept = keys.op("Less", parts[0].unsqueeze(1, 2, 3))
            for start in parts[1:]:
                kept = kept.op("And", keys.op("GreaterOrEqual", start.unsqueeze(1, 2, 3)))
        elif rank in (2, 3):
            if rank == 2 and dims[1] == 1:
                raise site.refusal("its mask of one column is not covered")
            kept = wide.op("Greater", zero).unsqueeze(*((1, 2) if rank == 2 else (1,)))
        else:
            raise site.refusal(f"its mask of rank {rank} is not covered")
        biases.append(kept.op("Where", 0.0, low))
    if op.int("unidirectional", 0):
        rows, keys = places(site, q, k, offset)
        biases.append(keys.op("LessOrEqual", rows).op("Where", 0.0, low))
    return biases


def _numbers_per_sample(op: Op, slot: int) -> int | None:
    """How many numbers a vector has per sample: ends of sequences, or ends and starts. None where sizes differ."""
    found = set()
    for dims in (op.dims, op.dims_elsewhere):
        mask, x = dims(op.input(slot)), dims(op.input(0))
        if mask is not None and x is not None and mask[0] is not None and x[0]:
            found.add(mask[0] / x[0])
    return int(found.pop()) if len(found) == 1 else None


def _multi(op: Op, site: Site) -> _Outputs:
    if op.has(8) or op.has(9):
        raise site.refusal("it shares the buffer of its cache")
    heads = op.int("num_heads", 1)
    q, k, v = _sources(op, site, heads)
    offset = None
    if op.has(6) and op.has(7):
        offset = site.x(6).op("Shape", start=2, end=3)
        k, v = (site.builder.concat([site.x(slot), new], 2) for slot, new in ((6, k), (7, v)))
    biases = _filters(op, site, 4, q, k, offset)
    if op.has(5):
        biases.append(site.x(5))
    rank, width = site.rank(op.input(0)), _width(op, site, 0)
    scale = number(op, "scale", 0.0) or 1 / math.sqrt(width if rank == 5 else width // heads)
    return [together(attend(site, q, k, v, (heads, heads), scale, biases=biases).y), k, v, None]


def _sources(op: Op, site: Site, heads: int) -> tuple[Expr, Expr, Expr]:
    """Q, K and V as (batch, heads, tokens, dims), with their biases."""

    def pieces(slot: int, parts: int) -> list[Expr]:
        """(batch, tokens, heads, parts, dims), part by part."""
        split = site.builder.ops("Split", [site.x(slot)], parts, axis=3, num_outputs=parts)
        return [part.squeeze(3).transpose([0, 2, 1, 3]) for part in split]

    if site.rank(op.input(0)) == 5:
        parts = pieces(0, 3)
    elif site.rank(op.input(1)) == 5:
        parts = [apart(site.x(), heads), *pieces(1, 2)]
    else:
        parts = [apart(site.x(), heads)]
        parts += [site.x(n) if site.rank(op.input(n)) == 4 else apart(site.x(n), heads) for n in (1, 2)]
    if not op.has(3):
        return parts[0], parts[1], parts[2]
    whole = site.dims(op.input(3))[0]
    out = site.dims(op.output())[2]
    if whole is None or out is None or (op.has(1) and site.rank(op.input(1)) == 4):
        raise site.refusal("the lengths of its biases are not known")
    first = (whole - out) // 2
    biases = _split(site, site.x(3), 0, [first, first, out])
    q, k, v = (part + bias.reshape([1, heads, 1, -1]) for part, bias in zip(parts, biases, strict=True))
    return q, k, v


LOWERS: dict[Key, Lower] = {
    ("", "Attention"): _attention,
    ("com.microsoft", "Attention"): _packed,
    ("com.microsoft", "MultiHeadAttention"): _multi,
}
