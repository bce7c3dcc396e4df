"""A model, taken apart: its groups, what they cost, what is blocked and why."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from onnxprune.allocate.cost import Cost, CostModel
from onnxprune.collector import rarely_collected
from onnxprune.errors import ModelError, OnnxPruneError, Reason, UsageError
from onnxprune.graph.axes import Axis
from onnxprune.graph.build import AxisGraph, build_axis_graph
from onnxprune.graph.explain import nearest_barriers
from onnxprune.graph.groups import Group, Partition, partition
from onnxprune.graph.ranking import ATTENTION
from onnxprune.model.branches import decide_branches
from onnxprune.model.check import check
from onnxprune.model.io import LoadedModel, load
from onnxprune.model.normalize import fold, normalize
from onnxprune.model.origin import twins
from onnxprune.model.shapes import infer_shapes
from onnxprune.model.tables import fold_tables
from onnxprune.rules import RuleTable, default_rules
from onnxprune.select import matching_io


@dataclass(frozen=True)
class Blocked:
    """Layers whose output channels all stay, for one reason at one place.

    Attributes
    ----------
    reason, where
        The barrier.
    layers
        Names of the layers (nodes with a weight) that it holds.
    params, macs
        Of those layers. Their input channels may still be cut by the groups of the layers before them.
    """

    reason: Reason
    where: str
    layers: tuple[str, ...]
    params: int
    macs: int


@dataclass(frozen=True)
class Coverage:
    """Share of the model's parameters and MACs that lies in layers some group can make smaller."""

    params: float
    macs: float


@dataclass(frozen=True)
class Analysis:
    """What can be cut, what cannot, and what everything costs. Made by `analyze`.

    Attributes
    ----------
    source
        The model as loaded.
    axis_graph, partition
        Which positions hang together, and the groups that follow.
    costs
        MACs and parameters for any choice of kept units.
    allow_inexact
        Whether axes that norms average over were opened.
    refit_io
        Names of the graph inputs and outputs that may get smaller.
    attention
        Whether heads go or dimensions of heads, where both are possible.
    """

    source: LoadedModel
    axis_graph: AxisGraph
    partition: Partition
    costs: CostModel = field(repr=False)
    allow_inexact: bool = False
    refit_io: tuple[str, ...] = ()
    attention: str = "heads"

    @cached_property
    def inexact(self) -> Mapping[str, str]:
        """For every group whose cut changes what a norm averages over: the first such node."""
        averages = {
            axis: average.where.label
            for average in reversed(self.axis_graph.averages)
            for _, axis in (*average.inputs, *average.outputs)
        }
        found = {
            group.id: [averages[use.axis] for use in group.axes if use.axis in averages]
            for group in self.partition.groups
        }
        return {name: where[0] for name, where in found.items() if where}

    @cached_property
    def groups(self) -> dict[str, Group]:
        """Prunable groups by id."""
        return {group.id: group for group in self.partition.groups}

    @property
    def cost(self) -> Cost:
        """Cost of the whole model."""
        return self.costs.full

    @property
    def bindings(self) -> Mapping[str, int]:
        """Sizes of the symbolic dims at which MACs are counted."""
        return self.axis_graph.shapes.bindings

    @property
    def guessed(self) -> dict[str, int]:
        """Bindings that nobody gave: a batch of 1, and guesses."""
        shapes = self.axis_graph.shapes
        return {name: shapes.bindings[name] for name in sorted(shapes.guessed)}

    @cached_property
    def coverage(self) -> Coverage:
        """Share of the model in layers that some group can make smaller."""
        inside = {use.axis.value for g in self.partition.groups for use in (*g.sources, *g.sinks)}
        graph = self.axis_graph
        root = twins(graph.model.graph)
        sizes = {  # a vector that the file stores once counts once
            root.get(str(v.name), v.name): v.const_value.size
            for v in graph.parameters
            if v in inside and v.const_value is not None
        }
        touched = {use.axis for g in self.partition.groups for use in g.axes}
        macs, every = 0.0, self.costs.term_macs()
        for (number, term), cost in zip(self.costs.node_terms, every, strict=True):
            weights = set(graph.ops[number].node.inputs) & inside
            if weights or any(axis in touched for axis in term.axes):
                macs += cost
        return Coverage(_share(sum(sizes.values()), self.cost.params), _share(macs, sum(every)))

    @cached_property
    def blocked(self) -> tuple[Blocked, ...]:
        """Layers whose output channels cannot be cut, by barrier, the costliest first."""
        graph = self.axis_graph
        produced = {use.axis for g in self.partition.groups for use in g.sources}
        sinks = {sink.parameter for sink in graph.sinks}
        barriers = nearest_barriers(graph.graph)
        rejected = {axis: r.reason for r in self.partition.rejected for axis in r.axes}
        macs = self.costs.node_macs()
        number_of = {op.node: number for number, op in enumerate(graph.ops)}
        found: dict[tuple[Reason, str], list[tuple[str, int, float]]] = {}
        counted: set[int] = set()  # a node with several weights costs its MACs once
        for value, parameter in graph.parameters.items():
            if parameter.kind != "weight" or value.const_value is None:
                continue
            axes = [Axis(value, dim) for dim in range(len(value.const_value.shape))]
            axes = [axis for axis in axes if axis in graph.graph and axis not in sinks]
            if any(axis in produced for axis in axes):
                continue
            node = parameter.op.node
            label = node.name or str(value.name)
            reason, where = Reason.INDIVISIBLE, label
            for axis in _channel_axes(graph, axes):
                if axis in barriers:
                    reason, where = barriers[axis].reason, barriers[axis].where
                elif axis in rejected:
                    reason = rejected[axis]
            number = number_of[node]
            cost = 0.0 if number in counted else macs.get(number, 0.0)
            counted.add(number)
            found.setdefault((reason, where), []).append((label, value.const_value.size, cost))
        blocked = [
            Blocked(
                reason,
                where,
                tuple(dict.fromkeys(name for name, _, _ in layers)),
                sum(size for _, size, _ in layers),
                round(sum(cost for _, _, cost in layers)),
            )
            for (reason, where), layers in found.items()
        ]
        return tuple(sorted(blocked, key=lambda b: (-b.macs, -b.params, b.where)))

    def __repr__(self) -> str:
        units = sum(group.units for group in self.partition.groups)
        return (
            f"Analysis({str(self.source.path)!r}: {len(self.partition.groups)} groups, {units} units in all, "
            f"{self.coverage.macs:.0%} of {self.cost.macs:,} MACs and {self.coverage.params:.0%} of "
            f"{self.cost.params:,} params reachable)"
        )


@rarely_collected
def analyze(
    model: str | os.PathLike[str] | LoadedModel,
    *,
    bindings: Mapping[str, int] | None = None,
    rules: RuleTable | None = None,
    allow_inexact: bool = False,
    refit_io: Sequence[str] = (),
    attention: str = "heads",
) -> Analysis:
    """Find the groups of a model, what they cost and what is blocked.

    Parameters
    ----------
    model
        A path or a loaded model; never modified.
    bindings
        Sizes of symbolic dims, for counting MACs.
    rules
        The rule table; `default_rules()` by default.
    allow_inexact
        Also cut axes that norms average over: then the norm is one of the positions that stay.
    refit_io
        Graph inputs and outputs that may get smaller with the layers around them, as globs on their names or
        `re:` and a regular expression: the keys and values of a cache, above all.
    attention
        What goes in attention where both are possible: "heads", or "dims" of all heads alike.

    Raises
    ------
    ModelError
        The file is no usable model, or has no float weights.
    UsageError
        A binding names no symbolic dim of the model, a pattern no input or output, or there is no such
        `attention`.
    """
    if attention not in ATTENTION:
        raise UsageError(f"attention cannot lose {attention!r}", f"Known: {', '.join(ATTENTION)}.")
    source = model if isinstance(model, LoadedModel) else load(model)
    try:
        return _analyze(source, bindings, rules, allow_inexact, refit_io, attention)
    except OnnxPruneError:
        raise
    except Exception:  # a node without its inputs, an attribute of another type: the checker finds the words
        _check_valid(source)
        raise


def _check_valid(source: LoadedModel) -> None:
    try:
        check(source.ir)
    except ModelError as error:
        raise ModelError(f"{source.path}: {error.what}", error.hint) from None


def _analyze(
    source: LoadedModel,
    bindings: Mapping[str, int] | None,
    rules: RuleTable | None,
    allow_inexact: bool,
    refit_io: Sequence[str],
    attention: str,
) -> Analysis:
    graph = normalize(source.ir)
    table = rules or default_rules()
    shapes = infer_shapes(graph, bindings, table.infer)
    while decide_branches(graph, shapes):
        fold(graph.graph)  # weights that only the branch reads that is taken
        shapes = infer_shapes(graph, bindings, table.infer)
    if fold_tables(graph, shapes):
        shapes = infer_shapes(graph, bindings, table.infer)
    unknown = sorted(set(bindings or {}) - set(shapes.bindings))
    if unknown:
        known = ", ".join(sorted(shapes.bindings)) or "none"
        raise UsageError(
            f"--bind {unknown[0]}: the model has no symbolic dim of that name", f"It has: {known}."
        )
    open_io = matching_io(graph.graph, refit_io)
    axis_graph = build_axis_graph(graph, shapes, table, allow_inexact=allow_inexact, refit_io=open_io)
    if not axis_graph.parameters:
        raise ModelError(
            f"{source.path} has no float weights, so there is nothing to look at or to prune",
            "Is it a model of trees, or a graph of pre- or post-processing?",
        )
    parts = partition(axis_graph, attention)
    return Analysis(
        source, axis_graph, parts, CostModel(axis_graph, parts), allow_inexact, open_io, attention
    )


def _channel_axes(graph: AxisGraph, axes: list[Axis]) -> list[Axis]:
    """Without kernel axes, whose pin says nothing about channels."""
    return [axis for axis in axes if not _only_spatial(graph, axis)]


def _only_spatial(graph: AxisGraph, axis: Axis) -> bool:
    return all(getattr(other, "reason", None) is Reason.SPATIAL for other in graph.graph.adj[axis])


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
