"""Gradients through an If: an If whose branches compute the branch again, and the gradients of what it reads.

What a branch makes on the way cannot be seen from outside, hence the second time. Initializers of branches are
moved out before, so that they can be differentiated with respect to, like all others.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.model import edit
from onnxprune.model.branches import decide_branches, infer_branch
from onnxprune.model.normalize import lift_constants
from onnxprune.model.shapes import Custom, Dims, Shapes, infer_shapes

BRANCHES = ("then_branch", "else_branch")


def is_if(node: ir.Node) -> bool:
    """Whether a node chooses between two graphs."""
    return node.op_type == "If" and node.domain in ("", "ai.onnx")


def branches_of(node: ir.Node) -> list[ir.Graph]:
    """The two graphs of an If."""
    return [node.attributes[name].as_graph() for name in BRANCHES]


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


def settle_branches(model: ir.Model, bindings: dict[str, int] | None, custom: Custom) -> Shapes:
    """Replace each If that takes the same branch for every input, and give others' outputs the shapes they have.

    Parameters
    ----------
    model
        Mutated.
    bindings, custom
        As in `infer_shapes`.
    """
    shapes = infer_shapes(model, bindings, custom)
    while decide_branches(model, shapes) or _declare(model, model.graph, shapes, custom):
        shapes = infer_shapes(model, bindings, custom)
    return shapes


def _declare(model: ir.Model, graph: ir.Graph, shapes: Shapes, custom: Custom) -> bool:
    """Declare outputs of Ifs whose extents are not known, as far as both branches agree."""
    found = False
    for node in graph:
        if not is_if(node):
            continue
        graphs = branches_of(node)
        for branch in graphs:
            while _declare(model, branch, infer_branch(model, branch, shapes, custom), custom):
                found = True
        if all(output in shapes.dims for output in node.outputs):
            continue
        inside = [infer_branch(model, branch, shapes, custom) for branch in graphs]
        for slot, output in enumerate(node.outputs):
            made = [branch.outputs[slot] for branch in graphs]
            extents = [_fixed(known, value) for known, value in zip(inside, made, strict=True)]
            if output in shapes.dims or None in extents or len(extents[0] or ()) != len(extents[1] or ()):
                continue
            pairs = zip(extents[0] or (), extents[1] or (), strict=True)
            output.shape = ir.Shape([a if a == b else None for a, b in pairs])
            output.type = output.type or made[0].type
            found = True
    return found


def _fixed(shapes: Shapes, value: ir.Value) -> Dims | None:
    """Extents that do not depend on the input; None for the others, and where the rank is not known."""
    dims = shapes.dims.get(value)
    if dims is None:
        return None
    return tuple(None if (value, n) in shapes.dynamic else extent for n, extent in enumerate(dims))


def rename(graph: ir.Graph, prefix: str) -> None:
    """Begin all names inside a graph with `prefix`: they must not be those of a graph around it."""
    for part in (graph, *graph.subgraphs()):
        for value in (*part.inputs, *part.initializers.values()):
            value.name = f"{prefix}/{value.name}"
        for node in part:
            node.name = f"{prefix}/{node.name}" if node.name else None
            for output in node.outputs:
                output.name = f"{prefix}/{output.name}" if output.name else output.name
