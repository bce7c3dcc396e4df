"""A clone of a model together with the way from the original's values and nodes to its own."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.model.nested import every_graph


@dataclass(frozen=True)
class Clone:
    """A model that may be mutated, and where the original's parts are in it."""

    model: ir.Model
    values: dict[ir.Value, ir.Value]
    nodes: dict[ir.Node, ir.Node]


def clone_model(model: ir.Model) -> Clone:
    """Clone graph, bodies and values; tensors are shared with the original, never written to."""
    copy = model.clone()
    values: dict[ir.Value, ir.Value] = {}
    nodes: dict[ir.Node, ir.Node] = {}
    for ours, theirs in zip(every_graph(model.graph), every_graph(copy.graph), strict=True):
        values.update(zip(ours.inputs, theirs.inputs, strict=True))
        for name, value in ours.initializers.items():
            values[value] = theirs.initializers[name]
        nodes.update(zip(ours, theirs, strict=True))
    for old, new in nodes.items():
        values.update(zip(old.outputs, new.outputs, strict=True))
    return Clone(copy, values, nodes)
