"""onnxruntime's attention operators: Attention, MultiHeadAttention, GroupQueryAttention (com.microsoft).

Units are heads (see `onnxprune.rules.heads`). The packed projection weight of Attention holds the columns of
Q, K and V one after the other. GroupQueryAttention only runs with certain numbers of dims, so these stay.

Specification: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxprune.errors import Reason
from onnxprune.graph.axes import Axis
from onnxprune.rules.heads import (
    Heads,
    Part,
    keep_scale,
    kept_heads,
    queries,
    relate_bias,
    relate_one_head,
    relate_sequences,
    shared,
    tie_equal,
    tie_heads,
)
from onnxprune.rules.helpers import arange
from onnxprune.rules.rule import Key, Rule, Term, table

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxprune.graph.relations import Relations
    from onnxprune.model.shapes import Dims, Inferred
    from onnxprune.rules.op import Op
    from onnxprune.rules.refit import Refit


def _given(op: Op, *slots: int) -> list[ir.Value]:
    return [op.input(slot) for slot in slots if op.has(slot)]


def _made(op: Op, *slots: int) -> list[ir.Value]:
    return [v for slot in slots if slot < len(op.node.outputs) and (v := op.output(slot)).name]


def _same_heads(op: Op) -> Heads:
    count = op.int("num_heads", 0)
    return Heads(count, count)


def _stacked(heads: Heads, axis: Axis, *widths: int) -> Part:
    """An axis that holds the heads of Q, of K and of V one after the other."""
    runs = [heads.of_queries(widths[0]), *(heads.of_shared(width) for width in widths[1:])]
    return Part(axis, np.concatenate(runs))


def _relate_mask(op: Op, relations: Relations, slot: int, batch: Axis) -> None:
    """Relate a mask of keys, or lengths of sequences: rows of the batch, as far as it has any."""
    for mask in _given(op, slot):
        if op.rank(mask) and op.extent(Axis(mask, 0)) == op.extent(batch):
            relations.tie(batch, Axis(mask, 0))
        else:
            relations.pin(batch, Reason.AUXILIARY)
        for dim in range(1, op.rank(mask)):
            relations.pin(Axis(mask, dim), Reason.SOFTMAX)


# --- Attention: one weight for Q, K and V ----------------------------------------------------------------


def _widths(op: Op) -> list[int]:
    """Columns of Q, K and V in the weight."""
    columns = op.extent(Axis(op.input(1), 1)) or 0
    return op.ints("qkv_hidden_sizes") or [columns // 3] * 3


def _packed(op: Op, relations: Relations) -> None:
    x, w, y = op.input(0), op.input(1), op.output()
    heads = _same_heads(op)
    if not heads.query:
        return
    batch = Axis(x, 0)
    relations.contract(Axis(x, 2), Axis(w, 0))
    relations.tie(batch, Axis(y, 0))
    relations.pin(Axis(x, 1), Reason.SOFTMAX)
    relations.pin(Axis(y, 1), Reason.SOFTMAX)
    _relate_mask(op, relations, 3, batch)
    parts = queries(op, heads, Axis(y, 2))
    parts += [_stacked(heads, axis, *_widths(op)) for axis in (Axis(w, 1), *_ends(op, 2))]
    for cache in (*_given(op, 4), *_made(op, 1)):  # (K and V, batch, heads, tokens, dims)
        tie_equal(op, relations, batch, Axis(cache, 1))
        parts += shared(op, heads, Axis(cache, 2))
    for bias in _given(op, 5):
        parts += relate_bias(op, relations, bias, batch, Axis(x, 1), heads)
    tie_heads(relations, parts)


def _ends(op: Op, slot: int) -> list[Axis]:
    return [Axis(value, 0) for value in _given(op, slot)]


def _refit_packed(op: Op, refit: Refit) -> None:
    heads = op.int("num_heads", 0)
    left = kept_heads(refit, Axis(op.output(), 2), heads)
    refit.set_int("num_heads", left)
    if op.ints("qkv_hidden_sizes"):
        refit.set_ints("qkv_hidden_sizes", [width // heads * left for width in _widths(op)])


def _packed_macs(op: Op) -> list[Term]:
    x, w, y = op.input(0), op.input(1), op.output()
    keys = float(op.extent(Axis(x, 1)) or 0)
    for past in _given(op, 4):
        keys += op.extent(Axis(past, 3)) or 0
    width, _, out = _widths(op)
    return [
        Term(1.0, (*op.axes(x), Axis(w, 1))),
        Term(keys * (1 + width / max(out, 1)), tuple(op.axes(y))),
    ]


def _packed_extents(op: Op) -> list[Inferred]:
    x = op.dims(op.input(0)) or (None, None, None)
    heads, out = op.int("num_heads", 1), _widths(op)[2]
    keys = x[1]
    for past in _given(op, 4):
        keys = _plus(keys, (op.dims(past) or (None,) * 5)[3])
    present = (2, x[0], heads, keys, out // heads)
    if op.int("past_present_share_buffer", 0) and op.has(4):
        return [((x[0], x[1], out), op.input(0).dtype), (op.dims(op.input(4)), op.input(0).dtype)]
    return [((x[0], x[1], out), op.input(0).dtype), (present, op.input(0).dtype)]


def _plus(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


# --- MultiHeadAttention ----------------------------------------------------------------------------------


def _multi(op: Op, relations: Relations) -> None:
    q, y = op.input(0), op.output()
    heads, batch = _same_heads(op), Axis(q, 0)
    if not heads.query:
        return
    sources = _given(op, 1, 2)
    caches = [*_given(op, 6, 7), *_made(op, 1, 2)]
    for value in (y, *sources, *caches, *_given(op, 9)):
        tie_equal(op, relations, batch, Axis(value, 0))
    _relate_mask(op, relations, 4, batch)
    rows = [Axis(value, 2 if op.rank(value) == 4 else 1) for value in sources]
    rows += [Axis(q, 1)] if _packed_rows(op) else []
    ordered = bool(op.int("unidirectional", 0)) or op.has(9)
    relate_sequences(op, relations, Axis(q, 1), Axis(y, 1), rows, ordered=ordered)
    parts: list[Part] = []
    for value in (*_given(op, 5), *_made(op, 3)):
        parts += relate_bias(op, relations, value, batch, Axis(q, 1), heads)
    parts += shared(op, heads, *(Axis(cache, 1) for cache in caches))
    if heads.query == 1 and not parts and [op.rank(value) for value in (q, *sources)] == [3, 3, 3]:
        _relate_dims(op, relations)
        return
    made = [Axis(value, 1 if op.rank(value) == 4 else 2) for value in (y, q, *sources)]
    parts += queries(op, heads, *made)
    for bias in _ends(op, 3):
        parts.append(_stacked(heads, bias, *_bias_widths(op)))
    tie_heads(relations, parts)


def _packed_rows(op: Op) -> bool:
    """Whether Q, K and V come as one input of shape (batch, tokens, heads, 3, dims)."""
    return op.rank(op.input(0)) == 5


def _bias_widths(op: Op) -> tuple[int, int, int]:
    """Lengths of the biases of Q, K and V in their one vector."""
    whole, out = (op.extent(axis) or 0 for axis in (Axis(op.input(3), 0), Axis(op.output(), 2)))
    return (whole - out) // 2, (whole - out) // 2, out


def _relate_dims(op: Op, relations: Relations) -> None:
    """Relate the dims of a single head; the bias of Q, K and V is one vector."""
    axes = [Axis(op.input(slot), 2) for slot in range(3)]
    relate_one_head(relations, (axes[0], axes[1], axes[2], Axis(op.output(), 2)), *_ends(op, 3))
    for bias in _ends(op, 3):
        start = 0
        for axis in axes:
            extent = op.extent(axis) or 0
            relations.tie(axis, bias, arange(extent), arange(extent) + start)
            start += extent


def _refit_multi(op: Op, refit: Refit) -> None:
    heads = op.int("num_heads", 0)
    left = kept_heads(refit, Axis(op.output(), 2), heads)
    q = Axis(op.input(0), 2)
    if op.rank(q.value) == 3:
        left = kept_heads(refit, q, heads)
        keep_scale(op, refit, (op.extent(q) or 0) // heads, refit.extent(q) // left)
    refit.set_int("num_heads", left)


def _multi_macs(op: Op) -> list[Term]:
    q, y = op.input(0), op.output()
    keys = float(_keys(op) or 0)
    if _packed_rows(op):
        return [Term(2 * keys, tuple(op.axes(y)))]
    return [Term(keys, tuple(op.axes(q))), Term(keys, tuple(op.axes(y)))]


def _keys(op: Op) -> int | None:
    """Keys that every query meets."""
    source = op.input(1) if op.has(1) else op.input(0)
    keys = op.extent(Axis(source, 2 if op.rank(source) == 4 else 1))
    for past in _given(op, 6):
        if not op.has(8):  # a buffer that past and present share has room for all
            keys = _plus(keys, op.extent(Axis(past, 2)))
    return keys


def _multi_extents(op: Op) -> list[Inferred]:
    dims, heads = op.dims(op.input(0)), op.int("num_heads", 1)
    if dims is None:
        return []
    if _packed_rows(op):
        deep = out = dims[4]
    else:
        deep = None if dims[2] is None else dims[2] // heads
        out = deep
        if op.has(2):
            value = op.dims(op.input(2)) or (None,)
            last = value[-1]
            out = last if len(value) == 4 else None if last is None else last // heads
    keys, dtype = _keys(op), op.input(0).dtype
    if op.has(8):
        return [((dims[0], dims[1], None if out is None else heads * out), dtype)]
    shapes: list[Dims] = [
        (dims[0], dims[1], None if out is None else heads * out),
        (dims[0], heads, keys, deep),
        (dims[0], heads, keys, out),
        (dims[0], heads, dims[1], keys),
    ]
    return [(shape, dtype) for shape in shapes]


# --- GroupQueryAttention ---------------------------------------------------------------------------------


def _groups(op: Op) -> Heads:
    return Heads(op.int("num_heads", 0), op.int("kv_num_heads", 0))


def _grouped(op: Op, relations: Relations) -> None:
    q, y = op.input(0), op.output()
    heads, batch = _groups(op), Axis(q, 0)
    if not heads.shared or heads.query % heads.shared:
        return
    if op.has(12) or op.has(13):  # a quantised cache
        for axis in (axis for value in (q, y, *_given(op, 1, 2)) for axis in op.axes(value)):
            relations.pin(axis, Reason.QUANTIZED)
        return
    sources, caches = _given(op, 1, 2), [*_given(op, 3, 4), *_made(op, 1, 2)]
    for value in (y, *sources, *caches, *_given(op, 5, 9)):
        if op.rank(value):
            tie_equal(op, relations, batch, Axis(value, 0))
    for axis in (Axis(value, 1) for value in (q, y, *sources)):
        relations.pin(axis, Reason.ORDERED if op.int("causal", 1) else Reason.SOFTMAX)
    for value in _given(op, 7, 8):
        relations.pin(Axis(value, 0), Reason.INDEXED)
        relations.pin(Axis(value, 1), Reason.ROTATED)
    for value in _given(op, 14, 15):
        relations.pin(Axis(value, 0), Reason.NORMALIZED)
    parts = queries(op, heads, Axis(y, 2), *_ends(op, 11))
    for value in (*_given(op, 10), *_made(op, 3)):
        parts += relate_bias(op, relations, value, batch, Axis(q, 1), heads)
    if sources:
        parts += queries(op, heads, Axis(q, 2))
        parts += shared(op, heads, *(Axis(value, 2) for value in sources))
    else:
        dims = (op.extent(Axis(q, 2)) or 0) // (heads.query + 2 * heads.shared)
        parts.append(
            _stacked(heads, Axis(q, 2), heads.query * dims, heads.shared * dims, heads.shared * dims)
        )
    if not heads.alone:
        parts += shared(op, heads, *(Axis(cache, 1) for cache in caches))
    tie_heads(relations, parts)


def _refit_grouped(op: Op, refit: Refit) -> None:
    heads = _groups(op)
    left = kept_heads(refit, Axis(op.output(), 2), heads.query)
    refit.set_int("num_heads", left)
    refit.set_int("kv_num_heads", heads.shared if heads.alone else left // heads.per_unit)


def _grouped_macs(op: Op) -> list[Term]:
    return [Term(2.0 * (_total(op) or 0), tuple(op.axes(op.output())))]


def _total(op: Op) -> int | None:
    """Keys that every query meets: as the input says where it is known, else what the present cache holds."""
    given = op.data(6)
    if given is not None and given.size == 1:
        return int(given.ravel()[0])
    keys = op.extent(Axis(op.input(1) if op.has(1) else op.input(0), 1))
    past = [op.extent(Axis(value, 2)) for value in _given(op, 3)]
    return _plus(keys, past[0]) if past else keys


def _grouped_extents(op: Op) -> list[Inferred]:
    dims, heads = op.dims(op.input(0)), _groups(op)
    if dims is None or dims[2] is None:
        return []
    count = heads.query if op.has(1) else heads.query + 2 * heads.shared
    deep, dtype = dims[2] // count, op.input(0).dtype
    total = _total(op)
    held = total
    for past in _given(op, 3):  # a cache that has room for all is written in place
        room = op.extent(Axis(past, 2))
        held = None if room is None or total is None else max(room, total)
    cache: Dims = (dims[0], heads.shared, held, deep)
    shapes: list[Dims] = [
        (dims[0], dims[1], heads.query * deep),
        *(cache, cache),
        (dims[0], heads.query, dims[1], total),
    ]
    return [(shape, dtype) for shape in shapes]


_MICROSOFT = "com.microsoft"
RULES: dict[Key, Rule] = {
    **table(
        Rule(_packed, _refit_packed, _packed_macs, weights=(1,), kinds={2: "bias"}, extents=_packed_extents),
        "Attention",
        domain=_MICROSOFT,
    ),
    **table(
        Rule(_multi, _refit_multi, _multi_macs, kinds={3: "bias"}, extents=_multi_extents),
        "MultiHeadAttention",
        domain=_MICROSOFT,
    ),
    **table(
        Rule(_grouped, _refit_grouped, _grouped_macs, extents=_grouped_extents),
        "GroupQueryAttention",
        domain=_MICROSOFT,
    ),
}
