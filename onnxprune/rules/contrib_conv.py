"""onnxruntime's convolutions (com.microsoft): FusedConv, NhwcConv, NhwcFusedConv.

Fused ones add Z, a tensor of the output's shape, and apply an activation. The channels of Nhwc ones are last.

Specification: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md; for the weight of
NhwcConv, onnxruntime/transformers/fusion_nhwc_conv.py, which makes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxprune.errors import Reason
from onnxprune.graph.axes import Axis
from onnxprune.rules import conv
from onnxprune.rules.helpers import tie_axes
from onnxprune.rules.rule import Key, Rule, Term, table

if TYPE_CHECKING:
    from onnxprune.graph.relations import Relations
    from onnxprune.model.shapes import Dims, Inferred
    from onnxprune.rules.op import Op

_CONV = conv.RULES["", "Conv"]


def _fused(op: Op, relations: Relations) -> None:
    _CONV.relate(op, relations)
    if op.has(3):
        tie_axes(op, relations, op.input(3), op.output())


def _channels_last(op: Op, relations: Relations) -> None:
    x, w, y = op.input(0), op.input(1), op.output()
    last, columns = op.rank(x) - 1, _columns(op)
    if op.int("group", 1) != 1:
        return
    relations.tie(Axis(x, 0), Axis(y, 0))
    relations.tie(Axis(y, last), Axis(w, 0))
    relations.contract(Axis(x, last), Axis(w, columns))
    for value, kept in ((x, last), (y, last), (w, columns)):
        for dim in range(1, op.rank(value)):
            if dim != kept:
                relations.pin(Axis(value, dim), Reason.SPATIAL)
    if op.has(2):
        relations.tie(Axis(y, last), Axis(op.input(2), 0))
    if op.has(3):
        tie_axes(op, relations, op.input(3), y)


def _columns(op: Op) -> int:
    """Where the weight has its input channels: NhwcConv has (M, kernel, C), NhwcFusedConv (M, C, kernel)."""
    return op.rank(op.input(1)) - 1 if op.node.op_type == "NhwcConv" else 1


def _last_macs(op: Op) -> list[Term]:
    w, columns = op.input(1), _columns(op)
    dims, kernel = op.dims(op.output()), op.dims(w)
    if dims is None or kernel is None or None in dims or None in kernel:
        return []
    window = [extent or 0 for dim, extent in enumerate(kernel) if dim not in (0, columns)]
    places = float(np.prod([*(d or 0 for d in dims[:-1]), *window], dtype=float))
    return [Term(places, (Axis(w, 0), Axis(w, columns)))]


def _extents(op: Op) -> list[Inferred]:
    x, w = op.dims(op.input(0)), op.dims(op.input(1))
    if x is None or w is None or len(x) < 3:
        return []
    last = op.node.op_type.startswith("Nhwc")
    columns = _columns(op) if last else 1
    window = tuple(d for dim, d in enumerate(w) if dim not in (0, columns))
    image = _image(op, x[1:-1] if last else x[2:], window)
    dims = (x[0], *image, w[0]) if last else (x[0], w[0], *image)
    return [(dims, op.input(0).dtype)]


def _image(op: Op, image: Dims, window: Dims) -> Dims:
    """Places of the window: https://onnx.ai/onnx/operators/onnx__Conv.html."""
    rank = len(image)
    strides, dilations = op.ints("strides") or [1] * rank, op.ints("dilations") or [1] * rank
    pads, auto = op.ints("pads") or [0] * 2 * rank, op.str("auto_pad", "NOTSET")
    places: list[int | None] = []
    for i, (size, width) in enumerate(zip(image, window, strict=True)):
        if size is None or width is None:
            places.append(None)
        elif auto.startswith("SAME"):
            places.append(-(-size // strides[i]))
        else:
            padding = 0 if auto == "VALID" else pads[i] + pads[i + rank]
            places.append((size + padding - dilations[i] * (width - 1) - 1) // strides[i] + 1)
    return tuple(places)


_BIAS = {2: "bias"}
RULES: dict[Key, Rule] = {
    **table(
        Rule(_fused, _CONV.refit, _CONV.macs, weights=(1,), kinds=_BIAS, extents=_extents),
        "FusedConv",
        domain="com.microsoft",
    ),
    **table(
        Rule(_channels_last, macs=_last_macs, weights=(1,), kinds=_BIAS, extents=_extents),
        *("NhwcConv", "NhwcFusedConv"),
        domain="com.microsoft",
    ),
}
