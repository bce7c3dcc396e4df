"""Parts of a report that follow from the analysis and the plan alone."""

from __future__ import annotations

from collections.abc import Mapping

from onnxprune.analysis import Analysis
from onnxprune.errors import Reason
from onnxprune.graph.axes import Axis, Bools, Kept
from onnxprune.report.report import BarrierResult, GroupResult, RefittedIO


def group_results(
    analysis: Analysis, keep: Mapping[str, Bools], excluded: Mapping[str, Reason]
) -> tuple[GroupResult, ...]:
    """One entry per group; those that stay whole by choice or by rule have the reason."""
    results = []
    for name, group in analysis.groups.items():
        reason = excluded.get(name)
        results.append(
            GroupResult(
                id=name,
                name=group.name,
                units=group.units,
                kept=int(keep[name].sum()) if name in keep else group.units,
                axes=tuple(use.axis.name for use in group.axes),
                sources=tuple(use.axis.name for use in group.sources),
                sinks=tuple(use.axis.name for use in group.sinks),
                blocks=group.block_count,
                reason=reason.name if reason else "",
                explanation=reason.sentence if reason else "",
                inexact=analysis.inexact.get(name, ""),
            )
        )
    return tuple(results)


def refitted_io(analysis: Analysis, kept: Kept) -> tuple[RefittedIO, ...]:
    """The graph inputs and outputs that may get smaller, with what is left of them."""
    graph = analysis.axis_graph.model.graph
    found = []
    for kind, values in (("input", graph.inputs), ("output", graph.outputs)):
        for value in values:
            if value.name not in analysis.refit_io or value.const_value is not None or value.shape is None:
                continue
            before = tuple(d if isinstance(d, int) else d.value or "?" for d in value.shape)
            after = tuple(
                int(kept[axis].sum()) if (axis := Axis(value, dim)) in kept else extent
                for dim, extent in enumerate(before)
            )
            found.append(RefittedIO(str(value.name), kind, before, after))
    return tuple(found)


def barrier_results(analysis: Analysis) -> tuple[BarrierResult, ...]:
    """What is blocked and why, the costliest first."""
    return tuple(
        BarrierResult(b.reason.name, b.reason.sentence, b.where, b.layers, b.params, b.macs)
        for b in analysis.blocked
    )
