"""onnxruntime's fused operators (com.microsoft): a known operator with a bias, an activation or a sum inside.

Specification: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxprune.errors import Reason
from onnxprune.graph.axes import Axis
from onnxprune.rules import linear, normalization
from onnxprune.rules.helpers import arange, tie_axes, tie_broadcast
from onnxprune.rules.rule import Key, Rule, Term, table

if TYPE_CHECKING:
    from onnxprune.graph.relations import Relations
    from onnxprune.model.shapes import Dims, Inferred
    from onnxprune.rules.op import Op
    from onnxprune.rules.refit import Refit


def _like_input(op: Op) -> list[Inferred]:
    x = op.input(0)
    return [(op.dims(x), x.dtype)] * len(op.node.outputs)


# --- activations, sums -----------------------------------------------------------------------------------


def _elementwise(op: Op, relations: Relations) -> None:
    for value in op.node.inputs:
        if value is not None:
            tie_broadcast(op, relations, value, op.output())


def _split_gelu(op: Op, relations: Relations) -> None:
    """Multiply the left half of X + bias with the Gelu of the right half."""
    x, bias, y = op.input(0), op.input(1), op.output()
    last = op.rank(x) - 1
    tie_axes(op, relations, x, y, skip=(last,))
    relations.tie(Axis(x, last), Axis(bias, 0))
    half = op.extent(Axis(y, last)) or 0
    relations.tie(Axis(x, last), Axis(y, last), arange(2 * half), arange(2 * half) % half)


def _split_extents(op: Op) -> list[Inferred]:
    dims = op.dims(op.input(0))
    if dims is None or dims[-1] is None:
        return []
    return [((*dims[:-1], dims[-1] // 2), op.input(0).dtype)]


# --- normalisations --------------------------------------------------------------------------------------


def _skip_layer(op: Op, relations: Relations) -> None:
    """Normalise X + skip (+ bias) over the last axis; the sum is the fourth output."""
    x, y = op.input(0), op.output()
    last = op.rank(x) - 1
    width = op.extent(Axis(x, last))
    tie_axes(op, relations, x, y)
    coming = [
        (slot, -1)
        for slot, v in enumerate(op.node.inputs)
        if v is not None and (op.dims(v) or ())[-1:] == (width,)
    ]
    going = [
        (slot, -1) for slot, v in enumerate(op.node.outputs) if v.name and (op.dims(v) or ())[-1:] == (width,)
    ]
    relations.average(Reason.NORMALIZED, coming, going)
    for value in op.node.inputs[1:]:
        if value is not None:
            tie_broadcast(op, relations, value, y)
    for value in op.outputs[1:]:  # mean and deviation have one position on the last axis
        tie_axes(op, relations, value, y, skip=() if op.extent(Axis(value, last)) != 1 else (last,))


def _skip_extents(op: Op) -> list[Inferred]:
    dims, dtype = op.dims(op.input(0)), op.input(0).dtype
    one = None if dims is None else (*dims[:-1], 1)
    return [(dims, dtype), (one, ir.DataType.FLOAT), (one, ir.DataType.FLOAT), (dims, dtype)]


def _layer_extents(op: Op) -> list[Inferred]:
    dims = op.dims(op.input(0))
    if dims is None:
        return []
    start = op.int("axis", -1) % len(dims)
    one = (*dims[:start], *(1 for _ in dims[start:]))
    return [(dims, op.input(0).dtype), (one, ir.DataType.FLOAT)]


def _embed(op: Op, relations: Relations) -> None:
    """Look up words, positions and segments, and normalise their sum."""
    ids, y = op.input(0), op.output()
    grids = [op.input(slot) for slot in (1, 7) if op.has(slot)]
    for dim in (0, 1):
        relations.tie(Axis(ids, dim), Axis(y, dim))
        for grid in grids:
            relations.tie(Axis(ids, dim), Axis(grid, dim))
    if op.has(8):
        tie_broadcast(op, relations, op.input(8), ids)
    if not op.has(8) or op.has(7):  # tokens are counted
        relations.pin(Axis(y, 1), Reason.ORDERED)
    relations.pin(Axis(y, 2), Reason.NORMALIZED)
    for slot in (2, 3, 4):
        if op.has(slot):
            relations.pin(Axis(op.input(slot), 0), Reason.INDEXED)
            relations.tie(Axis(op.input(slot), 1), Axis(y, 2))
    for slot in (5, 6):
        relations.tie(Axis(op.input(slot), 0), Axis(y, 2))
    for value in op.outputs[1:]:
        tie_axes(op, relations, value, y)


def _embed_extents(op: Op) -> list[Inferred]:
    ids, words = op.dims(op.input(0)) or (None, None), op.dims(op.input(2)) or (None, None)
    dtype = op.input(2).dtype
    whole: Dims = (*ids, words[1])
    return [(whole, dtype), ((ids[0],), ir.DataType.INT32), (whole, dtype)]


def _channels(op: Op) -> int:
    return op.rank(op.input(0)) - 1 if op.int("channels_last", 1) else 1


def _group(op: Op, relations: Relations) -> None:
    """Normalise within groups of channels: whole groups go. With a skip: X, gamma, beta, skip, bias."""
    x, y, place = op.input(0), op.output(), _channels(op)
    channels = Axis(x, place)
    extent, groups = op.extent(channels) or 0, op.int("groups", 0)
    if not groups or extent % groups:
        return
    per_group = extent // groups
    relations.tie(channels, channels, arange(extent), arange(extent) // per_group * per_group)
    for slot in (1, 2, 4):
        if op.has(slot):
            relations.tie(channels, Axis(op.input(slot), 0))
    images = [y, *op.outputs[1:]]
    if op.has(3):
        skip = op.input(3)
        if op.rank(skip) == op.rank(x):
            images.append(skip)
        else:  # (N, C)
            relations.tie(Axis(x, 0), Axis(skip, 0))
            relations.tie(channels, Axis(skip, 1))
    for value in (x, *images):
        relations.tie(Axis(x, 0), Axis(value, 0))
        relations.tie(channels, Axis(value, place))
        for dim in range(1, op.rank(x)):
            if dim != place:
                relations.pin(Axis(value, dim), Reason.NORMALIZED)


def _refit_group(op: Op, refit: Refit) -> None:
    channels = Axis(op.input(0), _channels(op))
    per_group = (op.extent(channels) or 0) // op.int("groups", 1)
    refit.set_int("groups", refit.extent(channels) // per_group)


# --- products --------------------------------------------------------------------------------------------


def _operand(op: Op, slot: int) -> list[Axis]:
    """Axes of a FusedMatMul operand in the order (..., rows, columns) in which it is multiplied."""
    axes, name = op.axes(op.input(slot)), "AB"[slot]
    if len(axes) > 2 and op.int(f"transBatch{name}", 0):
        axes = [*axes[1:-1], axes[0], axes[-1]]
    if len(axes) > 1 and op.int(f"trans{name}", 0):
        axes[-2:] = axes[:-3:-1]
    return axes


def _matmul(op: Op, relations: Relations) -> None:
    a, b, y = _operand(op, 0), _operand(op, 1), op.axes(op.output())
    inner_a, inner_b = a[-1], b[-2] if len(b) > 1 else b[0]
    if op.is_constant(0) and not op.is_constant(1):
        relations.contract(inner_b, inner_a, slot=1)
    else:
        relations.contract(inner_a, inner_b, slot=0)
    if len(a) > 1:
        relations.tie(a[-2], y[-2 if len(b) > 1 else -1])
    if len(b) > 1:
        relations.tie(b[-1], y[-1])
    batch = y[: len(y) - (len(a) > 1) - (len(b) > 1)]
    for axes in (a[:-2], b[:-2]):
        for axis, target in zip(axes[::-1], batch[::-1], strict=False):
            if op.extent(axis) != 1 or op.extent(target) == 1:
                relations.tie(axis, target)


def _matmul_macs(op: Op) -> list[Term]:
    return [Term(1.0, (*op.axes(op.output()), _operand(op, 0)[-1]))]


def _matmul_extents(op: Op) -> list[Inferred]:
    a, b = ([op.extent(axis) for axis in _operand(op, slot)] for slot in (0, 1))
    if not a or not b:
        return []
    rank = max(len(a), len(b)) - 2
    left, right = ([1] * (rank - len(d) + 2) + d[:-2] if len(d) > 1 else [1] * rank for d in (a, b))
    batch = [n if m == 1 else m for m, n in zip(left, right, strict=True)]
    return [((*batch, *a[-2:-1], *(b[-1:] if len(b) > 1 else [])), op.input(0).dtype)]


def _gemm_extents(op: Op) -> list[Inferred]:
    rows = op.extent(Axis(op.input(0), 1 if op.int("transA", 0) else 0))
    columns = op.extent(Axis(op.input(1), 0 if op.int("transB", 0) else 1))
    return [((rows, columns), op.input(0).dtype)]


_GEMM = linear.RULES["", "Gemm"]
_SIMPLE = normalization.RULES["", "SimplifiedLayerNormalization"]
_MICROSOFT = "com.microsoft"
_SKIP_KINDS = {2: "scale", 3: "bias", 4: "bias"}

RULES: dict[Key, Rule] = {
    **table(Rule(_elementwise, extents=_like_input), "Gelu", "QuickGelu", domain=_MICROSOFT),
    **table(
        Rule(_elementwise, kinds={1: "bias"}, extents=_like_input),
        *("BiasAdd", "BiasGelu", "FastGelu"),
        domain=_MICROSOFT,
    ),
    **table(Rule(_split_gelu, kinds={1: "bias"}, extents=_split_extents), "BiasSplitGelu", domain=_MICROSOFT),
    **table(
        Rule(_skip_layer, kinds=_SKIP_KINDS, extents=_skip_extents),
        "SkipLayerNormalization",
        domain=_MICROSOFT,
    ),
    **table(
        Rule(_skip_layer, kinds={2: "scale", 3: "bias"}, extents=_skip_extents),
        "SkipSimplifiedLayerNormalization",
        domain=_MICROSOFT,
    ),
    **table(
        Rule(_embed, weights=(2, 3, 4), kinds={5: "scale", 6: "bias"}, extents=_embed_extents),
        "EmbedLayerNormalization",
        domain=_MICROSOFT,
    ),
    **table(
        Rule(_group, _refit_group, kinds={1: "scale", 2: "bias", 4: "bias"}, extents=_like_input),
        *("GroupNorm", "SkipGroupNorm"),
        domain=_MICROSOFT,
    ),
    **table(
        Rule(_matmul, macs=_matmul_macs, weights=(0, 1), extents=_matmul_extents),
        *("FusedMatMul", "TransposeMatMul"),
        domain=_MICROSOFT,
    ),
    **table(replace(_GEMM, extents=_gemm_extents), "FusedGemm", domain=_MICROSOFT),
    # onnxruntime's own in the default domain: onnx has no schema for it
    **table(replace(_SIMPLE, extents=_layer_extents), "SimplifiedLayerNormalization"),
}
