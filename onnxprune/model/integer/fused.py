"""onnxruntime's products of integers with a result of floats, and a bias: one node for a few.

MatMulIntegerToFloat is MatMul(DequantizeLinear(a), DequantizeLinear(b)) [+ bias]; DynamicQuantizeMatMul makes `a`
by DynamicQuantizeLinear.

Specification: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.model import edit
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
    take_place,
)
from onnxprune.model.uses import only_user

NAME = "fused"
DYNAMIC = "DynamicQuantizeMatMul"
_BIAS = {DYNAMIC: 4, "MatMulIntegerToFloat": 6}


def lower(bench: Workbench, node: ir.Node) -> None:
    """Say the product in single steps; NotThisForm where that cannot be done, before anything changes."""
    given = [*node.inputs, *[None] * 7]
    dynamic = node.op_type == DYNAMIC
    a, b = given[0], given[1]
    scale, zero = (given[2], given[3]) if dynamic else (given[3], given[5])
    bias = given[_BIAS[node.op_type]]
    if a is None or b is None or scale is None:
        raise NotThisForm("an operand is missing")
    if scale.dtype not in (ir.DataType.FLOAT, None):
        raise NotThisForm(f"it makes {scale.dtype}")
    axis = columns(b, scale, zero)
    if bias is not None:
        array_of(bias, "the bias")
    if dynamic:
        left = rounded_at_run_time(bench, node, a)
    elif given[2] is None or not one_value(given[2]) or not one_value(given[4]):
        raise NotThisForm("the scale of the activation is not one number")
    else:
        left = Quantized(a, given[2], given[4])
    inputs = [bench.dequantize(node, left, None), bench.dequantize(node, Quantized(b, scale, zero), axis)]
    core = bench.replace(node, "MatMul", inputs, {})
    note(core, Lowered(NAME, (Template.of(node),)))
    new = core.outputs[0]
    if bias is not None:
        new = bench.add(node, "Add", [new, bias], f"{node.outputs[0].name}/sum", ir.DataType.FLOAT)
    take_place(bench.graph, node.outputs[0], new)
    bench.graph.remove(node, safe=True)


def columns(b: ir.Value, scale: ir.Value, zero: ir.Value | None) -> int | None:
    """The dim of the weight along which its scales lie."""
    if one_value(scale) and one_value(zero):
        return None
    rank = rank_of(b)
    if rank is None or not is_constant(b) or rank_of(scale) != 1:
        raise NotThisForm("scales of the weight are not one number, or one for each column")
    if zero is not None and array_of(zero, "a zero point").shape != array_of(scale, "a scale").shape:
        raise NotThisForm("scale and zero point differ in shape")
    return rank - 1


def rounded_at_run_time(bench: Workbench, node: ir.Node, a: ir.Value) -> Quantized:
    """Put a DynamicQuantizeLinear of `a` before a node: what it makes."""
    names = [
        edit.fresh(bench.graph, f"{node.outputs[0].name}/{part}") for part in ("quantized", "scale", "zero")
    ]
    types = (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8)
    outs = [ir.Value(name=name, type=ir.TensorType(dtype)) for name, dtype in zip(names, types, strict=True)]
    label = edit.fresh(bench.graph, f"{names[0]}/DynamicQuantizeLinear")
    bench.graph.insert_before(node, ir.Node("", "DynamicQuantizeLinear", [a], outputs=outs, name=label))
    return Quantized(outs[0], outs[1], outs[2])


# --- and back --------------------------------------------------------------------------------------------


def lift(graph: ir.Graph, core: ir.Node, lowered: Lowered) -> None:
    """Put the product together again; NotThisForm where an operand is not quantised any more."""
    (template,) = lowered.nodes
    operands = [locate(core, 0), locate(core, 1)]
    dynamic = template.op_type == DYNAMIC
    source = operands[0].source.integers.producer()
    if dynamic and (operands[0].selected or source is None or source.op_type != "DynamicQuantizeLinear"):
        raise NotThisForm("its operand is not quantised by DynamicQuantizeLinear")
    last, bias = core, None
    slot = _BIAS[template.op_type]
    if template.has(slot):
        last, bias = biased(core)
        if bias is None:
            raise NotThisForm("its bias is not there any more")
    left = operands[0].source if dynamic else integers_of(graph, core, operands[0])
    right = integers_of(graph, core, operands[1])
    if dynamic and source is not None:
        inputs = [source.inputs[0], right.integers, right.scale, right.zero]
    else:
        inputs = [left.integers, right.integers, left.scale, right.scale, left.zero, right.zero]
    inputs.append(bias)
    while inputs[-1] is None and len(inputs) > len(template.given):
        inputs.pop()
    whole = build(graph, core, template, inputs)
    give_back(graph, last.outputs[0], whole.outputs[0])


def biased(core: ir.Node) -> tuple[ir.Node, ir.Value | None]:
    """The node behind a product that adds a constant vector to it, and that; the product itself where none does."""
    add = only_user(core.outputs[0])
    if add is None or add.op_type != "Add" or add.domain:
        return core, None
    other = add.inputs[1] if add.inputs[0] is core.outputs[0] else add.inputs[0]
    return (add, other) if other is not None and is_constant(other) and rank_of(other) == 1 else (core, None)
