"""MatMulInteger and ConvInteger with the scaling that follows, as quantize_dynamic of onnxruntime writes them.

    MatMulInteger(a, b, a_zero, b_zero) -> Cast(float) -> Mul(., Mul(a_scale, b_scale))

is MatMul(DequantizeLinear(a, a_scale, a_zero), DequantizeLinear(b, b_scale, b_zero)) up to the rounding of sums;
`a` comes from DynamicQuantizeLinear, mostly. ConvInteger's bias, `Add(., Reshape(bias, [1, -1, 1, 1]))`, becomes
that of Conv; so does one that is added in integers (`onnxprune.model.integer.early`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.model import edit
from onnxprune.model.integer.early import add_back, integer_bias
from onnxprune.model.integer.grid import integers_of, locate
from onnxprune.model.integer.notes import Lowered, Template, note
from onnxprune.model.integer.parts import (
    NotThisForm,
    Quantized,
    Workbench,
    array_of,
    build,
    give_back,
    is_constant,
    one_value,
    rank_of,
    restore,
    shape_of,
    sweep,
    take_place,
)
from onnxprune.model.uses import only_user

NAME = "product"
_FLOATS = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}


@dataclass(frozen=True)
class _Bias:
    """`Add(product, Reshape(bias, shape))`.

    Attributes
    ----------
    reshape, add
        The nodes.
    slot
        Of the bias, in the Add.
    vector
        The bias as a vector.
    """

    reshape: ir.Node
    add: ir.Node
    slot: int
    vector: ir.Value


@dataclass(frozen=True)
class _Scaled:
    """The nodes behind the product: a Cast, a Mul with the scale; and the Mul that makes the scale.

    Attributes
    ----------
    cast, mul, scales
        The nodes.
    first
        The slot of the product in `mul`, and of the activation's scale in `scales`.
    """

    cast: ir.Node
    mul: ir.Node
    scales: ir.Node
    first: tuple[int, int]


def lower(bench: Workbench, node: ir.Node) -> None:
    """Say the product in floats; NotThisForm where it is not scaled in the known way, before anything changes."""
    a, b = node.inputs[0], node.inputs[1]
    zeros = [node.inputs[slot] if slot < len(node.inputs) else None for slot in (2, 3)]
    if a is None or b is None:
        raise NotThisForm("an operand is missing")
    convolves = node.op_type == "ConvInteger"
    early = integer_bias(node, rank_of(b)) if convolves else None
    scaled = _scaled(node, node if early is None else early.add)
    left = scaled.scales.inputs[scaled.first[1]]
    right = scaled.scales.inputs[1 - scaled.first[1]]
    if left is None or right is None or not one_value(left) or not one_value(zeros[0]):
        raise NotThisForm("the scale of the activation is not one number")
    if early is not None and set(early.scales.inputs) != {left, right}:
        raise NotThisForm("its bias is rounded to another scale than its own")
    axis = _axis(b, right, zeros[1], convolves)
    bias = _bias(scaled.mul, b) if convolves and early is None else None
    last = scaled.mul if bias is None else bias.add

    inputs: list[ir.Value | None] = [
        bench.dequantize(last, Quantized(a, left, zeros[0]), None),
        bench.dequantize(last, Quantized(b, right, zeros[1]), axis),
    ]
    gone = [node, scaled.cast, scaled.scales, scaled.mul]
    more: dict[str, object] = {"first": scaled.first}
    if bias is not None:
        inputs.append(bias.vector)
        gone += [bias.add, bias.reshape]
        shape = bias.reshape.inputs[1]
        more |= {"slot": bias.slot, "shape": shape and (shape.name, shape.const_value)}
    if early is not None:
        inputs.append(early.vector)
        gone += early.nodes
        more |= early.remembered() | {"divisor": 0 if early.scales.inputs[0] is left else 1}
    templates = tuple(Template.of(one) for one in gone)
    core = bench.replace(last, _FLOATS[node.op_type], inputs, dict(node.attributes))
    core.name = node.name
    note(core, Lowered(NAME, templates, more))
    old = last.outputs[0]
    take_place(bench.graph, old, core.outputs[0])
    sweep(bench.graph, [old])


def _scaled(node: ir.Node, last: ir.Node) -> _Scaled:
    """What is behind a product `node`, or behind the sum with a bias, `last`."""
    cast = only_user(last.outputs[0])
    if cast is None or cast.op_type != "Cast" or cast.attributes["to"].as_int() != ir.DataType.FLOAT:
        raise NotThisForm("its result is not cast to float alone")
    mul = only_user(cast.outputs[0])
    if mul is None or mul.op_type != "Mul":
        raise NotThisForm("its result is not scaled")
    slot = 0 if mul.inputs[0] is cast.outputs[0] else 1
    factor = mul.inputs[1 - slot]
    scales = None if factor is None else factor.producer()
    if factor is None or scales is None or scales.op_type != "Mul" or factor.is_graph_output():
        raise NotThisForm("its scale is not the product of two")
    return _Scaled(cast, mul, scales, (slot, _of_activation(node, scales)))


def _of_activation(node: ir.Node, scales: ir.Node) -> int:
    """The slot of the first operand's scale: made where its zero point is made, or the one that is computed."""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    maker = None if zero is None else zero.producer()
    for slot in (0, 1):
        scale = scales.inputs[slot]
        if maker is not None and scale is not None and scale.producer() is maker:
            return slot
    return 1 if is_constant(scales.inputs[0]) and not is_constant(scales.inputs[1]) else 0


def _axis(b: ir.Value, scale: ir.Value, zero: ir.Value | None, convolves: bool) -> int | None:
    """The dim of the second operand along which its scales lie."""
    if one_value(scale) and one_value(zero):
        return None
    rank = rank_of(b)
    if convolves or rank is None or not is_constant(b) or rank_of(scale) != 1:
        raise NotThisForm("scales of the weight are not one number, or one for each column")
    if zero is not None and array_of(zero, "a zero point").shape != array_of(scale, "a scale").shape:
        raise NotThisForm("scale and zero point differ in shape")
    return rank - 1


def _bias(mul: ir.Node, weight: ir.Value) -> _Bias | None:
    """The bias that is added to a convolution, where it is a constant."""
    add = only_user(mul.outputs[0])
    if add is None or add.op_type != "Add":
        return None
    slot = 1 if add.inputs[0] is mul.outputs[0] else 0
    value, shape = add.inputs[slot], shape_of(weight)
    reshape = None if value is None else value.producer()
    if value is None or shape is None or reshape is None:
        return None
    vector, target = reshape.inputs[0], reshape.inputs[1] if len(reshape.inputs) > 1 else None
    if reshape.op_type != "Reshape" or vector is None or target is None or not is_constant(vector):
        return None
    if only_user(value) is None or not is_constant(target) or target.const_value is None:
        return None
    fits = target.const_value.numpy().tolist() == [1, -1, *[1] * (len(shape) - 2)]
    return _Bias(reshape, add, slot, vector) if fits and rank_of(vector) == 1 else None


# --- and back --------------------------------------------------------------------------------------------


def lift(graph: ir.Graph, core: ir.Node, lowered: Lowered) -> None:
    """Put product, Cast and Mul together again; NotThisForm where an operand is not quantised any more."""
    operands = [locate(core, 0), locate(core, 1)]
    old = core.outputs[0]
    product, cast, scales, mul, *after = lowered.nodes
    added = core.inputs[2] if len(core.inputs) > 2 else None
    early = "divisor" in lowered.more
    same = _same_shape(old, (after[0] if after and not early else mul).outputs[0].shape)
    a, b = (integers_of(graph, core, one) for one in operands)
    inputs = _inputs(graph, product, a, b)
    attributes = {
        name: core.attributes[name]
        for name in (*product.attributes, *core.attributes)
        if name in core.attributes
    }
    integers = build(graph, core, product, inputs, attributes, same).outputs[0]
    if early and added is not None:

        def divisor(template: Template) -> ir.Value:
            return _factor(graph, core, template, lowered.more["divisor"], a.scale, b.scale)

        integers, added = add_back(graph, core, integers, added, after, lowered.more, divisor, same), None
    floats = build(graph, core, cast, [integers], None, same)
    factor = _factor(graph, core, scales, lowered.more["first"][1], a.scale, b.scale)
    pair = [floats.outputs[0], factor]
    last = build(graph, core, mul, pair if lowered.more["first"][0] == 0 else pair[::-1], None, same)
    if added is not None:
        last = _add(graph, core, last, added, lowered, same)
    give_back(graph, old, last.outputs[0])


def _same_shape(value: ir.Value, shape: ir.Shape | None) -> bool:
    """Whether a value still has the shape that the file declares, so that those before it have theirs."""
    return shape is not None and value.shape is not None and tuple(shape) == tuple(value.shape)


def _inputs(graph: ir.Graph, product: Template, a: Quantized, b: Quantized) -> list[ir.Value | None]:
    inputs: list[ir.Value | None] = [a.integers, b.integers, a.zero, b.zero]
    for slot, one in ((2, a), (3, b)):
        if inputs[slot] is None and product.has(slot):
            shape = shape_of(one.scale)
            dtype = one.integers.dtype or ir.DataType.UINT8
            extents = () if shape is None else tuple(int(dim) for dim in shape.numpy())
            inputs[slot] = edit.add_initializer(
                graph, f"{one.integers.name}/zero_point", np.zeros(extents, dtype.numpy()), dtype
            )
    while len(inputs) > max(2, len(product.given)) and inputs[-1] is None:
        inputs.pop()
    return inputs


def _factor(
    graph: ir.Graph, core: ir.Node, scales: Template, slot: int, a: ir.Value, b: ir.Value
) -> ir.Value:
    """The product of the scales; several products may share it."""
    pair = [a, b] if slot == 0 else [b, a]
    for user, _ in tuple(a.uses()):
        known = user.op_type == "Mul" and user.outputs[0].name == scales.outputs[0].name
        if known and list(user.inputs) == pair:
            return user.outputs[0]
    made = build(graph, core, scales, pair, None, declared=False)
    made.outputs[0].shape = scales.outputs[0].shape if shape_of(b) == scales.outputs[0].shape else None
    return made.outputs[0]


def _add(
    graph: ir.Graph, core: ir.Node, product: ir.Node, bias: ir.Value, lowered: Lowered, same: bool
) -> ir.Node:
    """The bias as a node of its own."""
    rank = rank_of(core.inputs[1]) if core.inputs[1] is not None else None
    after, more = lowered.nodes[4:], lowered.more
    if len(after) == 2:
        name, data = more["shape"]
        value = graph.initializers.get(name)
        if value is None or not is_constant(value):
            value = restore(graph, name, data.numpy(), ir.DataType.INT64)
        reshape = build(graph, core, after[1], [bias, value], None, same)
        pair: list[ir.Value | None] = [product.outputs[0], reshape.outputs[0]]
        return build(graph, core, after[0], pair if more["slot"] == 1 else pair[::-1], None, same)
    # a bias that the file did not have
    data = np.asarray(array_of(bias, "the bias"))
    spread = data.reshape(1, -1, *[1] * ((rank or 4) - 2))
    made = edit.add_initializer(graph, str(bias.name), spread, bias.dtype or ir.DataType.FLOAT)
    out = ir.Value(
        name=edit.fresh(graph, f"{core.outputs[0].name}/sum"), type=ir.TensorType(ir.DataType.FLOAT)
    )
    node = ir.Node(
        "", "Add", [product.outputs[0], made], outputs=[out], name=edit.fresh(graph, f"{made.name}/Add")
    )
    product.outputs[0].name = edit.fresh(graph, f"{core.outputs[0].name}/product")
    graph.insert_before(core, node)
    return node
