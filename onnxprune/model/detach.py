"""A model without the operators that onnxruntime cannot run, for proofs about the rest.

The outputs of a custom operator become graph inputs, its inputs graph outputs, and everything around it can still
be compared. Where a rule of a third party knows the operator, its tensors may be smaller in the removed model.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxprune.model.shapes import Dims

KNOWN_DOMAINS = frozenset(
    {"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"}
)

_OPENED = "/detached"


def opened(name: str) -> str:
    """The value that an input of the detached model stands for; other names as they are."""
    return name.removesuffix(_OPENED)


def foreign_nodes(model: ir.Model) -> list[ir.Node]:
    """Nodes that onnxruntime cannot run, outside subgraphs."""
    return [node for node in model.graph if is_foreign(node)]


def is_foreign(node: ir.Node) -> bool:
    """Whether onnxruntime knows nothing about the node's domain, crashes on it, or cannot be fed what it reads.

    `com.microsoft` `Attention` without a bias is valid by its schema, and takes the whole process of onnxruntime
    1.31 down with a segmentation fault.
    """
    if any(value is not None and is_odd(value) for value in node.inputs):
        return True
    if node.domain == "com.microsoft" and node.op_type == "Attention":
        return len(node.inputs) < 3 or node.inputs[2] is None
    return node.domain not in KNOWN_DOMAINS


def described(node: ir.Node) -> str:
    """A foreign node's name, and why it does not run where its operator is known."""
    odd = any(value is not None and is_odd(value) for value in node.inputs)
    return (node.name or node.op_type) + (" (which reads a sequence or an optional)" if odd else "")


def is_odd(value: ir.Value) -> bool:
    """Whether a value is an input of the graph that is a sequence or an optional: nothing makes up values of it."""
    return value.is_graph_input() and isinstance(value.type, (ir.SequenceType, ir.OptionalType))


def detach_foreign(model: ir.Model, dims: Mapping[str, Dims]) -> ir.Model:
    """A copy of `model` in which every foreign node is cut out.

    Parameters
    ----------
    model
        Not mutated.
    dims
        Extents in this variant of the model, by value name. Outputs of foreign nodes whose extents are unknown
        are left out together with all that depends on them, up to tensors whose extents are known.
    """
    model = model.clone()
    graph = model.graph
    lost: set[ir.Value] = set()
    gone: set[ir.Node] = set()
    for node in tuple(graph):
        foreign = is_foreign(node)
        if not foreign and not any(value in lost for value in node.inputs if value is not None):
            continue
        for value in node.inputs:
            if value is not None and value not in lost and value.producer() is not None:
                _add_output(graph, value)
        for value in node.outputs:
            extents = dims.get(value.name or "")
            known = extents is not None and None not in extents and value.dtype is not None
            if known and isinstance(value.type, ir.TensorType):
                _become_input(graph, value, tuple(d or 0 for d in extents or ()))
            else:
                lost.add(value)
            gone.add(node)
    graph.outputs[:] = [v for v in graph.outputs if v.producer() not in gone]
    for node in reversed(tuple(graph)):
        if node in gone:
            graph.remove(node, safe=False)
    graph.inputs[:] = [v for v in graph.inputs if not is_odd(v)]
    return model


def _add_output(graph: ir.Graph, value: ir.Value) -> None:
    if value not in graph.outputs:
        graph.outputs.append(value)


def _become_input(graph: ir.Graph, value: ir.Value, extents: tuple[int, ...]) -> None:
    twin = ir.Value(name=f"{value.name}{_OPENED}", type=value.type, shape=ir.Shape(extents))
    for user, slot in tuple(value.uses()):
        user.replace_input_with(slot, twin)
    graph.inputs.append(twin)
