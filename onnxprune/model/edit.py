"""Small edits that keep an `ir.Model` consistent. These mutate what they are given."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

Array = np.ndarray[Any, Any]

_NAMES = "onnxprune.names"


def tensor(array: Array, dtype: ir.DataType, name: str | None = None) -> ir.TensorProtocol:
    """A tensor of exactly `dtype` (numpy has no bfloat16, no 8-bit floats and no 4-bit types of its own).

    Parameters
    ----------
    array
        Of the type that `dtype.numpy()` names, from ml_dtypes where numpy has none; anything else is cast.
        Packed types have one element per entry here, too. A 0-d array stays one.
    dtype, name
        Of the tensor.
    """
    array = np.asarray(array, order="C")
    if dtype == ir.DataType.STRING:
        return ir.StringTensor(array, shape=ir.Shape(array.shape), name=name)
    return ir.Tensor(
        array.astype(dtype.numpy(), copy=False), dtype=dtype, shape=ir.Shape(array.shape), name=name
    )


def set_array(value: ir.Value, array: Array) -> None:
    """Replace an initializer's data; shape, type and data never disagree afterwards.

    Of a quantised weight, the array is what will be rounded when the model is written.
    """
    holding = getattr(value.const_value, "holding", None)
    set_tensor(value, tensor(array, _dtype(value), value.name) if holding is None else holding(array))


def set_tensor(value: ir.Value, data: ir.TensorProtocol) -> None:
    """Replace an initializer's tensor, its shape and its type together."""
    value.const_value = data
    value.shape = ir.Shape(data.shape.numpy())
    value.type = ir.TensorType(data.dtype)


def set_lazy(value: ir.Value, shape: tuple[int, ...], make: Callable[[], Array]) -> None:
    """Replace an initializer by a computation that runs each time the data is written or used.

    Parameters
    ----------
    value
        Keeps its name and element type.
    shape
        Of the array that `make` returns; checked when it runs.
    make
        Must not depend on anything that changes.
    """
    dtype, name = _dtype(value), value.name

    def run() -> ir.TensorProtocol:
        array = make()
        if array.shape != shape:
            raise RuntimeError(f"initializer {name!r} was announced as {shape}, but is {array.shape}")
        return tensor(array, dtype, name)

    set_tensor(value, ir.LazyTensor(run, dtype=dtype, shape=ir.Shape(shape), name=name))


def _dtype(value: ir.Value) -> ir.DataType:
    dtype = value.const_value.dtype if value.const_value is not None else value.dtype
    if dtype is None:
        raise ValueError(f"initializer {value.name!r} has no element type")
    return dtype


def add_initializer(graph: ir.Graph, name: str, array: Array, dtype: ir.DataType) -> ir.Value:
    """Register a new initializer under a name that is free, derived from `name`."""
    data = tensor(array, dtype, fresh(graph, name))
    value = ir.Value(
        name=data.name, type=ir.TensorType(dtype), shape=ir.Shape(data.shape.numpy()), const_value=data
    )
    graph.register_initializer(value)
    return value


def fresh(graph: ir.Graph, name: str) -> str:
    """`name`, or `name_1`, `name_2`, ... whichever no value or node of the graph bears yet.

    Parameters
    ----------
    graph
        The main graph; names of its subgraphs are taken, too.
    name
        The name wanted.
    """
    owner, taken = graph.meta.get(_NAMES, (None, None))
    if owner is None or owner() is not graph:  # a clone takes over its original's entry
        taken = used_names(graph)
        graph.meta[_NAMES] = (weakref.ref(graph), taken)
    candidate, n = name, 0
    while candidate in taken:
        n += 1
        candidate = f"{name}_{n}"
    taken.add(candidate)
    return candidate


def used_names(graph: ir.Graph) -> set[str | None]:
    """Names of all values and nodes of a graph and its subgraphs."""
    names: set[str | None] = set()
    for part in (graph, *graph.subgraphs()):
        names.update(value.name for value in part.inputs)
        names.update(part.initializers)
    for node in graph.all_nodes():
        names.add(node.name)
        names.update(out.name for out in node.outputs)
    return names


def insert_before(
    node: ir.Node, slot: int, op_type: str, others: list[ir.Value], *, first: bool = True, **attributes: int
) -> None:
    """Put `op_type(input, *others)` (or `op_type(*others, input)`) between `node` and its input `slot`."""
    graph, value = node.graph, node.inputs[slot]
    if not isinstance(graph, ir.Graph) or value is None:
        raise ValueError(f"node {node.name!r} has no input {slot} inside a graph")
    name = fresh(graph, f"{value.name}/{op_type}")
    out = ir.Value(name=name, type=value.type)
    inputs = [value, *others] if first else [*others, value]
    attrs = [ir.AttrInt64(key, number) for key, number in attributes.items()]
    node.prepend(ir.Node("", op_type, inputs, attrs, outputs=[out], name=fresh(graph, f"{name}_node")))
    node.replace_input_with(slot, out)


def insert_after(value: ir.Value, op_type: str, others: list[ir.Value], **attributes: int) -> ir.Value:
    """Put `op_type(value, *others)` between `value` and all that uses it; gives what they use instead."""
    node = value.producer()
    graph = None if node is None else node.graph
    if node is None or not isinstance(graph, ir.Graph) or value.is_graph_output():
        raise ValueError(f"{value.name!r} is made by no node inside a graph, or is an output")
    users = tuple(value.uses())
    name = fresh(graph, f"{value.name}/{op_type}")
    out = ir.Value(name=name, type=value.type)
    attrs = [ir.AttrInt64(key, number) for key, number in attributes.items()]
    node.append(
        ir.Node("", op_type, [value, *others], attrs, outputs=[out], name=fresh(graph, f"{name}_node"))
    )
    for user, slot in users:
        user.replace_input_with(slot, out)
    return out


def replace_by_initializer(graph: ir.Graph, old: ir.Value, tensor: ir.TensorProtocol) -> None:
    """Let an initializer of the same name take the place of a value."""
    value = ir.Value(
        name=old.name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        doc_string=old.doc_string,
        const_value=tensor,
        metadata_props=dict(old.metadata_props) or None,
    )
    value.meta.update(old.meta)
    graph.register_initializer(value)
    old.replace_all_uses_with(value)


def take_over(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Let a node's output have the name, type, shape and users of another's, also as an output of the graph."""
    name = old.name
    old.name = None if name is None else fresh(graph, f"{name}/old")
    new.name, new.type, new.shape = name, old.type, old.shape
    graph.outputs[:] = [new if out is old else out for out in graph.outputs]
    old.replace_all_uses_with(new)


def drop_unused(graph: ir.Graph, keep: frozenset[str] = frozenset()) -> None:
    """Remove nodes whose outputs nothing uses, then initializers that nothing uses.

    Parameters
    ----------
    graph
        Subgraphs are left as they are.
    keep
        Names of initializers that stay even so.
    """
    for node in reversed(graph):
        if node.outputs and not any(out.uses() or out.is_graph_output() for out in node.outputs):
            graph.remove(node, safe=True)
    for name, value in tuple(graph.initializers.items()):
        if not (value.uses() or value.is_graph_output() or name in keep):
            if value.is_graph_input():
                graph.inputs.remove(value)
            del graph.initializers[name]
