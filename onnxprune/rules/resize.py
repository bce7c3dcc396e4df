"""Resize and Upsample: axes that are not scaled pass through.

Specification: https://onnx.ai/onnx/operators/onnx__Resize.html, https://onnx.ai/onnx/operators/onnx__Upsample.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune.errors import Reason
from onnxprune.graph.axes import Axis
from onnxprune.rules.op import normalized
from onnxprune.rules.rule import Key, Rule, table

if TYPE_CHECKING:
    from onnxprune.graph.relations import Relations
    from onnxprune.rules.op import Op
    from onnxprune.rules.refit import Refit


def _scales_slot(op: Op) -> int:
    return 1 if op.node.op_type == "Upsample" or op.opset < 11 else 2


def _relate(op: Op, relations: Relations) -> None:
    x, y = op.input(0), op.output()
    scaled = _scaled_dims(op)
    for dim in range(op.rank(x)):
        a, b = Axis(x, dim), Axis(y, dim)
        if dim in scaled or op.extent(a) != op.extent(b):
            relations.pin(a, Reason.SPATIAL)
            relations.pin(b, Reason.SPATIAL)
        else:
            relations.tie(a, b)
    for value in op.node.inputs[1:]:
        if value is not None:
            relations.auxiliary(value)


def _scaled_dims(op: Op) -> set[int]:
    """Dims with a scale other than 1; equal extents are not enough where the scale rounds."""
    if op.str("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return set(range(op.rank(op.input(0))))
    slot = _scales_slot(op)
    if op.has(slot) and op.dims(op.input(slot)) != (0,):
        scales = op.data(slot)
        if scales is None:
            return set(range(op.rank(op.input(0))))
        return {dim for dim, scale in zip(_dims(op), scales.tolist(), strict=True) if scale != 1}
    attr = op.node.attributes.get("scales")
    if attr is not None:
        return {dim for dim, scale in enumerate(attr.as_floats()) if scale != 1}
    return set()


def _dims(op: Op) -> list[int]:
    rank = op.rank(op.input(0))
    return normalized(op.ints("axes") or range(rank), rank)


def _refit(op: Op, refit: Refit) -> None:
    if not op.has(3) or op.dims(op.input(3)) == (0,):
        return
    asked = op.ints("sizes", 3)
    wanted = {}
    for entry, dim in enumerate(_dims(op)):
        axis = Axis(op.output(), dim)
        if refit.changed(axis):
            wanted[entry] = refit.extent(axis)
        elif asked is not None and not op.dynamic(axis):
            wanted[entry] = asked[entry]
    refit.entries(3, wanted)


RULES: dict[Key, Rule] = table(Rule(_relate, _refit), "Resize", "Upsample")
