"""A clone of a model together with the way from the original's values and nodes to its own."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class Clone:
    """A model that may be mutated, and where the original's parts are in it."""

    model: ir.Model
    values: dict[ir.Value, ir.Value]
    nodes: dict[ir.Node, ir.Node]


def clone_model(model: ir.Model) -> Clone:
    """Clone graph and values; tensors are shared with the original, never written to."""
    copy = model.clone()
    values: dict[ir.Value, ir.Value] = dict(zip(model.graph.inputs, copy.graph.inputs, strict=True))
    for name, value in model.graph.initializers.items():
        values[value] = copy.graph.initializers[name]
    nodes = dict(zip(model.graph, copy.graph, strict=True))
    for old, new in nodes.items():
        values.update(zip(old.outputs, new.outputs, strict=True))
    return Clone(copy, values, nodes)
