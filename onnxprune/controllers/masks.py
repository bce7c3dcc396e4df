"""Masks of filters, baked into the weights that make them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir

from onnxprune.analysis import Analysis
from onnxprune.graph.axes import Bools
from onnxprune.model import edit
from onnxprune.surgery.keep import kept_positions, zero_slices


def bake_masks(
    analysis: Analysis, keep: Mapping[str, Bools], masked: ir.Model, kinds: Collection[str]
) -> ir.Model:
    """A copy of a masked model in which the filters that are gone are zero, too, not only what looks at them.

    Outputs stay what they are: nothing looks at these filters any more.

    Parameters
    ----------
    analysis
        Of the original.
    keep
        Kept units, by group id.
    masked
        What goes with them; initializers that it does not have any more are left out.
    kinds
        Kinds of parameters that become zero, as rules name them.
    """
    model = masked.clone()
    kept = kept_positions(analysis.groups, keep)
    graph = analysis.axis_graph
    for name in keep:
        for use in analysis.groups[name].sources:
            value = model.graph.initializers.get(str(use.axis.value.name))
            flags = kept.get(use.axis)
            if value is None or value.const_value is None or flags is None:
                continue
            if graph.parameters[use.axis.value].kind not in kinds or not _is_own(value):
                continue
            array = zero_slices(value.const_value.numpy(), use.axis.dim, flags, graph.blocked.get(use.axis))
            edit.set_array(value, array)
    return model


def _is_own(value: ir.Value) -> bool:
    """Whether one node uses it; what several share is not theirs to change."""
    return len(value.uses()) == 1 and not value.is_graph_output()
