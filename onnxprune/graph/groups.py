"""From the axis graph to groups of units that can be removed.

A unit is a class of tied positions. Units that touch the same axes, and units that a balance constraint
holds together, form a group (a filter pruning group, or cluster). Positions that are tied to a barrier are no
units.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxprune.errors import Reason
from onnxprune.graph.axes import Axis, Bools, Index
from onnxprune.graph.build import AxisGraph, Parameter
from onnxprune.graph.cells import Balanced, Unbalanced, find_cells
from onnxprune.graph.cuts import Cut, Layout, find_cuts, join_labels, lay_out
from onnxprune.graph.held import hold
from onnxprune.graph.positions import components, hashes
from onnxprune.graph.ranking import rank
from onnxprune.graph.relations import Balance
from onnxprune.rules.op import Op


@dataclass(frozen=True)
class AxisUse:
    """How a group's units lie on one axis.

    Attributes
    ----------
    axis
        The axis.
    unit
        For every position of the axis its unit in the group, -1 for positions of other groups.
    """

    axis: Axis
    unit: Index


@dataclass(frozen=True)
class Group:
    """Units that touch the same axes.

    Attributes
    ----------
    id
        "g0", "g1", ... in the order of the graph; stable for the same file.
    name
        The first layer that produces the units.
    units
        How many there are.
    axes
        Every axis they touch.
    sources, sinks
        Parameter axes that produce the units, and those that a contraction consumes them with.
    blocks
        Block of each unit, or None: every block keeps the same number of units.
    width
        Positions that one unit takes on the axis of the first weight that produces it, the largest one if there are
        several (a head: its dimensions); 1 for a hidden unit, however many gates it has.
    cut
        Groups with the same cut number belong together; see `alternatives`.
    alternatives
        Ids of groups that cut the same axes in another way.
    """

    id: str
    name: str
    units: int
    axes: tuple[AxisUse, ...]
    sources: tuple[AxisUse, ...]
    sinks: tuple[AxisUse, ...]
    blocks: Index | None
    width: int
    cut: int
    alternatives: tuple[str, ...] = ()

    @property
    def block_count(self) -> int:
        """Number of blocks that must keep equal numbers; 1 where there is no such constraint."""
        return 1 if self.blocks is None else int(self.blocks.max()) + 1

    def __repr__(self) -> str:
        extra = f", {self.block_count} blocks" if self.blocks is not None else ""
        return f"Group({self.id}, {self.name!r}, {self.units} units{extra})"


@dataclass(frozen=True)
class Rejection:
    """Units without a barrier that form no group all the same."""

    reason: Reason
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Partition:
    """All groups of a model: those in use, and those that would cut the same axes differently."""

    layout: Layout
    groups: tuple[Group, ...]
    alternatives: tuple[Group, ...]
    rejected: tuple[Rejection, ...]


def partition(axis_graph: AxisGraph, attention: str = "heads") -> Partition:
    """Find the units and groups of a model.

    Where cuts exclude each other (whole heads, or dimensions of heads), `onnxprune.graph.ranking` says which
    is used; the others are listed as alternatives.

    Parameters
    ----------
    attention
        One of `onnxprune.graph.ranking.ATTENTION`.
    """
    layout = hold(lay_out(axis_graph))
    cuts = find_cuts(layout)
    finder = _Finder(axis_graph, layout)
    found = [(cut, finder.groups(cut, number)) for number, cut in enumerate(cuts)]
    found = [(cut, groups) for cut, groups in found if groups]
    masked = {sink.axis for sink in axis_graph.sinks if sink.parameter is None}
    order = sorted(
        range(len(found)),
        key=lambda i: rank(found[i][1], finder.parameter_axes(found[i][0]), masked, attention),
    )
    taken: dict[int, int] = {}
    used: set[int] = set()
    for i in order:
        if not any(c in taken for c in found[i][0].components):
            used.add(i)
            taken.update(dict.fromkeys(found[i][0].components, i))
    return _number(layout, found, used, tuple(finder.rejected))


def _place(layout: Layout, use: AxisUse) -> tuple[int, int]:
    """Number of the axis, and the first of its positions that the group has."""
    return layout.number[use.axis], int(np.argmax(use.unit >= 0))


def _number(
    layout: Layout, found: list[tuple[Cut, list[Group]]], used: set[int], rejected: tuple[Rejection, ...]
) -> Partition:
    every = sorted(
        ((i, group) for i, (_, groups) in enumerate(found) for group in groups),
        key=lambda pair: (pair[0] not in used, *_place(layout, pair[1].axes[0])),
    )
    distinct: dict[object, tuple[int, Group]] = {}
    for pair in every:  # the same group may be part of several cuts
        distinct.setdefault(tuple((use.axis, use.unit.tobytes()) for use in pair[1].axes), pair)
    ranked = list(distinct.values())
    rank = {id(group): n for n, (_, group) in enumerate(ranked)}
    ids = {key: f"g{n}" for key, n in rank.items()}
    users: dict[Axis, list[tuple[int, Group]]] = {}
    for i, group in ranked:
        for use in group.axes:
            users.setdefault(use.axis, []).append((i, group))
    groups: list[Group] = []
    alternatives: list[Group] = []
    for i, group in ranked:
        rivals = {id(other): j for use in group.axes for j, other in users[use.axis] if j != i}
        others = tuple(ids[rival] for rival in sorted(rivals, key=lambda rival: (rivals[rival], rank[rival])))
        numbered = replace(group, id=ids[id(group)], alternatives=others)
        (groups if i in used else alternatives).append(numbered)
    return Partition(layout, tuple(groups), tuple(alternatives), rejected)


class _Finder:
    """Splits cuts into groups. Holds the lookups that all cuts share."""

    def __init__(self, axis_graph: AxisGraph, layout: Layout) -> None:
        self.layout = layout
        self.parameters: dict[int, list[tuple[Axis, Parameter]]] = {}
        self.axes_of: dict[int, list[int]] = {}
        self.classes_of: dict[int, list[int]] = {}
        self.balances: dict[int, list[Balance]] = {}
        self.parameter_of: dict[Axis, Parameter] = {}
        self.rejected: list[Rejection] = []
        self.sink_axes = {sink.parameter for sink in axis_graph.sinks if sink.parameter is not None}
        self.fed_back = {sink.axis for sink in axis_graph.sinks if sink.axis == sink.parameter}
        self.depths = _depths(axis_graph.ops)
        parameters = axis_graph.parameters
        for number, axis in enumerate(layout.axes):
            self.axes_of.setdefault(int(layout.klass[number]), []).append(number)
            if axis.value in parameters:
                self.parameter_of[axis] = parameters[axis.value]
                self.parameters.setdefault(int(layout.klass[number]), []).append(
                    (axis, parameters[axis.value])
                )
        for k, component in enumerate(layout.hard.tolist()):
            self.classes_of.setdefault(component, []).append(k)
        for balance in axis_graph.balances:
            if balance.axis in layout.number:
                component = layout.component(balance.axis)
                self.balances.setdefault(component, []).append(balance)

    def parameter_axes(self, cut: Cut) -> int:
        """Number of parameter axes in the components of a cut."""
        classes = (k for component in cut.components for k in self.classes_of[component])
        return sum(len(self.parameters.get(k, ())) for k in classes)

    def groups(self, cut: Cut, number: int) -> list[Group]:
        """The groups of one cut; empty where everything in it is pinned."""
        classes = sorted(k for component in cut.components for k in self.classes_of[component])
        if not any(k in self.parameters for k in classes):
            return []
        unit_of, free = self._units(cut, classes)
        balances = self._blocks(cut, classes, unit_of, free)
        member, kinds = self._members(classes, unit_of, free, balances)
        member = np.where(free, np.searchsorted(np.unique(member[free]), member), -1)
        units = _divide(member)
        touched: list[list[int]] = [[] for _ in units]
        for k in classes:
            for group in np.unique(member[unit_of[k]]).tolist():
                if group >= 0:
                    touched[group].append(k)
        local = np.empty(len(member), np.int64)
        for mine in units:
            local[mine] = np.arange(len(mine))
        groups = []
        for group, mine in enumerate(units):
            lies = {k: np.where(member[unit_of[k]] == group, local[unit_of[k]], -1) for k in touched[group]}
            made = self._group(mine, lies, kinds[mine], balances, number)
            if made is not None:
                groups.append(made)
        return groups

    def _units(self, cut: Cut, classes: list[int]) -> tuple[dict[int, Index], Bools]:
        """Unit of every position, per class; and which units are free of barriers."""
        layout = self.layout
        spans = {
            k: np.arange(layout.offset[k], layout.offset[k] + layout.extent[k], dtype=np.int64)
            for k in classes
        }
        labels = np.unique(np.concatenate([layout.label[span] for span in spans.values()]))
        joined = join_labels(layout, labels, cut.choices)
        roots, unit = np.unique(joined, return_inverse=True)
        free = np.ones(len(roots), bool)
        free[unit[layout.pinned[labels]]] = False
        for axis in cut.pinned:
            held = layout.label[layout.positions(axis)]
            free[unit[np.searchsorted(labels, held)]] = False
        return {k: unit[np.searchsorted(labels, layout.label[s])] for k, s in spans.items()}, free

    def _blocks(self, cut: Cut, classes: list[int], unit_of: dict[int, Index], free: Bools) -> list[Balanced]:
        """Balance constraints that bind units.

        A unit that lies in several blocks but not evenly cannot be dropped: `free` is cleared for it.
        """
        taken = {(id(edge.where), edge.factor) for edge in cut.choices}
        stated = {
            (int(self.layout.klass[self.layout.number[balance.axis]]), balance.blocks): None
            for component in sorted(cut.components)
            for balance in self.balances.get(component, ())
            if (id(balance.where), balance.unless) not in taken
        }
        found: list[Balanced] = []
        for k, blocks in stated:
            touched, unit = np.unique(unit_of[k], return_inverse=True)
            size = len(unit) // blocks
            counts = np.zeros((len(touched), blocks), np.int64)
            np.add.at(counts, (unit, np.arange(len(unit)) // size), 1)
            even = (counts == counts[:, :1]).all(1)
            single = (counts > 0).sum(1) == 1
            free[touched] &= even | single
            block = np.full(len(free), -1, np.int64)
            block[touched] = np.where(even, -1, counts.argmax(1))
            if (block[free] >= 0).any():
                found.append(Balanced(block, blocks))
        return found

    def _members(
        self, classes: list[int], unit_of: dict[int, Index], free: Bools, balances: list[Balanced]
    ) -> tuple[Index, Index]:
        """Group of each unit, and its kind: units of one kind touch the same axes.

        A group is a kind, or all kinds that a balance constraint binds to each other.
        """
        signature = np.zeros(len(free), np.uint64)
        for k in classes:
            with np.errstate(over="ignore"):
                signature[np.unique(unit_of[k])] += hashes(np.array([k]))[0]
        _, kind = np.unique(signature, return_inverse=True)
        bound = [np.unique(kind[free & (balance.block >= 0)]) for balance in balances]
        none = np.empty(0, np.int64)
        first = [kinds[np.zeros(len(kinds), np.int64)] for kinds in bound]
        joined = components(len(kind), np.concatenate([none, *bound]), np.concatenate([none, *first]))
        return joined[kind], kind

    def _group(
        self,
        units: Index,
        lies: dict[int, Index],
        kinds: Index,
        balances: list[Balanced],
        cut: int,
    ) -> Group | None:
        if len(units) < 2:
            self._reject(Reason.INDIVISIBLE, lies)
            return None
        try:
            cells = find_cells(units, kinds, balances, lambda: self._rank(lies, len(units)))
        except Unbalanced as error:
            self._reject(error.reason, lies)
            return None
        uses = [
            AxisUse(self.layout.axes[n], positions) for k, positions in lies.items() for n in self.axes_of[k]
        ]
        uses.sort(key=lambda use: self.layout.number[use.axis])
        sources, sinks, name = self._roles(uses)
        if not sources and not sinks:
            return None
        width = self._width(sources, sinks)
        return Group("", name, len(units), tuple(uses), sources, sinks, cells, width, cut)

    def _width(self, sources: tuple[AxisUse, ...], sinks: tuple[AxisUse, ...]) -> int:
        """Positions of one unit on the first weight that makes it; where it is fed back, those that are read.

        The first is the one with the fewest layers before it, of several the largest, whatever the order of the
        nodes.
        """
        made = [use for use in sources if self.parameter_of[use.axis].kind == "weight"]
        read = [use for use in sinks if use.axis in self.fed_back]
        lies = [(self._early(use.axis.value), use.unit) for use in read or made or sources or sinks]
        return max((early, int(np.bincount(unit[unit >= 0]).max())) for early, unit in lies)[1]

    def _early(self, value: ir.Value) -> tuple[int, int]:
        """Larger for parameters with fewer layers before them, then for larger ones."""
        depth = min(self.depths[node] for node, _ in value.uses() if node in self.depths)
        return -depth, 0 if value.const_value is None else value.const_value.size

    def _rank(self, lies: dict[int, Index], units: int) -> Index:
        """Number units by where they lie on axes, by name: whatever the order of the nodes."""
        axes = self.layout.axes
        named = sorted((min(axes[n].name for n in self.axes_of[k]), k) for k in lies)
        seen = np.concatenate([positions[positions >= 0] for _, k in named for positions in (lies[k],)])
        _, first = np.unique(seen, return_index=True)
        rank = np.empty(units, np.int64)
        rank[np.argsort(first)] = np.arange(units)
        return rank

    def _reject(self, reason: Reason, classes: Iterable[int]) -> None:
        axes = tuple(axis for k in classes for axis, _ in self.parameters.get(k, ()))
        self.rejected.append(Rejection(reason, axes))

    def _roles(self, uses: list[AxisUse]) -> tuple[tuple[AxisUse, ...], tuple[AxisUse, ...], str]:
        parameters = self.parameter_of
        touched = [use for use in uses if use.axis in parameters]
        sinks = tuple(use for use in touched if use.axis in self.sink_axes)
        sources = tuple(use for use in touched if use.axis not in self.sink_axes)
        weights = [use for use in sources if parameters[use.axis].kind == "weight"] or sources or sinks
        first = parameters[weights[0].axis] if weights else None
        return sources, sinks, "" if first is None else _layer_name(first)


def _depths(ops: Iterable[Op]) -> dict[ir.Node, int]:
    """For every node, how many lie before it on the longest way from an input."""
    depths: dict[ir.Node, int] = {}
    for op in ops:
        makers = (value.producer() for value in op.node.inputs if value is not None)
        depths[op.node] = 1 + max((depths[maker] for maker in makers if maker in depths), default=0)
    return depths


def _divide(member: Index) -> list[Index]:
    """Units of every group, ascending; `member` is the group of each unit, counted from 0, or -1."""
    order = np.argsort(member, kind="stable")
    first = np.searchsorted(member[order], np.arange(member.max(initial=-1) + 2))
    return [order[start:stop] for start, stop in zip(first, first[1:], strict=False)]


def _layer_name(parameter: Parameter) -> str:
    node = parameter.op.node
    return node.name or str(parameter.value.name)
