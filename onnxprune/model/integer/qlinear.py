"""The operators of `onnxprune.model.integer.forms`, taken apart and put together again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.model import edit
from onnxprune.model.integer.biases import requantized_bias, round_before_bias
from onnxprune.model.integer.forms import Form, Slots, form_of
from onnxprune.model.integer.grid import Operand, integers_of, locate
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
    shape_of,
    take_place,
)
from onnxprune.model.uses import only_user

NAME = "qlinear"
_BYTES = (ir.DataType.UINT8, ir.DataType.INT8)


def lower(bench: Workbench, node: ir.Node) -> None:
    """Say one of these operators in floats; NotThisForm where that cannot be done, before anything changes."""
    form = form_of(node)
    attributes = form.attributes(node)
    operands = [_operand(form, node, number, slots) for number, slots in enumerate(_slots(form, node))]
    bias = _bias(form, node, [what for what, _ in operands], attributes)
    scale, zero = (_input(node, slot) for slot in form.result)
    if not one_value(scale) or (scale is None and (zero is not None or form.bias is None)):
        raise NotThisForm("the output's scale is not one number")
    more = [] if form.adapt is None else form.adapt(node, attributes, bench.opset)

    inputs: list[ir.Value | None] = [_input(node, slot) for slot in form.plain]
    inputs += [bench.dequantize(node, what, axis) for what, axis in operands]
    if bias is not None:
        integers, product, axis = bias
        name = f"{integers.name}/scale"
        made = edit.add_initializer(bench.graph, name, product, ir.DataType.FLOAT)
        inputs.append(bench.dequantize(node, Quantized(integers, made, None), axis))
    core = bench.replace(node, form.op_type, [*inputs, *more], attributes)
    note(core, Lowered(NAME, (Template.of(node),)))
    _end(bench, node, core, scale, zero)


def _end(
    bench: Workbench, node: ir.Node, core: ir.Node, scale: ir.Value | None, zero: ir.Value | None
) -> None:
    """Quantise what the operator of floats makes, under the name that the whole had."""
    old, new = node.outputs[0], core.outputs[0]
    if scale is not None:
        ends = [new, scale] + ([] if zero is None else [zero])
        dtype = ir.DataType.UINT8 if zero is None else zero.dtype
        new = bench.add(node, "QuantizeLinear", ends, f"{old.name}/quantized", dtype)
    take_place(bench.graph, old, new)
    bench.graph.remove(node, safe=True)


def _slots(form: Form, node: ir.Node) -> tuple[Slots, ...]:
    return form.slots(len(node.inputs))


def _input(node: ir.Node, slot: int) -> ir.Value | None:
    return node.inputs[slot] if slot < len(node.inputs) else None


def _operand(form: Form, node: ir.Node, number: int, slots: Slots) -> tuple[Quantized, int | None]:
    """An operand, and the dim along which its scales lie."""
    integers, scale, zero = (_input(node, slot) for slot in slots)
    if integers is None or scale is None:
        raise NotThisForm("an operand is missing")
    if integers.dtype not in (*_BYTES, None):
        raise NotThisForm(f"an operand is {integers.dtype}")
    if scale.dtype not in (ir.DataType.FLOAT, None):
        raise NotThisForm(f"a scale is {scale.dtype}")
    if one_value(scale) and one_value(zero):
        return Quantized(integers, scale, zero), None
    return Quantized(integers, scale, zero), vector_dim(form, node, number, integers, scale, zero)


def vector_dim(
    form: Form, node: ir.Node, number: int, integers: ir.Value, scale: ir.Value, zero: ir.Value | None
) -> int:
    """The dim of an operand along which a vector of scales lies."""
    rank = rank_of(integers)
    for vector in (scale, zero):
        if vector is not None and rank_of(vector) != 1:
            raise NotThisForm("a scale or a zero point is neither a number nor a vector")
    if number not in form.vector or rank is None or not is_constant(integers):
        raise NotThisForm("scales of an activation are not one number")
    if zero is not None and array_of(zero, "a zero point").shape != array_of(scale, "a scale").shape:
        raise NotThisForm("scale and zero point differ in shape")
    dim = form.vector[number](node)
    return 0 if dim == -4 else rank + dim


def _bias(
    form: Form, node: ir.Node, operands: Sequence[Quantized], attributes: dict[str, ir.Attr]
) -> tuple[ir.Value, np.ndarray, int | None] | None:
    """The integers of the bias, the product of the scales, and the dim along which that lies."""
    integers = None if form.bias is None else _input(node, form.bias)
    if integers is None:
        return None
    data = array_of(integers, "the bias")
    product = _product(operands[0].scale, operands[1].scale, attributes)
    if product.ndim == 0 or product.size == 1:
        return integers, product.reshape(()), None
    if data.ndim == 0 or data.shape[-1] != product.size:
        raise NotThisForm("the bias is one number for several scales")
    return integers, product, data.ndim - 1


def _product(a: ir.Value, b: ir.Value, attributes: dict[str, ir.Attr]) -> np.ndarray:
    """The scale of a sum of products, in the type in which onnxruntime calculates it."""
    alpha = attributes.get("alpha")
    factor = np.float32(1.0 if alpha is None else alpha.as_float())
    return np.asarray(factor * array_of(a, "a scale") * array_of(b, "a scale"), np.float32)


# --- and back --------------------------------------------------------------------------------------------


def lift(graph: ir.Graph, core: ir.Node, lowered: Lowered) -> None:
    """Put the operator together again; NotThisForm where something came between that has no place in it."""
    (template,) = lowered.nodes
    form = form_of(template)
    count = len(form.plain)
    found = form.slots(len(template.given))
    if form.op_type == "MatMul":
        round_before_bias(graph, core)
    last, result = _result(graph, form, template, core)
    operands = [locate(core, count + number) for number in range(len(found))]
    attributes = _attributes(form, template, core)
    bias = _bias_back(graph, form, core, count + len(found), operands, attributes)
    grids = [integers_of(graph, core, one) for one in operands]
    inputs: list[ir.Value | None] = [None] * max(len(template.given), 1 + max(form.result, default=0))
    for slot, value in zip(form.plain, core.inputs, strict=False):
        inputs[slot] = value
    for slots, grid in zip(found, grids, strict=True):
        for slot, value in zip(slots, _parts(graph, template, slots, grid), strict=True):
            inputs[slot] = value
    if result is not None:
        for slot, value in zip(form.result, result, strict=True):
            inputs[slot] = value
    if form.bias is not None and (bias is not None or form.bias < len(inputs)):
        inputs += [None] * (form.bias + 1 - len(inputs))
        inputs[form.bias] = bias
    whole = build(graph, core, template, _trimmed(inputs, len(template.given)), attributes)
    give_back(graph, last.outputs[0], whole.outputs[0])


def _trimmed(inputs: list[ir.Value | None], least: int) -> list[ir.Value | None]:
    while len(inputs) > least and inputs[-1] is None:
        inputs.pop()
    return inputs


def _result(
    graph: ir.Graph, form: Form, template: Template, core: ir.Node
) -> tuple[ir.Node, tuple[ir.Value | None, ir.Value | None] | None]:
    """The node that makes what the whole made, and the scale and zero point of that."""
    if not template.has(form.result[0]):
        return core, None
    last = only_user(core.outputs[0])
    if last is None or last.op_type != "QuantizeLinear" or last.domain:
        raise NotThisForm("its result is used before it is quantised")
    return last, (last.inputs[1], last.inputs[2] if len(last.inputs) > 2 else None)


def _parts(
    graph: ir.Graph, template: Template, slots: Slots, grid: Quantized
) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    zero = grid.zero
    if zero is None and template.has(slots[2]):
        zero = _zero(graph, grid)
    return grid.integers, grid.scale, zero


def _zero(graph: ir.Graph, grid: Quantized) -> ir.Value:
    """A zero point of zero, for operators that need one."""
    shape = shape_of(grid.scale)
    dtype = grid.integers.dtype or ir.DataType.UINT8
    extents = () if shape is None else tuple(int(dim) for dim in shape.numpy())
    return edit.add_initializer(
        graph, f"{grid.integers.name}/zero_point", np.zeros(extents, dtype.numpy()), dtype
    )


def _attributes(form: Form, template: Template, core: ir.Node) -> dict[str, ir.Attr]:
    """The attributes as they were, with what was refitted since."""
    attributes: dict[str, ir.Attr] = {}
    for name, old in template.attributes.items():
        if name in core.attributes:
            attributes[name] = core.attributes[name]
        elif name in form.dropped:
            attributes[name] = old
    for name, new in core.attributes.items():
        if not (name == "beta" and name not in template.attributes):
            attributes.setdefault(name, new)
    if form.restore is not None:
        form.restore(core, template, attributes)
    return {name: attributes[name] for name in (*template.attributes, *attributes) if name in attributes}


def _bias_back(
    graph: ir.Graph,
    form: Form,
    core: ir.Node,
    slot: int,
    operands: Sequence[Operand],
    attributes: dict[str, ir.Attr],
) -> ir.Value | None:
    value = core.inputs[slot] if form.bias is not None and slot < len(core.inputs) else None
    if value is None:
        return None
    return requantized_bias(
        graph, value, _product(operands[0].source.scale, operands[1].source.scale, attributes)
    )
