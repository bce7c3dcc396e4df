"""Other orders of a model's nodes, and groups that can be compared across them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxprune.graph.groups import Group
from onnxprune.testing.feeds import Array


def signature(group: Group) -> tuple[str, Array]:
    """A text that is the same for the same group of any order of nodes, and the order of units it uses."""
    uses = sorted(group.axes, key=lambda use: use.axis.name)
    seen = np.concatenate([use.unit[use.unit >= 0] for use in uses])
    _, first = np.unique(seen, return_index=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    lines = [f"{use.axis.name} {np.where(use.unit < 0, -1, rank[use.unit]).tolist()}" for use in uses]
    if group.blocks is not None:
        lines.append(f"blocks {_partition_of(group.blocks[order])}")
    return "\n".join(lines), order


def _partition_of(labels: Array) -> list[int]:
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return [int(first[i]) for i in inverse]


def shuffled(model: ir.Model, rng: np.random.Generator) -> ir.Model:
    """A copy with its nodes and initializers in another valid order."""
    model = model.clone()
    graph = model.graph
    waiting = list(graph)
    graph.remove(waiting)
    done: set[ir.Node] = set()
    inside = set(waiting)
    while waiting:
        ready = [node for node in waiting if all(p not in inside or p in done for p in _producers(node))]
        node = ready[int(rng.integers(len(ready)))]
        waiting.remove(node)
        done.add(node)
        graph.append(node)
    return model


def _producers(node: ir.Node) -> Iterator[ir.Node]:
    used = [value for value in node.inputs if value is not None]
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            used.extend(
                v for inner in attribute.as_graph().all_nodes() for v in inner.inputs if v is not None
            )
    for value in used:
        producer = value.producer()
        if producer is not None:
            yield producer
