"""The form in which a graph is written: what `normalize` took away is given back where it still holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

import onnx_ir as ir

from onnxprune.model import edit
from onnxprune.model.binding import bind_dims
from onnxprune.model.bodies import put_back
from onnxprune.model.casts import give_casts
from onnxprune.model.integer import raise_integer
from onnxprune.model.nested import inner_values
from onnxprune.model.origin import Origin, forget, remember, twins
from onnxprune.model.shapes import walk_shapes
from onnxprune.model.states import unname_states
from onnxprune.model.stored import give_quantized

_INPUTS_ARE_LISTED_BELOW = 4
"""IR version from which on initializers need not be graph inputs."""


def finalize(model: ir.Model) -> ir.Model:
    """A copy of `model` with the interface of the file that it came from.

    Writes quantised weights and integer operators as the file has them, merges the initializers that `normalize`
    split where they are still identical, casts what it read through a Cast, drops nodes and initializers that
    nothing uses, drops declared shapes of intermediate values that no longer hold, gives the bodies of If, Loop and
    Scan their initializers and names back, and restores the order of the graph's inputs, the initializers listed
    among them, and the opset imports.

    Parameters
    ----------
    model
        Normalised, and then edited in any way. Not mutated. A model that never was normalised is fine, too.
    """
    model = model.clone()
    graph = model.graph
    origin = remember(graph)
    _merge_twins(graph)
    edit.drop_unused(graph, keep=origin.idle)
    unname_states(graph)
    give_quantized(graph)
    give_casts(graph)
    _drop_stale_shapes(model)
    raise_integer(model)
    for node in graph:
        for output in node.outputs:
            if output.name in origin.untyped and output.shape is None and not output.is_graph_output():
                output.type = None
    put_back(graph, initializers=model.ir_version >= _INPUTS_ARE_LISTED_BELOW)  # else they become nodes
    _restore_inputs(model, origin)
    _restore_imports(graph, origin)
    forget(graph)
    return model


def as_stored(model: ir.Model, leave: Collection[str] = ()) -> ir.Model:
    """A copy of a normalised model that computes with what will be written: integers where the file has them.

    Parameters
    ----------
    model
        Not mutated.
    leave
        Names of weights that are to stay floats.
    """
    model = model.clone()
    give_quantized(model.graph, leave)
    raise_integer(model)
    return model


def _merge_twins(graph: ir.Graph) -> None:
    """Replace split initializers by the first of their family that holds the same data."""
    families: defaultdict[str, list[str]] = defaultdict(list)
    for name, root in twins(graph).items():
        families[root].append(name)
    for root, members in families.items():
        kept: dict[object, ir.Value] = {}
        for name in (root, *members):
            value = graph.initializers.get(name)
            if value is None or value.const_value is None:
                continue
            first = kept.setdefault(_content(value.const_value), value)
            if first is not value and not value.is_graph_output():
                value.replace_all_uses_with(first)


def _content(tensor: ir.TensorProtocol) -> object:
    """Equal for tensors with equal type, shape and data. Split tensors are vectors, so this is cheap."""
    if tensor.dtype == ir.DataType.STRING:
        data: object = tuple(tensor.numpy().ravel().tolist())
    else:
        data = tensor.tobytes()
    return tensor.dtype, tuple(tensor.shape.numpy()), data


def _drop_stale_shapes(model: ir.Model) -> None:
    """Forget the declared shape of every intermediate value that contradicts the inferred one."""
    sizes, _ = bind_dims(model.graph.inputs, {})
    found = walk_shapes(model, sizes, lambda node, dims, data: None)
    made = (out for node in model.graph for out in node.outputs if not out.is_graph_output())
    inner = set(inner_values(model.graph))
    for value in (*made, *inner):
        extents = found.get(value)
        if extents is None or value.shape is None:
            continue
        declared = value.shape
        if len(declared) != len(extents) or any(
            isinstance(dim, int) and extent is not None and dim != extent
            for dim, extent in zip(declared, extents, strict=True)
        ):
            # onnxruntime wants to be told the shapes of what bodies take and return
            handed = value in inner and (value.is_graph_input() or value.is_graph_output())
            value.shape = ir.Shape(extents) if handed else None


def _restore_inputs(model: ir.Model, origin: Origin) -> None:
    """Bring the inputs back into their order, listed initializers among them.

    Up to IR version 3 every initializer has to be listed. Those that the original did not list (lifted
    constants, new ones) become Constant nodes instead, so that the interface stays.
    """
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    ordered = [
        value
        for name in origin.inputs
        if (value := inputs.pop(name, None) or graph.initializers.get(name)) is not None
    ]
    graph.inputs[:] = [*ordered, *inputs.values()]
    if model.ir_version < _INPUTS_ARE_LISTED_BELOW:
        for value in reversed(tuple(graph.initializers.values())):
            if not value.is_graph_input():
                _lower(graph, value)


def _lower(graph: ir.Graph, value: ir.Value) -> None:
    """Turn an initializer into a Constant node at the head of the graph."""
    if value.const_value is None or value.name is None or value.is_graph_output():
        return
    del graph.initializers[value.name]
    attribute = ir.AttrTensor("value", value.const_value)
    node = ir.node("Constant", [], name=edit.fresh(graph, f"{value.name}/constant"))
    node.attributes["value"] = attribute
    output = node.outputs[0]
    output.name, output.type, output.shape = value.name, value.type, value.shape
    value.replace_all_uses_with(output)
    if len(graph):
        graph.insert_before(graph[0], node)
    else:
        graph.append(node)


def _restore_imports(graph: ir.Graph, origin: Origin) -> None:
    """Original imports first, in their order, then those that inlined functions brought along."""
    imports = {**origin.imports, **graph.opset_imports}
    if "ai.onnx" in origin.imports and "" not in origin.imports:
        del imports[""]
    graph.opset_imports.clear()
    graph.opset_imports.update(imports)
