"""`explain`: why a tensor, layer or axis is coupled to what it is, or which barrier blocks it."""

from __future__ import annotations

import difflib
import re
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import onnx_ir as ir

from onnxprune.analysis import Analysis
from onnxprune.errors import UsageError
from onnxprune.graph.axes import Axis, Barrier
from onnxprune.graph.build import AxisGraph
from onnxprune.graph.explain import Hop, Step, path_between, path_to_barrier, ways
from onnxprune.model.nested import bodies_of, every_node
from onnxprune.model.quantized import stored_name
from onnxprune.report.tables import plural

_ENDS = 3
"""Nodes that are named at either end of a long way."""


@dataclass(frozen=True)
class AxisExplanation:
    """What is known about one axis.

    Attributes
    ----------
    axis
        `value[dim]`.
    extent
        Its number of positions.
    groups
        Ids of the groups whose units lie on it.
    coupled
        Weights that are cut together with it, the nearest first, each with the nodes on the way there.
    more
        How many such weights are left out.
    barrier
        Why it is blocked; empty where it is not.
    path
        How the barrier is reached, one step per line.
    """

    axis: str
    extent: int
    groups: tuple[str, ...]
    coupled: tuple[tuple[str, tuple[str, ...]], ...]
    barrier: str
    path: tuple[str, ...]
    more: int = 0

    def __str__(self) -> str:
        head = f"{self.axis}  ({plural(self.extent, 'position')})"
        if not self.groups:
            verdict = f"blocked, {self.barrier}" if self.barrier else "nothing to prune here"
            return "\n".join([f"{head}: {verdict}", *(f"    {step}" for step in self.path)])
        lines = [
            f"{head}: prunable, in {', '.join(self.groups)}" + (", together with" if self.coupled else "")
        ]
        lines += [f"    {name}  by {_shortened(nodes)}" for name, nodes in self.coupled]
        if self.more:
            lines.append(f"    and {plural(self.more, 'weight')} more")
        return "\n".join(lines)


@dataclass(frozen=True)
class Explanation:
    """What `explain` says about a name; `str` gives the text."""

    name: str
    axes: tuple[AxisExplanation, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.axes))


def explain(analysis: Analysis, name: str, *, limit: int = 8) -> Explanation:
    """Explain a tensor, a node, or an axis written `tensor[dim]`.

    Parameters
    ----------
    analysis
        From `analyze`.
    name
        Name of a value, an initializer or a node; `name[1]` picks one axis. A group id works too.
    limit
        Weights to list per axis; for a group, which is explained from its first weight, four times as many.

    Raises
    ------
    UsageError
        Nothing in the model has that name.
    """
    axes = _find(analysis, name)
    if name in analysis.groups:
        limit *= 4
    hops = ways(analysis.axis_graph.graph)
    return Explanation(name, tuple(_explain(analysis, axis, limit, hops) for axis in axes))


def _find(analysis: Analysis, name: str) -> list[Axis]:
    graph = analysis.axis_graph
    group = analysis.groups.get(name)
    if group is not None:
        return [(*group.sources, *group.sinks)[0].axis]
    values: dict[str, list[ir.Value]] = {}
    model = graph.model.graph
    for value in (*model.inputs, *model.initializers.values()):
        values.setdefault(str(value.name), []).append(value)
        if (stored := stored_name(value)) is not None:
            values.setdefault(stored, []).append(value)
    for node in every_node(model):
        for value in (*node.outputs, *(given for body in bodies_of(node) for given in body.inputs)):
            values.setdefault(str(value.name), []).append(value)
        mine = [v for v in node.inputs if v is not None and v.const_value is not None]
        values.setdefault(str(node.name), []).extend([*node.outputs, *mine])
    wanted, dim = name, None
    match = re.fullmatch(r"(.*)\[(-?\d+)\]", name)
    if name not in values and match:
        wanted, dim = match[1], int(match[2])
    if wanted not in values:
        near = difflib.get_close_matches(wanted, values, n=3, cutoff=0.4)
        raise UsageError(
            f"the model has no tensor, node or group named {wanted!r}",
            f"Nearest names: {', '.join(near)}." if near else "`onnxprune analyze` lists the groups.",
        )
    axes: list[Axis] = []
    for value in dict.fromkeys(values[wanted]):
        rank = len(graph.shapes.dims.get(value, ()))
        if dim is not None and not -rank <= dim < rank:
            raise UsageError(f"{wanted!r} has {rank} axes, so there is no axis {dim}", "Count from 0.")
        axes.extend(Axis(value, d) for d in range(rank) if dim is None or d == dim % rank)
    return axes


def _explain(analysis: Analysis, axis: Axis, limit: int, hops: Mapping[Axis, Hop]) -> AxisExplanation:
    graph = analysis.axis_graph
    inside = [g for g in analysis.partition.groups if any(use.axis == axis for use in g.axes)]
    extents = graph.shapes.dims.get(axis.value, ())
    extent = graph.extents.get(axis, (extents[axis.dim] or 0) if axis.dim < len(extents) else 0)
    if inside:
        weights = {use.axis for g in inside for use in (*g.sources, *g.sinks)} - {axis}
        near = _nearest(graph, axis, weights)[:limit]
        coupled = tuple((other.name, _nodes(path_between(graph.graph, axis, other))) for other in near)
        groups = tuple(g.id for g in inside)
        return AxisExplanation(axis.name, extent, groups, coupled, "", (), len(weights) - len(near))
    steps = path_to_barrier(graph.graph, hops, axis)
    barrier = ""
    if steps and isinstance(steps[-1].to, Barrier):
        barrier = f"{steps[-1].to.reason.sentence} ({steps[-1].to.where})"
    return AxisExplanation(axis.name, extent, (), (), barrier, tuple(_line(step) for step in steps))


def _nearest(graph: AxisGraph, start: Axis, wanted: Collection[Axis]) -> list[Axis]:
    """The wanted axes in the order in which a walk from `start` meets them."""
    found: list[Axis] = []
    queue, seen = deque([start]), {start}
    while queue and len(found) < len(wanted):
        for other in graph.graph.adj[queue.popleft()]:
            if isinstance(other, Axis) and other not in seen:
                seen.add(other)
                queue.append(other)
                if other in wanted:
                    found.append(other)
    return found


def _nodes(steps: Sequence[Step]) -> tuple[str, ...]:
    """The nodes that a path leads through, each once in a row."""
    return tuple(label for label, _ in groupby(step.through for step in steps))


def _shortened(nodes: Sequence[str]) -> str:
    if len(nodes) <= 2 * _ENDS + 1:
        return ", ".join(nodes)
    left_out = len(nodes) - 2 * _ENDS
    return f"{', '.join(nodes[:_ENDS])}, ... {left_out} nodes ..., {', '.join(nodes[-_ENDS:])}"


def _line(step: Step) -> str:
    if isinstance(step.to, Barrier):
        return f"{step.axis.name} is held by {step.to.where}: {step.to.reason.sentence}"
    return f"{step.axis.name} is tied to {step.to.name} by {step.through}"
