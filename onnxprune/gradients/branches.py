"""Gradients through an If: an If whose branches compute the branch again, and the gradients of what it reads.

What a branch makes on the way cannot be seen from outside, hence the second time. Initializers of branches are
moved out before, so that they can be differentiated with respect to, like all others.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxprune.model import edit
from onnxprune.model.branches import decide_branches
from onnxprune.model.iterate import branches_of, is_if
from onnxprune.model.normalize import lift_constants
from onnxprune.model.shapes import Custom, Shapes, infer_shapes

BRANCHES = ("then_branch", "else_branch")


def move_weights_out(graph: ir.Graph) -> None:
    """Make constants and initializers of branches those of the graph around them. Mutates `graph`."""
    for node in graph:
        if not is_if(node):
            continue
        for branch in branches_of(node):
            lift_constants(branch)
            move_weights_out(branch)
            for value in tuple(branch.initializers.values()):
                if value.is_graph_output():
                    continue
                branch.initializers.pop(str(value.name))
                if value.name in graph.initializers:
                    value.name = edit.fresh(graph, str(value.name))
                graph.register_initializer(value)


def settle_branches(model: ir.Model, bindings: Mapping[str, int] | None, custom: Custom) -> Shapes:
    """Replace each If that takes the same branch for every input.

    Parameters
    ----------
    model
        Mutated.
    bindings, custom
        As in `infer_shapes`.

    Returns
    -------
    Shapes
        Of the model, those of what other Ifs make included.
    """
    shapes = infer_shapes(model, bindings, custom)
    while decide_branches(model, shapes):
        shapes = infer_shapes(model, bindings, custom)
    return shapes


def rename(graph: ir.Graph, prefix: str) -> None:
    """Begin all names inside a graph with `prefix`: they must not be those of a graph around it."""
    for part in (graph, *graph.subgraphs()):
        for value in (*part.inputs, *part.initializers.values()):
            value.name = f"{prefix}/{value.name}"
        for node in part:
            node.name = f"{prefix}/{node.name}" if node.name else None
            for output in node.outputs:
                output.name = f"{prefix}/{output.name}" if output.name else output.name
