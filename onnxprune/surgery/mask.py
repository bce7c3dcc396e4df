"""Masking: zero each dropped unit where it is summed over. Shapes stay as they are.

Zeroing the source would not do: an activation with f(0) != 0, a bias or a BatchNormalization shift revives the
channel. Zeroing the sink is exact whatever lies between.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxprune.graph.axes import Bools, Kept
from onnxprune.graph.build import AxisGraph
from onnxprune.graph.relations import Sink
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
        Same nodes and shapes; a contraction without a parameter operand gets a `Mul` by a 0/1 vector.
    """
    clone = clone_model(axis_graph.model)
    done: set[object] = set()
    for sink in axis_graph.sinks:
        flags = kept.get(sink.axis)
        if flags is None:
            continue
        if sink.parameter is None:
            _insert_mask(clone.nodes[sink.where.node], sink, flags)
        elif sink.parameter not in done:
            done.add(sink.parameter)
            value = clone.values[sink.parameter.value]
            data = value.const_value
            if data is None:
                raise ValueError(f"sink {sink.parameter.name} is no initializer")
            blocked = axis_graph.blocked.get(sink.parameter)
            edit.set_array(
                value, zero_slices(data.numpy(), sink.parameter.dim, kept[sink.parameter], blocked)
            )
    return clone.model


def _insert_mask(node: ir.Node, sink: Sink, flags: Bools) -> None:
    rank = sink.where.rank(sink.axis.value)
    dtype = sink.axis.value.dtype or ir.DataType.FLOAT
    vector = flags.astype(np.float32).reshape([-1 if d == sink.axis.dim else 1 for d in range(rank)])
    graph = node.graph
    if not isinstance(graph, ir.Graph):
        raise ValueError(f"node {node.name!r} belongs to no graph")
    constant = edit.add_initializer(
        graph, f"{sink.axis.value.name}/mask", vector.astype(dtype.numpy()), dtype
    )
    edit.insert_before(node, sink.slot, "Mul", [constant])
