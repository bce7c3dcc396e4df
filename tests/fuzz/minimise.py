"""Make a failing model small while the same kind of failure stays."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxprune.model.shapes import infer_shapes
from onnxprune.rules import default_rules
from onnxprune.testing.feeds import execute
from tests.fuzz.check import Failure, Outcome, check_graph
from tests.fuzz.generate import Graph, generate


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


def failure_of(graph: Graph) -> str | None:
    """The kind of the failure of a graph; None where everything holds."""
    first = Outcome(graph.seed, 0, graph.drawn, ())
    try:
        check_graph(graph, first, conform=True)
    except Failure as failure:
        return failure.kind
    return None


def shrink(graph: Graph, kind: str) -> Graph:
    """Try every smaller model, again from the start after each that still fails."""
    found = True
    while found:
        found = False
        for model in smaller(graph.model):
            other = replace(graph, model=model)
            if runs(other) and failure_of(other) == kind:
                graph, found = other, True
                break
    return graph


def runs(graph: Graph) -> bool:
    """Whether a model that lost a part still fits together."""
    try:
        execute(graph.model, graph.feed())
    except AssertionError:
        return False
    return True


def smaller(model: ir.Model) -> Iterator[ir.Model]:
    """Models with fewer outputs, with a node's results fed instead of made, or with a node left out."""
    outputs = len(model.graph.outputs)
    for keep in range(outputs if outputs > 1 else 0):
        copy = model.clone()
        copy.graph.outputs[:] = [copy.graph.outputs[keep]]
        yield swept(copy)
    extents, types = _known(model)
    count = model.graph.num_nodes()
    for number in reversed(range(count)):
        names = [str(v.name) for v in model.graph[number].outputs if v.name]
        if len(names) == 1 and names[0] in extents:
            for slot, value in enumerate(model.graph[number].inputs):
                same = value is not None and extents.get(str(value.name)) == extents[names[0]]
                if same and value is not None and types.get(str(value.name)) == types[names[0]]:
                    yield without(model, number, slot)
    for number in reversed(range(count)):
        if all(v.name in extents for v in model.graph[number].outputs if v.name):
            yield fed(model, number, extents)


def without(model: ir.Model, number: int, slot: int) -> ir.Model:
    """One of a node's inputs takes the place of its only output."""
    copy = model.clone()
    node = copy.graph[number]
    source, result = node.inputs[slot], node.outputs[0]
    assert source is not None
    if result.is_graph_output():
        return copy
    ir.convenience.replace_all_uses_with(result, source)
    return swept(copy)


def fed(model: ir.Model, number: int, extents: dict[str, tuple[int | str, ...]]) -> ir.Model:
    """A node's results are inputs of the graph."""
    copy = model.clone()
    node = copy.graph[number]
    results = [value for value in node.outputs if value.name]
    if any(value.is_graph_output() for value in results):
        return copy
    for value in results:
        name = str(value.name)
        made = ir.Value(name=f"{name}_in", type=value.type, shape=ir.Shape(extents[name]))
        copy.graph.inputs.append(made)
        ir.convenience.replace_all_uses_with(value, made)
    return swept(copy)


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


def _known(model: ir.Model) -> tuple[dict[str, tuple[int | str, ...]], dict[str, ir.DataType | None]]:
    """Extents and types by name; a leading extent that is the batch's keeps its name."""
    copy = model.clone()
    ones = infer_shapes(copy, {"batch": 1} if _symbolic(copy) else None, default_rules().infer)
    extents: dict[str, tuple[int | str, ...]] = {}
    for value, dims in ones.dims.items():
        if all(isinstance(d, int) for d in dims):
            extents[str(value.name)] = tuple(
                "batch" if (value, dim) in ones.dynamic else int(d)  # type: ignore[arg-type]
                for dim, d in enumerate(dims)
            )
    return extents, {str(value.name): value.dtype for value in ones.dims}


def _symbolic(model: ir.Model) -> bool:
    return any(not isinstance(d, int) for value in model.graph.inputs for d in value.shape or ())


def _without_weights(model: ir.Model) -> ir.Model:
    """A copy in which long weights are short, for printing."""
    copy = model.clone()
    for value in copy.graph.initializers.values():
        if value.const_value is not None and value.const_value.size > 16:
            value.const_value = ir.tensor([0.0], name=value.name)
    return copy


