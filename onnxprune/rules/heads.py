"""What all attention operators share: axes that are made of heads, masks, queries, and the scale.

A head of the output depends on its own head of Q, K and V alone, so heads can go whole. With fewer K/V heads
than query heads (grouped queries), a K/V head goes together with all its query heads; a single K/V head that
all query heads share stays, and query heads go one by one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxprune.errors import Reason
from onnxprune.graph.axes import Axis, Index
from onnxprune.rules.helpers import arange

if TYPE_CHECKING:
    from onnxprune.graph.relations import Relations
    from onnxprune.rules.op import Op
    from onnxprune.rules.refit import Refit


@dataclass(frozen=True)
class Heads:
    """How many heads there are: `query` heads of Q and of the output, `shared` heads of K and V."""

    query: int
    shared: int

    @property
    def per_unit(self) -> int:
        """Query heads that go together."""
        return 1 if self.shared == 1 else self.query // self.shared

    @property
    def alone(self) -> bool:
        """Whether all query heads share the one K/V head, which therefore stays."""
        return self.shared == 1 and self.query > 1

    def of_queries(self, extent: int) -> Index:
        """Unit of each position of an axis that is made of query heads."""
        return arange(extent) // max(extent // self.query, 1) // self.per_unit

    def of_shared(self, extent: int) -> Index:
        """Unit of each position of an axis that is made of K/V heads; -1 where they stay."""
        if self.alone:
            return np.full(extent, -1, np.int64)
        return arange(extent) // max(extent // self.shared, 1)


@dataclass(frozen=True)
class Part:
    """An axis made of heads, and the unit that each of its positions belongs to; -1: it stays."""

    axis: Axis
    unit: Index


def queries(op: Op, heads: Heads, *axes: Axis) -> list[Part]:
    """Axes that are made of query heads."""
    return [Part(axis, heads.of_queries(op.extent(axis) or 0)) for axis in axes]


def shared(op: Op, heads: Heads, *axes: Axis) -> list[Part]:
    """Axes that are made of K/V heads."""
    return [Part(axis, heads.of_shared(op.extent(axis) or 0)) for axis in axes]


def tie_heads(relations: Relations, parts: list[Part]) -> None:
    """Tie the same units of all parts, all positions of each.

    Positions that belong to no unit are tied to each other, so that no single one can go. An axis made of
    nothing else is pinned.
    """
    hub: Part | None = None
    for part in parts:
        if (part.unit < 0).all():
            relations.pin(part.axis, Reason.INDIVISIBLE)
            continue
        if hub is not None and np.array_equal(part.unit, hub.unit):
            relations.tie(hub.axis, part.axis)
            continue
        _, first, unit = np.unique(part.unit, return_index=True, return_inverse=True)
        if len(first) < len(unit):
            relations.tie(part.axis, part.axis, arange(len(unit)), first[unit])
        first = first[part.unit[first] >= 0]
        if hub is None:
            hub, starts = part, first
        elif len(starts) == len(first):
            relations.tie(hub.axis, part.axis, starts, first)
        else:
            relations.pin(part.axis, Reason.INCOMPATIBLE_BLOCKS)
            relations.pin(hub.axis, Reason.INCOMPATIBLE_BLOCKS)


def relate_one_head(relations: Relations, axes: tuple[Axis, Axis, Axis, Axis], *added: Axis) -> None:
    """Q, K, V and Y of a single head: its dims are all there is on their last axes.

    Parameters
    ----------
    axes
        The last axes of Q, K, V and Y.
    added
        Axes of inputs 3, 4, ... that are added to Q and K before the product.
    """
    q, k, v, y = axes
    relations.contract(q, k)
    for slot, axis in enumerate(added, 3):
        relations.contract(axis, None, slot=slot)
    relations.tie(v, y)


# --- axes that are not made of heads ---------------------------------------------------------------------


def tie_equal(op: Op, relations: Relations, a: Axis, b: Axis) -> None:
    """Tie two axes unless one of them is broadcast; then nothing of it can go."""
    if op.extent(a) == op.extent(b):
        relations.tie(a, b)


def relate_sequences(
    op: Op, relations: Relations, query: Axis, output: Axis, keys: list[Axis], *, ordered: bool
) -> None:
    """Queries come and go one by one unless their order matters; softmax normalises over the keys."""
    if ordered:
        relations.pin(query, Reason.ORDERED)
        relations.pin(output, Reason.ORDERED)
    else:
        relations.tie(query, output)
    for axis in keys:
        relations.pin(axis, Reason.SOFTMAX)


def relate_bias(
    op: Op, relations: Relations, bias: ir.Value, batch: Axis, query: Axis, heads: Heads
) -> list[Part]:
    """Relate a mask or bias of shape (batch, query heads, queries, keys), aligned from the right.

    Returns
    -------
    list of Part
        Its axis of heads, where it has one for each.
    """
    rank = op.rank(bias)
    if rank > 0:
        relations.pin(Axis(bias, rank - 1), Reason.SOFTMAX)
    if rank > 1:
        tie_equal(op, relations, query, Axis(bias, rank - 2))
    if rank > 3:
        tie_equal(op, relations, batch, Axis(bias, 0))
    if rank > 2 and op.extent(Axis(bias, rank - 3)) == heads.query > 1:
        return queries(op, heads, Axis(bias, rank - 3))
    return []


# --- what REFIT needs ------------------------------------------------------------------------------------


def kept_heads(refit: Refit, axis: Axis, heads: int) -> int:
    """How many of `heads` equal runs of an axis keep at least one position."""
    flags = refit.kept.get(axis)
    return heads if flags is None else int(flags.reshape(heads, -1).any(axis=1).sum())


def keep_scale(op: Op, refit: Refit, dims: int, left: int) -> None:
    """Write down the scale 1/sqrt(dims) that an operator implies, where heads keep fewer dims."""
    scale = op.node.attributes.get("scale")
    if left != dims and (scale is None or scale.as_float() == 0.0):
        refit.node.attributes["scale"] = ir.AttrFloat32("scale", 1 / math.sqrt(dims))
