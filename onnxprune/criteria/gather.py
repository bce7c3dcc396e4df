"""From groups to the arrays that criteria see."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from onnxprune.criteria.criterion import UnitWeights
from onnxprune.graph.axes import Blocked, Index
from onnxprune.graph.build import AxisGraph
from onnxprune.graph.groups import AxisUse, Group

Array: TypeAlias = np.ndarray[Any, Any]

LARGE = 4 << 20
"""Elements of a parameter above which its float64 copy is made when a criterion asks, and part by part."""


def unit_weights(axis_graph: AxisGraph, group: Group) -> list[UnitWeights]:
    """Slices of the parameters that produce a group's units.

    Where nothing that criteria could score produces them (a gathered embedding, a constant), the weights that
    consume them stand in. Where there are none either, matrices count as weights, whatever looks at them first
    (experts that are gathered before they multiply).
    """
    members: list[UnitWeights] = []
    for use, kind in _members(axis_graph, group):
        blocked = axis_graph.blocked.get(use.axis)
        if _stored(use).size > LARGE:
            members.append(StoredWeights(kind, use, blocked, group.units))
            continue
        array = _stored(use).astype(np.float64)
        rows = unit_rows(array, use, blocked, group.units)
        members.append(UnitWeights(kind, rows, float(np.linalg.norm(array))))
    return members


class StoredWeights(UnitWeights):
    """`UnitWeights` that stay where they are stored, mapped from a file perhaps, until a criterion asks.

    Parameters
    ----------
    kind
        As the rules name the parameter.
    use
        How the units lie on one of its axes.
    blocked
        How that axis is divided.
    units
        How many there are.
    """

    def __init__(self, kind: str, use: AxisUse, blocked: Blocked | None, units: int) -> None:
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "norm", _norm(_stored(use)))
        self.__dict__.update(_use=use, _blocked=blocked, _units=units)

    @property
    def values(self) -> Array:
        """As in `UnitWeights`; made each time."""
        use: AxisUse = self.__dict__["_use"]
        return unit_rows(_stored(use).astype(np.float64), use, self.__dict__["_blocked"], self.units)

    @property
    def units(self) -> int:
        """Number of units."""
        return int(self.__dict__["_units"])

    def parts(self) -> Iterator[Array]:
        """The values of so many units at a time that they have at most `LARGE` elements."""
        use: AxisUse = self.__dict__["_use"]
        if self.__dict__["_blocked"] is not None:
            yield self.values
            return
        array, order = _stored(use), np.argsort(use.unit, kind="stable")
        ascending = use.unit[order]
        step = max(1, LARGE * self.units // array.size)
        for start in range(0, self.units, step):
            stop = min(start + step, self.units)
            mine = order[np.searchsorted(ascending, start) : np.searchsorted(ascending, stop)]
            part = np.take(array, mine, axis=use.axis.dim).astype(np.float64)
            yield unit_rows(part, replace(use, unit=use.unit[mine] - start), None, stop - start)


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
        members = [(use, "weight" if _rank(use) > 1 else kind) for use, kind in members]
    return members


def _rank(use: AxisUse) -> int:
    data = use.axis.value.const_value
    return 0 if data is None else len(data.shape)


def _stored(use: AxisUse) -> Array:
    data = use.axis.value.const_value
    if data is None:
        raise ValueError(f"{use.axis.name} is no initializer")
    return np.asarray(data.numpy())


def _norm(array: Array) -> float:
    """L2 norm of an array of any type, without a copy of it in float64."""
    flat = array.reshape(-1)
    return math.sqrt(
        math.fsum(
            float(np.square(flat[start : start + LARGE].astype(np.float64)).sum())
            for start in range(0, flat.size, LARGE)
        )
    )


def by_unit(unit: Index, units: int) -> tuple[Index, Index, Index]:
    """Positions sorted by unit.

    Parameters
    ----------
    unit
        Unit of each position, -1 where it belongs to none.
    units
        How many there are.

    Returns
    -------
    order, counts, slot
        The positions that belong to a unit; how many each unit has, (units,); the how manieth of its unit each of
        `order` is.
    """
    order = np.argsort(unit, kind="stable")
    order = order[unit[order] >= 0]
    counts = np.bincount(unit[order], minlength=units)
    return order, counts, np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)


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
    order, counts, slot = by_unit(use.unit, units)
    if (counts == 1).all():
        in_order = np.array_equal(order, np.arange(len(rows)))
        return rows if in_order else rows[order]
    values = np.zeros((units, int(counts.max()) * rows.shape[1]), array.dtype)
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
