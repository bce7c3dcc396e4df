"""Parts of a report that follow from the analysis and the plan alone."""

from __future__ import annotations

from collections.abc import Mapping

from onnxprune.analysis import Analysis
from onnxprune.errors import Reason
from onnxprune.graph.axes import Bools
from onnxprune.report.report import BarrierResult, GroupResult


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


def barrier_results(analysis: Analysis) -> tuple[BarrierResult, ...]:
    """What is blocked and why, the costliest first."""
    return tuple(
        BarrierResult(b.reason.name, b.reason.sentence, b.where, b.layers, b.params, b.macs)
        for b in analysis.blocked
    )
