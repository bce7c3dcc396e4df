"""Units that zeros have made superfluous: what could be cut out of a model without changing what it computes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxprune.analysis import Analysis
from onnxprune.graph.axes import Axis, Blocked, Bools
from onnxprune.graph.groups import AxisUse, Group


@dataclass(frozen=True)
class Removable:
    """What zeros make superfluous.

    Attributes
    ----------
    units, total
        Units whose every consumer multiplies them by zero, and all units of all groups. Where a group must keep
        equal numbers per block, those that can go.
    macs, params
        Of the model without them.
    unmade
        Further units that only zero weights make: what is left of them are biases and what follows from these.
    layers
        Groups with such units: name of the first layer, superfluous units, unmade units, all units.
    keep
        By group id, which units stay when the superfluous ones go: what a plan is made of.
    """

    units: int
    total: int
    macs: int
    params: int
    unmade: int
    layers: tuple[tuple[str, int, int, int], ...]
    keep: Mapping[str, Bools] = field(default_factory=dict, compare=False, repr=False)


def needed_axes(analysis: Analysis) -> dict[ir.Value, tuple[int, ...]]:
    """The axes of parameters whose zero positions `removable` wants to know."""
    needed: defaultdict[ir.Value, set[int]] = defaultdict(set)
    for group in analysis.partition.groups:
        for use in (*_makers(analysis, group), *group.sinks):
            needed[use.axis.value].add(use.axis.dim)
    return {value: tuple(sorted(dims)) for value, dims in needed.items()}


def live_positions(nonzero: Bools, dim: int, blocked: Blocked | None) -> Bools:
    """Which positions of an axis have a weight that is not zero.

    Parameters
    ----------
    nonzero
        Of the initializer's shape.
    dim
        The axis.
    blocked
        How it is divided: then there is one entry per block and column.
    """
    if blocked is None:
        others = tuple(d for d in range(nonzero.ndim) if d != dim)
        return np.asarray(nonzero.any(axis=others))
    moved = np.moveaxis(nonzero, (blocked.rows, dim), (0, 1))
    plane = moved.reshape(*moved.shape[:2], -1).any(axis=2)
    return np.asarray(plane.reshape(blocked.blocks, -1, plane.shape[1]).any(axis=1).ravel())


def removable(analysis: Analysis, live: Mapping[Axis, Bools]) -> Removable:
    """Find superfluous units.

    Parameters
    ----------
    live
        For the axes that `needed_axes` names: which positions have a weight that is not zero.
    """
    graph = analysis.axis_graph
    masked = {sink.axis for sink in graph.sinks if sink.parameter is None}
    masked |= {place.axis for place in graph.isolated}
    keep: dict[str, Bools] = {}
    layers = []
    for group in analysis.partition.groups:
        dead = _idle(group, group.sinks, live)
        if any(use.axis in masked for use in group.axes):  # two activations meet there: nothing is known
            dead[:] = False
        dead = allowed(group, dead)
        unmade = _idle(group, _makers(analysis, group), live) & ~dead
        if dead.any():
            keep[group.id] = ~dead
        if dead.any() or unmade.any():
            layers.append((group.name, int(dead.sum()), int(unmade.sum()), group.units))
    cost = analysis.costs.cost(keep)
    return Removable(
        units=sum(dead for _, dead, _, _ in layers),
        total=sum(group.units for group in analysis.partition.groups),
        macs=cost.macs,
        params=cost.params,
        unmade=sum(unmade for _, _, unmade, _ in layers),
        layers=tuple(layers),
        keep=keep,
    )


def _makers(analysis: Analysis, group: Group) -> list[AxisUse]:
    parameters = analysis.axis_graph.parameters
    return [use for use in group.sources if parameters[use.axis.value].kind == "weight"]


def _idle(group: Group, uses: tuple[AxisUse, ...] | list[AxisUse], live: Mapping[Axis, Bools]) -> Bools:
    """Units that have no live position on any of the axes; none where there are no axes."""
    idle: Bools = np.full(group.units, bool(uses))
    for use in uses:
        idle[use.unit[live[use.axis] & (use.unit >= 0)]] = False
    return idle


def allowed(group: Group, dead: Bools) -> Bools:
    """Of the dead units those that can go: equally many per block, and not all of them."""
    blocks = np.zeros(group.units, np.int64) if group.blocks is None else group.blocks
    sizes, found = np.bincount(blocks), np.bincount(blocks, weights=dead).astype(np.int64)
    most = min(int(found.min()), int(sizes.min()) - 1)
    goes: Bools = np.zeros(group.units, bool)
    for block in range(len(sizes)):
        goes[np.flatnonzero(dead & (blocks == block))[: max(most, 0)]] = True
    return goes
