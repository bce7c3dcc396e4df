"""Operators that make values of their own: number sequences, windows, identity matrices, random numbers.

What they make depends on how much of it there is, so none of it can be cut. A random operator would draw
other numbers for fewer positions.

Specification: https://onnx.ai/onnx/operators/onnx__Range.html,
https://onnx.ai/onnx/operators/onnx__EyeLike.html, https://onnx.ai/onnx/operators/onnx__HannWindow.html,
https://onnx.ai/onnx/operators/onnx__RandomNormal.html and their neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune.errors import Reason
from onnxprune.rules.pins import pin_all
from onnxprune.rules.rule import Key, Rule, table

if TYPE_CHECKING:
    from onnxprune.graph.relations import Relations
    from onnxprune.rules.op import Op


def _numbers(op: Op, relations: Relations) -> None:
    pin_all(op, relations, (*op.node.inputs, *op.outputs), Reason.AUXILIARY)


def _eye(op: Op, relations: Relations) -> None:
    """The input gives the shape only, but another shape has its ones elsewhere."""
    pin_all(op, relations, (op.input(0), op.output()), Reason.ORDERED)


def _random(op: Op, relations: Relations) -> None:
    pin_all(op, relations, (*op.node.inputs, *op.outputs), Reason.RANDOM)


RULES: dict[Key, Rule] = {
    **table(Rule(_numbers), "Range", "HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix"),
    **table(Rule(_eye), "EyeLike"),
    **table(
        Rule(_random),
        "RandomNormal",
        "RandomUniform",
        "RandomNormalLike",
        "RandomUniformLike",
        "Bernoulli",
        "Multinomial",
    ),
}
