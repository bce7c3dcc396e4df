"""LSTM, GRU and RNN: what comes in is summed over; hidden units are not cut yet.

Specification: https://onnx.ai/onnx/operators/onnx__LSTM.html and its neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune.errors import Reason
from onnxprune.graph.axes import Axis
from onnxprune.rules.rule import Key, Rule, Term, table

if TYPE_CHECKING:
    from onnxprune.graph.relations import Relations
    from onnxprune.rules.op import Op


def _relate(op: Op, relations: Relations) -> None:
    relations.contract(Axis(op.input(0), 2), Axis(op.input(1), 2))
    for value in (*op.node.inputs, *op.outputs):
        for axis in op.axes(value) if value is not None else ():
            if axis not in ((op.input(0), 2), (op.input(1), 2)):
                relations.pin(axis, Reason.RECURRENT)


def _macs(op: Op) -> list[Term]:
    """Every step multiplies the input by W (directions, gates x hidden, input) and the state by R."""
    dims = op.dims(op.input(0))
    if dims is None or dims[0] is None or dims[1] is None:
        return []
    steps = float(dims[0] * dims[1])
    return [Term(steps, tuple(Axis(op.input(slot), dim) for dim in range(3))) for slot in (1, 2)]


RULES: dict[Key, Rule] = table(
    Rule(_relate, macs=_macs, weights=(1, 2), kinds={3: "bias"}), "LSTM", "GRU", "RNN"
)
