"""From groups to the arrays that criteria see."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from onnxprune.criteria.criterion import UnitWeights
from onnxprune.graph.axes import Blocked
from onnxprune.graph.build import AxisGraph
from onnxprune.graph.groups import AxisUse, Group


def unit_weights(axis_graph: AxisGraph, group: Group) -> list[UnitWeights]:
    """Slices of the parameters that produce a group's units.

    Where nothing that criteria could score produces them (a gathered embedding, a constant), the weights that
    consume them stand in. Where there are none either, matrices count as weights, whatever looks at them first
    (experts that are gathered before they multiply).
    """
    members = [_slices(axis_graph, group, use) for use in group.sources]
    if not any(member.kind == "weight" for member in members):
        members += [_slices(axis_graph, group, use) for use in group.sinks]
    if not any(member.kind == "weight" for member in members):
        members = [
            replace(member, kind="weight") if len(use.axis.value.const_value.shape) > 1 else member
            for member, use in zip(members, (*group.sources, *group.sinks), strict=True)
            if use.axis.value.const_value is not None
        ]
    return members


def _slices(axis_graph: AxisGraph, group: Group, use: AxisUse) -> UnitWeights:
    parameter = axis_graph.parameters[use.axis.value]
    data = use.axis.value.const_value
    if data is None:
        raise ValueError(f"{use.axis.name} is no initializer")
    array = np.asarray(data.numpy()).astype(np.float64)
    rows = _rows(array, use.axis.dim, axis_graph.blocked.get(use.axis))
    order = np.argsort(use.unit, kind="stable")
    order = order[use.unit[order] >= 0]
    counts = np.bincount(use.unit[order], minlength=group.units)
    norm = float(np.linalg.norm(array))
    if (counts == 1).all():
        in_order = np.array_equal(order, np.arange(len(rows)))
        return UnitWeights(parameter.kind, rows if in_order else rows[order], norm)
    values = np.zeros((group.units, int(counts.max()) * rows.shape[1]))
    slot = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    view = values.reshape(group.units, int(counts.max()), rows.shape[1])
    view[use.unit[order], slot] = rows[order]
    return UnitWeights(parameter.kind, values, norm)


def _rows(array: np.ndarray[Any, Any], dim: int, blocked: Blocked | None) -> np.ndarray[Any, Any]:
    """One row per position of the axis, with everything of the parameter that belongs to it."""
    if blocked is None:
        moved = np.moveaxis(array, dim, 0)
        return moved.reshape(len(moved), -1)
    moved = np.moveaxis(array, (blocked.rows, dim), (0, 1))
    split = moved.reshape(blocked.blocks, -1, *moved.shape[1:])
    by_column = np.moveaxis(split, 2, 1)  # (blocks, columns, rows per block, ...)
    return by_column.reshape(blocked.blocks * by_column.shape[1], -1)
