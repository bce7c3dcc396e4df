"""VJP of Resize: along each axis it is a product with a matrix, so back it is one with the transposed matrix.

The matrix is what Resize makes of the rows of an identity matrix, which onnxruntime computes once where all
extents are fixed. Nearest neighbours at a whole scale need none: each position is copied to a block.
"""

from __future__ import annotations

import numpy as np

from onnxprune.rules.backward import Backward, Vjp
from onnxprune.rules.expr import Expr, vector
from onnxprune.rules.op import Op, normalized
from onnxprune.rules.rule import Key
from onnxprune.rules.vjp.movement import along, identity_matrix

_BLOCKS = {("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("half_pixel", "round_prefer_ceil")}
"""Coordinates and rounding at which a whole scale copies each position to a block."""


def _resize(op: Op, back: Backward) -> None:
    x, y = op.input(0), op.output()
    mode = op.str("coordinate_transformation_mode", "half_pixel")
    if mode == "tf_crop_and_resize" and not (op.has(1) and op.input(1).const_value is not None):
        raise back.refusal("what it crops is known at run time only")
    rank, g = back.rank(x), back.g
    before, after = back.dims(x), back.dims(y)
    scaled = _scaled(back, rank)
    blocks = _blocks(op, mode, [(before[dim], after[dim]) for dim in scaled])
    if blocks is not None:
        back.give(0, _summed_blocks(back, dict(zip(scaled, blocks, strict=True)), rank))
        return
    for dim in scaled:
        g = along(g, dim, rank, _matrix(back, dim))
    back.give(0, g)


def _scaled(back: Backward, rank: int) -> list[int]:
    """The axes whose extent or scale is not known to stay."""
    op = back.op
    axes = normalized(op.ints("axes") or range(rank), rank)
    if op.str("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return axes
    scales = op.data(2)
    if scales is not None and scales.size == len(axes):
        return [dim for dim, scale in zip(axes, np.ravel(scales), strict=True) if float(scale) != 1.0]
    before, after = back.dims(op.input(0)), back.dims(op.output())
    sizes = {
        dim
        for dim in axes
        if before[dim] != after[dim]
        or (before[dim] is None and op.dims(op.input(0)) != op.dims(op.output()) and dim > 1)
    }
    return sorted(sizes)


def _blocks(op: Op, mode: str, extents: list[tuple[int | None, int | None]]) -> list[int] | None:
    """How often each position is copied, per axis; None where that is not all that happens."""
    rounding = op.str("nearest_mode", "round_prefer_floor")
    if op.str("mode", "nearest") != "nearest" or (mode, rounding) not in _BLOCKS:
        return None
    times = []
    for a, b in extents:
        if not a or b is None or b % a:
            return None
        times.append(b // a)
    scales = op.data(2)
    known = [float(scale) for scale in np.ravel(scales)] if scales is not None and scales.size else times
    return times if all(float(scale).is_integer() for scale in known) else None


def _summed_blocks(back: Backward, times: dict[int, int], rank: int) -> Expr:
    x = back.op.input(0)
    parts: list[Expr | int] = []
    sums: list[int] = []
    for dim in range(rank):
        parts.append(back.extent(x, dim))
        if dim in times:
            sums.append(len(parts))
            parts.append(times[dim])
    return back.g.reshape(vector(back.builder, parts)).sum(*sums, keep=False)


def _matrix(back: Backward, dim: int) -> Expr:
    """(positions of the output, positions of the input): what Resize makes of one axis."""
    op, builder = back.op, back.builder
    extent = back.extent(op.input(0), dim)
    given = {
        name: attribute.value
        for name, attribute in op.node.attributes.items()
        if name not in ("axes", "keep_aspect_ratio_policy", "extrapolation_value")
    }
    region = _region(back, dim)
    image = identity_matrix(back, extent).unsqueeze(0, 1)
    scales = op.data(2)
    axes = normalized(op.ints("axes") or range(back.rank(op.input(0))), back.rank(op.input(0)))
    if scales is not None and scales.size:
        scale = float(np.ravel(scales)[axes.index(dim)])
        made = image.op("Resize", region, builder.constant(np.array([1, 1, 1, scale], np.float32)), **given)
    else:
        sizes = vector(builder, [1, 1, extent, back.extent(op.output(), dim)])
        made = image.op("Resize", region, None, sizes, **given)
    return made.squeeze(0, 1).transpose([1, 0])


def _region(back: Backward, dim: int) -> Expr | None:
    """What is cropped of one axis, for an image of rank 4 that has it last."""
    op = back.op
    tensor = op.input(1).const_value if op.has(1) else None
    if tensor is None or op.str("coordinate_transformation_mode", "half_pixel") != "tf_crop_and_resize":
        return None
    rank = back.rank(op.input(0))
    axes = normalized(op.ints("axes") or range(rank), rank)
    ends = np.ravel(tensor.numpy()).astype(np.float32).reshape(2, -1)[:, axes.index(dim)]
    return back.builder.constant(np.array([0, 0, 0, ends[0], 1, 1, 1, ends[1]], np.float32))


VJPS: dict[Key, Vjp] = {("", "Resize"): _resize}
