"""MACs, parameters and run time as functions of what is kept.

MACs and parameters are sums of terms, each a factor times a product of extents; run time is looked up in measured
tables (`onnxprune.allocate.latency`). Units that go make extents smaller, so a cost is evaluated for any choice of
kept units without touching the model.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from onnxprune.allocate.bodies import Place, places, with_choices
from onnxprune.allocate.twins import TwinVectors
from onnxprune.graph.axes import Axis, Bools, Index
from onnxprune.graph.build import AxisGraph
from onnxprune.graph.groups import Group, Partition
from onnxprune.rules.op import Op
from onnxprune.rules.rule import Term

Extents = np.ndarray[Any, np.dtype[np.float64]]
"""Shape (places,): 1, the extents of all classes of axes, and one over the numbers of blocks."""


@dataclass(frozen=True)
class Cost:
    """MACs (one multiply-add counts 1) of one sample, elements of float initializers, and predicted seconds.

    Nothing is predicted (0 seconds) by a `CostModel` to which no measured time was given.
    """

    macs: int
    params: int
    latency: float = 0.0

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.macs - other.macs, self.params - other.params, self.latency - other.latency)


class Amount(Protocol):
    """A cost that is a sum over layers, each of which sees some extents."""

    def total(self, extent: Extents) -> float:
        """The cost at these extents; not lower where an extent is larger."""

    def reads(self, places: Bools) -> Bools:
        """Which of the summands read a place; shape (groups, places) -> (groups, summands)."""


@dataclass(frozen=True, eq=False)
class Removed:
    """Positions that some units of one group take away from classes of axes.

    Attributes
    ----------
    classes, positions
        Places in the extents, and how many positions go there.
    whole
        For divisors by numbers of blocks: place, and how many blocks go.
    """

    classes: Index
    positions: Index
    whole: tuple[tuple[int, float], ...]


def _running(counts: Index, rungs: Index) -> Index:
    """Shape (rungs + 1, rows): sums of `counts`, shape (rows, units), over the first n rungs."""
    per_rung = counts[:, rungs].sum(axis=2)
    zero = np.zeros((len(counts), 1), per_rung.dtype)
    return np.concatenate([zero, np.cumsum(per_rung, axis=1)], axis=1).T


@dataclass(frozen=True)
class Terms:
    """Terms over classes of axes, flattened: `factor[i] * prod(extent[classes[start[i]:start[i+1]]])`."""

    factor: np.ndarray[Any, np.dtype[np.float64]]
    classes: Index
    start: Index

    def total(self, extent: Extents) -> int:
        """The sum of all terms."""
        return round(float(self.each(extent).sum()))

    def each(self, extent: Extents) -> np.ndarray[Any, np.dtype[np.float64]]:
        """One term after the other, shape (terms,)."""
        if not len(self.factor):
            return np.zeros(0)
        return np.asarray(self.factor * np.multiply.reduceat(extent[self.classes], self.start))

    def reads(self, places: Bools) -> Bools:
        """As `Amount.reads`."""
        if not len(self.start):
            return np.zeros((len(places), 0), bool)
        return np.asarray(np.logical_or.reduceat(places[:, self.classes], self.start, axis=1))


class CostModel:
    """Evaluates the cost of a model for any choice of kept units.

    Parameters
    ----------
    axis_graph, partition
        Of the model.

    Attributes
    ----------
    full
        Cost of the whole model. Of an If, the branch with more MACs counts; of a Loop or a Scan, every iteration
        (see `onnxprune.allocate.bodies`).
    latency
        What run time is predicted by; None where nothing was measured.
    """

    latency: Amount | None = None

    def __init__(self, axis_graph: AxisGraph, partition: Partition) -> None:
        layout = partition.layout
        self._layout = layout
        self._axis_graph = axis_graph
        # class 0 is the constant 1; class k+1 is class k of the layout; the rest divide by numbers of blocks
        self._base = np.concatenate([[1.0], layout.extent.astype(np.float64)])
        self._divisors = self._number_divisors()
        self._base = np.concatenate([self._base, [1.0 / blocks for _, blocks in self._divisors]])
        self.node_terms: list[tuple[int, Term]] = []
        inside = places(axis_graph)
        for number, op in enumerate(axis_graph.ops):
            rule = axis_graph.rules.of(op.node)
            if rule is not None and all(v is None or op.dims(v) is not None for v in op.node.inputs):
                terms = rule.macs(op)
                if (place := inside.get(op.node)) is not None:
                    terms = [Term(place.times * term.factor, term.axes) for term in terms]
                self.node_terms.extend((number, term) for term in terms)
        self._every = self.terms([term for _, term in self.node_terms])
        self._macs = self._chosen(inside) if inside else self._every
        self._params = self.terms([self._size(value) for value in axis_graph.parameters])
        self._twins = TwinVectors(axis_graph, partition)
        self._uses = {group.id: self._unit_counts(group) for group in partition.groups}
        self._blocks_gone = {group.id: self._whole_blocks(group) for group in partition.groups}
        self.full = self.cost({})

    def cost(self, keep: Mapping[str, Bools]) -> Cost:
        """Cost when each group keeps the flagged units; groups that are not named keep all."""
        extent = self.extents(keep)
        params = self._params.total(extent) - self._twins.surplus(keep)
        latency = 0.0 if self.latency is None else self.latency.total(extent)
        return Cost(round(self._macs.total(extent)), params, latency)

    def timed(self, latency: Amount) -> CostModel:
        """The same model with a prediction of its run time."""
        other = copy.copy(self)
        other.latency = latency
        other.full = other.cost({})
        return other

    def after(self, removed: Sequence[Removed], amount: Amount) -> float:
        """An amount when all of these positions are gone; cheaper than `cost` where many cuts are tried."""
        extent = self._base.copy()
        for part in removed:
            extent[part.classes] -= part.positions
            for divisor, whole in part.whole:
                extent[divisor] = 1.0 / (1.0 / extent[divisor] - whole)
        return amount.total(extent)

    def amount(self, kind: str) -> Amount | None:
        """What adds up over layers: "macs", or "latency" where it was measured; None for other kinds of cost."""
        return {"macs": self._macs, "latency": self.latency}.get(kind)

    def coupled(self, groups: Sequence[Group], amount: Amount) -> Bools:
        """Shape (groups, groups): which have a say in the same summand of an amount; all with themselves."""
        touched = np.zeros((len(groups), len(self._base)), bool)
        for number, group in enumerate(groups):
            touched[number, self._uses[group.id][0]] = True
            touched[number, [divisor for divisor, _ in self._blocks_gone[group.id]]] = True
        shared = amount.reads(touched).astype(np.float32)
        return np.eye(len(groups), dtype=bool) | (shared @ shared.T > 0)

    def removals(self, group: Group, rungs: Index) -> list[Removed]:
        """What is gone after the first n rungs of a group, for every n from 0 on.

        Parameters
        ----------
        rungs
            Shape (rungs, units per rung).
        """
        classes, counts = self._uses[group.id]
        positions = _running(counts, rungs)
        divisors = [
            (divisor, _running(whole[None], rungs)[:, 0]) for divisor, whole in self._blocks_gone[group.id]
        ]
        return [
            Removed(classes, positions[n], tuple((divisor, float(gone[n])) for divisor, gone in divisors))
            for n in range(len(rungs) + 1)
        ]

    def per_unit(self, group: Group) -> Cost:
        """What the first unit of a group costs while everything else is whole."""
        flags = np.ones(group.units, bool)
        flags[0] = False
        return self.full - self.cost({group.id: flags})

    def term_macs(self) -> list[float]:
        """MACs of the whole model per entry of `node_terms`; both branches of an If have theirs."""
        return [float(macs) for macs in self._every.each(self._base)]

    def node_macs(self) -> dict[int, float]:
        """MACs of the whole model per node number."""
        found: dict[int, float] = {}
        for (number, _), macs in zip(self.node_terms, self.term_macs(), strict=True):
            found[number] = found.get(number, 0.0) + macs
        return found

    def extents(self, keep: Mapping[str, Bools]) -> Extents:
        """What amounts are functions of, when each group keeps the flagged units."""
        extent = self._base.copy()
        for name, flags in keep.items():
            classes, counts = self._uses[name]
            extent[classes] -= counts[:, ~flags].sum(axis=1)
            for divisor, whole in self._blocks_gone[name]:
                extent[divisor] = 1.0 / (1.0 / extent[divisor] - whole[~flags].sum())
        return extent

    def place(self, axis: Axis) -> int | None:
        """Place of an axis in the extents; None for axes that no operator ties to anything."""
        return self._class(axis) if axis in self._layout.number else None

    def places(self, group: Group) -> Index:
        """Places in the extents where a group has positions."""
        return self._uses[group.id][0]

    def _chosen(self, inside: Mapping[ir.Node, Place]) -> Amount:
        """MACs of a run, of the costlier branch of every If."""
        parts: dict[tuple[tuple[ir.Node, int], ...], list[Term]] = {}
        for number, term in self.node_terms:
            place = inside.get(self._axis_graph.ops[number].node, Place())
            parts.setdefault(place.taken, []).append(term)
        return with_choices({taken: self.terms(terms) for taken, terms in parts.items()}, self.terms([]))

    def _class(self, axis: Axis) -> int:
        return int(self._layout.klass[self._layout.number[axis]]) + 1

    def _number_divisors(self) -> dict[tuple[int, int], int]:
        """Position in the extents of `1 / blocks that are left`, per class of a divided axis and its blocks."""
        found: dict[tuple[int, int], int] = {}
        for axis, blocked in self._axis_graph.blocked.items():
            if axis in self._layout.number:
                key = (self._class(axis), blocked.blocks)
                found.setdefault(key, len(self._base) + len(found))
        return found

    def _whole_blocks(self, group: Group) -> list[tuple[int, Index]]:
        """Divisors that a group changes, and how many whole blocks each of its units takes."""
        found: dict[int, Index] = {}
        for use in group.axes:
            blocked = self._axis_graph.blocked.get(use.axis)
            if blocked is None:
                continue
            k = self._class(use.axis)
            runs = use.unit.reshape(blocked.blocks, -1)
            whole = runs[(runs == runs[:, :1]).all(axis=1) & (runs[:, 0] >= 0), 0]
            if runs.shape[1] > 1 and len(whole):
                found[self._divisors[k, blocked.blocks]] = np.bincount(whole, minlength=group.units)
        return list(found.items())

    def _unit_counts(self, group: Group) -> tuple[Index, Index]:
        """Classes of axes that a group touches, and how many positions each unit has there."""
        seen: dict[int, Index] = {}
        for use in group.axes:
            k = self._class(use.axis)
            if k not in seen:
                seen[k] = np.bincount(use.unit[use.unit >= 0], minlength=group.units)
        return np.array(list(seen), np.int64), np.array(list(seen.values()))

    def _size(self, value: Any) -> Term:
        dims = [int(d) for d in value.const_value.shape]
        return Term(1.0, tuple(Axis(value, dim) for dim in range(len(dims))))

    def terms(self, terms: Sequence[Term]) -> Terms:
        """Terms over axes as an amount."""
        factors: list[float] = []
        classes: list[int] = []
        start: list[int] = []
        for term in terms:
            factor = term.factor
            start.append(len(classes))
            classes.append(0)
            for axis in term.axes:
                if axis not in self._layout.number:
                    factor *= self._axis_graph.shapes.dims[axis.value][axis.dim] or 0
                else:
                    k = self._class(axis)
                    classes.append(k)
                    blocked = self._axis_graph.blocked.get(axis)
                    if blocked is not None:
                        classes.append(self._divisors[k, blocked.blocks])
            factors.append(factor)
        return Terms(np.array(factors, float), np.array(classes, np.int64), np.array(start, np.int64))


def inner_values(axis_graph: AxisGraph) -> dict[ir.Value, Op]:
    """Float weights that bodies use first, and the node of the main graph that each is used inside of."""
    inner = axis_graph.inner_ops
    return {
        value: inner[parameter.op]
        for value, parameter in axis_graph.parameters.items()
        if parameter.op in inner
    }
