"""Operators that read or make shapes. Reading a shape binds nothing: what depends on it is refitted.

Specification: https://onnx.ai/onnx/operators/onnx__Shape.html, https://onnx.ai/onnx/operators/onnx__ConstantOfShape.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune.rules.rule import Key, Rule, table

if TYPE_CHECKING:
    from onnxprune.graph.relations import Relations
    from onnxprune.rules.op import Op
    from onnxprune.rules.refit import Refit


def _read(op: Op, relations: Relations) -> None:
    for axis in op.axes(op.input(0)):
        relations.free(axis)


def _make(op: Op, relations: Relations) -> None:
    relations.auxiliary(op.input(0))
    for axis in op.axes(op.output()):
        relations.free(axis)


def _refit_made(op: Op, refit: Refit) -> None:
    refit.entries(0, {axis.dim: refit.extent(axis) for axis in op.axes(op.output()) if not op.dynamic(axis)})


RULES: dict[Key, Rule] = {
    **table(Rule(_read), "Shape", "Size"),
    **table(Rule(_make, _refit_made), "ConstantOfShape"),
}
