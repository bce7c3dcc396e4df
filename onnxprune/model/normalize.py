"""The form in which a graph is analysed: functions inlined, constants lifted, small shared constants split.

Names of inputs, outputs, nodes and weights stay, BatchNormalization nodes stay, opset imports stay. Only nodes
that make one weight of another are evaluated once and for all (`onnxprune.model.constants`).
The same goes for the bodies of If, Loop and Scan, whose initializers become those of the main graph
(`onnxprune.model.bodies`). `onnxprune.model.finalize` takes the model back to the form of its file.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx_ir as ir

from onnxprune.model.bodies import mark_inner, move_initializers_out, name_apart
from onnxprune.model.casts import take_casts
from onnxprune.model.constants import fold_constants
from onnxprune.model.edit import drop_unused, replace_by_initializer, used_names
from onnxprune.model.inline import inline_functions
from onnxprune.model.integer import lower_integer
from onnxprune.model.invariant import read_from_outside
from onnxprune.model.nested import every_graph, every_node
from onnxprune.model.origin import note_twins, remember, twins
from onnxprune.model.quantize import take_quantized
from onnxprune.model.serialize import tensors_of
from onnxprune.model.states import name_states, plain_states

_POSITIONS = (ir.DataType.INT32, ir.DataType.INT64)
"""Types of the tables that Gather, ScatterND and their like read."""


def normalize(model: ir.Model) -> ir.Model:
    """A copy of `model` in the form that the rules expect.

    Inlines model-local functions, turns Constant nodes into initializers, takes initializers out of the
    graph's inputs (`finalize` lists them again), reads through `Identity(initializer)` and through
    `Cast(initializer)` (`finalize` casts again), drops what nothing uses, folds arithmetic on weights alone
    (that stays folded), lets bodies read from outside what Loop and Scan carry unchanged, takes quantised
    weights for the floats that they mean, leaves out the zeros that recurrent layers begin with anyway, and
    gives every use of a shared bias, scale, shape constant or table of positions its own initializer, so that
    sharing alone ties nothing. Shared weights stay shared: their uses are tied.

    Parameters
    ----------
    model
        Not mutated. Tensors are shared with the copy.
    """
    model = model.clone()
    graph = model.graph
    origin = remember(graph)
    if "ai.onnx" in graph.opset_imports:  # another name of the default domain
        graph.opset_imports.setdefault("", graph.opset_imports["ai.onnx"])
    inline_functions(model)
    name_apart(graph)
    parts = list(every_graph(graph))
    for part in parts:
        lift_constants(part)
    for value in [value for value in graph.inputs if value.is_initializer()]:
        graph.inputs.remove(value)
    move_initializers_out(graph)
    for part in parts:
        _alias_identities(part)
    read_from_outside(graph)
    drop_unused(graph, keep=origin.idle)
    lower_integer(model)
    take_casts(graph)
    fold(graph)
    take_casts(graph)  # of what was transposed before it was cast
    take_quantized(graph)
    for part in every_graph(graph):
        plain_states(part, frozenset(origin.inputs))
    name_states(graph)
    drop_unused(graph, keep=origin.idle)
    _split_shared(graph)
    return model


def fold(graph: ir.Graph) -> None:
    """Fold arithmetic on weights alone, in bodies too, and drop what nothing uses. Mutates `graph`."""
    origin = remember(graph)
    drop_unused(graph, keep=origin.idle)
    for part in every_graph(graph):
        fold_constants(part, frozenset(origin.inputs), graph)
    drop_unused(graph, keep=origin.idle)


def lift_constants(graph: ir.Graph) -> None:
    """Turn Constant nodes into initializers of the same name; strings, which no rule reads, stay nodes."""
    for node in tuple(graph):
        if node.op_type != "Constant" or node.domain or len(node.outputs) != 1:
            continue
        output = node.outputs[0]
        tensor = _constant(node)
        if tensor is None or output.is_graph_output() or not output.name or output.name in graph.initializers:
            continue
        replace_by_initializer(graph, output, tensor)
        graph.remove(node, safe=True)


def _constant(node: ir.Node) -> ir.TensorProtocol | None:
    """The tensor that a Constant node makes, whichever attribute it has; None where it is no plain tensor."""
    if len(node.attributes) != 1:
        return None
    (attribute,) = node.attributes.values()
    if attribute.is_ref():
        return None
    kinds = {
        "value_int": (ir.AttributeType.INT, np.int64),
        "value_ints": (ir.AttributeType.INTS, np.int64),
        "value_float": (ir.AttributeType.FLOAT, np.float32),
        "value_floats": (ir.AttributeType.FLOATS, np.float32),
    }
    if attribute.name == "value" and attribute.type == ir.AttributeType.TENSOR:
        return tensors_of(attribute)[0]
    kind, dtype = kinds.get(attribute.name, (None, None))
    if kind is None or attribute.type != kind:
        return None
    return ir.Tensor(np.array(attribute.value, dtype))


def _alias_identities(graph: ir.Graph) -> None:
    """Read through `Identity(initializer)`, which exporters write where they deduplicated a parameter."""
    for node in graph:
        if node.op_type != "Identity" or node.domain or len(node.inputs) != 1:
            continue
        source, output = node.inputs[0], node.outputs[0]
        if source is not None and source.is_initializer() and not output.is_graph_output():
            output.replace_all_uses_with(source)


def _split_shared(graph: ir.Graph) -> None:
    """Give each use of a shared vector (at most one axis longer than 1) or table of positions an initializer.

    The original stays with the first use in the order of node names, or as a graph output.
    """
    taken = used_names(graph)
    order = {node: number for number, node in enumerate(every_node(graph))}
    roots, new = twins(graph), {}
    numbers: defaultdict[str, int] = defaultdict(int)
    for value in tuple(graph.initializers.values()):
        data, name = value.const_value, value.name
        if data is None or name is None or not (_is_vector(data) or data.dtype in _POSITIONS):
            continue
        uses = sorted(
            (use for use in value.uses() if use.node in order),
            key=lambda use: (use.node.name or "", order[use.node], use.idx),
        )
        if len(uses) == len(value.uses()) and not value.is_graph_output():
            uses = uses[1:]
        root = roots.get(name, name)
        for node, slot in uses:
            twin = _twin(value, data, root, taken, numbers)
            graph.register_initializer(twin)
            node.replace_input_with(slot, twin)
            new[twin.name or ""] = root
    note_twins(graph, new)


def _is_vector(data: ir.TensorProtocol) -> bool:
    return sum(int(d) > 1 for d in data.shape.numpy()) <= 1


def _twin(
    value: ir.Value,
    data: ir.TensorProtocol,
    root: str,
    taken: set[str | None],
    numbers: defaultdict[str, int],
) -> ir.Value:
    while True:
        numbers[root] += 1
        name = f"{root}/shared_{numbers[root]}"
        if name not in taken:
            break
    taken.add(name)
    twin = ir.Value(name=name, type=value.type, shape=ir.Shape(data.shape.numpy()), const_value=data)
    twin.meta.update(value.meta)
    mark_inner(twin, value)
    return twin
