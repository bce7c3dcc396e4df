"""Masking: zero each dropped unit where it is summed over. Shapes stay as they are.

Zeroing the source would not do: an activation with f(0) != 0, a bias or a BatchNormalization shift revives
the channel. Zeroing the sink is exact whatever lies between.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from onnxprune.graph.axes import Axis, Bools, Kept
from onnxprune.graph.build import AxisGraph
from onnxprune.graph.relations import Average, Sink
from onnxprune.model import edit
from onnxprune.surgery.clone import clone_model
from onnxprune.surgery.keep import zero_slices


def mask(axis_graph: AxisGraph, kept: Kept) -> ir.Model:
    """A copy of the model in which the sinks of dropped positions are zero.

    Parameters
    ----------
    axis_graph
        Of the model to mask, which is not mutated.
    kept
        Positions that stay, per axis.

    Returns
    -------
    ir.Model
        Same nodes and shapes; a contraction without a parameter operand gets a `Mul` by a 0/1 vector, and an
        operator that averages over positions gets those that stay, and its result is spread out again.
    """
    clone = clone_model(axis_graph.model)
    for average in axis_graph.averages:
        _average_kept(clone.model.graph, clone.nodes[average.where.node], average, kept)
    done: set[object] = set()
    for sink in (*axis_graph.sinks, *axis_graph.isolated):
        flags = kept.get(sink.axis)
        if flags is None:
            continue
        if sink.parameter is None:
            _insert_mask(clone.model.graph, clone.nodes[sink.where.node], sink, flags)
        elif sink.parameter not in done:
            done.add(sink.parameter)
            value = clone.values[sink.parameter.value]
            blocked = axis_graph.blocked.get(sink.parameter)
            edit.set_from(
                value,
                partial(zero_slices, dim=sink.parameter.dim, flags=kept[sink.parameter], blocked=blocked),
            )
    return clone.model


def _average_kept(graph: ir.Graph, node: ir.Node, average: Average, kept: Kept) -> None:
    """Let the node see the positions that stay; put its result where they were, and zeros between."""
    for slot, axis in average.inputs:
        if axis in kept:
            name = f"{axis.value.name}/kept"
            stay = edit.add_initializer(graph, name, np.flatnonzero(kept[axis]), ir.DataType.INT64)
            edit.insert_before(node, slot, "Gather", [stay], main=graph, axis=axis.dim)
    for slot, axis in average.outputs:
        if axis in kept:
            flags = kept[axis]
            place = np.where(flags, np.cumsum(flags) - 1, 0)
            index = edit.add_initializer(graph, f"{axis.value.name}/place", place, ir.DataType.INT64)
            spread = edit.insert_after(node.outputs[slot], "Gather", [index], main=graph, axis=axis.dim)
            factor = _vector(graph, average.where.rank(axis.value), axis, flags)
            edit.insert_after(spread, "Mul", [factor], main=graph)


def _vector(graph: ir.Graph, rank: int, axis: Axis, flags: Bools) -> ir.Value:
    """A 0/1 initializer that broadcasts along an axis."""
    dtype = axis.value.dtype or ir.DataType.FLOAT
    vector = flags.astype(np.float32).reshape([-1 if d == axis.dim else 1 for d in range(rank)])
    return edit.add_initializer(graph, f"{axis.value.name}/mask", vector.astype(dtype.numpy()), dtype)


def _insert_mask(graph: ir.Graph, node: ir.Node, sink: Sink, flags: Bools) -> None:
    """Put the Mul where the node is, in a body maybe; `graph` is the main one, which holds the vector."""
    vector = _vector(graph, sink.where.rank(sink.axis.value), sink.axis, flags)
    edit.insert_before(node, sink.slot, "Mul", [vector], main=graph)
