"""An analysis as text and as plain values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from onnxprune.analysis import Analysis
from onnxprune.graph.groups import AxisUse, Group
from onnxprune.report.assemble import barrier_results
from onnxprune.report.quantised import quantised_line, quantised_result
from onnxprune.report.remarks import remarks
from onnxprune.report.tables import barrier_lines, columns, coverage_line, number, plural, some, wrap

SCHEMA = "onnxprune-analysis/1"
_ROWS = 20


def to_dict(analysis: Analysis) -> dict[str, Any]:
    """The analysis in the layout of schema `onnxprune-analysis/1`."""
    quantised = quantised_result(analysis.axis_graph.model)
    return {
        "schema": SCHEMA,
        "model": {"path": str(analysis.source.path), "sha256": analysis.source.sha256},
        "bindings": dict(analysis.bindings),
        "assumed": sorted(analysis.guessed),
        "macs": analysis.cost.macs,
        "params": analysis.cost.params,
        "coverage": {"macs": analysis.coverage.macs, "params": analysis.coverage.params},
        "groups": [_group(analysis, group) for group in analysis.partition.groups],
        "alternatives": [_plain(group) for group in analysis.partition.alternatives],
        "barriers": [asdict(barrier) for barrier in barrier_results(analysis)],
        "quantised": None if quantised is None else asdict(quantised),
        "notes": remarks(analysis),
    }


def _plain(group: Group) -> dict[str, Any]:
    return {
        "id": group.id,
        "name": group.name,
        "units": group.units,
        "width": group.width,
        "blocks": group.block_count,
        "axes": [use.axis.name for use in group.axes],
        "sources": [use.axis.name for use in group.sources],
        "sinks": [use.axis.name for use in group.sinks],
        "alternatives": list(group.alternatives),
    }


def _group(analysis: Analysis, group: Group) -> dict[str, Any]:
    cost = analysis.costs.per_unit(group)
    return {**_plain(group), "macs_per_unit": cost.macs, "params_per_unit": cost.params}


def render_json(analysis: Analysis) -> str:
    """The analysis as JSON text."""
    return json.dumps(to_dict(analysis), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def render(analysis: Analysis, *, verbose: bool = False, width: int | None = None) -> str:
    """Groups, what each costs, what is blocked and why.

    Parameters
    ----------
    verbose
        List all groups and barriers with their sources and sinks.
    width
        Of the terminal; None: lines are not broken.
    """
    cost, coverage = analysis.cost, analysis.coverage
    groups = analysis.partition.groups
    units = sum(group.units for group in groups)
    lines = [
        f"{analysis.source.path}: {number(cost.macs)} MACs per sample, {number(cost.params)} parameters",
        f"{plural(len(groups), 'group')} with {plural(units, 'unit')}: "
        f"{coverage_line(coverage.macs, coverage.params)}",
    ]
    if how := quantised_line(quantised_result(analysis.axis_graph.model)):
        lines += wrap(f"quantised: {how}", width)
    if analysis.bindings:
        sizes = ", ".join(
            f"{name}={size}" + (" (assumed)" if name in analysis.guessed else "")
            for name, size in analysis.bindings.items()
        )
        lines.append(f"symbolic dims: {sizes}")
    lines = [part for line in lines for part in wrap(line, width)]
    lines += _group_table(analysis, None if verbose else _ROWS, width)
    if verbose and analysis.partition.alternatives:
        lines += ["", "other ways of cutting the same axes:"]
        for group in analysis.partition.alternatives:
            rivals = some(group.alternatives)
            lines += wrap(
                f"  {group.id} {group.name}: {plural(group.units, 'unit')}, instead of {rivals}",
                width,
                indent=4,
            )
    barriers = barrier_results(analysis)
    lines += barrier_lines(barriers, cost.macs, cost.params, verbose=verbose, width=width)
    if notes := remarks(analysis):
        lines.append("")
        for note in notes:
            lines += wrap(f"note: {note}", width, indent=6)
    return "\n".join(lines)


def _group_table(analysis: Analysis, limit: int | None, width: int | None) -> list[str]:
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
                f"{_names(group.sources)} -> {_names(group.sinks)}",
            ]
        )
    lines = ["", *columns(rows, right=(2, 3, 4, 5), width=width)]
    if limit is not None and len(groups) > limit:
        lines.append(f"... and {number(len(groups) - limit)} more (-v lists all)")
    return lines


def _names(uses: Sequence[AxisUse]) -> str:
    return some([use.axis.name for use in uses], 2) or "-"
