"""If, Loop and Scan: what goes into bodies and comes out of them is tied to what is inside.

A value that a body sees from outside is the same value there, so nothing needs to be said about it. What a Loop
or a Scan carries from iteration to iteration is one tensor in every iteration. Axes along which results of
iterations are stacked, or inputs are taken apart, keep all positions: one per iteration.

Specification: https://onnx.ai/onnx/operators/onnx__If.html and its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxprune.errors import Reason
from onnxprune.graph.axes import Axis
from onnxprune.model.iterate import ScanForm, branches_of, is_scan
from onnxprune.rules.pins import pin_all
from onnxprune.rules.rule import Key, Rule, table

if TYPE_CHECKING:
    from onnxprune.graph.relations import Relations
    from onnxprune.rules.op import Op


def _tie_same(op: Op, relations: Relations, values: Sequence[ir.Value | None]) -> None:
    """One tensor under several names: all their axes are tied, in order."""
    given = [value for value in values if value is not None and (value.name or value.uses())]
    ranks = {op.rank(value) for value in given}
    if len(ranks) > 1 or -1 in ranks:
        reason = Reason.BODY_EXTENTS if len(ranks - {-1}) > 1 else Reason.UNKNOWN_SHAPE
        pin_all(op, relations, given, reason)
        return
    if any(value.type is not None and not isinstance(value.type, ir.TensorType) for value in given):
        pin_all(op, relations, given, Reason.SUBGRAPH)  # the elements of a sequence may differ in shape
        return
    for dim in range(ranks.pop() if ranks else 0):
        _tie_dims(op, relations, [Axis(value, dim) for value in given])


def _tie_dims(op: Op, relations: Relations, axes: Sequence[Axis]) -> None:
    extents = {op.extent(axis) for axis in axes}
    if len(extents) > 1 or None in extents:
        reason = Reason.BODY_EXTENTS if len(extents - {None}) > 1 else Reason.UNKNOWN_SHAPE
        for axis in axes:
            relations.pin(axis, reason)
        return
    for axis in axes[1:]:
        relations.tie(axes[0], axis)


def _tie_slices(op: Op, relations: Relations, whole: ir.Value, part: ir.Value, axis: int) -> None:
    """`part` is one slice of `whole` along `axis`, of which there is one per iteration."""
    rank, inner = op.rank(whole), op.rank(part)
    if rank < 0 or inner != rank - 1 or not -rank <= axis < rank:
        pin_all(op, relations, (whole, part), Reason.UNKNOWN_SHAPE)
        return
    axis %= rank
    relations.pin(Axis(whole, axis), Reason.ITERATIONS)
    for dim in range(inner):
        _tie_dims(op, relations, [Axis(whole, dim if dim < axis else dim + 1), Axis(part, dim)])


def _if(op: Op, relations: Relations) -> None:
    pin_all(op, relations, op.node.inputs, Reason.SUBGRAPH)
    then, otherwise = branches_of(op.node)
    for value, a, b in zip(op.node.outputs, then.outputs, otherwise.outputs, strict=True):
        _tie_same(op, relations, (value, a, b))


def _loop(op: Op, relations: Relations) -> None:
    (body,) = op.bodies
    count = len(body.inputs) - 2
    pin_all(op, relations, (*op.node.inputs[:2], *body.inputs[:2], body.outputs[0]), Reason.SUBGRAPH)
    for n in range(count):
        start = op.node.inputs[2 + n] if 2 + n < len(op.node.inputs) else None
        _tie_same(
            op, relations, (start, body.inputs[2 + n], body.outputs[1 + n], *op.node.outputs[n : n + 1])
        )
    for whole, part in zip(op.node.outputs[count:], body.outputs[1 + count :], strict=False):
        _tie_slices(op, relations, whole, part, 0)


def _scan(op: Op, relations: Relations) -> None:
    node, (body,) = op.node, op.bodies
    if not is_scan(node, op.opset):  # opset 8, with a batch and lengths of sequences
        values = (*node.inputs, *node.outputs, *body.inputs, *body.outputs)
        pin_all(op, relations, values, Reason.SUBGRAPH)
        return
    form = ScanForm.of(node)
    states = form.states
    for n in range(states):
        _tie_same(op, relations, (node.inputs[n], body.inputs[n], body.outputs[n], node.outputs[n]))
    taken = zip(node.inputs[states:], body.inputs[states:], form.input_axes, strict=True)
    for source, part, axis in taken:
        if source is not None:
            _tie_slices(op, relations, source, part, axis)
    stacked = zip(node.outputs[states:], body.outputs[states:], form.output_axes, strict=True)
    for whole, part, axis in stacked:
        _tie_slices(op, relations, whole, part, axis)


RULES: dict[Key, Rule] = {
    **table(Rule(_if, hands_on=True), "If"),
    **table(Rule(_loop, hands_on=True), "Loop"),
    **table(Rule(_scan, hands_on=True), "Scan"),
}
