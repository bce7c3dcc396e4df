"""Why is this coupled, why is this blocked: answers as shortest paths in the axis graph."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import networkx as nx

from onnxprune.graph.axes import Axis, Barrier
from onnxprune.graph.relations import Edge


@dataclass(frozen=True)
class Step:
    """One edge of a path: from an axis, through a node, to the next axis or to a barrier."""

    axis: Axis
    through: str
    to: Axis | Barrier


def nearest_barriers(graph: nx.MultiGraph[Any]) -> dict[Axis, Barrier]:
    """The barrier that blocks each axis, by breadth-first search from all barriers at once."""
    found: dict[Axis, Barrier] = {}
    queue: deque[Axis] = deque()
    for node in graph:
        if isinstance(node, Barrier):
            for axis in graph.adj[node]:
                if axis not in found:
                    found[axis] = node
                    queue.append(axis)
    while queue:
        axis = queue.popleft()
        for other in graph.adj[axis]:
            if isinstance(other, Axis) and other not in found:
                found[other] = found[axis]
                queue.append(other)
    return found


def path_to_barrier(graph: nx.MultiGraph[Any], axis: Axis) -> list[Step]:
    """The shortest path from an axis to a barrier; empty where none can be reached."""
    before: dict[Any, Axis] = {}
    queue: deque[Axis] = deque([axis])
    seen = {axis}
    while queue:
        here = queue.popleft()
        for other in graph.adj[here]:
            if isinstance(other, Barrier):
                before[other] = here
                return _trace(graph, before, axis, other)
            if other not in seen:
                seen.add(other)
                before[other] = here
                queue.append(other)
    return []


def path_between(graph: nx.MultiGraph[Any], a: Axis, b: Axis) -> list[Step]:
    """The shortest path between two axes that does not lead through a barrier; empty where there is none."""
    axes = graph.subgraph([node for node in graph if isinstance(node, Axis)])
    try:
        path = nx.shortest_path(axes, a, b)
    except (nx.NetworkXNoPath, nx.NodeNotFound):
        return []
    return [Step(u, _through(graph, u, v), v) for u, v in zip(path, path[1:], strict=False)]


def coupled(graph: nx.MultiGraph[Any], axis: Axis) -> Iterable[tuple[Axis, str]]:
    """Direct neighbours of an axis and the nodes that tie them."""
    for other in graph.adj[axis]:
        if isinstance(other, Axis):
            yield other, _through(graph, axis, other)


def _trace(graph: nx.MultiGraph[Any], before: Mapping[Any, Axis], start: Axis, end: Barrier) -> list[Step]:
    steps: list[Step] = []
    here: Any = end
    while here != start:
        last = before[here]
        steps.append(Step(last, _through(graph, last, here), here))
        here = last
    return steps[::-1]


def _through(graph: nx.MultiGraph[Any], a: Axis, b: Axis | Barrier) -> str:
    if isinstance(b, Barrier):
        return b.where
    for data in graph.get_edge_data(a, b).values():
        edge: Edge = data["edge"]
        return edge.where.label
    return ""
