"""Reductions, softmax and selections along an axis.

A sum (of values, squares or magnitudes) is a contraction: a zeroed position adds nothing. A mean divides by
the number of positions and a maximum may pick a zero, so those pin what they reduce; a mean only as long as
inexact cuts are not allowed.

Specification: https://onnx.ai/onnx/operators/onnx__ReduceSum.html and its neighbours,
https://onnx.ai/onnx/operators/onnx__Softmax.html, https://onnx.ai/onnx/operators/onnx__TopK.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune.errors import Reason
from onnxprune.graph.axes import Axis
from onnxprune.rules.helpers import tie_axes
from onnxprune.rules.op import normalized
from onnxprune.rules.rule import Key, Rule, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxprune.graph.relations import Relations
    from onnxprune.rules.op import Op

SUMS = ("ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2")
OTHERS = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp")


def _reduce(op: Op, relations: Relations) -> None:
    x, y = op.input(0), op.output()
    axes = op.ints("axes", 1)
    rank = op.rank(x)
    if op.has(1) and axes is None:
        return
    if axes is None or not axes:
        if op.int("noop_with_empty_axes", 0):
            tie_axes(op, relations, x, y)
            return
        axes = list(range(rank))
    axes = normalized(axes, rank)
    _pass_through(op, relations, axes, bool(op.int("keepdims", 1)))
    for dim in axes:
        if op.node.op_type in SUMS:
            relations.contract(Axis(x, dim), None)
        elif op.node.op_type == "ReduceMean":
            relations.average(Reason.REDUCED, [(0, dim)])
        else:
            relations.pin(Axis(x, dim), Reason.REDUCED)


def _arg(op: Op, relations: Relations) -> None:
    axis = op.int("axis", 0) % op.rank(op.input(0))
    _pass_through(op, relations, [axis], bool(op.int("keepdims", 1)))
    relations.pin(Axis(op.input(0), axis), Reason.SELECTED)


def _pass_through(op: Op, relations: Relations, axes: list[int], keep: bool) -> None:
    x, y = op.input(0), op.output()
    target = 0
    for dim in range(op.rank(x)):
        if dim in axes:
            target += keep
        else:
            relations.tie(Axis(x, dim), Axis(y, target))
            target += 1


def _top_k(op: Op, relations: Relations) -> None:
    x = op.input(0)
    axis = op.int("axis", -1) % op.rank(x)
    for output in op.node.outputs:
        tie_axes(op, relations, x, output, skip=(axis,))
        relations.pin(Axis(output, axis), Reason.SELECTED)
    relations.pin(Axis(x, axis), Reason.SELECTED)


def _softmax(op: Op, relations: Relations) -> None:
    x, y = op.input(0), op.output()
    rank = op.rank(x)
    first = op.int("axis", -1 if op.opset >= 13 else 1) % rank
    dims = [first] if op.opset >= 13 else list(range(first, rank))  # flattened to two axes before
    tie_axes(op, relations, x, y, skip=tuple(dims))
    for dim in dims:
        relations.pin(Axis(x, dim), Reason.SOFTMAX)
        relations.pin(Axis(y, dim), Reason.SOFTMAX)


def _ordered(default: int, slot: int | None) -> Callable[[Op, Relations], None]:
    def relate(op: Op, relations: Relations) -> None:
        x = op.input(0)
        if slot is None:
            axes: list[int] | None = [op.int("axis", default)]
        else:
            axes = op.ints("axis", slot)
        if axes is None:
            return
        axis = axes[0] % op.rank(x)
        tie_axes(op, relations, x, op.output(), skip=(axis,))
        relations.pin(Axis(x, axis), Reason.ORDERED)
        relations.pin(Axis(op.output(), axis), Reason.ORDERED)

    return relate


RULES: dict[Key, Rule] = {
    **table(Rule(_reduce), *SUMS, *OTHERS),
    **table(Rule(_arg), "ArgMax", "ArgMin"),
    **table(Rule(_top_k), "TopK"),
    **table(Rule(_softmax), "Softmax", "LogSoftmax", "Hardmax"),
    **table(Rule(_ordered(0, 1)), "CumSum"),
}
