"""New weights in a model: in the cut one as they are, in the masked one at the places that are left."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.graph.axes import Axis, Bools, Kept
from onnxprune.graph.build import AxisGraph
from onnxprune.model import edit
from onnxprune.model.bodies import mark_inner
from onnxprune.model.nested import every_node
from onnxprune.model.quantized import QuantizedTensor
from onnxprune.model.uses import only_use
from onnxprune.repair.gates import outputs_left
from onnxprune.statistics.consumers import read_back
from onnxprune.statistics.gates import Gates, gates_of
from onnxprune.statistics.norms import SCALE, LinearMap, Norm, linear_map_of
from onnxprune.surgery.keep import slice_array

Array = np.ndarray[Any, Any]

TOO_LARGE = "the weights that would make up for it are too large for their type"
"""Why a layer that lost inputs keeps its weights."""


def write(layer: LinearMap, weight: Array, bias: Array) -> None:
    """Give a layer another weight and a bias of shape (outputs,); a bias is added where there was none.

    What other nodes share stays as it is for them.
    """
    node, graph = layer.node, layer.weight.graph  # bodies use initializers of the main graph
    if not isinstance(graph, ir.Graph) or layer.weight.dtype is None:
        raise ValueError(f"{layer.label} belongs to no graph")
    if isinstance(layer, Norm):
        _give(graph, node, SCALE, weight)
    else:
        edit.set_array(layer.weight, weight)
    if layer.bias is not None:
        adds = layer.y.producer() or node
        slot = next(slot for slot, value in enumerate(adds.inputs) if value is layer.bias)
        _give(graph, adds, slot, layer.to_bias(bias))
        return
    new = edit.add_initializer(graph, f"{layer.weight.name}/bias", bias, layer.weight.dtype)
    mark_inner(new, layer.weight)
    if node.op_type == "MatMul":
        _add(graph, layer.y, new)
        _round_before(graph, layer.y)
        return
    beta = node.attributes.get("beta")
    if node.op_type == "Gemm" and beta is not None:
        del node.attributes["beta"]
    node.resize_inputs(3)
    node.replace_input_with(2, new)


def fits(layer: LinearMap, weight: Array, bias: Array) -> bool:
    """Whether the types of a layer's parameters can hold what `write` would give them (float16 ends at 65,504)."""
    target = layer.node.inputs[SCALE] if isinstance(layer, Norm) else layer.weight
    pairs = ((target, weight), (layer.bias or layer.weight, bias))
    return all(value is None or edit.fits(value, np.asarray(array)) for value, array in pairs)


def stored_as(layer: LinearMap) -> Callable[[Array], Array] | None:
    """What a matrix of other weights becomes when the layer stores it; None for layers of floats."""
    tensor = None if isinstance(layer, Norm) else layer.weight.const_value
    if not isinstance(tensor, QuantizedTensor):
        return None
    quantized = tensor

    def stored(matrix: Array) -> Array:
        array = np.asarray(layer.from_matrix(matrix), quantized.dtype.numpy())
        return layer.matrix(quantized.holding(array).numpy())

    return stored


def with_biases(model: ir.Model) -> ir.Model:
    """The model with a bias of ones in every layer that has none: the nodes that a repair may add at the most.

    Parameters
    ----------
    model
        Mutated; what it computes changes, how long it takes is what it takes after a repair.
    """
    for node in tuple(every_node(model.graph)):
        layer = linear_map_of(node)
        if isinstance(layer, str | Norm) or layer.bias is not None:
            continue
        write(layer, layer.array, np.ones(len(layer.bias_vector()), layer.array.dtype))
    return model


def _give(graph: ir.Graph, node: ir.Node, slot: int, array: Array) -> None:
    """Let a node have other data as a parameter: in place where no one else uses the initializer."""
    value = node.inputs[slot]
    data = None if value is None else value.const_value
    if value is None or data is None:
        raise ValueError(f"input {slot} of {node.name!r} is no initializer")
    if only_use(value) is not None:
        edit.set_array(value, array)
    else:
        new = edit.add_initializer(graph, str(value.name), array, data.dtype)
        mark_inner(new, value)
        node.replace_input_with(slot, new)


def _add(graph: ir.Graph, value: ir.Value, bias: ir.Value) -> None:
    """Put an Add behind a value, which may be an output of the graph: the sum takes its name then."""
    if not value.is_graph_output() or value.graph is not graph:
        edit.insert_after(value, "Add", [bias], main=graph)
        return
    node = value.producer()
    if node is None:
        raise ValueError(f"{value.name!r} is made by no node")
    name = str(value.name)
    users = tuple(value.uses())
    total = ir.Value(name=name, type=value.type, shape=value.shape)
    value.name, value.shape = edit.fresh(graph, f"{name}/product"), None
    node.append(
        ir.Node("", "Add", [value, bias], outputs=[total], name=edit.fresh(graph, f"{name}/Add_node"))
    )
    for user, slot in users:
        user.replace_input_with(slot, total)
    graph.outputs[:] = [total if out is value else out for out in graph.outputs]


def _round_before(graph: ir.Graph, value: ir.Value) -> None:
    """Round a product that is rounded only with the bias that it has got, so that it can be one of integers.

    The sum is rounded with the scale that the product had.
    """
    users = list(itertools.islice(value.uses(), 2))
    add = users[0].node if len(users) == 1 else None
    total = None if add is None else add.outputs[0]
    if add is None or total is None or read_back(total) is total:
        return
    quantize = next(iter(total.uses())).node
    dequantize = next(iter(quantize.outputs[0].uses())).node
    if not all(v is None or v.const_value is not None for n in (quantize, dequantize) for v in n.inputs[1:]):
        return
    source = value
    for like in (quantize, dequantize):
        name = edit.fresh(graph, f"{value.name}/{like.op_type}")
        out = ir.Value(name=name, type=like.outputs[0].type)
        inputs = [source, *like.inputs[1:]]
        attributes = list(like.attributes.values())
        node_name = edit.fresh(graph, f"{name}_node")
        add.prepend(ir.Node(like.domain, like.op_type, inputs, attributes, outputs=[out], name=node_name))
        source = out
    add.replace_input_with(0 if add.inputs[0] is value else 1, source)


def write_masked(
    axis_graph: AxisGraph, masked: ir.Model, kept: Kept, repaired: Mapping[str, tuple[Array, Array]]
) -> None:
    """Give the masked model the weights that the cut one got; what is masked stays zero.

    Parameters
    ----------
    masked
        Mutated.
    kept
        Positions that the cut model has.
    repaired
        By a layer's key (`Consumer.key`): weight and bias of the cut model's layer.
    """
    made = {key: layer for node in every_node(masked.graph) for key, layer in _layers(node).items()}
    for key, original in ((k, v) for op in axis_graph.ops for k, v in _layers(op.node).items()):
        if key not in repaired:
            continue
        layer = made[key]
        weight, bias = repaired[key]
        dims: dict[int, Bools] = {}
        blocked = {}
        for dim in range(original.array.ndim):
            axis = Axis(original.weight, dim)
            if axis in kept:
                dims[dim] = kept[axis]
            if axis in axis_graph.blocked:
                blocked[dim] = axis_graph.blocked[axis]
        if isinstance(original, Gates):
            rows = outputs_left(original, kept)
        else:
            channel = 1 if original.convolves else len(axis_graph.shapes.dims[original.y]) - 1
            rows = kept.get(Axis(original.y, channel))
        vector = original.bias_vector()
        vector[slice(None) if rows is None else rows] = bias
        write(layer, _spread(weight, original.array.shape, dims, blocked), vector)


def write_ranges(model: ir.Model, ranges: Mapping[str, Mapping[str, Array]]) -> None:
    """Give the masked model the scales of activations that the cut one got.

    Parameters
    ----------
    model
        Mutated.
    ranges
        As in `onnxprune.repair.sequence.Repairs`.
    """
    initializers = model.graph.initializers
    for arrays in ranges.values():
        for name, array in arrays.items():
            if name in initializers:  # else it belongs to what writing a bias put in, which shares the others
                edit.set_array(initializers[name], array)


def _layers(node: ir.Node) -> dict[str, LinearMap]:
    """The linear maps of a node, by key."""
    found: LinearMap | str = linear_map_of(node)
    return {layer.key: layer for layer in (gates_of(node) if isinstance(found, str) else [found])}


def _spread(
    part: Array, shape: tuple[int, ...], dims: Mapping[int, Bools], blocked: Mapping[int, Any]
) -> Array:
    """The inverse of `slice_array`, with zeros at the positions that are gone."""
    places = slice_array(np.arange(int(np.prod(shape))).reshape(shape), dims, blocked)
    whole = np.zeros(int(np.prod(shape)), part.dtype)
    whole[places.ravel()] = part.ravel()
    return whole.reshape(shape)
