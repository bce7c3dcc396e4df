"""Sampling of images: grids, regions of interest, patches. Channels pass through, places stay.

Specification: https://onnx.ai/onnx/operators/onnx__GridSample.html,
https://onnx.ai/onnx/operators/onnx__RoiAlign.html, https://onnx.ai/onnx/operators/onnx__MaxRoiPool.html,
https://onnx.ai/onnx/operators/onnx__Col2Im.html, https://onnx.ai/onnx/operators/onnx__CenterCropPad.html,
https://onnx.ai/onnx/operators/onnx__AffineGrid.html, https://onnx.ai/onnx/operators/onnx__MaxUnpool.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune.errors import Reason
from onnxprune.graph.axes import Axis
from onnxprune.rules.helpers import arange
from onnxprune.rules.op import normalized
from onnxprune.rules.pins import pin_all, pin_dims
from onnxprune.rules.rule import Key, Rule, table

if TYPE_CHECKING:
    from onnxprune.graph.relations import Relations
    from onnxprune.rules.op import Op
    from onnxprune.rules.refit import Refit


def _grid_sample(op: Op, relations: Relations) -> None:
    x, grid, y = op.input(0), op.input(1), op.output()
    relations.tie(Axis(x, 0), Axis(y, 0))
    relations.tie(Axis(x, 1), Axis(y, 1))
    relations.tie(Axis(grid, 0), Axis(y, 0))
    last = op.rank(grid) - 1
    for value, first, stop in ((x, 2, op.rank(x)), (y, 2, op.rank(y)), (grid, 1, last)):
        pin_dims(relations, value, range(first, stop), Reason.SPATIAL)
    relations.pin(Axis(grid, last), Reason.AUXILIARY)


def _affine_grid(op: Op, relations: Relations) -> None:
    theta, y = op.input(0), op.output()
    relations.tie(Axis(theta, 0), Axis(y, 0))
    pin_dims(relations, theta, range(1, op.rank(theta)), Reason.AUXILIARY)
    pin_dims(relations, y, range(1, op.rank(y)), Reason.SPATIAL)
    relations.auxiliary(op.input(1))


def _refit_affine_grid(op: Op, refit: Refit) -> None:
    samples = Axis(op.input(0), 0)
    if op.extent(samples) is not None and not op.dynamic(samples):
        refit.entries(1, {0: refit.extent(samples)})


def _regions(op: Op, relations: Relations) -> None:
    """RoiAlign and MaxRoiPool: regions look their sample up by number."""
    x, regions, y = op.input(0), op.input(1), op.output()
    relations.tie(Axis(x, 1), Axis(y, 1))
    relations.pin(Axis(x, 0), Reason.INDEXED)
    relations.tie(Axis(regions, 0), Axis(y, 0))
    relations.pin(Axis(regions, 1), Reason.AUXILIARY)
    if op.has(2):  # the samples' numbers; MaxRoiPool has them in the regions
        relations.tie(Axis(op.input(2), 0), Axis(y, 0))
    for value in (x, y):
        pin_dims(relations, value, range(2, op.rank(value)), Reason.SPATIAL)


def _columns_to_image(op: Op, relations: Relations) -> None:
    """(N, C x places of the block, blocks) -> (N, C, image): a channel goes with all its places."""
    x, y = op.input(0), op.output()
    relations.tie(Axis(x, 0), Axis(y, 0))
    columns, channels = Axis(x, 1), Axis(y, 1)
    m, n = op.extent(columns), op.extent(channels)
    if m and n:
        relations.tie(columns, channels, arange(m), arange(m) // (m // n))
    relations.pin(Axis(x, 2), Reason.SPATIAL)
    pin_dims(relations, y, range(2, op.rank(y)), Reason.SPATIAL)
    pin_all(op, relations, op.node.inputs[1:], Reason.AUXILIARY)


def _cropped(op: Op) -> list[int]:
    """The dims that the entries of `shape` stand for."""
    rank = op.rank(op.input(0))
    return normalized(op.ints("axes") or range(rank), rank)


def _center_crop_pad(op: Op, relations: Relations) -> None:
    """Where the extent stays nothing is cropped; elsewhere the middle would move with every position."""
    x, y = op.input(0), op.output()
    cropped = _cropped(op)
    for dim in range(op.rank(x)):
        a, b = Axis(x, dim), Axis(y, dim)
        if dim not in cropped or (op.extent(a) == op.extent(b) and not op.varies(1)):
            relations.tie(a, b)
        else:
            relations.pin(a, Reason.ORDERED)
            relations.pin(b, Reason.ORDERED)
    relations.auxiliary(op.input(1))


def _refit_center_crop_pad(op: Op, refit: Refit) -> None:
    y = op.output()
    asked = op.ints("shape", 1)
    wanted = {}
    for entry, dim in enumerate(_cropped(op)):
        axis = Axis(y, dim)
        if refit.changed(axis):
            wanted[entry] = refit.extent(axis)
        elif asked is not None and not op.dynamic(axis):
            wanted[entry] = asked[entry]
    refit.entries(1, wanted)


def _unpool(op: Op, relations: Relations) -> None:
    """Its indices count through the whole tensor, all channels and samples."""
    pin_all(op, relations, (op.input(0), op.input(1), op.output()), Reason.INDEXED)
    pin_all(op, relations, op.node.inputs[2:], Reason.AUXILIARY)


RULES: dict[Key, Rule] = {
    **table(Rule(_grid_sample), "GridSample"),
    **table(Rule(_affine_grid, _refit_affine_grid), "AffineGrid"),
    **table(Rule(_regions), "RoiAlign", "MaxRoiPool"),
    **table(Rule(_columns_to_image), "Col2Im"),
    **table(Rule(_center_crop_pad, _refit_center_crop_pad), "CenterCropPad"),
    **table(Rule(_unpool), "MaxUnpool"),
}
