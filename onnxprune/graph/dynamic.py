"""Which axes with a dynamic extent may lose positions all the same.

The extent of an axis is dynamic where it changes with a symbolic dim, so nothing can be said about its
positions: it is pinned. One case is worth more: batch x heads on one axis, as attention is written for
`(batch x heads, tokens, dims)`. There a Reshape shows which digit of the position is the head, and cutting
heads is right for every batch, as long as nothing looks at positions of the joint axis.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from onnxprune.errors import Reason
from onnxprune.graph.axes import Axis, Barrier

if TYPE_CHECKING:
    from onnxprune.graph.relations import Edge, Relations
    from onnxprune.model.shapes import Shapes


def pin_dynamic(shapes: Shapes, relations: Relations) -> None:
    """Pin the dynamic axes, except those that a Reshape composes of a static and a dynamic factor."""
    graph = relations.graph
    dynamic = {axis for value, dim in shapes.dynamic if (axis := Axis(value, dim)) in graph}
    masked = {sink.axis for sink in relations.sinks if sink.parameter is None}
    waiting = {axis for axis in graph if axis in dynamic}
    for start in [axis for axis in graph if axis in dynamic]:
        if start not in waiting:
            continue
        joined = _joined(relations, start, dynamic)
        waiting.difference_update(joined)
        composed = any(axis in relations.composed for axis in joined)
        if not composed or any(axis in masked or _moved(relations, axis) for axis in joined):
            for axis in joined:
                graph.add_edge(axis, Barrier(Reason.DYNAMIC, f"{axis.value.name or '?'}[{axis.dim}]"))


def _edges(relations: Relations, axis: Axis) -> list[tuple[Axis, Edge]]:
    return [
        (other, data["edge"])
        for other, edges in relations.graph.adj[axis].items()
        if isinstance(other, Axis)
        for data in edges.values()
    ]


def _joined(relations: Relations, start: Axis, dynamic: set[Axis]) -> list[Axis]:
    """Dynamic axes that are tied to `start` position by position, in a fixed order."""
    joined, queue = {start: None}, deque([start])
    while queue:
        for other, edge in _edges(relations, queue.popleft()):
            if other in dynamic and other not in joined and edge.a_index is None:
                joined[other] = None
                queue.append(other)
    return list(joined)


def _moved(relations: Relations, axis: Axis) -> bool:
    """Whether an operator picks positions of the axis by number (Slice, Concat and the like)."""
    return any(edge.a_index is not None and edge.kind != "choice" for _, edge in _edges(relations, axis))
