"""Quantised weights in the form of their file again: what `take_quantized` took away."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.model import edit
from onnxprune.model.biases import settle_biases
from onnxprune.model.quantize import same_tensor, turn
from onnxprune.model.quantized import QuantizedTensor, Written
from onnxprune.model.scaled import give_scaled

Array = np.ndarray[Any, Any]

_CHANGED = "onnxprune.requantised"


def give_quantized(graph: ir.Graph, leave: Collection[str] = ()) -> None:
    """Write quantised weights as the file did: stored numbers, a scale, a zero point and DequantizeLinear.

    Weights that were given other floats are rounded; `requantised` says which ones had scales found anew.

    Parameters
    ----------
    graph
        Mutated.
    leave
        Names of weights that are to stay floats.
    """
    values = {
        name: value
        for name, value in graph.initializers.items()
        if isinstance(value.const_value, QuantizedTensor) and name not in leave
    }
    changed = []
    for name, value in values.items():
        tensor = value.const_value
        if isinstance(tensor, QuantizedTensor) and tensor.stored.dtype != ir.DataType.INT32:
            value.const_value, scales = tensor.settled()
            changed += [name] * (scales > 0)
    settle_biases(graph, leave)
    for value in graph.initializers.values():  # of other operators
        tensor = value.const_value
        if isinstance(tensor, QuantizedTensor) and value.name not in leave:
            value.const_value, _ = tensor.settled()
    _make_plain(graph, leave)
    order = {node: number for number, node in enumerate(graph)}
    for name, value in tuple(graph.initializers.items()):
        if isinstance(value.const_value, QuantizedTensor) and name not in leave:
            _write(graph, value, value.const_value, order)
    give_scaled(graph)
    graph.meta[_CHANGED] = tuple(changed)


def with_floats(model: ir.Model, names: Collection[str]) -> ir.Model:
    """A copy of a normalised model in which some quantised weights are the floats that they were given."""
    model = model.clone()
    _make_plain(model.graph, names)
    return model


def _make_plain(graph: ir.Graph, names: Collection[str]) -> None:
    for name in names:
        value = graph.initializers.get(name)
        if value is not None and isinstance(value.const_value, QuantizedTensor):
            value.const_value = value.const_value.plain()


def requantised(graph: ir.Graph) -> tuple[str, ...]:
    """Weights that `give_quantized` found new scales for, because they had other floats than the file's."""
    return tuple(graph.meta.get(_CHANGED, ()))


def pending(graph: ir.Graph) -> dict[str, bool]:
    """Quantised weights that were given other floats, and whether these can be stored without rounding."""
    found = {}
    for name, value in graph.initializers.items():
        if isinstance(value.const_value, QuantizedTensor) and value.const_value.floats is not None:
            found[name] = value.const_value.settled()[1] == 0
    return found


def _write(graph: ir.Graph, value: ir.Value, tensor: QuantizedTensor, order: dict[ir.Node, int]) -> None:
    """Put the nodes of a weight before the first that reads it."""
    scheme = tensor.scheme
    users = [node for node, _ in value.uses()]
    first = min(users, key=lambda node: order.get(node, -1), default=None)
    place = first if first is not None and first in order else next(iter(graph), None)
    name = str(value.name)
    del graph.initializers[name]
    if scheme.perm:
        back = tuple(int(dim) for dim in np.argsort(scheme.perm))
        layout = tensor.layout
        if layout.axis is not None:
            layout = replace(layout, axis=back.index(layout.axis))
        tensor = turn(tensor, back, replace(scheme, layout=layout))
    nodes = []
    source = scheme.node.inputs[0] if scheme.quantize is None else scheme.quantize.inputs[0]
    data: ir.TensorProtocol = tensor.stored
    if scheme.quantize is not None:
        raw = tensor.meaning() if tensor.raw_floats is None else tensor.raw_floats
        data = edit.tensor(raw, tensor.dtype)
    made = _initializer(graph, source, data)
    kinds = (_like(tensor.scale), _like(tensor.zero, tensor.stored.dtype))
    for written in (scheme.quantize, scheme.node):
        if written is None:
            continue
        others = [
            None if not given else _initializer(graph, given, kind)
            for given, kind in zip(written.inputs[1:], kinds, strict=False)
        ]
        nodes.append(_node(graph, written, [made, *others], tensor))
        made = nodes[-1].outputs[0]
    if scheme.turn is not None:
        nodes.append(_node(graph, scheme.turn, [made], tensor))
        made = nodes[-1].outputs[0]
    made.name, made.type = name, value.type
    made.shape = ir.Shape(value.const_value.shape.numpy()) if value.const_value is not None else None
    last = scheme.turn or scheme.node
    made.type = made.type if last.typed else None
    made.shape = made.shape if last.shaped else None
    made.metadata_props.update(value.metadata_props)
    value.replace_all_uses_with(made)
    if place is None:
        graph.extend(nodes)
    else:
        graph.insert_before(place, nodes)


def _node(
    graph: ir.Graph, written: Written, inputs: list[ir.Value | None], tensor: QuantizedTensor
) -> ir.Node:
    name = edit.fresh(graph, written.name) if written.name else ""
    out = ir.Value(name=edit.fresh(graph, written.output))
    if written.op_type == "QuantizeLinear":
        out.type = ir.TensorType(tensor.stored.dtype) if written.typed else None
    else:
        out.type = ir.TensorType(tensor.dtype) if written.typed else None
    if written.shaped:
        out.shape = ir.Shape(tensor.extents)
    return ir.Node(
        written.domain, written.op_type, inputs, list(written.attributes), outputs=[out], name=name or None
    )


def _like(array: Array, dtype: ir.DataType | None = None) -> ir.TensorProtocol:
    return edit.tensor(array, ir.DataType.from_numpy(array.dtype) if dtype is None else dtype)


def _initializer(graph: ir.Graph, name: str, data: ir.TensorProtocol) -> ir.Value:
    """The initializer of a name where it holds the same, else a new one, of that name where it is free."""
    known = graph.initializers.get(name)
    if known is not None and known.const_value is not None and same_tensor(known.const_value, data):
        return known
    free = edit.fresh(graph, name)
    value = ir.Value(
        name=free, type=ir.TensorType(data.dtype), shape=ir.Shape(data.shape.numpy()), const_value=data
    )
    graph.register_initializer(value)
    return value
