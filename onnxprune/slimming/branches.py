"""Branches that add nothing: a sum of which one operand is zero for every input is its other operand."""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.graph.build import AxisGraph
from onnxprune.model import edit
from onnxprune.rules.op import Op
from onnxprune.slimming.known import Constants
from onnxprune.surgery.clone import clone_model


def cut_branches(axis_graph: AxisGraph, constants: Constants) -> tuple[ir.Model, tuple[str, ...]] | None:
    """A copy of the model without sums with zero, and the names of these; None where there are none.

    What made the zeros stays where other nodes read it; where none does, `finalize` drops it. Initializers of zeros
    (a bias) stay: they are no branch.

    Parameters
    ----------
    axis_graph
        Of the model; not mutated.
    constants
        What is known of its activations.
    """
    found = [
        (op, slot) for op in axis_graph.main_ops if (slot := _carrier(op, axis_graph, constants)) is not None
    ]
    if not found:
        return None
    clone = clone_model(axis_graph.model)
    for op, slot in found:
        bypass(clone.model.graph, clone.nodes[op.node], slot)
    return clone.model, tuple(op.node.name or str(op.output().name) for op, _ in found)


def _carrier(op: Op, axis_graph: AxisGraph, constants: Constants) -> int | None:
    """The operand that a sum is equal to, if the other one is zero and does not widen it."""
    node = op.node
    if node.op_type not in ("Add", "Sub", "Sum") or node.domain or len(node.inputs) != 2:
        return None
    for slot in (0,) if node.op_type == "Sub" else (0, 1):
        state = constants.states.get(op.input(1 - slot))
        carrier = op.input(slot)
        shapes = axis_graph.shapes
        same = constants.dims(carrier) == constants.dims(op.output()) is not None
        same = same and shapes.other.get(carrier) == shapes.other.get(op.output())
        if state is not None and state.known.all() and not state.value.any() and same:
            return slot
    return None


def bypass(graph: ir.Graph, node: ir.Node, slot: int) -> None:
    """Let an input of a node take the place of its output; a graph output is made by an Identity instead."""
    source, old = node.inputs[slot], node.outputs[0]
    if source is None:
        raise ValueError(f"node {node.name!r} has no input {slot}")
    if not old.is_graph_output():
        old.replace_all_uses_with(source)
        graph.remove(node, safe=True)
        return
    new = ir.Value(name=old.name, type=old.type, shape=old.shape)
    node.append(ir.Node("", "Identity", [source], outputs=[new], name=edit.fresh(graph, f"{node.name}/same")))
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = None
    graph.remove(node, safe=True)
