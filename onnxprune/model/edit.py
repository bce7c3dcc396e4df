"""Small edits that keep an `ir.Model` consistent. These mutate what they are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

Array = np.ndarray[Any, Any]


def tensor(array: Array, dtype: ir.DataType, name: str | None = None) -> ir.Tensor:
    """An `ir.Tensor` of exactly `dtype` (numpy has no native bfloat16 or 4-bit types)."""
    return ir.Tensor(np.ascontiguousarray(array), dtype=dtype, shape=ir.Shape(array.shape), name=name)


def set_array(value: ir.Value, array: Array) -> None:
    """Replace an initializer's data; shape, type and data never disagree afterwards."""
    dtype = value.const_value.dtype if value.const_value is not None else value.dtype
    if dtype is None:
        raise ValueError(f"initializer {value.name!r} has no element type")
    set_tensor(value, tensor(array, dtype, value.name))


def set_tensor(value: ir.Value, data: ir.TensorProtocol) -> None:
    """Replace an initializer's tensor, its shape and its type together."""
    value.const_value = data
    value.shape = ir.Shape([int(d) for d in data.shape])
    value.type = ir.TensorType(data.dtype)


def set_lazy(value: ir.Value, shape: tuple[int, ...], make: Callable[[], Array]) -> None:
    """Replace an initializer by a computation that runs when the data is written or used."""
    dtype = value.const_value.dtype if value.const_value is not None else value.dtype
    if dtype is None:
        raise ValueError(f"initializer {value.name!r} has no element type")
    name = value.name
    set_tensor(
        value, ir.LazyTensor(lambda: tensor(make(), dtype), dtype=dtype, shape=ir.Shape(shape), name=name)
    )


def add_initializer(graph: ir.Graph, name: str, array: Array, dtype: ir.DataType) -> ir.Value:
    """Register a new initializer under a name that is free, derived from `name`."""
    data = tensor(array, dtype)
    value = ir.Value(name=fresh(graph, name), type=ir.TensorType(dtype), shape=ir.Shape(array.shape))
    data.name = value.name
    value.const_value = data
    graph.register_initializer(value)
    return value


def fresh(graph: ir.Graph, name: str) -> str:
    """`name`, or `name_1`, `name_2`, ... whichever no value or node of the graph bears yet."""
    taken = graph.meta.get("onnxprune.names")
    if taken is None:
        taken = graph.meta["onnxprune.names"] = {
            *(v.name for v in graph.inputs),
            *graph.initializers,
            *(node.name for node in graph.all_nodes()),
            *(out.name for node in graph.all_nodes() for out in node.outputs),
        }
    candidate, n = name, 0
    while candidate in taken:
        n += 1
        candidate = f"{name}_{n}"
    taken.add(candidate)
    return candidate


def insert_before(node: ir.Node, slot: int, op_type: str, others: list[ir.Value], *, first: bool = True) -> None:
    """Put `op_type(input, *others)` (or `op_type(*others, input)`) between `node` and its input `slot`."""
    graph, value = node.graph, node.inputs[slot]
    if not isinstance(graph, ir.Graph) or value is None:
        raise ValueError(f"node {node.name!r} has no input {slot} inside a graph")
    name = fresh(graph, f"{value.name}/{op_type}")
    out = ir.Value(name=name, type=value.type)
    inputs = [value, *others] if first else [*others, value]
    node.prepend(ir.Node("", op_type, inputs, outputs=[out], name=fresh(graph, f"{name}_node")))
    node.replace_input_with(slot, out)
