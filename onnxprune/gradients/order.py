"""The order in which a graph with gradients is computed, which decides how much is in memory at a time.

onnxruntime goes from the outputs back to the inputs, and begins with the output that is made last in the file.
Were that the gradient of the first layer, everything on the way to it would be computed before any gradient
of a weight, and wait for it: the gradients of all activations, beside the activations. So what only the gradient
of one target needs comes last in the file, the first layer's before the last layer's.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

import onnx_ir as ir


def put_targets_last(graph: ir.Graph, gradients: Sequence[ir.Value]) -> None:
    """Move what only one gradient needs to the end of the graph; those that took most steps come first.

    Parameters
    ----------
    graph
        Mutated: sorted before, and afterwards.
    gradients
        Outputs of the graph, each made by a node of its own.
    """
    nodes = list(graph)
    place = {node: number for number, node in enumerate(nodes)}
    outputs = set(graph.outputs)
    last = [node for gradient in gradients if (node := gradient.producer()) is not None]

    def made_at(node: ir.Node) -> int:
        return max((place[maker] for maker in _makers(node)), default=-1)

    moved: list[ir.Node] = []
    for node in sorted(last, key=made_at, reverse=True):
        moved += _own(node, nodes, place, outputs)
    graph.remove(moved)
    graph.extend(moved)


def _own(
    last: ir.Node, nodes: list[ir.Node], place: Mapping[ir.Node, int], outputs: set[ir.Value]
) -> list[ir.Node]:
    """The nodes that nothing needs but `last`, itself included, in their order."""
    own = {last}
    ahead = [-place[node] for node in _makers(last)]
    heapq.heapify(ahead)
    seen = set(ahead)
    while ahead:  # from the back, so that all readers of a node were seen before it
        node = nodes[-heapq.heappop(ahead)]
        if any(made in outputs or any(use.node not in own for use in made.uses()) for made in node.outputs):
            continue
        own.add(node)
        for before in (-place[maker] for maker in _makers(node)):
            if before not in seen:
                seen.add(before)
                heapq.heappush(ahead, before)
    return sorted(own, key=place.__getitem__)


def _makers(node: ir.Node) -> list[ir.Node]:
    """The nodes whose outputs a node reads."""
    makers = (value.producer() for value in node.inputs if value is not None)
    return list(dict.fromkeys(maker for maker in makers if maker is not None))
