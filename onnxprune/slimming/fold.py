"""Constant channels: what they add goes into the biases of their consumers, which then read them no more."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.graph.axes import Axis, Bools
from onnxprune.graph.groups import Group
from onnxprune.model import edit
from onnxprune.rules.op import Op
from onnxprune.slimming.follow import blocks_of
from onnxprune.slimming.known import Array
from onnxprune.slimming.units import UnitFinder
from onnxprune.surgery.clone import Clone, clone_model
from onnxprune.surgery.keep import zero_slices


def fold_units(finder: UnitFinder, goes: Sequence[tuple[Group, Bools]]) -> ir.Model:
    """A copy of the model in which the sinks of constant units are zero and biases make up for that.

    Parameters
    ----------
    finder
        Of the model, which is not mutated.
    goes
        Groups, and their units that `UnitFinder.find` calls constant.
    """
    graph, constants = finder.graph, finder.constants
    clone = clone_model(graph.model)
    added: dict[Op, Array] = {}
    gone: defaultdict[Axis, list[Bools]] = defaultdict(list)
    for group, flags in goes:
        for sink, unit, on_weight in finder.sinks(group):
            known = constants.along(sink.axis.value, sink.axis.dim)
            if sink.parameter is None or on_weight is None:
                continue  # it gets zeros
            hit = (unit >= 0) & flags[np.maximum(unit, 0)]
            gone[sink.parameter].append((on_weight >= 0) & flags[np.maximum(on_weight, 0)])
            if known is not None:
                value = np.where(hit & known[1], known[0], 0.0)
                added[sink.where] = added.get(sink.where, 0.0) + value
    for op, value in added.items():
        weight = constants.array(op.input(1))
        if weight is not None and value.any():
            _add(clone, op, _contribution(op, weight, value))
    for axis, parts in gone.items():
        target, array = clone.values[axis.value], constants.array(axis.value)
        if array is not None:
            now = np.asarray(target.const_value.numpy()) if target.const_value is not None else array
            keep = ~np.logical_or.reduce(parts)
            edit.set_array(target, zero_slices(now, axis.dim, keep, graph.blocked.get(axis)))
    return clone.model


def _contribution(op: Op, weight: Array, value: Array) -> Array:
    """What the operator adds to every output channel for inputs of these numbers; float64."""
    if op.node.op_type == "Conv":
        sums = blocks_of(op, weight).astype(np.float64).sum(axis=3)
        return np.asarray((sums * value.reshape(len(sums), 1, -1)).sum(axis=2).ravel())
    columns = weight.astype(np.float64)
    columns = columns.T if op.node.op_type == "Gemm" and op.int("transB", 0) else columns
    alpha = op.node.attributes.get_float("alpha", 1.0) if op.node.op_type == "Gemm" else 1.0
    return np.asarray(alpha * (value @ columns))


def _add(clone: Clone, op: Op, more: Array) -> None:
    """Add a vector to the operator's bias, or give it one."""
    node, graph = clone.nodes[op.node], clone.model.graph
    weight = op.input(1)
    dtype = weight.dtype or ir.DataType.FLOAT
    if op.node.op_type == "MatMul":
        add_behind(graph, node, edit.add_initializer(graph, f"{weight.name}/bias", more, dtype))
        return
    beta = op.node.attributes.get_float("beta", 1.0) if op.node.op_type == "Gemm" else 1.0
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    data = None if bias is None else bias.const_value
    if bias is None or data is None:
        node.resize_inputs(max(len(node.inputs), 3))
        node.replace_input_with(2, edit.add_initializer(graph, f"{weight.name}/bias", more / beta, dtype))
        return
    old = np.asarray(data.numpy()).astype(np.float64)
    total = (old.ravel() + more / beta).reshape((*(1,) * (old.ndim - 1), -1) if old.ndim else -1)
    if len(list(bias.uses())) > 1:
        node.replace_input_with(2, edit.add_initializer(graph, str(bias.name), total, dtype))
    else:
        edit.set_array(bias, total)


def add_behind(graph: ir.Graph, node: ir.Node, vector: ir.Value) -> None:
    """Put `Add(output, vector)` behind a node; the sum takes the output's name where that is the graph's."""
    old = node.outputs[0]
    if not old.is_graph_output():
        edit.insert_after(old, "Add", [vector])
        return
    new = ir.Value(name=old.name, type=old.type, shape=old.shape)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = edit.fresh(graph, f"{old.name}/product")
    node.append(ir.Node("", "Add", [old, vector], outputs=[new], name=edit.fresh(graph, f"{node.name}/add")))
