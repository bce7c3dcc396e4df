"""Losses that an exported training graph still has: the class of each position is looked up.

Without a reduction every position has a loss of its own, so positions come and go one by one. With one, they are
averaged or summed.

Specification: https://onnx.ai/onnx/operators/onnx__NegativeLogLikelihoodLoss.html,
https://onnx.ai/onnx/operators/onnx__SoftmaxCrossEntropyLoss.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune.errors import Reason
from onnxprune.graph.axes import Axis
from onnxprune.rules.pins import pin_all, pin_dims
from onnxprune.rules.rule import Key, Rule, table

if TYPE_CHECKING:
    from onnxprune.graph.relations import Relations
    from onnxprune.model.shapes import Inferred
    from onnxprune.rules.op import Op


def _loss(op: Op, relations: Relations) -> None:
    scores, classes = op.input(0), op.input(1)
    found = op.outputs[1:]  # log-probabilities
    softmax = op.node.op_type == "SoftmaxCrossEntropyLoss"
    for value in (scores, *found):
        relations.pin(Axis(value, 1), Reason.SOFTMAX if softmax else Reason.INDEXED)
    if op.has(2):
        relations.pin(Axis(op.input(2), 0), Reason.INDEXED)
    if op.str("reduction", "mean") != "none":
        places = [dim for dim in range(op.rank(scores)) if dim != 1]
        for value in (scores, *found):
            pin_dims(relations, value, places, Reason.REDUCED)
        pin_all(op, relations, (classes,), Reason.REDUCED)
        return
    for dim in range(op.rank(classes)):
        place = Axis(scores, dim + (dim > 0))
        relations.tie(place, Axis(classes, dim))
        relations.tie(place, Axis(op.output(), dim))
        for value in found:
            relations.tie(place, Axis(value, place.dim))


def _extents(op: Op) -> list[Inferred]:
    """Said here, because onnx infers nothing for some versions."""
    scores, classes, dtype = op.dims(op.input(0)), op.dims(op.input(1)), op.input(0).dtype
    if classes is None:
        return []
    loss = classes if op.str("reduction", "mean") == "none" else ()
    return [(loss, dtype), (scores, dtype)]


RULES: dict[Key, Rule] = table(
    Rule(_loss, kinds={2: "scale"}, extents=_extents), "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"
)
