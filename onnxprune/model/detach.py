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
    """Whether onnxruntime knows nothing about the node's domain, or crashes on it.

    `com.microsoft` `Attention` without a bias is valid by its schema, and takes the whole process of onnxruntime
    1.31 down with a segmentation fault.
    """
    if node.domain == "com.microsoft" and node.op_type == "Attention":
        return len(node.inputs) < 3 or node.inputs[2] is None
    return node.domain not in KNOWN_DOMAINS


def detach_foreign(model: ir.Model, dims: Mapping[str, Dims]) -> ir.Model:
    """A copy of `model` in which every foreign node is cut out.

    Parameters
    ----------
    model
        Not mutated.
    dims
        Extents in this variant of the model, by value name. Outputs of foreign nodes whose extents are unknown
        are left out together with all that depends on them.
    """
    model = model.clone()
    graph = model.graph
    lost: set[ir.Value] = set()
    for node in tuple(graph):
        foreign = is_foreign(node)
        if not foreign and not any(value in lost for value in node.inputs if value is not None):
            continue
        for value in node.inputs:
            if foreign and value is not None and value not in lost and value.producer() is not None:
                _add_output(graph, value)
        for value in node.outputs:
            extents = dims.get(value.name or "")
            if foreign and extents is not None and None not in extents and value.dtype is not None:
                _become_input(graph, value, tuple(d or 0 for d in extents))
            else:
                lost.add(value)
    graph.outputs[:] = [v for v in graph.outputs if v not in lost and not _made_by_foreign(v)]
    for node in reversed(tuple(graph)):
        if is_foreign(node) or any(v in lost for v in node.inputs if v is not None):
            graph.remove(node, safe=False)
    return model


def _made_by_foreign(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and is_foreign(node)


def _add_output(graph: ir.Graph, value: ir.Value) -> None:
    if value not in graph.outputs:
        graph.outputs.append(value)


def _become_input(graph: ir.Graph, value: ir.Value, extents: tuple[int, ...]) -> None:
    twin = ir.Value(name=f"{value.name}{_OPENED}", type=value.type, shape=ir.Shape(extents))
    for user, slot in tuple(value.uses()):
        user.replace_input_with(slot, twin)
    graph.inputs.append(twin)
