"""Small edits that keep an `ir.Model` consistent. These mutate what they are given."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.errors import RangeError
from onnxprune.model.nested import bodies_of, detach

Array = np.ndarray[Any, Any]

_NAMES = "onnxprune.names"

STORED = "onnxprune.stored"
"""Key of `StoredAs` in the meta of an initializer whose file has it in another type."""


@dataclass(frozen=True)
class StoredAs:
    """How the file holds a weight that a Cast stands behind (see `onnxprune.model.casts`).

    Attributes
    ----------
    dtype
        Of the stored tensor.
    output, node
        Names of the Cast's output and of the Cast.
    """

    dtype: ir.DataType
    output: str
    node: str | None = None


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

    Raises
    ------
    RangeError
        A finite element is beyond what the initializer's type, or that in which its file holds it, can hold.
    """
    holding = getattr(value.const_value, "holding", None)
    if holding is not None:
        set_tensor(value, holding(array))
        return
    _check_range(value.name, _narrowest(value), array)
    set_tensor(value, tensor(rounded(value, array), _dtype(value), value.name))


def fits(value: ir.Value, array: Array) -> bool:
    """Whether what is finite stays so when it is written to an initializer (float16 ends at 65,504)."""
    return _in_range(_narrowest(value), array)


def _in_range(dtype: ir.DataType, array: Array) -> bool:
    array = np.asarray(array)
    if not dtype.is_floating_point() or array.dtype.kind != "f" or array.dtype == dtype.numpy():
        return True
    with np.errstate(over="ignore"):
        found = array.astype(dtype.numpy())
    return bool(np.isfinite(found)[np.isfinite(array)].all())


def _check_range(name: str | None, dtype: ir.DataType, array: Array) -> None:
    if not _in_range(dtype, array):
        most = float(np.abs(array[np.isfinite(array)]).max())
        raise RangeError(
            f"a new value of {name!r}, {most:.4g}, is too large for {dtype.name.lower()}",
            "Keep its layer as it is with --ignore, or work on a float32 copy of the model.",
        )


def rounded(value: ir.Value, array: Array) -> Array:
    """An array as it comes back from the file, where that has another type than the initializer."""
    note = value.meta.get(STORED)
    return array.astype(note.dtype.numpy()) if isinstance(note, StoredAs) else array


def _narrowest(value: ir.Value) -> ir.DataType:
    """The narrower of the types of an initializer and of the tensor in its file."""
    note, dtype = value.meta.get(STORED), _dtype(value)
    return note.dtype if isinstance(note, StoredAs) and note.dtype.bitwidth < dtype.bitwidth else dtype


def set_tensor(value: ir.Value, data: ir.TensorProtocol) -> None:
    """Replace an initializer's tensor, its shape and its type together; what the file notes on it stays."""
    old = value.const_value
    if old is not None and old is not data and isinstance(data, ir.Tensor | ir.LazyTensor):
        data.doc_string = data.doc_string or old.doc_string
        for key, text in old.metadata_props.items():
            data.metadata_props.setdefault(key, text)
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


def set_from(
    value: ir.Value,
    change: Callable[[Array], Array],
    shape_of: Callable[[tuple[int, ...]], tuple[int, ...]] = lambda shape: shape,
) -> None:
    """Replace an initializer's data by what `change` makes of it: at once, or when it is used if it lies in a file.

    Parameters
    ----------
    value
        An initializer; keeps its name and element type.
    change
        Gets the data, which it must not write to, and must not depend on anything that changes.
    shape_of
        From the shape of the data to that of the result; by default the same.
    """
    data = value.const_value
    if data is None:
        raise ValueError(f"{value.name!r} is no initializer")
    moved = getattr(data, "moved", None)  # a view of a stored tensor, which changes with it
    if moved is not None:
        set_tensor(value, moved(shape_of(tuple(int(d) for d in data.shape.numpy())), change))
    elif isinstance(data, (ir.ExternalTensor, ir.LazyTensor)):
        shape = shape_of(tuple(int(d) for d in data.shape.numpy()))
        set_lazy(value, shape, lambda: change(np.asarray(data.numpy())))
    else:
        set_array(value, change(np.asarray(data.numpy())))


def _dtype(value: ir.Value) -> ir.DataType:
    dtype = value.const_value.dtype if value.const_value is not None else value.dtype
    if dtype is None:
        raise ValueError(f"initializer {value.name!r} has no element type")
    return dtype


def add_initializer(graph: ir.Graph, name: str, array: Array, dtype: ir.DataType) -> ir.Value:
    """Register a new initializer under a name that is free, derived from `name`.

    Raises
    ------
    RangeError
        A finite element is beyond what the type can hold.
    """
    _check_range(name, dtype, array)
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
    node: ir.Node,
    slot: int,
    op_type: str,
    others: list[ir.Value],
    *,
    first: bool = True,
    main: ir.Graph | None = None,
    **attributes: int,
) -> None:
    """Put `op_type(input, *others)` (or `op_type(*others, input)`) between `node` and its input `slot`.

    `main` is the main graph where the node is in a body.
    """
    graph, value = node.graph, node.inputs[slot]
    if not isinstance(graph, ir.Graph) or value is None:
        raise ValueError(f"node {node.name!r} has no input {slot} inside a graph")
    main = graph if main is None else main
    name = fresh(main, f"{value.name}/{op_type}")
    out = ir.Value(name=name, type=value.type)
    inputs = [value, *others] if first else [*others, value]
    attrs = [ir.AttrInt64(key, number) for key, number in attributes.items()]
    node.prepend(ir.Node("", op_type, inputs, attrs, outputs=[out], name=fresh(main, f"{name}_node")))
    node.replace_input_with(slot, out)


def insert_after(
    value: ir.Value, op_type: str, others: list[ir.Value], *, main: ir.Graph | None = None, **attributes: int
) -> ir.Value:
    """Put `op_type(value, *others)` between `value` and all that uses it; gives what they use instead.

    `main` is the main graph where the value is made in a body, which may return it.
    """
    node = value.producer()
    graph = None if node is None else node.graph
    main = graph if main is None and isinstance(graph, ir.Graph) else main
    if node is None or main is None or (value.is_graph_output() and graph is main):
        raise ValueError(f"{value.name!r} is made by no node inside a graph, or is an output")
    users = tuple(value.uses())
    name = fresh(main, f"{value.name}/{op_type}")
    out = ir.Value(name=name, type=value.type)
    attrs = [ir.AttrInt64(key, number) for key, number in attributes.items()]
    node.append(
        ir.Node("", op_type, [value, *others], attrs, outputs=[out], name=fresh(main, f"{name}_node"))
    )
    if isinstance(graph, ir.Graph) and graph is not main:
        graph.outputs[:] = [out if returned is value else returned for returned in graph.outputs]
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
    """Remove nodes whose outputs nothing uses, those in bodies included, then initializers that nothing uses.

    Parameters
    ----------
    graph
        The main graph.
    keep
        Names of initializers that stay even so.
    """
    _drop_nodes(graph)
    for name, value in tuple(graph.initializers.items()):
        if not (value.uses() or value.is_graph_output() or name in keep):
            if value.is_graph_input():
                graph.inputs.remove(value)
            del graph.initializers[name]


def _drop_nodes(graph: ir.Graph) -> None:
    for node in reversed(graph):
        if node.outputs and not any(out.uses() or out.is_graph_output() for out in node.outputs):
            detach(node)
            graph.remove(node, safe=True)
        else:
            for body in bodies_of(node):
                _drop_nodes(body)
