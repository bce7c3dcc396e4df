"""The form in which a graph is analysed: functions inlined, constants lifted, small shared constants split.

Names of inputs, outputs, nodes and weights stay, BatchNormalization nodes stay, opset imports stay.
"""

from __future__ import annotations

import logging

import onnx_ir as ir
import onnx_ir.passes.common as passes

log = logging.getLogger(__name__)

LISTED_INPUTS = "onnxprune.initializer_inputs"
"""Key in a graph's `meta`: names of initializers that the file also lists as graph inputs."""


def normalize(model: ir.Model) -> ir.Model:
    """A copy of `model` in the form that the rules expect.

    Inlines model-local functions, turns Constant nodes into initializers, takes initializers out of the graph's
    inputs (see `restore_inputs`), and gives every use of a shared bias, scale or shape constant its own
    initializer, so that sharing alone ties nothing. Shared weights stay shared: their uses are tied.
    """
    model = model.clone()
    if model.functions:
        passes.InlinePass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    graph = model.graph
    graph.meta[LISTED_INPUTS] = [v.name for v in graph.inputs if v.is_initializer()]
    passes.RemoveInitializersFromInputsPass()(model)
    _alias_identities(graph)
    passes.RemoveUnusedNodesPass()(model)
    _split_shared(graph)
    return model


def _alias_identities(graph: ir.Graph) -> None:
    """Read through `Identity(initializer)`, which exporters write where they deduplicated a parameter."""
    for node in tuple(graph):
        if node.op_type != "Identity" or node.domain not in ("", "ai.onnx"):
            continue
        source, output = node.inputs[0], node.outputs[0]
        if source is not None and source.const_value is not None and not output.is_graph_output():
            for user, slot in tuple(output.uses()):
                user.replace_input_with(slot, source)


def _split_shared(graph: ir.Graph) -> None:
    """Give each use of a shared vector (at most one axis longer than 1) an initializer of its own."""
    taken = {v.name for v in graph.inputs} | set(graph.initializers)
    taken |= {out.name for node in graph.all_nodes() for out in node.outputs}
    for value in list(graph.initializers.values()):
        data = value.const_value
        uses = tuple(value.uses())
        if data is None or len(uses) < 2 or value.is_graph_output():
            continue
        if sum(int(d) > 1 for d in data.shape) > 1 or any(node.graph is not graph for node, _ in uses):
            continue
        for node, slot in sorted(uses, key=lambda use: (use[0].name or "", use[1]))[1:]:
            number = 1
            while (name := f"{value.name}/shared_{number}") in taken:
                number += 1
            taken.add(name)
            twin = ir.Value(name=name, type=value.type, shape=value.shape, const_value=data)
            graph.register_initializer(twin)
            node.replace_input_with(slot, twin)


def restore_inputs(model: ir.Model) -> None:
    """List those initializers among the graph's inputs again that the original file listed. Mutates `model`."""
    graph = model.graph
    present = {v.name for v in graph.inputs}
    for name in graph.meta.get(LISTED_INPUTS, ()):
        value = graph.initializers.get(name)
        if value is not None and name not in present:
            graph.inputs.append(value)
