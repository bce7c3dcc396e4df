"""Conv, ConvTranspose and DeformConv.

With one group, output channels are the rows of the weight and input channels its columns: the operator sums
over them. With `g` groups the channels fall into `g` blocks with private columns. Where every block has at
least two channels on both sides, there is a choice: each block keeps the same number (a balance constraint, any
positions), or blocks live and die whole and `group` shrinks. Where a block has a single channel on one side
(depthwise), only the latter is left.

A deformable convolution samples each of its `offset_group` runs of input channels at offsets of their own, so
these runs keep equal numbers, too.

Specification: https://onnx.ai/onnx/operators/onnx__Conv.html,
https://onnx.ai/onnx/operators/onnx__ConvTranspose.html, https://onnx.ai/onnx/operators/onnx__DeformConv.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxprune.errors import Reason
from onnxprune.graph.axes import Axis, Index
from onnxprune.rules.helpers import arange
from onnxprune.rules.pins import pin_dims
from onnxprune.rules.rule import Key, Rule, Term, table

if TYPE_CHECKING:
    from onnxprune.graph.relations import Relations
    from onnxprune.rules.op import Op
    from onnxprune.rules.refit import Refit


_WITHIN, _WHOLE = range(2)
"""The choices of a grouped convolution: channels within every group, or whole groups."""


def _relate(op: Op, relations: Relations) -> None:
    x, w, y = op.input(0), op.input(1), op.output()
    transposed = op.node.op_type == "ConvTranspose"
    relations.tie(Axis(x, 0), Axis(y, 0))
    for dim in range(2, op.rank(x)):
        if _pointwise(op, dim):
            relations.tie(Axis(x, dim), Axis(y, dim))
        else:
            relations.pin(Axis(x, dim), Reason.SPATIAL)
            relations.pin(Axis(y, dim), Reason.SPATIAL)
        relations.pin(Axis(w, dim), Reason.SPATIAL)
    incoming, outgoing = Axis(x, 1), Axis(y, 1)
    groups = op.int("group", 1)
    if groups == 1:
        columns, rows = (Axis(w, 0), Axis(w, 1)) if transposed else (Axis(w, 1), Axis(w, 0))
        relations.tie(outgoing, rows)
        relations.contract(incoming, columns)
    elif _whole_blocks(op):
        m, n = op.extent(incoming) or 0, op.extent(outgoing) or 0
        relations.tie(incoming, outgoing, *_block_pairs(m, n, groups))
        relations.tie(incoming if transposed else outgoing, Axis(w, 0))
        relations.pin(Axis(w, 1), Reason.INDIVISIBLE)
    else:
        _divide(op, relations, incoming, outgoing, groups)
    bias = 3 if op.node.op_type == "DeformConv" else 2
    if op.has(bias):
        relations.tie(outgoing, Axis(op.input(bias), 0))


def _pointwise(op: Op, dim: int) -> bool:
    """Whether the window has one position along a spatial axis and every position has one window."""
    if op.node.op_type == "DeformConv":
        return False
    spatial = op.rank(op.input(0)) - 2
    strides, pads = op.ints("strides") or [1] * spatial, op.ints("pads") or [0] * 2 * spatial
    more = op.ints("output_padding") or [0] * spatial
    sides = (pads[dim - 2], pads[dim - 2 + spatial], more[dim - 2])
    return op.extent(Axis(op.input(1), dim)) == 1 and strides[dim - 2] == 1 and not any(sides)


def _relate_deformable(op: Op, relations: Relations) -> None:
    _relate(op, relations)
    x = op.input(0)
    for slot in (2, 4):  # offsets, and how much each sample counts
        if op.has(slot):
            places = op.input(slot)
            relations.tie(Axis(x, 0), Axis(places, 0))
            relations.pin(Axis(places, 1), Reason.AUXILIARY)
            pin_dims(relations, places, range(2, op.rank(places)), Reason.SPATIAL)
    runs = op.int("offset_group", 1)
    if runs > 1:
        relations.balance(Axis(x, 1), runs)


def _divide(op: Op, relations: Relations, incoming: Axis, outgoing: Axis, groups: int) -> None:
    """Several channels per group on both sides: equal numbers of any channels of each group, or whole groups."""
    w = op.input(1)
    transposed = op.node.op_type == "ConvTranspose"
    columns, inner = Axis(w, 0), Axis(w, 1)
    if transposed:
        relations.contract(incoming, columns)
        relations.balance(incoming, groups, unless=_WHOLE)
    else:
        relations.tie(outgoing, columns)
        relations.balance(outgoing, groups, unless=_WHOLE)
    if not _divisible(op):  # the columns of all groups go together: they cannot be told apart elsewhere
        relations.pin(inner, Reason.INCOMPATIBLE_BLOCKS)
        relations.pin(outgoing if transposed else incoming, Reason.INCOMPATIBLE_BLOCKS)
        return
    private = relations.divide(inner, groups, rows=0)
    if transposed:
        relations.tie(outgoing, private)
        relations.balance(outgoing, groups, unless=_WHOLE)
    else:
        relations.contract(incoming, private)
        relations.balance(incoming, groups, unless=_WHOLE)
    m, n = op.extent(incoming) or 0, op.extent(outgoing) or 0
    relations.choice(incoming, outgoing, arange(0), arange(0), _WITHIN)
    relations.choice(incoming, outgoing, *_block_pairs(m, n, groups), _WHOLE)


def _divisible(op: Op) -> bool:
    """Whether the weight is an initializer that is used like this everywhere."""
    w, groups = op.input(1), op.int("group", 1)
    return w.const_value is not None and all(
        slot == 1
        and user.op_type == op.node.op_type
        and "group" in user.attributes
        and user.attributes["group"].as_int() == groups
        for user, slot in w.uses()
    )


def _whole_blocks(op: Op) -> bool:
    groups = op.int("group", 1)
    channels = (op.extent(Axis(op.input(0), 1)), op.extent(Axis(op.output(), 1)))
    return groups > 1 and any(c is not None and c == groups for c in channels)


def _block_pairs(m: int, n: int, groups: int) -> tuple[Index, Index]:
    """Index arrays that make one unit of block i of an axis of `m` positions and block i of one of `n`."""
    per_a, per_b = m // groups, n // groups
    first_b: Index = arange(m) // per_a * per_b
    first_a: Index = arange(n) // per_b * per_a
    return np.concatenate([arange(m), first_a]), np.concatenate([first_b, arange(n)])


def _refit(op: Op, refit: Refit) -> None:
    channels, groups = Axis(op.input(0), 1), op.int("group", 1)
    if groups > 1 and refit.changed(channels):
        live = refit.kept[channels].reshape(groups, -1).any(axis=1)
        refit.set_int("group", int(live.sum()))


def _macs(op: Op) -> list[Term]:
    w = op.input(1)
    image = op.input(0) if op.node.op_type == "ConvTranspose" else op.output()
    dims, kernel = op.dims(image), op.dims(w)
    if dims is None or kernel is None or None in dims or None in kernel:
        return []
    places = np.prod([d or 0 for d in (dims[0], *dims[2:], *kernel[2:])], dtype=float)
    return [Term(float(places), (Axis(w, 0), Axis(w, 1)))]


RULES: dict[Key, Rule] = {
    **table(Rule(_relate, _refit, _macs, weights=(1,), kinds={2: "bias"}), "Conv", "ConvTranspose"),
    **table(Rule(_relate_deformable, _refit, _macs, weights=(1,), kinds={3: "bias"}), "DeformConv"),
}
