"""`explain`: why a tensor, layer or axis is coupled to what it is, or which barrier blocks it."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.analysis import Analysis
from onnxprune.errors import UsageError
from onnxprune.graph.axes import Axis, Barrier
from onnxprune.graph.explain import Step, coupled, path_to_barrier


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
        Axes that are directly tied to it, each with the node that ties them.
    barrier
        Why it is blocked; empty where it is not.
    path
        How the barrier is reached, one step per line.
    """

    axis: str
    extent: int
    groups: tuple[str, ...]
    coupled: tuple[tuple[str, str], ...]
    barrier: str
    path: tuple[str, ...]


@dataclass(frozen=True)
class Explanation:
    """What `explain` says about a name; `str` gives the text."""

    name: str
    axes: tuple[AxisExplanation, ...]

    def __str__(self) -> str:
        lines = []
        for axis in self.axes:
            head = f"{axis.axis}  ({axis.extent} positions)"
            if axis.groups:
                lines.append(f"{head}: prunable, in {', '.join(axis.groups)}")
            elif axis.barrier:
                lines.append(f"{head}: blocked, {axis.barrier}")
            else:
                lines.append(f"{head}: nothing to prune here")
            for other, through in axis.coupled:
                lines.append(f"    tied to {other} by {through}")
            if axis.path:
                lines.append("    blocked along:")
                lines.extend(f"      {step}" for step in axis.path)
        return "\n".join(lines)


def explain(analysis: Analysis, name: str, *, neighbours: int = 8) -> Explanation:
    """Explain a tensor, a node, or an axis written `tensor[dim]`.

    Parameters
    ----------
    analysis
        From `analyze`.
    name
        Name of a value, an initializer or a node; `name[1]` picks one axis. A group id works too.
    neighbours
        Direct couplings to list per axis.

    Raises
    ------
    UsageError
        Nothing in the model has that name.
    """
    axes = _find(analysis, name)
    return Explanation(name, tuple(_explain(analysis, axis, neighbours) for axis in axes))


def _find(analysis: Analysis, name: str) -> list[Axis]:
    graph = analysis.axis_graph
    group = analysis.groups.get(name)
    if group is not None:
        return [use.axis for use in (*group.sources, *group.sinks)]
    values: dict[str, list[ir.Value]] = {}
    model = graph.model.graph
    for value in (*model.inputs, *model.initializers.values()):
        values.setdefault(str(value.name), []).append(value)
    for node in model:
        for value in node.outputs:
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


def _explain(analysis: Analysis, axis: Axis, neighbours: int) -> AxisExplanation:
    graph = analysis.axis_graph
    inside = tuple(g.id for g in analysis.partition.groups if any(use.axis == axis for use in g.axes))
    extents = graph.shapes.dims.get(axis.value, ())
    extent = graph.extents.get(axis, (extents[axis.dim] or 0) if axis.dim < len(extents) else 0)
    if axis not in graph.graph:
        return AxisExplanation(axis.name, extent, (), (), "", ())
    tied = tuple((other.name, through) for other, through in coupled(graph.graph, axis))[:neighbours]
    if inside:
        return AxisExplanation(axis.name, extent, inside, tied, "", ())
    steps = path_to_barrier(graph.graph, axis)
    barrier = ""
    if steps and isinstance(steps[-1].to, Barrier):
        barrier = f"{steps[-1].to.reason.sentence} ({steps[-1].to.where})"
    return AxisExplanation(axis.name, extent, (), tied, barrier, tuple(_line(step) for step in steps))


def _line(step: Step) -> str:
    if isinstance(step.to, Barrier):
        return f"{step.axis.name} is held by {step.to.where}: {step.to.reason.sentence}"
    return f"{step.axis.name} is tied to {step.to.name} by {step.through}"
