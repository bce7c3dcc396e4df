"""Reading images between their positions: GridSample, DeformConv, RoiAlign; and MaxRoiPool.

What is read at a place is a weighted sum over neighbouring positions, each a row of a gather. The weights are
functions of the place, so gradients reach images, and grids, offsets and regions alike. Regions of interest
read a grid of places, so along each axis they are a product with a matrix.

Specification: https://onnx.ai/onnx/operators/onnx__GridSample.html,
https://onnx.ai/onnx/operators/onnx__DeformConv.html, https://onnx.ai/onnx/operators/onnx__RoiAlign.html,
https://onnx.ai/onnx/operators/onnx__MaxRoiPool.html
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.rules.expr import Expr, vector
from onnxprune.rules.op import Op
from onnxprune.rules.rule import Key
from onnxprune.rules.site import Lower, Site

_Outputs = list[Expr | None]
_Taps = list[tuple[Expr, Expr | None]]
"""Positions along one axis as whole floats, and their weights; None for a weight of 1."""

_CUBIC = -0.75
_LOWEST = -3e38
_TINY = 1e-9
"""What keeps the one position of an axis from being reflected between nothing."""


def _number(extent: Expr | int) -> Expr | float:
    return float(extent) if isinstance(extent, int) else extent.float()


def _less(extent: Expr | float, by: float) -> Expr | float:
    return extent - by


def _clipped(x: Expr, high: Expr | float) -> Expr:
    return x.op("Max", 0.0).op("Min", high)


# --- gathers ---------------------------------------------------------------------------------------------


def gathered(rows: Expr, taps: Sequence[_Taps], extents: Sequence[Expr | int], *, outside: bool) -> Expr:
    """Sum of rows over the neighbours of each place.

    Parameters
    ----------
    rows
        (N, positions, channels).
    taps
        Neighbours per axis of the image, each (N, places).
    extents
        Of the image.
    outside
        Whether neighbours outside the image count as zeros; otherwise there are none.

    Returns
    -------
    Expr
        (N, places, channels).
    """
    total: Expr | None = None
    for corner in itertools.product(*taps):
        index: Expr | None = None
        weight: Expr | None = None
        for (position, share), extent in zip(corner, extents, strict=True):
            size = _number(extent)
            if outside:
                inside = position.op("GreaterOrEqual", 0.0).op("And", position.op("Less", size)).float()
                share = inside if share is None else share * inside
                position = _clipped(position, _less(size, 1.0))
            whole = position.op("Cast", to=ir.DataType.INT64)
            stride = rows.builder.ints(extent) if isinstance(extent, int) else extent
            index = whole if index is None else index * stride + whole
            if share is not None:
                weight = share if weight is None else weight * share
        read = rows.op("GatherND", index.unsqueeze(-1), batch_dims=1)  # type: ignore[union-attr]
        read = read if weight is None else read * weight.unsqueeze(-1)
        total = read if total is None else total + read
    return total  # type: ignore[return-value]


def _rows(x: Expr) -> Expr:
    """(N, C, image) as (N, positions, C)."""
    return x.reshape([0, 0, -1]).transpose([0, 2, 1])


def _linear(place: Expr) -> _Taps:
    low = place.op("Floor")
    part = place - low
    return [(low, 1.0 - part), (low + 1.0, part)]


def _cubic(place: Expr, settle: Callable[[Expr], Expr]) -> _Taps:
    """Keys' cubic convolution: https://doi.org/10.1109/TASSP.1981.1163711."""
    low = place.op("Floor")
    part, a = place - low, _CUBIC

    def near(t: Expr) -> Expr:
        return ((a + 2) * t - (a + 3)) * t * t + 1.0

    def far(t: Expr) -> Expr:
        return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a

    weights = [far(part + 1.0), near(part), near(1.0 - part), far(2.0 - part)]
    return [(settle(low + float(n - 1)), weight) for n, weight in enumerate(weights)]


# --- GridSample ------------------------------------------------------------------------------------------


def _grid_sample(op: Op, site: Site) -> _Outputs:
    x, grid = op.input(0), op.input(1)
    count = site.rank(x) - 2
    extents = [site.extent(x, 2 + n) for n in range(count)]
    aligned = bool(op.int("align_corners", 0))
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(op.str("mode", "linear"), op.str("mode", "linear"))
    padding = op.str("padding_mode", "zeros")
    listed = site.x(1).reshape([0, -1, count])
    taps = []
    for axis, extent in enumerate(extents):
        size = _number(extent)
        at = count - 1 - axis  # the grid counts axes from behind
        place = listed.slice(2, at, at + 1).squeeze(2)
        place = (place + 1.0) * 0.5 * _less(size, 1.0) if aligned else ((place + 1.0) * size - 1.0) * 0.5
        settle = _settling(size, padding, aligned)
        if mode == "cubic":
            taps.append(_cubic(place, settle))
        else:
            place = settle(place)
            taps.append(_linear(place) if mode == "linear" else [(place.op("Round"), None)])
    inside = padding != "zeros" and mode != "linear"
    made = gathered(_rows(site.x()), taps, extents, outside=not inside).transpose([0, 2, 1])
    places = [site.extent(grid, 1 + n) for n in range(count)]
    return [made.reshape(vector(site.builder, [0, 0, *places]))]


def _settling(size: Expr | float, padding: str, aligned: bool) -> Callable[[Expr], Expr]:
    """What takes places outside an axis inside."""

    def reflect(x: Expr) -> Expr:
        low = 0.0 if aligned else -0.5
        span = _less(size, 1.0) if aligned else size
        span = span.op("Max", _TINY) if isinstance(span, Expr) else max(span, _TINY)
        double = span * 2.0
        from_low = (x - low).op("Abs")
        within = from_low - double * (from_low / double).op("Floor")
        return low + (span - (span - within).op("Abs"))

    if padding == "zeros":
        return lambda x: x
    if padding == "border":
        return lambda x: _clipped(x, _less(size, 1.0))
    return lambda x: _clipped(reflect(x), _less(size, 1.0))


# --- DeformConv ------------------------------------------------------------------------------------------


def _deform_conv(op: Op, site: Site) -> _Outputs:
    """Sample every place of the kernel at an offset, and multiply with the weight."""
    x, w = op.input(0), op.input(1)
    extents = [extent for extent in site.dims(w) if extent is not None]
    if len(extents) != 4:
        raise site.refusal("its kernel has no two axes of fixed size")
    rows, columns, *kernel = extents
    many = math.prod(kernel)
    groups, runs = op.int("group", 1), op.int("offset_group", 1)
    image = [site.extent(x, 2), site.extent(x, 3)]
    out = [site.extent(op.input(2), 2), site.extent(op.input(2), 3)]
    strides, dilations = op.ints("strides") or [1, 1], op.ints("dilations") or [1, 1]
    pads = op.ints("pads") or [0, 0, 0, 0]
    builder = site.builder
    offsets = site.x(2).reshape(vector(builder, [-1, many, 2, *out]))  # samples x runs first
    taps = []
    for axis in (0, 1):
        begin = site.count_up(out[axis]).float() * float(strides[axis]) - float(pads[axis])
        begin = begin.unsqueeze(1) if axis == 0 else begin
        inner = np.indices(kernel)[axis].reshape(many, 1, 1) * dilations[axis]
        moved = offsets.slice(2, axis, axis + 1).squeeze(2)
        place = moved + begin + builder.constant(inner.astype(np.float32))
        taps.append(_linear(place.reshape(vector(builder, [0, -1]))))
    per_run = columns * groups // runs
    images = site.x().reshape(vector(builder, [-1, per_run, *image]))
    read = gathered(_rows(images), taps, image, outside=True)  # (N runs, places, channels)
    if op.has(4):
        read = read * site.x(4).reshape(vector(builder, [-1, many, *out])).reshape([0, -1]).unsqueeze(-1)
    whole = read.transpose([0, 2, 1]).reshape(
        vector(builder, [-1, groups, columns * many, *_product(site, out)])
    )
    y = site.x(1).reshape([groups, rows // groups, columns * many]) @ whole
    y = y.reshape(vector(builder, [-1, rows, *out]))
    if op.has(3):
        y = y + site.x(3).unsqueeze(1, 2)
    return [y]


def _product(site: Site, extents: Sequence[Expr | int]) -> list[Expr | int]:
    total: Expr | int = 1
    for extent in extents:
        if isinstance(total, int) and isinstance(extent, int):
            total *= extent
        else:
            ints = site.builder.ints
            total = (ints(total) if isinstance(total, int) else total) * (
                ints(extent) if isinstance(extent, int) else extent
            )
    return [total]


# --- regions of interest ---------------------------------------------------------------------------------


def _roi_align(op: Op, site: Site) -> _Outputs:
    """Means over samples of each bin: a product with a matrix on each side."""
    if op.str("mode", "avg") != "avg":
        raise site.refusal("it takes the largest of its samples")
    half = op.opset >= 16 and op.str("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    regions, scale = site.x(1), _float(op, "spatial_scale", 1.0)
    image = site.x().op("Gather", site.x(2), axis=0)
    sides = []
    for axis, name in ((0, "output_height"), (1, "output_width")):
        extent, bins = site.extent(op.input(0), 2 + axis), op.int(name, 1)
        ends = [regions.slice(1, n, n + 1) * scale - (0.5 if half else 0.0) for n in (1 - axis, 3 - axis)]
        sides.append(_shares(op, site, ends, bins, extent, half))
    product = (sides[0].unsqueeze(1) @ image) @ sides[1].unsqueeze(1).transpose([0, 1, 3, 2])
    return [product]


def _float(op: Op, name: str, default: float) -> float:
    attribute = op.node.attributes.get(name)
    return default if attribute is None else float(attribute.as_float())


def _shares(op: Op, site: Site, ends: list[Expr], bins: int, extent: Expr | int, half: bool) -> Expr:
    """(regions, bins, positions): how much of each position every bin reads."""
    builder = site.builder
    size = ends[1] - ends[0]
    size = size if half else size.op("Max", 1.0)
    width = (size / float(bins)).unsqueeze(-1)  # (regions, 1, 1)
    samples = op.int("sampling_ratio", 0)
    steps = builder.constant(np.arange(bins, dtype=np.float32).reshape(1, bins, 1))
    counted: Expr | None = None
    count: Expr | float
    if samples > 0:
        taken = builder.constant(np.arange(samples, dtype=np.float32))
        count = float(samples)
    else:  # as many as the bin is wide, per region
        count = width.op("Ceil")
        most = count.op("ReduceMax", keepdims=0).op("Cast", to=ir.DataType.INT64).reshape([1])
        taken = site.count_up(most).float()
        counted = taken.op("Less", count)
        count = count.op("Max", 1.0)
    place = ends[0].unsqueeze(-1) + width * (steps + (taken + 0.5) / count)  # (regions, bins, samples)
    high = _less(_number(extent), 1.0)
    near = place.op("GreaterOrEqual", -1.0).op("And", place.op("LessOrEqual", _number(extent)))
    near = near if counted is None else near.op("And", counted)
    positions = site.count_up(extent).float()
    hat = (1.0 - (_clipped(place, high).unsqueeze(-1) - positions).op("Abs")).op("Max", 0.0)
    return hat.where(near.unsqueeze(-1)).sum(2, keep=False) / count


def _max_roi_pool(op: Op, site: Site) -> _Outputs:
    """The largest entry of each bin: along one axis, then along the other. An empty bin is 0."""
    scale, shape = _float(op, "spatial_scale", 1.0), op.ints("pooled_shape") or [1, 1]
    regions = site.x(1)
    samples = regions.slice(1, 0, 1).squeeze(1).op("Cast", to=ir.DataType.INT64)
    made = site.x().op("Gather", samples, axis=0)  # (regions, C, H, W)
    ends = (regions * scale + 0.5).op("Floor")
    for axis in (1, 0):
        first, last = (ends.slice(1, n, n + 1) for n in (2 - axis, 4 - axis))
        width = (last - first + 1.0).op("Max", 1.0) / float(shape[axis])
        bins = site.builder.constant(np.arange(shape[axis], dtype=np.float32))
        low = (bins * width).op("Floor") + first
        high = ((bins + 1.0) * width).op("Ceil") + first  # (regions, bins)
        positions = site.count_up(site.extent(op.input(0), 2 + axis)).float()
        inside = positions.op("GreaterOrEqual", low.unsqueeze(-1))
        inside = inside.op("And", positions.op("Less", high.unsqueeze(-1)))  # (regions, bins, positions)
        if axis == 1:
            read = inside.unsqueeze(1, 2).op("Where", made.unsqueeze(3), _LOWEST)
        else:
            read = inside.unsqueeze(1, 3).op("Where", made.transpose([0, 1, 3, 2]).unsqueeze(2), _LOWEST)
        made = read.op("ReduceMax", site.builder.ints(-1), keepdims=0)
    return [made.where(made.op("Greater", _LOWEST / 2))]


LOWERS: dict[Key, Lower] = {
    ("", "GridSample"): _grid_sample,
    ("", "DeformConv"): _deform_conv,
    ("", "RoiAlign"): _roi_align,
    ("", "MaxRoiPool"): _max_roi_pool,
}
