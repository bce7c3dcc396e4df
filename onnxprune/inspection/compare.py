"""A model and the one it came from: what was cut, what was zeroed, and whether what stayed was changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.analysis import Analysis
from onnxprune.graph.axes import Bools
from onnxprune.inspection.layers import Layers, WeightLayer
from onnxprune.inspection.matching import Match, match
from onnxprune.inspection.part import Part, locate
from onnxprune.job import Progress
from onnxprune.report.pruned import PrunedLayerSummary, PrunedModelStatistics
from onnxprune.statistics.consumers import Array

_CHUNK = 1 << 22
"""Elements that are compared at once."""


@dataclass(frozen=True)
class WeightChange:
    """What happened to the elements of a weight that has kept its shape.

    Attributes
    ----------
    zeroed
        Elements that are zero now and were not.
    revived
        Elements that were zero and are not now.
    zeroed_filters, zeroed_channels
        Output and input channels that are all zero now and were not.
    largest
        Largest absolute change of an element that was not zeroed.
    scale
        Largest absolute value in the original.
    """

    zeroed: int
    revived: int
    zeroed_filters: int
    zeroed_channels: int
    largest: float
    scale: float


@dataclass(frozen=True)
class LayerChange:
    """A layer then and now.

    Attributes
    ----------
    name, original
        Its names now and then.
    matched_by
        "weight", "node" or "order".
    shape_before, shape_after
        Of the weight.
    outputs_before, outputs_after, inputs_before, inputs_after
        Channels of all groups.
    weights
        Element by element; None where the shape changed.
    part
        What a weight of another shape is of the original; None where the shape is the same, or where a grouped
        convolution lost some of each group's private columns.
    """

    name: str
    original: str
    matched_by: str
    shape_before: tuple[int, ...]
    shape_after: tuple[int, ...]
    outputs_before: int
    outputs_after: int
    inputs_before: int
    inputs_after: int
    weights: WeightChange | None
    part: Part | None

    @property
    def cut(self) -> bool:
        """Whether it lost channels."""
        return self.outputs_after < self.outputs_before or self.inputs_after < self.inputs_before


@dataclass(frozen=True)
class Comparison:
    """What became of a model.

    Attributes
    ----------
    path, sha256
        Of the original.
    bindings
        Sizes of symbolic dims at which the original's MACs are counted.
    bytes_before, bytes_after
        Of the files, external data included.
    macs_before, macs_after
        Multiply-adds of one sample, as the files stand.
    elements_before, elements_after
        Elements of all float initializers.
    statistics
        The same in NNCF's words: a filter is gone where it is cut out, zeroed ones are still there.
    layers
        Layers that could be matched.
    unmatched_before, unmatched_after
        Names of layers of the original, and of the model, that could not.
    """

    path: str
    sha256: str
    bindings: Mapping[str, int]
    bytes_before: int
    bytes_after: int
    macs_before: int
    macs_after: int
    elements_before: int
    elements_after: int
    statistics: PrunedModelStatistics
    layers: tuple[LayerChange, ...]
    unmatched_before: tuple[str, ...]
    unmatched_after: tuple[str, ...]

    @property
    def zeroed(self) -> int:
        """Weights that are zero now and were not, in layers that have kept their shape."""
        return sum(layer.weights.zeroed for layer in self.layers if layer.weights is not None)

    @property
    def compared(self) -> int:
        """Layers that have kept their shape."""
        return sum(layer.weights is not None for layer in self.layers)

    @property
    def parts(self) -> tuple[LayerChange, ...]:
        """Layers that changed shape."""
        return tuple(layer for layer in self.layers if layer.weights is None)

    @property
    def changed(self) -> tuple[LayerChange, ...]:
        """Layers in which weights that were not zeroed have other values, the largest relative change first."""
        found = [layer for layer in self.layers if layer.weights is not None and layer.weights.largest > 0]
        return tuple(sorted(found, key=lambda layer: (-relative_change(layer), layer.name)))


def relative_change(layer: LayerChange) -> float:
    """Largest change of a kept weight as a share of the largest weight that there was."""
    change = layer.weights
    if change is None or not change.largest:
        return 0.0
    return change.largest / change.scale if change.scale else float("inf")


def compare(
    original: Analysis, before: Layers, analysis: Analysis, after: Layers, tell: Progress
) -> Comparison:
    """Compare a model with the one it came from.

    Parameters
    ----------
    original, before
        The original and its layers.
    analysis, after
        The model and its layers.
    tell
        Called with (stage, done, total).
    """
    matches = match(before.handled, after.handled)
    changes = []
    for number, pair in enumerate(matches):
        tell("comparing weights", number, len(matches))
        changes.append(_change(pair))
    then, now = {pair.before for pair in matches}, {pair.after for pair in matches}
    return Comparison(
        path=str(original.source.path),
        sha256=original.source.sha256,
        bindings=dict(original.bindings),
        bytes_before=original.source.bytes,
        bytes_after=analysis.source.bytes,
        macs_before=original.cost.macs,
        macs_after=analysis.cost.macs,
        elements_before=original.cost.params,
        elements_after=analysis.cost.params,
        statistics=PrunedModelStatistics(
            full_flops=2 * original.cost.macs,
            current_flops=2 * analysis.cost.macs,
            full_params=_params(before),
            current_params=_params(after),
            full_filters=sum(layer.outputs for layer in before.handled),
            current_filters=sum(layer.outputs for layer in after.handled),
            pruned_layers_summary=tuple(_summary(change) for change in changes if _lost_filters(change)),
        ),
        layers=tuple(changes),
        unmatched_before=tuple(layer.name for layer in before.handled if layer not in then),
        unmatched_after=tuple(layer.name for layer in after.handled if layer not in now),
    )


def _params(layers: Layers) -> int:
    sizes = (
        layer.weight.const_value.size for layer in layers.handled if layer.weight.const_value is not None
    )
    return sum(sizes)


def _lost_filters(change: LayerChange) -> bool:
    return change.outputs_after < change.outputs_before


def _summary(change: LayerChange) -> PrunedLayerSummary:
    level = 1 - change.outputs_after / change.outputs_before
    return PrunedLayerSummary(change.original, change.shape_before, (change.outputs_before,), level)


def _change(pair: Match) -> LayerChange:
    before, after = pair.before, pair.after
    same = _same_extents(before, after)
    return LayerChange(
        name=after.name,
        original=before.name,
        matched_by=pair.by,
        shape_before=before.shape,
        shape_after=after.shape,
        outputs_before=before.outputs,
        outputs_after=after.outputs,
        inputs_before=before.inputs,
        inputs_after=after.inputs,
        weights=_compare_weights(before, after) if same else None,
        part=None if same else _part(before, after),
    )


def _same_extents(before: WeightLayer, after: WeightLayer) -> bool:
    extents = [(each.outputs, each.inputs, each.place.groups, each.place.taps) for each in (before, after)]
    return extents[0] == extents[1]


def _part(before: WeightLayer, after: WeightLayer) -> Part | None:
    """Groups that went whole are rows that went; private columns that went cannot be told by position."""
    many = before.place.groups > 1 or after.place.groups > 1
    if many and before.place.columns != after.place.columns:
        return None
    whole, part = (
        layer.place.arranged(layer.place.array).reshape(layer.outputs, layer.place.taps, -1)
        for layer in (before, after)
    )
    return locate(whole, part)


def _compare_weights(before: WeightLayer, after: WeightLayer) -> WeightChange:
    """Element by element; two spellings of a linear layer are brought into one layout."""
    old, new = before.place.array, after.place.array
    there, here = (_live(layer, array) for layer, array in ((before, old), (after, new)))
    filters, channels = (int(np.count_nonzero(then & ~now)) for then, now in zip(there, here, strict=True))
    if before.place.layout != after.place.layout:
        old, new = before.place.arranged(old), after.place.arranged(new)
    wide = np.dtype(np.float64 if np.float64 in (old.dtype, new.dtype) else np.float32)
    zeroed = revived = 0
    largest = scale = 0.0
    flat_old, flat_new = old.reshape(-1), new.reshape(-1)
    for start in range(0, flat_old.size, _CHUNK):
        a: Array = flat_old[start : start + _CHUNK].astype(wide)
        b: Array = flat_new[start : start + _CHUNK].astype(wide)
        present, stays = a != 0, b != 0
        gone = present & ~stays
        zeroed += int(np.count_nonzero(gone))
        revived += int(np.count_nonzero(stays & ~present))
        difference: Array = np.abs(a - b)
        difference[gone] = 0
        largest = max(largest, float(difference.max(initial=0)))
        scale = max(scale, float(np.abs(a).max(initial=0)))
    return WeightChange(zeroed, revived, filters, channels, largest, scale)


def _live(layer: WeightLayer, array: Array) -> tuple[Bools, Bools]:
    """Which output and which input channels have a weight that is not zero."""
    nonzero = layer.place.arranged(array != np.zeros((), array.dtype))
    by_tap = nonzero.reshape(*nonzero.shape[:2], layer.place.taps, layer.place.columns)
    return np.asarray(by_tap.any(axis=(2, 3))), np.asarray(by_tap.any(axis=(1, 2)))
