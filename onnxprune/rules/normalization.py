"""Normalisations. Per-channel ones pass channels through; what is averaged over is pinned.

BatchNormalization and InstanceNormalization keep channels apart, so dropping one is exact.
GroupNormalization averages within a group of channels, so whole groups are the units.
LayerNormalization and RMSNormalization average over the axis itself: pinned, unless inexact cuts are allowed.

Specification: https://onnx.ai/onnx/operators/onnx__BatchNormalization.html,
https://onnx.ai/onnx/operators/onnx__InstanceNormalization.html,
https://onnx.ai/onnx/operators/onnx__GroupNormalization.html,
https://onnx.ai/onnx/operators/onnx__LayerNormalization.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune.errors import Reason
from onnxprune.graph.axes import Axis
from onnxprune.rules.helpers import arange, tie_axes, tie_broadcast
from onnxprune.rules.rule import Key, Rule, table

if TYPE_CHECKING:
    from onnxprune.graph.relations import Relations
    from onnxprune.model.shapes import Inferred
    from onnxprune.rules.op import Op
    from onnxprune.rules.refit import Refit


def _batch(op: Op, relations: Relations) -> None:
    x, y = op.input(0), op.output()
    channels = Axis(x, 1)
    if op.int("training_mode", 0) or len(op.outputs) > 1:  # averages over all but the channels
        relations.tie(channels, Axis(y, 1))
        _pin(op, relations, [dim for dim in range(op.rank(x)) if dim != 1])
    else:
        tie_axes(op, relations, x, y)
    for slot in range(1, 5):
        relations.tie(channels, Axis(op.input(slot), 0))
    for statistics in op.outputs[1:]:  # in training mode
        relations.tie(channels, Axis(statistics, 0))


def _instance(op: Op, relations: Relations) -> None:
    x, y = op.input(0), op.output()
    relations.tie(Axis(x, 0), Axis(y, 0))
    relations.tie(Axis(x, 1), Axis(y, 1))
    for slot in (1, 2):
        relations.tie(Axis(x, 1), Axis(op.input(slot), 0))
    for dim in range(2, op.rank(x)):  # part of the channels, where a Reshape made groups of them
        if relations.average(Reason.NORMALIZED, [(0, dim)], [(0, dim)]):
            relations.tie(Axis(x, dim), Axis(y, dim))


def _group(op: Op, relations: Relations) -> None:
    x, y = op.input(0), op.output()
    relations.tie(Axis(x, 0), Axis(y, 0))
    channels = Axis(x, 1)
    relations.tie(channels, Axis(y, 1))
    extent = op.extent(channels) or 0
    per_group = extent // op.int("num_groups", 1)
    first = arange(extent) // per_group * per_group
    relations.tie(channels, channels, arange(extent), first)
    for slot in (1, 2):
        scale = Axis(op.input(slot), 0)
        if op.extent(scale) == extent:
            relations.tie(channels, scale)
        else:  # opset 18: one value per group
            relations.tie(channels, scale, arange(extent), arange(extent) // per_group)
    _pin(op, relations, range(2, op.rank(x)))


def _refit_group(op: Op, refit: Refit) -> None:
    channels = Axis(op.input(0), 1)
    per_group = (op.extent(channels) or 0) // op.int("num_groups", 1)
    refit.set_int("num_groups", refit.extent(channels) // per_group)


def _layer(op: Op, relations: Relations) -> None:
    x, y = op.input(0), op.output()
    start = op.axis(x, op.int("axis", -1)).dim
    for dim in range(start):
        relations.tie(Axis(x, dim), Axis(y, dim))
    scales = [(slot, value) for slot, value in enumerate(op.node.inputs) if slot and value is not None]
    last = op.rank(x) - 1
    if start == last and all(op.dims(value) == (op.extent(Axis(x, last)),) for _, value in scales):
        if relations.average(Reason.NORMALIZED, [(0, last), *((slot, 0) for slot, _ in scales)], [(0, last)]):
            relations.tie(Axis(x, last), Axis(y, last))
    else:
        _pin(op, relations, range(start, op.rank(x)))
    for _, value in scales:
        tie_broadcast(op, relations, value, y)
    for value in op.outputs[1:]:  # Mean and InvStdDev keep the leading axes
        for dim in range(start):
            relations.tie(Axis(x, dim), Axis(value, dim))


def _mean_variance(op: Op, relations: Relations) -> None:
    axes = op.ints("axes") or [0, 2, 3]
    _all_but(op, relations, [a % op.rank(op.input(0)) for a in axes])


def _lp(op: Op, relations: Relations) -> None:
    _all_but(op, relations, [op.int("axis", -1) % op.rank(op.input(0))])


def _local_response(op: Op, relations: Relations) -> None:
    _all_but(op, relations, [1])


def _same(op: Op) -> list[Inferred]:
    """The output is like the input."""
    dims = op.dims(op.input(0))
    return [] if dims is None else [(dims, op.input(0).dtype)]


def _all_but(op: Op, relations: Relations, dims: list[int]) -> None:
    tie_axes(op, relations, op.input(0), op.output(), skip=tuple(dims))
    _pin(op, relations, dims)


def _pin(op: Op, relations: Relations, dims: range | list[int]) -> None:
    for dim in dims:
        relations.pin(Axis(op.input(0), dim), Reason.NORMALIZED)
        relations.pin(Axis(op.output(), dim), Reason.NORMALIZED)


_SCALE = {1: "scale", 2: "bias"}
RULES: dict[Key, Rule] = {
    **table(Rule(_batch, kinds={1: "bn-scale", 2: "bias", 3: "mean", 4: "variance"}), "BatchNormalization"),
    **table(Rule(_instance, kinds=_SCALE), "InstanceNormalization"),
    **table(Rule(_group, _refit_group, kinds=_SCALE, extents=_same), "GroupNormalization"),
    **table(
        Rule(_layer, kinds=_SCALE), "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"
    ),
    **table(Rule(_mean_variance, extents=_same), "MeanVarianceNormalization"),
    **table(Rule(_lp), "LpNormalization"),
    **table(Rule(_local_response), "LRN"),
}
