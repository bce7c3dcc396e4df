"""QAttention of onnxruntime: its Attention with input and packed weight in 8 bits.

    QAttention(x, w, bias, x_scale, w_scale, mask, x_zero, w_zero, past) = Attention(DQ(x), DQ(w), bias, mask, past)

Specification: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.QAttention
"""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.model import edit
from onnxprune.model.integer.forms import CONTRIB
from onnxprune.model.integer.fused import columns
from onnxprune.model.integer.grid import integers_of, locate
from onnxprune.model.integer.notes import Lowered, Template, note
from onnxprune.model.integer.parts import (
    NotThisForm,
    Quantized,
    Workbench,
    build,
    is_constant,
    one_value,
    sweep,
    take_place,
)

NAME = "attention"
_KNOWN = frozenset(
    {
        *("num_heads", "unidirectional", "scale", "mask_filter_value", "do_rotary"),
        "past_present_share_buffer",
    }
)
"""Attributes that QAttention shares with Attention."""


def lower(bench: Workbench, node: ir.Node) -> None:
    """Say it as Attention; NotThisForm where that cannot be done, before anything changes."""
    x, weight, bias, x_scale, w_scale, mask, x_zero, w_zero, past = [*node.inputs, *[None] * 9][:9]
    if x is None or weight is None or bias is None or x_scale is None or w_scale is None:
        raise NotThisForm("an operand is missing")
    if not one_value(x_scale) or not one_value(x_zero):
        raise NotThisForm("the scale of the activation is not one number")
    if not is_constant(weight):
        raise NotThisForm("its weights are computed")
    axis = columns(weight, w_scale, w_zero)
    inputs: list[ir.Value | None] = [
        bench.dequantize(node, Quantized(x, x_scale, x_zero), None),
        bench.dequantize(node, Quantized(weight, w_scale, w_zero), axis),
        *(bias, mask, past),
    ]
    while inputs[-1] is None:
        inputs.pop()
    outs = [ir.Value(name=edit.fresh(bench.graph, f"{out.name}/float")) for out in node.outputs]
    core = ir.Node(CONTRIB, "Attention", inputs, list(node.attributes.values()), outputs=outs, name=node.name)
    bench.graph.insert_before(node, core)
    core.name = node.name
    note(core, Lowered(NAME, (Template.of(node),)))
    for old, new in zip(node.outputs, outs, strict=True):
        take_place(bench.graph, old, new)
    bench.graph.remove(node, safe=True)


def lift(graph: ir.Graph, core: ir.Node, lowered: Lowered) -> None:
    """Say it in integers again; NotThisForm where it became what QAttention cannot be."""
    (template,) = lowered.nodes
    strange = set(core.attributes) - _KNOWN
    given = [*core.inputs, *[None] * 5]
    if strange or any(value is not None for value in given[5:]):
        raise NotThisForm("queries, keys and values differ in size" if strange else "it has further inputs")
    operands = [locate(core, 0), locate(core, 1)]
    x, weight = (integers_of(graph, core, one) for one in operands)
    inputs = [x.integers, weight.integers, given[2], x.scale, weight.scale]
    inputs += [given[3], x.zero, weight.zero, given[4]]
    while inputs[-1] is None and len(inputs) > len(template.given):
        inputs.pop()
    names = [name for name in (*template.attributes, *core.attributes) if name in core.attributes]
    whole = build(graph, core, template, inputs, {name: core.attributes[name] for name in names})
    old = list(core.outputs)
    for was, new in zip(old, whole.outputs, strict=True):
        take_place(graph, was, new)
    sweep(graph, old[:1])
