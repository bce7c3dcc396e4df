"""Operators that combine positions of one or two axes in order: transforms, cumulative products, triangles.

Specification: https://onnx.ai/onnx/operators/onnx__DFT.html, https://onnx.ai/onnx/operators/onnx__STFT.html,
https://onnx.ai/onnx/operators/onnx__CumProd.html, https://onnx.ai/onnx/operators/onnx__ReverseSequence.html,
https://onnx.ai/onnx/operators/onnx__Trilu.html, https://onnx.ai/onnx/operators/onnx__Det.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune.errors import Reason
from onnxprune.graph.axes import Axis
from onnxprune.rules.helpers import tie_axes
from onnxprune.rules.pins import pin_all, pin_dims
from onnxprune.rules.rule import Key, Rule, table

if TYPE_CHECKING:
    from onnxprune.graph.relations import Relations
    from onnxprune.rules.op import Op


def _all_but(op: Op, relations: Relations, dims: tuple[int, ...]) -> None:
    """All axes pass through but `dims`, along which positions have an order."""
    x, y = op.input(0), op.output()
    tie_axes(op, relations, x, y, skip=dims)
    for value in (x, y):
        pin_dims(relations, value, dims, Reason.ORDERED)


def _cumulative(op: Op, relations: Relations) -> None:
    axis = op.ints("axis", 1)
    if axis is not None:
        _all_but(op, relations, (axis[0] % op.rank(op.input(0)),))


def _fourier(op: Op, relations: Relations) -> None:
    """The last axis holds the real and the imaginary part."""
    rank = op.rank(op.input(0))
    axis = [op.int("axis", 1)] if op.opset < 20 else op.ints("axis", 2)
    if axis is None and op.opset >= 20 and not op.has(2):
        axis = [-2]
    if axis is not None:
        _all_but(op, relations, (axis[0] % rank, rank - 1))


def _frames(op: Op, relations: Relations) -> None:
    """STFT: (batch, samples, parts) -> (batch, frames, frequencies, parts)."""
    signal, y = op.input(0), op.output()
    relations.tie(Axis(signal, 0), Axis(y, 0))
    for value in (signal, y):
        pin_dims(relations, value, range(1, op.rank(value)), Reason.ORDERED)
    pin_all(op, relations, op.node.inputs[1:], Reason.AUXILIARY)


def _reverse_sequence(op: Op, relations: Relations) -> None:
    x = op.input(0)
    _all_but(op, relations, (op.int("time_axis", 0) % op.rank(x),))
    relations.tie(Axis(op.input(1), 0), Axis(x, op.int("batch_axis", 1) % op.rank(x)))


def _triangle(op: Op, relations: Relations) -> None:
    rank = op.rank(op.input(0))
    _all_but(op, relations, (rank - 2, rank - 1))


def _determinant(op: Op, relations: Relations) -> None:
    x, y = op.input(0), op.output()
    for dim in range(op.rank(y)):
        relations.tie(Axis(x, dim), Axis(y, dim))
    pin_dims(relations, x, range(op.rank(y), op.rank(x)), Reason.REDUCED)


RULES: dict[Key, Rule] = {
    **table(Rule(_cumulative), "CumProd"),
    **table(Rule(_fourier), "DFT"),
    **table(Rule(_frames), "STFT"),
    **table(Rule(_reverse_sequence), "ReverseSequence"),
    **table(Rule(_triangle), "Trilu"),
    **table(Rule(_determinant), "Det"),
}
