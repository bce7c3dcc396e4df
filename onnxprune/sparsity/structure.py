"""From zeros among weights to whole units: NNCF's structured mask resolution.

A unit (a head, a channel) of a group survives if any of its weights does, in any of the layers that make or
consume it. All weights of units that survive come back; those of the others are zero in all of these layers, so
that `onnxprune prune` can remove the units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxprune.analysis import Analysis
from onnxprune.criteria.gather import unit_rows
from onnxprune.graph.groups import Group
from onnxprune.patterns.pattern import Bools
from onnxprune.sparsity.layers import WeightLayer
from onnxprune.surgery.keep import kept_positions, zero_slices

Array = np.ndarray[Any, Any]


def resolve(
    analysis: Analysis, layers: Sequence[WeightLayer], zeros: Mapping[str, Bools]
) -> tuple[dict[str, Bools], dict[str, Bools]]:
    """Zeros of whole units in place of zeros of single weights.

    Parameters
    ----------
    analysis
        Its groups say which units there are, and how they are tied.
    layers
        Those that may become sparse. Units with weights in others survive.
    zeros
        By the weight's name, flags (outputs, columns).

    Returns
    -------
    zeros, gone
        As given, but with whole units where a weight lies in some group; one flag per unit by group id.
    """
    graph = analysis.axis_graph
    arrays = {layer.name: layer.flags(zeros[layer.name]) for layer in layers}
    gone = {group.id: _dead(analysis, group, arrays) for group in analysis.groups.values()}
    kept = kept_positions(analysis.groups, {name: ~flags for name, flags in gone.items()})
    grouped = {
        str(use.axis.value.name)
        for group in analysis.groups.values()
        for use in (*group.sources, *group.sinks)
    }
    found = {}
    for layer in layers:
        if layer.name not in grouped:
            found[layer.name] = zeros[layer.name]
            continue
        stays = np.ones(layer.shape)
        for axis, flags in kept.items():
            if axis.value is layer.consumer.weight:
                stays = zero_slices(stays, axis.dim, flags, graph.blocked.get(axis))
        found[layer.name] = layer.matrix(stays) == 0
    return found, gone


def _dead(analysis: Analysis, group: Group, zeros: Mapping[str, Bools]) -> Bools:
    """Units all of whose weights are zero."""
    graph, alive = analysis.axis_graph, np.zeros(group.units, bool)
    seen = False
    for use in (*group.sources, *group.sinks):
        name, data = str(use.axis.value.name), use.axis.value.const_value
        if data is None or len(data.shape) < 2:
            continue  # biases and norms go with the weights
        if name not in zeros:
            return np.zeros(group.units, bool)
        seen = True
        rows = unit_rows((~zeros[name]).astype(np.float64), use, graph.blocked.get(use.axis), group.units)
        alive |= rows.any(axis=1)
    return ~alive if seen else alive
