"""Make a failing model small while the same kind of failure stays."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxprune.model.shapes import infer_shapes
from onnxprune.rules import RuleTable, default_rules
from tests.fuzz.check import Failure, check_conform, check_graph
from tests.fuzz.generate import Graph, generate
from tests.fuzz.run import results_of

Edit = Callable[[ir.Model, int], ir.Model | None]


def minimise(seed: int) -> str:
    """The smallest model found that fails as the seed does, as text; it is saved to the path that is named."""
    graph = generate(seed)
    kind = failure_of(graph)
    if kind is None:
        return f"seed {seed} does not fail"
    small = shrink(graph, kind)
    path = Path(tempfile.mkdtemp(prefix="onnxprune-fuzz-")) / f"seed{seed}.onnx"
    ir.save(small.model, path)
    text = onnx.printer.to_text(ir.to_proto(_without_weights(small.model)))
    return f"seed {seed}: {kind}, {small.model.graph.num_nodes()} nodes, saved as {path}\n{text}"


def failure_of(graph: Graph, rules: RuleTable | None = None) -> str | None:
    """The kind of the failure of a graph; None where everything holds."""
    try:
        check_graph(graph, conform=True, rules=rules)
    except Failure as failure:
        return failure.kind
    return None


def fails(graph: Graph, kind: str, rules: RuleTable | None = None) -> bool:
    """Whether a graph that still fits together fails in one way; only what can fail so is run."""
    try:
        results_of(graph.model)(graph.feed())
    except AssertionError:
        return False
    try:
        if kind.startswith("check_model"):
            check_conform(graph, rules)
        else:
            check_graph(graph, conform=False, rules=rules)
    except Failure as failure:
        return failure.kind == kind
    return False


def shrink(graph: Graph, kind: str, rules: RuleTable | None = None) -> Graph:
    """Take away what the failure does not need, until no part can go."""
    before = -1
    while before != (before := graph.model.graph.num_nodes()):
        for edit in (drop_output, end_earlier, feed_node, leave_out):
            number = 0
            while number < count(graph.model, edit):
                model = edit(graph.model, number)
                other = None if model is None else replace(graph, model=model)
                if other is not None and fails(other, kind, rules):
                    graph = other
                else:
                    number += 1
    return graph


def count(model: ir.Model, edit: Edit) -> int:
    """How many places of a model an edit has."""
    return len(model.graph.outputs) if edit in (drop_output, end_earlier) else model.graph.num_nodes()


def drop_output(model: ir.Model, number: int) -> ir.Model | None:
    """Without one of the outputs."""
    copy = model.clone()
    if len(copy.graph.outputs) == 1:
        return None
    del copy.graph.outputs[number]
    return swept(copy)


def end_earlier(model: ir.Model, number: int) -> ir.Model | None:
    """What the last node read becomes the output in its place."""
    copy = model.clone()
    extents = known(copy)
    node = copy.graph.outputs[number].producer()
    for source in node.inputs if node is not None else ():
        if source in extents and source.producer() is not None and not source.is_graph_output():
            source.shape = ir.Shape(extents[source])
            copy.graph.outputs[number] = source
            return swept(copy)
    return None


def feed_node(model: ir.Model, number: int) -> ir.Model | None:
    """A node's results, if they are floats, are inputs of the graph; the last node comes first."""
    copy = model.clone()
    extents = known(copy)
    node = list(copy.graph)[-1 - number]
    results = [value for value in node.outputs if value.name]
    floats = all(value.dtype == ir.DataType.FLOAT for value in results)
    if not floats or any(value.is_graph_output() or value not in extents for value in results):
        return None
    for value in results:
        made = ir.Value(name=f"{value.name}_in", type=value.type, shape=ir.Shape(extents[value]))
        copy.graph.inputs.append(made)
        ir.convenience.replace_all_uses_with(value, made)
    return swept(copy)


def leave_out(model: ir.Model, number: int) -> ir.Model | None:
    """One of a node's inputs takes the place of its only output."""
    copy = model.clone()
    extents = known(copy)
    node = list(copy.graph)[-1 - number]
    result = node.outputs[0]
    if len(node.outputs) > 1 or result.is_graph_output() or result not in extents:
        return None
    for source in node.inputs:
        if source is not None and (extents.get(source), source.dtype) == (extents[result], result.dtype):
            ir.convenience.replace_all_uses_with(result, source)
            return swept(copy)
    return None


def swept(model: ir.Model) -> ir.Model:
    """Without nodes, weights and inputs that nothing uses."""
    graph = model.graph
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
    graph.inputs[:] = [value for value in graph.inputs if value.uses() or value.is_graph_output()]
    return model


def known(model: ir.Model) -> dict[ir.Value, tuple[int | str, ...]]:
    """Extents of the values that have some; a leading one that is the batch's has its name."""
    shapes = infer_shapes(model, None, default_rules().infer)
    return {
        value: tuple("batch" if (value, dim) in shapes.dynamic else d for dim, d in enumerate(dims))
        for value, dims in shapes.dims.items()
        if None not in dims
    }


def _without_weights(model: ir.Model) -> ir.Model:
    """A copy in which long weights are short, for printing."""
    copy = model.clone()
    for value in copy.graph.initializers.values():
        if value.const_value is not None and value.const_value.size > 16:
            value.const_value = ir.tensor([0.0], name=value.name)
    for node in copy.graph:
        tensor = node.attributes.get("value") if node.op_type == "Constant" else None
        if tensor is not None and tensor.as_tensor().size > 16:
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor([0.0]))
    return copy
