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
    for value in (x, *op.outputs):
        for dim in range(2, op.rank(value)):
            relations.pin(Axis(value, dim), Reason.SPATIAL)
    for dim in (0, 1):
        relations.tie(Axis(x, dim), Axis(y, dim))
    for indices in op.outputs[1:]:  # MaxPool's: they count through all channels and samples
        for dim in (0, 1):
            relations.tie(Axis(x, dim), Axis(indices, dim))
            if indices.uses() or indices.is_graph_output():
                relations.pin(Axis(indices, dim), Reason.INDEXED)


RULES: dict[Key, Rule] = table(
    Rule(_pool),
    "MaxPool",
    "AveragePool",
    "LpPool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "GlobalLpPool",
)
