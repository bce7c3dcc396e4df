"""From groups to the arrays that criteria see."""

from __future__ import annotations

from collections.abc import Iterable
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
    members = []
    for use, kind in _members(axis_graph, group):
        array = _array(use)
        rows = unit_rows(array, use, axis_graph.blocked.get(use.axis), group.units)
        members.append(UnitWeights(kind, rows, float(np.linalg.norm(array))))
    return members


def scored_weights(axis_graph: AxisGraph, group: Group) -> list[AxisUse]:
    """Axes of the parameters among these that count as weights."""
    return [use for use, kind in _members(axis_graph, group) if kind == "weight"]


def _members(axis_graph: AxisGraph, group: Group) -> list[tuple[AxisUse, str]]:
    def kinds(uses: Iterable[AxisUse]) -> list[tuple[AxisUse, str]]:
        return [(use, axis_graph.parameters[use.axis.value].kind) for use in uses]

    members = kinds(group.sources)
    if not any(kind == "weight" for _, kind in members):
        members += kinds(group.sinks)
    if not any(kind == "weight" for _, kind in members):
        members = [(use, "weight" if _array(use).ndim > 1 else kind) for use, kind in members]
    return members


def _array(use: AxisUse) -> np.ndarray[Any, Any]:
    data = use.axis.value.const_value
    if data is None:
        raise ValueError(f"{use.axis.name} is no initializer")
    return np.asarray(data.numpy()).astype(np.float64)


def unit_rows(
    array: np.ndarray[Any, Any], use: AxisUse, blocked: Blocked | None, units: int
) -> np.ndarray[Any, Any]:
    """Everything of an array that belongs to each unit.

    Parameters
    ----------
    array
        Of the shape of the parameter that `use` lies on: its values, or their gradients.
    use
        How the units lie on one of its axes.
    blocked
        How that axis is divided.
    units
        How many there are.

    Returns
    -------
    array of shape (units, features)
        Units with fewer features than others get zeros.
    """
    rows = _rows(array, use.axis.dim, blocked)
    order = np.argsort(use.unit, kind="stable")
    order = order[use.unit[order] >= 0]
    counts = np.bincount(use.unit[order], minlength=units)
    if (counts == 1).all():
        in_order = np.array_equal(order, np.arange(len(rows)))
        return rows if in_order else rows[order]
    values = np.zeros((units, int(counts.max()) * rows.shape[1]), array.dtype)
    slot = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    view = values.reshape(units, int(counts.max()), rows.shape[1])
    view[use.unit[order], slot] = rows[order]
    return values


def _rows(array: np.ndarray[Any, Any], dim: int, blocked: Blocked | None) -> np.ndarray[Any, Any]:
    """One row per position of the axis, with everything of the parameter that belongs to it."""
    if blocked is None:
        moved = np.moveaxis(array, dim, 0)
        return moved.reshape(len(moved), -1)
    moved = np.moveaxis(array, (blocked.rows, dim), (0, 1))
    split = moved.reshape(blocked.blocks, -1, *moved.shape[1:])
    by_column = np.moveaxis(split, 2, 1)  # (blocks, columns, rows per block, ...)
    return by_column.reshape(blocked.blocks * by_column.shape[1], -1)
