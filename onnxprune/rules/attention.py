"""Attention of the standard domain, with Q, K and V of shape (B, heads, S, D) or (B, S, heads x D).

Units are heads (see `onnxprune.rules.heads`) and, where they have an axis of their own, dims of heads. The
operator sums over the dims of Q and K, so these can go as long as the scale stays what it was; the dims of V
are the output's.

Specification: https://onnx.ai/onnx/operators/onnx__Attention.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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
from onnxprune.rules.rule import Key, Rule, Term, table

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxprune.graph.relations import Relations
    from onnxprune.rules.op import Op
    from onnxprune.rules.refit import Refit

_PAST, _PRESENT = (4, 5), (1, 2)


def _heads(op: Op) -> Heads:
    """Heads as the attributes say, or the axes of (B, heads, S, D)."""
    q, k = op.input(0), op.input(1)
    if op.rank(q) == 4:
        return Heads(op.extent(Axis(q, 1)) or 0, op.extent(Axis(k, 1)) or 0)
    return Heads(op.int("q_num_heads", 0), op.int("kv_num_heads", 0))


def _caches(op: Op) -> list[ir.Value]:
    """Past and present keys and values, as far as there are any."""
    past = [op.input(slot) for slot in _PAST if op.has(slot)]
    present = [op.output(slot) for slot in _PRESENT if slot < len(op.node.outputs)]
    return past + [value for value in present if value.name]


def _relate(op: Op, relations: Relations) -> None:
    q, k, v, y = op.input(0), op.input(1), op.input(2), op.output()
    heads = _heads(op)
    if not heads.shared or heads.query % heads.shared:
        return
    flat = op.rank(q) == 3
    batch, sequence = Axis(q, 0), 1 if flat else 2
    ordered = bool(op.int("is_causal", 0))
    relate_sequences(
        *(op, relations, Axis(q, sequence), Axis(y, sequence)),
        [Axis(k, sequence), Axis(v, sequence)],
        ordered=ordered,
    )
    for value in (k, v, y, *_caches(op), *([op.input(6)] if op.has(6) else [])):
        tie_equal(op, relations, batch, Axis(value, 0))
    parts: list[Part] = []
    scores = op.node.outputs[3] if len(op.node.outputs) > 3 and op.node.outputs[3].name else None
    for value in (*([op.input(3)] if op.has(3) else []), *([scores] if scores is not None else [])):
        parts += relate_bias(op, relations, value, batch, Axis(q, sequence), heads)
    parts += shared(op, heads, *(Axis(cache, 1) for cache in _caches(op) if not heads.alone))
    if flat:
        _relate_flat(op, relations, heads, parts)
        return
    parts = queries(op, heads, Axis(q, 1), Axis(y, 1)) + parts
    tie_heads(relations, parts + shared(op, heads, *([] if heads.alone else (Axis(k, 1), Axis(v, 1)))))
    relations.contract(Axis(q, 3), Axis(k, 3))
    relations.tie(Axis(v, 3), Axis(y, 3))
    for slots, source in (((_PAST[0], _PRESENT[0]), k), ((_PAST[1], _PRESENT[1]), v)):
        if op.has(slots[0]):
            relations.tie(Axis(source, 3), Axis(op.input(slots[0]), 3))
        if slots[1] < len(op.node.outputs) and op.node.outputs[slots[1]].name:
            relations.tie(Axis(source, 3), Axis(op.output(slots[1]), 3))


def _relate_flat(op: Op, relations: Relations, heads: Heads, others: list[Part]) -> None:
    """Relate heads and dims on one axis; `others` are further axes of heads."""
    q, k, v, y = (Axis(value, 2) for value in (op.input(0), op.input(1), op.input(2), op.output()))
    if heads.query == 1 and not others:
        relate_one_head(relations, (q, k, v, y))
    else:
        tie_heads(relations, [*queries(op, heads, q, y), *others, *shared(op, heads, k, v)])


def _refit(op: Op, refit: Refit) -> None:
    q, k = op.input(0), op.input(1)
    heads = _heads(op)
    if op.rank(q) == 4:
        left = Heads(refit.extent(Axis(q, 1)), refit.extent(Axis(k, 1)))
        dims, kept = op.extent(Axis(q, 3)) or 0, refit.extent(Axis(q, 3))
    else:
        left = Heads(kept_heads(refit, Axis(q, 2), heads.query), kept_heads(refit, Axis(k, 2), heads.shared))
        dims, kept = (op.extent(Axis(q, 2)) or 0) // heads.query, refit.extent(Axis(q, 2)) // left.query
    for name, count in (("q_num_heads", left.query), ("kv_num_heads", left.shared)):
        if name in op.node.attributes:
            refit.set_int(name, count)
    keep_scale(op, refit, dims, kept)


def _macs(op: Op) -> list[Term]:
    """Every query meets every key in all dims of Q, and every value in all dims of V."""
    k = op.input(1)
    keys = op.extent(Axis(k, 1 if op.rank(k) == 3 else 2)) or 0
    if op.has(_PAST[0]):
        keys += op.extent(Axis(op.input(_PAST[0]), 2)) or 0
    return [Term(float(keys), tuple(op.axes(value))) for value in (op.input(0), op.output())]


RULES: dict[Key, Rule] = table(Rule(_relate, _refit, _macs), "Attention")
