"""Convolutions and linear layers as NNCF counts them: their filters, and what of them is left."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.analysis import Analysis
from onnxprune.calibrate.checks import did_you_mean
from onnxprune.errors import Reason, UsageError
from onnxprune.graph.axes import Axis, Bools, Kept
from onnxprune.graph.build import AxisGraph
from onnxprune.graph.groups import Group
from onnxprune.report.statistics import PrunedLayerSummary, PrunedModelStatistics
from onnxprune.select import left_by_nncf, matcher
from onnxprune.sparsity.layers import WeightLayer, find_layers
from onnxprune.surgery.keep import sliced_shape

GROUP_CONV = "a grouped convolution makes or takes its channels, which NNCF leaves whole"

_OPTIONS = {
    Reason.FIRST_CONV: "its filters hang together with the first convolution's (prune_first_conv is off)",
    Reason.DOWNSAMPLE_CONV: "its filters hang together with a strided convolution's "
    "(prune_downsample_convs is off)",
}


@dataclass(frozen=True)
class FilterLayer:
    """A layer whose output channels are filters.

    Attributes
    ----------
    layer
        With its weight.
    axis
        The channels of its output.
    group
        Id of the group that they belong to, if it may be pruned.
    """

    layer: WeightLayer
    axis: Axis
    group: str | None

    @property
    def filters(self) -> int:
        """How many it has."""
        return self.layer.grid.outputs

    def mask(self, kept: Kept) -> Bools:
        """One flag per filter: whether it stays."""
        flags = kept.get(self.axis)
        return np.ones(self.filters, bool) if flags is None else flags.copy()


def filter_layers(analysis: Analysis, prunable: Iterable[str]) -> list[FilterLayer]:
    """All convolutions and linear layers of a model, in its order.

    Parameters
    ----------
    prunable
        Ids of the groups that may be pruned.
    """
    graph = analysis.axis_graph
    owners = {use.axis: name for name in prunable for use in analysis.groups[name].axes}
    found = []
    for layer in find_layers(graph).layers:
        out = layer.consumer.node.outputs[0]
        dims = graph.shapes.dims.get(out)
        axis = Axis(out, 1 if layer.consumer.convolves else len(dims or (0,)) - 1)
        found.append(FilterLayer(layer, axis, owners.get(axis)))
    return found


def find_layer(layers: Iterable[FilterLayer], given: object) -> FilterLayer:
    """The layer that a user means: the name of the node or of its weight, or the node itself.

    Raises
    ------
    UsageError
        There is none.
    """
    name = given.name if isinstance(given, ir.Node | ir.Value) else given
    known: dict[str, FilterLayer] = {}
    for each in layers:
        known.setdefault(each.layer.label, each)
        known.setdefault(each.layer.name, each)
    if str(name) not in known:
        raise UsageError(
            f"there is no convolution or linear layer {name!r}{did_you_mean(str(name), known)}",
            "Give the name of the node, or of its weight.",
        )
    return known[str(name)]


def left_whole(
    axis_graph: AxisGraph, groups: Mapping[str, Group], *, first: bool, downsample: bool
) -> dict[str, str]:
    """Groups that NNCF does not prune, each with the reason, by group id.

    Parameters
    ----------
    first, downsample
        Whether first convolutions, and those with a stride, stay whole.
    """
    found = {
        name: _OPTIONS[reason]
        for name, reason in left_by_nncf(axis_graph, groups, first=first, downsample=downsample).items()
    }
    for name, group in groups.items():
        nodes = {axis_graph.parameters[use.axis.value].op.node for use in (*group.sources, *group.sinks)}
        if any(_is_grouped(node) for node in nodes):
            found.setdefault(name, GROUP_CONV)
    return found


def _is_grouped(node: ir.Node) -> bool:
    """Whether it is a convolution in groups of several channels; depthwise ones are pruned along."""
    if node.op_type not in ("Conv", "ConvTranspose"):
        return False
    groups = node.attributes.get_int("group", 1)
    weight = node.inputs[1]
    data = None if weight is None else weight.const_value
    if groups == 1 or data is None:
        return False
    shape = tuple(int(d) for d in data.shape.numpy())
    return (shape[1] if node.op_type == "Conv" else shape[0] // groups) > 1


def check_scopes(axis_graph: AxisGraph, option: str, patterns: Iterable[str]) -> None:
    """Refuse scopes that match no layer, in the words of the option that they were given with.

    Raises
    ------
    UsageError
        One matches nothing.
    """
    graph = axis_graph.model.graph
    known = {node.name for node in graph if node.name} | {str(name) for name in graph.initializers}
    for pattern in patterns:
        matcher(pattern, option, known)


def pruned_statistics(
    analysis: Analysis, layers: Iterable[FilterLayer], keep: Mapping[str, Bools], kept: Kept
) -> PrunedModelStatistics:
    """What a model had and what is left of it, as NNCF counts.

    Parameters
    ----------
    keep, kept
        Kept units of groups, and the kept positions that follow.
    """
    layers = list(layers)
    now = [_shape(analysis.axis_graph, each, kept) for each in layers]
    summaries = [
        PrunedLayerSummary(
            each.layer.label,
            list(each.layer.shape),
            [each.filters],
            int((~each.mask(kept)).sum()) / each.filters,
        )
        for each in layers
        if each.group is not None
    ]
    return PrunedModelStatistics(
        full_flops=2 * analysis.cost.macs,
        current_flops=2 * analysis.costs.cost(keep).macs,
        full_params=sum(each.layer.grid.size for each in layers),
        current_params=sum(math.prod(shape) for shape in now),
        full_filters=sum(each.filters for each in layers),
        current_filters=sum(int(each.mask(kept).sum()) for each in layers),
        pruned_layers_summary=summaries,
    )


def _shape(axis_graph: AxisGraph, layer: FilterLayer, kept: Kept) -> tuple[int, ...]:
    """Of a layer's weight when only these positions are left."""
    axes = [Axis(layer.layer.consumer.weight, dim) for dim in range(len(layer.layer.shape))]
    dims = {axis.dim: kept[axis] for axis in axes if axis in kept}
    blocked = {axis.dim: axis_graph.blocked[axis] for axis in axes if axis in axis_graph.blocked}
    return sliced_shape(layer.layer.shape, dims, blocked)
