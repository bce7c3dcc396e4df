"""LSTM, GRU and RNN: counted, but not cut yet: every axis is a barrier.

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
    for value in (*op.node.inputs, *op.outputs):
        for axis in op.axes(value) if value is not None else ():
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
