"""Model-local functions inlined where that is possible; a call of any other stays, as an unknown operator."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
import onnx_ir.passes.common as passes

from onnxprune.model.edit import fresh, used_names

_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def inline_functions(model: ir.Model) -> None:
    """Replace calls of model-local functions by their bodies, nested calls included. Mutates `model`.

    A function stays where it needs another version of an operator set than the model has, where a call passes
    it a graph, or where a call has more inputs than it.
    """
    if not model.functions:
        return
    kept = _kept(model)
    _prepare_calls(model)
    for identifier, function in model.functions.items():
        if identifier not in kept:
            _separate_outputs(function, model.opset_imports)
    passes.InlinePass(criteria=lambda function: function.identifier() not in kept)(model)
    passes.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    _rename_shadows(model.graph)


def _kept(model: ir.Model) -> set[ir.OperatorIdentifier]:
    kept: set[ir.OperatorIdentifier] = set()
    imports = {"" if d == "ai.onnx" else d: v for d, v in model.opset_imports.items()}
    for identifier, function in model.functions.items():
        if "ai.onnx" in function.opset_imports:
            function.opset_imports.setdefault("", function.opset_imports.pop("ai.onnx"))
        needed = function.opset_imports
        if any(imports.get(domain, version) != version for domain, version in needed.items()):
            kept.add(identifier)
        else:
            imports.update(needed)
    for node in _all_nodes(model):
        called = model.functions.get(node.op_identifier())
        if called is not None and (
            len(node.inputs) > len(called.inputs)
            or any(attribute.type in _GRAPHS for attribute in node.attributes.values())
        ):
            kept.add(node.op_identifier())
    return kept


def _all_nodes(model: ir.Model) -> list[ir.Node]:
    nodes = list(model.graph.all_nodes())
    for function in model.functions.values():
        nodes.extend(function.all_nodes())
    return nodes


def _prepare_calls(model: ir.Model) -> None:
    """Give calls all outputs that their functions have, with names: the body's values get these."""
    for node in _all_nodes(model):
        function = model.functions.get(node.op_identifier())
        if function is None:
            continue
        if len(node.outputs) < len(function.outputs):
            node.resize_outputs(len(function.outputs))
        for output in node.outputs:
            if not output.name:
                output.name = fresh(model.graph, f"{node.name or node.op_type}/unused")


def _separate_outputs(function: ir.Function, imports: Mapping[str, int]) -> None:
    """Put an Identity before outputs that are inputs or repeated: inlining renames what is returned."""
    seen: set[ir.Value] = set(function.inputs)
    for index, output in enumerate(function.outputs):
        if output in seen:
            function.opset_imports.setdefault("", imports[""])
            copy = ir.node("Identity", [output], name=f"{output.name}/returned")
            copy.outputs[0].name = f"{output.name}/returned_{index}"
            function.append(copy)
            function.outputs[index] = copy.outputs[0]
        seen.add(function.outputs[index])


def _rename_shadows(graph: ir.Graph) -> None:
    """Give inputs and initializers of inlined subgraphs their own names: a body can be there many times."""
    taken = used_names(graph)
    seen: set[str | None] = {value.name for value in graph.inputs} | set(graph.initializers)
    seen.update(out.name for node in graph.all_nodes() for out in node.outputs)
    for subgraph in graph.subgraphs():
        for value in (*subgraph.inputs, *subgraph.initializers.values()):
            name, number = value.name, 1
            if name in seen:
                while value.name in taken:
                    number += 1
                    value.name = f"{name}_{number}"
                taken.add(value.name)
            seen.add(value.name)
