"""Graphs inside nodes: the branches of an If, the bodies of Loop and Scan and of operators nobody knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

_GRAPH, _GRAPHS = ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS


def bodies_of(node: ir.Node) -> list[ir.Graph]:
    """The graphs that a node holds in its attributes."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == _GRAPH and not attribute.is_ref():
            found.append(attribute.as_graph())
        elif attribute.type == _GRAPHS and not attribute.is_ref():
            found.extend(attribute.as_graphs())
    return found


def every_graph(graph: ir.Graph) -> Iterator[ir.Graph]:
    """A graph and, behind it, the bodies of its nodes, at any depth."""
    yield graph
    for node in graph:
        for body in bodies_of(node):
            yield from every_graph(body)


def inner_graphs_of(graph: ir.Graph) -> list[ir.Graph]:
    """The bodies of a graph's nodes, at any depth, without the graph itself."""
    return list(every_graph(graph))[1:]


def every_node(graph: ir.Graph) -> Iterator[ir.Node]:
    """All nodes of a graph and of bodies in it, so that values are made before they are used.

    The nodes of a body come before the node that owns it, which hands on what they make.
    """
    for node in graph:
        for body in bodies_of(node):
            yield from every_node(body)
        yield node


def read_by(node: ir.Node) -> Iterator[ir.Value]:
    """The values that a node reads, those that its bodies read and return included."""
    yield from (value for value in node.inputs if value is not None)
    for body in bodies_of(node):
        for inner in every_node(body):
            yield from (value for value in inner.inputs if value is not None)
        yield from body.outputs


def inner_values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Values inside bodies: their inputs, and what their nodes make."""
    for body in inner_graphs_of(graph):
        yield from body.inputs
        for node in body:
            yield from node.outputs


def detach(node: ir.Node) -> None:
    """Let the bodies of a node that goes use nothing of the graph around it any more. Mutates them."""
    for body in bodies_of(node):
        for inner in every_node(body):
            for slot in range(len(inner.inputs)):
                inner.replace_input_with(slot, None)


def renew(node: ir.Node, inputs: Sequence[ir.Value | None], outputs: Sequence[ir.Value]) -> ir.Node:
    """Put a node with other inputs and outputs in the place of one, whose bodies and names it takes over.

    Parameters
    ----------
    node
        Removed from its graph.
    inputs
        Of the new node.
    outputs
        Outputs of the old node that stay, each of which gets a twin, and values that no node makes. Outputs of the
        old node that are missing must have no uses.
    """
    graph = node.graph
    if not isinstance(graph, ir.Graph):
        raise ValueError(f"{node.name!r} belongs to no graph")
    twins = {old: ir.Value(type=old.type, shape=old.shape) for old in node.outputs if old in outputs}
    attributes = list(node.attributes.values())
    node.attributes.clear()
    made = [twins.get(value, value) for value in outputs]
    new = ir.Node(node.domain, node.op_type, inputs, attributes, outputs=made, name=node.name)
    new.meta.update(node.meta)
    new.metadata_props.update(node.metadata_props)
    node.append(new)
    for old, out in twins.items():
        name, old.name = old.name, None
        out.name = name
        out.meta.update(old.meta)
        graph.outputs[:] = [out if each is old else each for each in graph.outputs]
        old.replace_all_uses_with(out)
    graph.remove(node, safe=True)
    return new
