"""Pooling: batch and channels pass through, the window slides over the rest.

Specification: https://onnx.ai/onnx/operators/onnx__MaxPool.html and its neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune.errors import Reason
from onnxprune.graph.axes import Axis
from onnxprune.rules.rule import Key, Rule, table

if TYPE_CHECKING:
    from onnxprune.graph.relations import Relations
    from onnxprune.rules.op import Op


def _pool(op: Op, relations: Relations) -> None:
    x, y = op.input(0), op.output()
    for value in (x, y):
        for dim in range(2, op.rank(value)):
            relations.pin(Axis(value, dim), Reason.SPATIAL)
    relations.tie(Axis(x, 0), Axis(y, 0))
    relations.tie(Axis(x, 1), Axis(y, 1))
    if len(op.node.outputs) > 1 and op.node.outputs[1].name:
        relations.pin(Axis(x, 1), Reason.INDEXED)  # MaxPool's Indices count through all channels


RULES: dict[Key, Rule] = table(
    Rule(_pool),
    "MaxPool",
    "AveragePool",
    "LpPool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "GlobalLpPool",
)
