"""RotaryEmbedding: pairs of dims of every head are rotated by angles that depend on the position.

Heads pass through. The dims stay: the angles belong to all heads, and mostly to all layers.

Specification: https://onnx.ai/onnx/operators/onnx__RotaryEmbedding.html,
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.RotaryEmbedding
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune.errors import Reason
from onnxprune.graph.axes import Axis
from onnxprune.rules.heads import Heads, kept_heads, queries, tie_equal, tie_heads
from onnxprune.rules.rule import Key, Rule

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxprune.graph.relations import Relations
    from onnxprune.model.shapes import Inferred
    from onnxprune.rules.op import Op
    from onnxprune.rules.refit import Refit


def _heads(op: Op, cache: ir.Value) -> int:
    """Heads on the last axis of (B, S, heads x D); onnxruntime's operator may leave them to the caches."""
    given = op.int("num_heads", 0)
    angles = op.extent(op.axis(cache, -1)) or 0
    return given if given or not angles else (op.extent(Axis(op.input(0), 2)) or 0) // (2 * angles)


def _relate_as(op: Op, relations: Relations, ids: int, caches: tuple[int, int]) -> None:
    x, y = op.input(0), op.output()
    flat = op.rank(x) == 3
    sequence = 1 if flat else 2
    relations.tie(Axis(x, 0), Axis(y, 0))
    if flat:
        count = _heads(op, op.input(caches[0]))
        if count and (op.extent(Axis(x, 2)) or 0) % count == 0:
            relations.tie(Axis(x, 2), Axis(y, 2))
            tie_heads(relations, queries(op, Heads(count, count), Axis(x, 2)))
    else:
        relations.tie(Axis(x, 1), Axis(y, 1))
        relations.pin(Axis(x, 3), Reason.ROTATED)
        relations.pin(Axis(y, 3), Reason.ROTATED)
    placed = [op.input(ids)] if op.has(ids) else [op.input(slot) for slot in caches]
    if op.int("is_packed_batching", 0) or any(op.rank(value) < 2 for value in placed):
        relations.pin(Axis(x, sequence), Reason.ORDERED)  # counted on from one number
        relations.pin(Axis(y, sequence), Reason.ORDERED)
    else:
        relations.tie(Axis(x, sequence), Axis(y, sequence))
        for value in placed:
            tie_equal(op, relations, Axis(x, 0), Axis(value, 0))
            relations.tie(Axis(x, sequence), Axis(value, 1))
    for slot in caches:
        value = op.input(slot)
        relations.pin(op.axis(value, -1), Reason.ROTATED)
        if op.rank(value) == 2:
            relations.pin(Axis(value, 0), Reason.INDEXED)


def _relate(op: Op, relations: Relations) -> None:
    _relate_as(op, relations, ids=3, caches=(1, 2))


def _relate_contrib(op: Op, relations: Relations) -> None:
    _relate_as(op, relations, ids=1, caches=(2, 3))


def _refit(op: Op, refit: Refit) -> None:
    x, count = op.input(0), op.int("num_heads", 0)
    if count:
        axis = Axis(x, 2 if op.rank(x) == 3 else 1)
        refit.set_int("num_heads", kept_heads(refit, axis, count))


def _extents(op: Op) -> list[Inferred]:
    return [(op.dims(op.input(0)), op.input(0).dtype)]


RULES: dict[Key, Rule] = {
    ("", "RotaryEmbedding"): Rule(_relate, _refit),
    ("com.microsoft", "RotaryEmbedding"): Rule(_relate_contrib, _refit, extents=_extents),
}
