"""Conv and ConvTranspose.

With one group, output channels are the rows of the weight and input channels its columns: the operator sums
over them. With `g` groups the channels fall into `g` blocks with private columns. Where every block has at
least two channels on both sides, each block must keep the same number (a balance constraint, any positions).
Where a block has a single channel on one side (depthwise), blocks live and die whole and `group` shrinks.

Specification: https://onnx.ai/onnx/operators/onnx__Conv.html, https://onnx.ai/onnx/operators/onnx__ConvTranspose.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxprune.errors import Reason
from onnxprune.graph.axes import Axis, Index
from onnxprune.rules.helpers import arange
from onnxprune.rules.rule import Key, Rule, Term, table

if TYPE_CHECKING:
    from onnxprune.graph.relations import Relations
    from onnxprune.rules.op import Op
    from onnxprune.rules.refit import Refit


def _relate(op: Op, relations: Relations) -> None:
    x, w, y = op.input(0), op.input(1), op.output()
    transposed = op.node.op_type == "ConvTranspose"
    relations.tie(Axis(x, 0), Axis(y, 0))
    for value in (x, w, y):
        for dim in range(2, op.rank(value)):
            relations.pin(Axis(value, dim), Reason.SPATIAL)
    incoming, outgoing = Axis(x, 1), Axis(y, 1)
    groups = op.int("group", 1)
    if groups == 1:
        columns, rows = (Axis(w, 0), Axis(w, 1)) if transposed else (Axis(w, 1), Axis(w, 0))
        relations.tie(outgoing, rows)
        relations.contract(incoming, columns)
    elif _whole_blocks(op):
        _tie_blocks(relations, incoming, op.extent(incoming) or 0, outgoing, op.extent(outgoing) or 0, groups)
        relations.tie(incoming if transposed else outgoing, Axis(w, 0))
        relations.pin(Axis(w, 1), Reason.INDIVISIBLE)
    else:
        _divide(op, relations, incoming, outgoing, groups)
    if op.has(2):
        relations.tie(outgoing, Axis(op.input(2), 0))


def _divide(op: Op, relations: Relations, incoming: Axis, outgoing: Axis, groups: int) -> None:
    """Several channels per group on both sides: groups keep equal numbers of any of their channels."""
    w = op.input(1)
    transposed = op.node.op_type == "ConvTranspose"
    columns, inner = Axis(w, 0), Axis(w, 1)
    if transposed:
        relations.contract(incoming, columns)
        relations.balance(incoming, groups)
    else:
        relations.tie(outgoing, columns)
        relations.balance(outgoing, groups)
    if not _divisible(op):  # the columns of all groups go together: they cannot be told apart elsewhere
        relations.pin(inner, Reason.INCOMPATIBLE_BLOCKS)
        relations.pin(outgoing if transposed else incoming, Reason.INCOMPATIBLE_BLOCKS)
        return
    private = relations.divide(inner, groups, rows=0)
    if transposed:
        relations.tie(outgoing, private)
        relations.balance(outgoing, groups)
    else:
        relations.contract(incoming, private)
        relations.balance(incoming, groups)


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


def _tie_blocks(relations: Relations, a: Axis, m: int, b: Axis, n: int, groups: int) -> None:
    """All positions of block i of `a` and of block i of `b` are one unit."""
    per_a, per_b = m // groups, n // groups
    first_b: Index = arange(m) // per_a * per_b
    first_a: Index = arange(n) // per_b * per_a
    relations.tie(a, b, np.concatenate([arange(m), first_a]), np.concatenate([first_b, arange(n)]))


def _refit(op: Op, refit: Refit) -> None:
    if _whole_blocks(op):
        channels = Axis(op.input(0), 1)
        per_block = (op.extent(channels) or 0) // op.int("group", 1)
        refit.set_int("group", refit.extent(channels) // per_block)


def _macs(op: Op) -> list[Term]:
    w = op.input(1)
    image = op.input(0) if op.node.op_type == "ConvTranspose" else op.output()
    dims, kernel = op.dims(image), op.dims(w)
    if dims is None or kernel is None or None in dims or None in kernel:
        return []
    places = np.prod([d or 0 for d in (dims[0], *dims[2:], *kernel[2:])], dtype=float)
    return [Term(float(places), (Axis(w, 0), Axis(w, 1)))]


RULES: dict[Key, Rule] = table(
    Rule(_relate, _refit, _macs, weights=(1,), kinds={2: "bias"}), "Conv", "ConvTranspose"
)
