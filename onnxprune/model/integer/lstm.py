"""DynamicQuantizeLSTM of onnxruntime: an LSTM of weights in 8 bits, its input and its states rounded when it runs.

    DynamicQuantizeLSTM(x, w, r, ...) = LSTM(DQ(DynamicQuantizeLinear(x)), Transpose(DQ(w)), Transpose(DQ(r)), ...)

up to the rounding of the hidden states, which the operator of floats does not have. Their range is found among all
units at every step, so `rounds_states` tells the rule of LSTM that dropped ones have to be 0: they are where the
activations behind the candidate and the cell make 0 of 0, as Tanh does.

Weights have a scale for each direction, or for each column of each direction: a block that is as long as the dim of
the inputs.

Specification: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.DynamicQuantizeLSTM
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxprune.model import edit
from onnxprune.model.integer.fused import rounded_at_run_time
from onnxprune.model.integer.grid import behind, locate
from onnxprune.model.integer.notes import Lowered, Template, note, note_of
from onnxprune.model.integer.parts import (
    NotThisForm,
    Quantized,
    Workbench,
    array_of,
    build,
    give_back,
    is_constant,
    restore,
    shape_of,
    sweep,
    take_place,
)

NAME = "lstm"
_SINCE = 11
"""Version of the standard operators that brought DynamicQuantizeLinear."""
_W, _R, _PLAIN, _SCALES = 1, 2, range(3, 8), {1: 8, 2: 10}
_PERM = (0, 2, 1)
_ZERO_AT_ZERO = frozenset({"tanh", "relu", "leakyrelu", "softsign", "scaledtanh", "elu"})
_STORED = "onnxprune.integer.columns"


def rounds_states(node: ir.Node) -> bool:
    """Whether an LSTM stands for an operator that rounds its hidden states to a range that all units share."""
    lowered = note_of(node)
    return lowered is not None and lowered.form == NAME


def lower(bench: Workbench, node: ir.Node) -> None:
    """Say it as LSTM; NotThisForm where that cannot be done, before anything changes."""
    given = [*node.inputs, *[None] * 12][:12]
    x = given[0]
    if bench.opset < _SINCE:
        raise NotThisForm(f"operators of version {bench.opset} have no DynamicQuantizeLinear")
    if x is None or given[_W] is None or given[_R] is None:
        raise NotThisForm("an operand is missing")
    names = node.attributes["activations"].as_strings() if "activations" in node.attributes else []
    if any(name.lower() not in _ZERO_AT_ZERO for place, name in enumerate(names) if place % 3):
        raise NotThisForm("units without weights are not 0")
    weights = {slot: _checked(given, slot) for slot in (_W, _R)}
    floats = bench.dequantize(node, rounded_at_run_time(bench, node, x), None)
    inputs: list[ir.Value | None] = [floats]
    stored = {}
    for slot, what in weights.items():
        inputs.append(_turned(bench, node, what))
        stored[slot] = tuple(value and value.name for value in (what.scale, what.zero))
    inputs += [given[slot] for slot in _PLAIN]
    while inputs[-1] is None:
        inputs.pop()
    outs = [
        ir.Value(
            name=out.name and edit.fresh(bench.graph, f"{out.name}/float"),
            type=ir.TensorType(ir.DataType.FLOAT),
        )
        for out in node.outputs
    ]
    core = ir.Node("", "LSTM", inputs, list(node.attributes.values()), outputs=outs, name=node.name)
    bench.graph.insert_before(node, core)
    core.name = node.name
    note(core, Lowered(NAME, (Template.of(node),), {"stored": stored}))
    for old, new in zip(node.outputs, outs, strict=True):
        take_place(bench.graph, old, new)
    bench.graph.remove(node, safe=True)
    sweep(bench.graph, given[8:])


def _checked(given: list[ir.Value | None], slot: int) -> Quantized:
    """A weight of shape (directions, inputs, columns) with its scales."""
    weight, scale, zero = given[slot], given[_SCALES[slot]], given[_SCALES[slot] + 1]
    if weight is None or scale is None or not is_constant(weight):
        raise NotThisForm("its weights are computed")
    shape, scales = array_of(weight, "a weight").shape, array_of(scale, "a scale").shape
    if len(shape) != 3 or scales not in ((1,), shape[:1], (shape[0], shape[2])):
        raise NotThisForm("scales are not one for each direction, or for each column of each")
    if zero is not None and array_of(zero, "a zero point").shape != scales:
        raise NotThisForm("scale and zero point differ in shape")
    return Quantized(weight, scale, zero)


def _turned(bench: Workbench, node: ir.Node, what: Quantized) -> ir.Value:
    """The weight as floats, as LSTM has it; two operators that share it share this."""
    key = (NAME, what.integers, what.scale, what.zero)
    if key in bench.known:
        return bench.known[key]
    rows = array_of(what.integers, "a weight").shape[1]
    if len(array_of(what.scale, "a scale").shape) == 1:
        floats = bench.dequantize(node, what, 0)
    else:
        per_column = Quantized(
            what.integers,
            _reshaped(bench, what.scale),
            None if what.zero is None else _reshaped(bench, what.zero),
        )
        floats = bench.dequantize(node, per_column, 1, block_size=rows)
    name, floats.name = floats.name, edit.fresh(bench.graph, f"{floats.name}/stored")
    out = ir.Value(name=name, type=floats.type)
    turn = ir.Node("", "Transpose", [floats], [ir.AttrInt64s("perm", _PERM)], outputs=[out])
    bench.graph.insert_before(node, turn)
    shape = shape_of(what.integers)
    out.shape = None if shape is None else ir.Shape([shape[dim] for dim in _PERM])
    bench.known[key] = out
    return out


def _reshaped(bench: Workbench, value: ir.Value) -> ir.Value:
    """One number for each column of each direction, as the scales of blocks."""
    array, dtype = array_of(value, "a scale"), value.dtype or ir.DataType.FLOAT
    return edit.add_initializer(bench.graph, f"{value.name}/blocks", array[:, None, :], dtype)


# --- and back --------------------------------------------------------------------------------------------


def lift(graph: ir.Graph, core: ir.Node, lowered: Lowered) -> None:
    """Say it in integers again; NotThisForm where input or weights are not quantised any more."""
    (template,) = lowered.nodes
    operand = locate(core, 0)
    source = operand.source.integers.producer()
    if operand.selected or source is None or source.op_type != "DynamicQuantizeLinear":
        raise NotThisForm("its operand is not quantised by DynamicQuantizeLinear")
    given = [*core.inputs, *[None] * 8][:8]
    turns = [_quantized(given[slot]) for slot in (_W, _R)]
    weights = [
        _stored(graph, turn, lowered.more["stored"][slot]) for slot, turn in zip((_W, _R), turns, strict=True)
    ]
    inputs: list[ir.Value | None] = [source.inputs[0], *(what.integers for what in weights)]
    inputs += [given[slot] for slot in _PLAIN]
    for what in weights:
        inputs += [what.scale, what.zero]
    names = [name for name in (*template.attributes, *core.attributes) if name in core.attributes]
    whole = build(graph, core, template, inputs, {name: core.attributes[name] for name in names})
    for old, new in zip(tuple(core.outputs), whole.outputs, strict=True):
        give_back(graph, old, new)


def _quantized(value: ir.Value | None) -> ir.Node:
    """The DequantizeLinear behind a turned weight."""
    turn = None if value is None else value.producer()
    first = None if turn is None or turn.op_type != "Transpose" else turn.inputs[0]
    node = None if first is None or behind(first) is None else first.producer()
    if turn is None or node is None or tuple(turn.attributes["perm"].as_ints()) != _PERM:
        raise NotThisForm("its weights are not quantised any more")
    return node


def _stored(graph: ir.Graph, node: ir.Node, names: tuple[str, str | None]) -> Quantized:
    """The weight with scales and zero points as the operator has them."""
    what = behind(node.outputs[0])
    if what is None or not all(is_constant(value) for value in (what.integers, what.scale)):
        raise NotThisForm("its weights are not quantised any more")
    if "block_size" not in node.attributes:
        return what
    if _STORED not in node.meta:
        scale, zero = (
            None if value is None else _columns(graph, str(name or value.name), value)
            for value, name in zip((what.scale, what.zero), names, strict=True)
        )
        node.meta[_STORED] = Quantized(what.integers, scale or what.scale, zero)
    known: Quantized = node.meta[_STORED]
    return known


def _columns(graph: ir.Graph, name: str, value: ir.Value) -> ir.Value:
    array = array_of(value, "a scale")
    if array.ndim != 3 or array.shape[1] != 1:
        raise NotThisForm("its weights have several scales for a column")
    return restore(graph, name, np.asarray(array[:, 0]), value.dtype or ir.DataType.FLOAT)
