"""Operators that take positions by a rule: Compress, CenterCropPad, AffineGrid.

Specification: https://onnx.ai/onnx/operators/onnx__Compress.html,
https://onnx.ai/onnx/operators/onnx__CenterCropPad.html, https://onnx.ai/onnx/operators/onnx__AffineGrid.html
"""

from __future__ import annotations

from onnxprune.rules.expr import Expr, vector
from onnxprune.rules.op import Op, normalized
from onnxprune.rules.rule import Key
from onnxprune.rules.site import Lower, Site

_Outputs = list[Expr | None]


def _compress(op: Op, site: Site) -> _Outputs:
    """Gather where the condition holds; without an axis, of all entries."""
    taken = site.x(1).op("NonZero").reshape([-1])
    if "axis" not in op.node.attributes:
        return [site.x().reshape([-1]).op("Gather", taken, axis=0)]
    return [site.x().op("Gather", taken, axis=op.int("axis", 0))]


def _center_crop_pad(op: Op, site: Site) -> _Outputs:
    """Zeros on both sides, a negative number of which cuts; the side behind gets one more."""
    x = op.input(0)
    rank = site.rank(x)
    axes = normalized(op.ints("axes") or range(rank), rank)
    asked = op.ints("shape", 1)
    before: list[Expr | int] = [0] * rank
    after: list[Expr | int] = [0] * rank
    for entry, dim in enumerate(axes):
        extent = site.extent(x, dim)
        if asked is not None and isinstance(extent, int) and not op.varies(1):
            more = asked[entry] - extent
            before[dim] = half = int(more / 2)  # towards zero
            after[dim] = more - half
            continue
        wanted = site.x(1).slice(0, entry, entry + 1)
        missing = wanted - (site.builder.ints(extent) if isinstance(extent, int) else extent)
        front = missing / site.builder.ints(2)
        before[dim], after[dim] = front, missing - front
    return [site.x().pad(before, after)]


def _affine_grid(op: Op, site: Site) -> _Outputs:
    """Y = [x, y, (z,) 1] theta' at the places of the image."""
    size = op.ints("size", 1)
    count = 3 if (site.dims(op.input(0))[1] == 3) else 2
    sizes: list[Expr | int]
    if size is not None and not op.varies(1):
        sizes = list(size[2:])
    else:
        sizes = [site.x(1).slice(0, 2 + n, 3 + n) for n in range(count)]
    shape = vector(site.builder, [*sizes, 1])
    parts = []
    for axis in reversed(range(count)):
        along = _coordinates(site, sizes[axis], bool(op.int("align_corners", 0)))
        lined = along.reshape([-1 if n == axis else 1 for n in range(count + 1)])
        parts.append(lined.op("Expand", shape))
    parts.append(parts[0] * 0.0 + 1.0)
    base = site.builder.concat(parts, -1).reshape([1, -1, count + 1])
    y = base @ site.x().transpose([0, 2, 1])
    return [y.reshape(vector(site.builder, [0, *sizes, count]))]


def _coordinates(site: Site, extent: Expr | int, aligned: bool) -> Expr:
    """Places of one axis, -1 ... 1 from end to end, or from centre to centre where they are aligned."""
    steps = site.count_up(extent).float()
    many = float(extent) if isinstance(extent, int) else extent.float()
    if aligned:
        return steps * 2.0 / (many - 1.0) - 1.0
    return (steps * 2.0 + 1.0) / many - 1.0


LOWERS: dict[Key, Lower] = {
    ("", "Compress"): _compress,
    ("", "CenterCropPad"): _center_crop_pad,
    ("", "AffineGrid"): _affine_grid,
}
