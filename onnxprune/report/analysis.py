"""An analysis as text and as plain values."""

from __future__ import annotations

from typing import Any

from onnxprune.analysis import Analysis
from onnxprune.graph.groups import Group
from onnxprune.report.tables import columns, number, share

SCHEMA = "onnxprune-analysis/1"


def to_dict(analysis: Analysis) -> dict[str, Any]:
    """The analysis in the layout of schema `onnxprune-analysis/1`."""
    return {
        "schema": SCHEMA,
        "model": {"path": str(analysis.source.path), "sha256": analysis.source.sha256},
        "bindings": dict(analysis.bindings),
        "macs": analysis.cost.macs,
        "params": analysis.cost.params,
        "coverage": {"macs": analysis.coverage.macs, "params": analysis.coverage.params},
        "groups": [_group(analysis, group) for group in analysis.partition.groups],
        "alternatives": [_plain(group) for group in analysis.partition.alternatives],
        "barriers": [
            {
                "reason": b.reason.name,
                "explanation": b.reason.sentence,
                "where": b.where,
                "layers": list(b.layers),
                "params": b.params,
                "macs": b.macs,
            }
            for b in analysis.blocked
        ],
    }


def _plain(group: Group) -> dict[str, Any]:
    return {
        "id": group.id,
        "name": group.name,
        "units": group.units,
        "width": group.width,
        "blocks": group.block_count,
        "axes": len(group.axes),
        "sources": [use.axis.name for use in group.sources],
        "sinks": [use.axis.name for use in group.sinks],
        "alternatives": list(group.alternatives),
    }


def _group(analysis: Analysis, group: Group) -> dict[str, Any]:
    cost = analysis.costs.per_unit(group)
    return {**_plain(group), "macs_per_unit": cost.macs, "params_per_unit": cost.params}


def render(analysis: Analysis, *, verbose: bool = False) -> str:
    """Groups, what each costs, what is blocked and why.

    Parameters
    ----------
    verbose
        List all groups and barriers with their sources and sinks.
    """
    cost, coverage = analysis.cost, analysis.coverage
    units = sum(group.units for group in analysis.partition.groups)
    lines = [
        f"{analysis.source.path}: {number(cost.macs)} MACs per sample, {number(cost.params)} parameters",
        f"{len(analysis.partition.groups)} groups with {number(units)} units reach {coverage.macs:.1%} of the MACs "
        f"and {coverage.params:.1%} of the parameters",
    ]
    if analysis.bindings:
        sizes = ", ".join(
            f"{name}={size}" + (" (assumed)" if name in analysis.guessed else "")
            for name, size in analysis.bindings.items()
        )
        lines.append(f"symbolic dims: {sizes}")
    limit = None if verbose else 20
    lines += _group_table(analysis, limit)
    if verbose and analysis.partition.alternatives:
        lines += ["", "other ways of cutting the same axes:"]
        lines += [
            f"  {g.id} {g.name}: {g.units} units, instead of {', '.join(g.alternatives)}"
            for g in analysis.partition.alternatives
        ]
    return "\n".join(lines + _blocked(analysis, None if verbose else 10))


def _group_table(analysis: Analysis, limit: int | None) -> list[str]:
    groups = analysis.partition.groups
    if not groups:
        return ["", "no group of channels can be cut"]
    rows = [["group", "layer", "units", "MACs/unit", "params/unit", "axes", "produced by -> consumed by"]]
    for group in groups[:limit]:
        cost = analysis.costs.per_unit(group)
        blocks = f" in {group.block_count} blocks" if group.blocks is not None else ""
        rows.append(
            [
                group.id,
                group.name,
                f"{group.units}{blocks}",
                number(cost.macs),
                number(cost.params),
                str(len(group.axes)),
                f"{_some(group.sources)} -> {_some(group.sinks)}",
            ]
        )
    lines = ["", *columns(rows, right=(2, 3, 4, 5))]
    if limit is not None and len(groups) > limit:
        lines.append(f"... and {len(groups) - limit} more (-v lists all)")
    return lines


def _some(uses: Any) -> str:
    names = [use.axis.name for use in uses]
    return ", ".join(names[:2]) + (f" (+{len(names) - 2})" if len(names) > 2 else "") if names else "-"


def _blocked(analysis: Analysis, limit: int | None) -> list[str]:
    if not analysis.blocked:
        return []
    rows = [
        [
            f"  {b.layers[0]}" + (f" (+{len(b.layers) - 1})" if len(b.layers) > 1 else ""),
            share(b.macs, analysis.cost.macs) + " of MACs",
            share(b.params, analysis.cost.params) + " of params",
            f"{b.reason.sentence} ({b.where})",
        ]
        for b in analysis.blocked[:limit]
    ]
    lines = ["", "layers whose output channels all stay:", *columns(rows, right=(1, 2))]
    if limit is not None and len(analysis.blocked) > limit:
        lines.append(f"  ... and {len(analysis.blocked) - limit} more (-v lists all)")
    return lines
