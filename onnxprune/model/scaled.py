"""Quantised weights that a file says without DequantizeLinear: `Mul(Cast(integers), scale)`.

People who store weights in 8 bits by hand write the arithmetic of DequantizeLinear in plain operators, some with
a zero point: `Mul(Sub(Cast(integers), zero), scale)`. It means the same, to the last bit: the integers and
their differences are exact, so either form rounds once. `take_scaled` takes such nodes for the quantised
weight that they make, and `give_scaled` writes them again, because onnxruntime folds this form when it loads a
model and leaves DequantizeLinear for every run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.model import edit
from onnxprune.model.quantized import Layout, QuantizedTensor, Scheme, Written
from onnxprune.model.uses import only_user

DOMAIN = "onnxprune.scaled"
"""Of the node that stands for the arithmetic between `give_quantized` and `give_scaled`."""

_BITS = {ir.DataType.FLOAT: 16, ir.DataType.DOUBLE: 16, ir.DataType.FLOAT16: 8}
"""Of integers whose product with a scale of a type is rounded once."""


@dataclass(frozen=True)
class _Parts:
    """The nodes, and what they read.

    Attributes
    ----------
    flipped
        Whether the scale is the first factor.
    """

    cast: ir.Node
    subtraction: ir.Node | None
    product: ir.Node
    stored: ir.Value
    zero: ir.Value | None
    scale: ir.Value
    flipped: bool


def take_scaled(graph: ir.Graph) -> None:
    """Replace each product of integers and scales that are all constants by a float initializer.

    Parameters
    ----------
    graph
        Mutated. Constants are initializers. Nodes and initializers that are not needed any more stay, without
        users.
    """
    for node in tuple(graph):
        if node.op_type == "Mul" and not node.domain:
            parts = _parts(graph, node)
            tensor = None if parts is None else _tensor(parts)
            if tensor is not None:
                edit.replace_by_initializer(graph, node.outputs[0], tensor)
                graph.remove(node, safe=True)


def _parts(graph: ir.Graph, product: ir.Node) -> _Parts | None:
    """What makes a product of integers and scales; None where something else does, or others read of it."""
    output = product.outputs[0]
    if output.is_graph_output() or not output.name or len(product.inputs) != 2:
        return None
    for slot in (0, 1):
        scale, factor = product.inputs[1 - slot], product.inputs[slot]
        maker = None if factor is None else factor.producer()
        if (
            scale is None
            or not _is_constant(graph, scale)
            or maker is None
            or only_user(maker.outputs[0]) is None
        ):
            continue
        zero, subtraction = None, None
        if maker.op_type == "Sub" and not maker.domain and maker.inputs[0] is not None:
            subtraction, zero, before = maker, maker.inputs[1], maker.inputs[0].producer()
            if (
                zero is None
                or not _is_constant(graph, zero)
                or before is None
                or only_user(before.outputs[0]) is None
            ):
                continue
            maker = before
        stored = maker.inputs[0] if maker.op_type == "Cast" and not maker.domain else None
        if stored is not None and _is_constant(graph, stored):
            return _Parts(maker, subtraction, product, stored, zero, scale, slot == 1)
    return None


def _is_constant(graph: ir.Graph, value: ir.Value) -> bool:
    known = value.is_initializer() and value.graph is graph and not value.is_graph_output()
    return known and not isinstance(value.const_value, QuantizedTensor)


def _tensor(parts: _Parts) -> QuantizedTensor | None:
    """The weight; None where its numbers are not those of a quantised one."""
    stored, scale = parts.stored.const_value, parts.scale.const_value
    if stored is None or scale is None or parts.cast.attributes["to"].as_int() != int(scale.dtype):
        return None
    shape = tuple(int(extent) for extent in stored.shape.numpy())
    if not stored.dtype.is_integer() or stored.dtype.bitwidth > _BITS.get(scale.dtype, 0) or len(shape) < 2:
        return None
    if parts.zero is None and not stored.dtype.is_signed():
        return None  # nobody could write the zero point of another scale
    scales = np.asarray(scale.numpy())
    axis = _axis(scales.shape, shape)
    if axis is None:
        return None
    layout = Layout() if axis < 0 else Layout(axis)
    vector = scales.reshape(()) if axis < 0 else scales.reshape(-1)
    zeros = np.zeros(vector.shape, stored.dtype.numpy())
    if parts.zero is not None and parts.zero.const_value is not None:
        points = np.asarray(parts.zero.const_value.numpy())
        whole = points.astype(stored.dtype.numpy())
        if _axis(points.shape, shape) not in (axis, -1) or not np.array_equal(whole, points):
            return None
        zeros = np.broadcast_to(
            whole.reshape(-1) if whole.size > 1 else whole.reshape(()), vector.shape
        ).copy()
    scheme = Scheme(
        _written(parts, scales.ndim, axis - len(shape) if axis >= 0 else 0), layout, stored, zeros
    )
    return QuantizedTensor(stored, vector, zeros, scheme, scale.dtype, name=parts.product.outputs[0].name)


def _axis(given: tuple[int, ...], shape: tuple[int, ...]) -> int | None:
    """The axis along which a broadcast operand differs; -1: none, None: several, or it makes the tensor larger."""
    if len(given) > len(shape):
        return None
    lined = (*(1 for _ in shape[len(given) :]), *given)
    longer = [axis for axis, extent in enumerate(lined) if extent != 1]
    if not longer:
        return -1
    (first, *others) = longer
    return first if not others and lined[first] == shape[first] else None


def _written(parts: _Parts, rank: int, axis: int) -> Written:
    """The node that stands for the arithmetic; `axis` is that of the scales, counted from the end."""
    cast, product, less = parts.cast, parts.product, parts.subtraction
    names = [(node.name or "", str(node.outputs[0].name)) for node in (cast, *([less] if less else []))]
    inputs = [str(parts.stored.name), str(parts.scale.name)]
    if parts.zero is not None:
        inputs.append(str(parts.zero.name))
    output = product.outputs[0]
    return Written(
        "Scaled",
        DOMAIN,
        product.name or "",
        tuple(inputs),
        str(output.name),
        (
            ir.AttrInt64("rank", rank),
            ir.AttrInt64("axis", axis),
            ir.AttrInt64("flipped", int(parts.flipped)),
            ir.AttrStrings("nodes", [name for name, _ in names]),
            ir.AttrStrings("values", [value for _, value in names]),
        ),
        output.type is not None,
        output.shape is not None,
    )


def give_scaled(graph: ir.Graph) -> None:
    """Write the arithmetic of `take_scaled` again.

    Parameters
    ----------
    graph
        Mutated: every node that stands for it is replaced.
    """
    for node in tuple(graph):
        if node.domain == DOMAIN:
            _give(graph, node)


def _give(graph: ir.Graph, node: ir.Node) -> None:
    stored, scale, *points = (value for value in node.inputs if value is not None)
    output, kind = node.outputs[0], scale.dtype or ir.DataType.FLOAT
    names, values = (node.attributes[key].as_strings() for key in ("nodes", "values"))
    made = [ir.Node("", "Cast", [stored], [ir.AttrInt64("to", int(kind))])]
    if points:
        made.append(ir.Node("", "Sub", [made[0].outputs[0], _operand(graph, node, points[0], kind)]))
    for name, value, each in zip(names, values, made, strict=True):
        each.name = edit.fresh(graph, name) if name else None
        each.outputs[0].name = edit.fresh(graph, value)
        each.outputs[0].type, each.outputs[0].shape = ir.TensorType(kind), stored.shape
    factors = [made[-1].outputs[0], _operand(graph, node, scale, kind)]
    if node.attributes["flipped"].as_int():
        factors.reverse()
    product = ir.Value(name=output.name, type=output.type, shape=output.shape)
    product.metadata_props.update(output.metadata_props)
    made.append(ir.Node("", "Mul", factors, outputs=[product], name=node.name))
    graph.insert_before(node, made)
    output.replace_all_uses_with(product)
    graph.remove(node, safe=True)


def _operand(graph: ir.Graph, node: ir.Node, value: ir.Value, kind: ir.DataType) -> ir.Value:
    """Scales or zero points as floats, in the shape in which they are broadcast to the weight."""
    rank, axis = (node.attributes[key].as_int() for key in ("rank", "axis"))
    given = value.const_value
    if given is None:
        raise ValueError(f"{value.name!r} is no initializer")
    array = np.asarray(given.numpy()).astype(kind.numpy())
    lined = array.reshape([array.size if dim == axis else 1 for dim in range(-rank, 0)])
    if given.dtype == kind and lined.shape == array.shape:
        return value
    if len(list(value.uses())) > 1:
        return edit.add_initializer(graph, str(value.name), lined, kind)
    edit.set_tensor(value, edit.tensor(lined, kind, value.name))
    return value
