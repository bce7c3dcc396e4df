"""Why is this coupled, why is this blocked: answers as shortest paths in the axis graph."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import networkx as nx

from onnxprune.graph.axes import Axis, Barrier
from onnxprune.graph.cuts import Site
from onnxprune.graph.relations import Edge


@dataclass(frozen=True)
class Step:
    """One edge of a path: from an axis, through a node, to the next axis or to a barrier."""

    axis: Axis
    through: str
    to: Axis | Barrier


Hop = Axis | Barrier
"""What an axis leads to on its way to a barrier."""


def nearest_barriers(graph: nx.MultiGraph[Any]) -> dict[Axis, Barrier]:
    """The barrier that blocks each axis: see `ways`."""
    found: dict[Axis, Barrier] = {}
    for axis, hop in ways(graph).items():  # what an axis leads to comes before it
        found[axis] = hop if isinstance(hop, Barrier) else found[hop]
    return found


def path_to_barrier(graph: nx.MultiGraph[Any], hops: Mapping[Axis, Hop], axis: Axis) -> list[Step]:
    """The way from an axis to the barrier that blocks it, by `ways`; empty where there is none."""
    steps: list[Step] = []
    here: Hop = axis
    while isinstance(here, Axis) and here in hops:
        hop = hops[here]
        steps.append(Step(here, _through(graph, here, hop), hop))
        here = hop
    return steps


def ways(graph: nx.MultiGraph[Any]) -> dict[Axis, Hop]:
    """For every axis that leads to a barrier, the next step of the shortest way; the nearest axes come first.

    Where an operator offers choices, one that is open is enough: an axis is blocked there only when all are, and
    what it leads to is the choice that is blocked last. Axes that would be blocked by some of their choices come
    behind all others, as do those that lead to them.
    """
    choices = _choices(graph)
    found: dict[Axis, Hop] = {}
    queue: deque[tuple[Axis, Hop]] = deque()
    for node in graph:
        if isinstance(node, Barrier):
            queue.extend((axis, node) for axis in graph.adj[node])
    later: list[tuple[Axis, Hop]] = []
    while queue or later:
        if not queue:
            queue.extend(later)
            later.clear()
            choices.clear()  # whatever is left is blocked by some of its choices
        axis, hop = queue.popleft()
        if axis in found:
            continue
        found[axis] = hop
        for other in graph.adj[axis]:
            if isinstance(other, Axis) and other not in found:
                held = _is_held(graph, choices, axis, other)
                (queue if held else later).append((other, axis))
    return found


def _choices(graph: nx.MultiGraph[Any]) -> dict[Site, set[Axis]]:
    """The axes that can be chosen at each site, and the site's own where a choice ties nothing to block it."""
    choices: dict[Site, set[Axis]] = {}
    for a, b, data in graph.edges(data=True):
        edge: Edge | None = data.get("edge")
        if edge is not None and edge.kind == "choice":
            ties = edge.a_index is None or len(edge.a_index) > 0
            for here, there in ((a, b), (b, a)):
                choices.setdefault((id(edge.where), here), set()).add(there if ties else here)
    return choices


def _is_held(graph: nx.MultiGraph[Any], choices: dict[Site, set[Axis]], axis: Axis, other: Axis) -> bool:
    """Whether `axis`, which is blocked, blocks `other`: by a tie, or as the last of its choices.

    Mutates `choices`: that of `axis` is no longer open.
    """
    edges: list[Edge] = [data["edge"] for data in graph.get_edge_data(axis, other).values()]
    sites = [(id(edge.where), other) for edge in edges if edge.kind == "choice"]
    for site in sites:
        choices.get(site, set()).discard(axis)
    return len(sites) < len(edges) or any(not choices.get(site) for site in sites)


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


def _through(graph: nx.MultiGraph[Any], a: Axis, b: Axis | Barrier) -> str:
    if isinstance(b, Barrier):
        return b.where
    for data in graph.get_edge_data(a, b).values():
        edge: Edge = data["edge"]
        return edge.where.label
    return ""
