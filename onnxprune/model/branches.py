"""An If whose condition is the same for every input: the branch that is taken comes in its place; shapes in others.

Exporters write `squeeze(dim)` of an unknown extent as an If on `Shape(x)[dim] == 1`; where that extent is fixed,
so is the branch.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from onnxprune.model import edit
from onnxprune.model.iterate import taken_branch
from onnxprune.model.nested import detach, every_graph, every_node
from onnxprune.model.normalize import lift_constants
from onnxprune.model.shapes import Custom, Shapes, changed_axes, changed_values, walk_branch


def decide_branches(model: ir.Model, shapes: Shapes) -> bool:
    """Replace every If, in bodies too, whose condition is known and depends on no symbolic dim.

    Parameters
    ----------
    model
        Mutated.
    shapes
        Of the model as it is; no longer true where something was replaced.

    Returns
    -------
    bool
        Whether anything was replaced.
    """
    if shapes.bindings and not shapes.other:  # nothing tells which values depend on the symbolic dims
        return False
    nodes = every_node(model.graph)
    decided = [(node, taken) for node in nodes if (taken := _taken(node, shapes)) is not None]
    for node, taken in decided:  # those inside a branch before the If that it is of
        splice(model.graph, node, taken)
    for graph in every_graph(model.graph) if decided else ():
        lift_constants(graph)
    return bool(decided)


def _taken(node: ir.Node, shapes: Shapes) -> ir.Graph | None:
    """The branch of an If that every input takes."""
    branch = taken_branch(node, shapes.data)
    condition = node.inputs[0] if branch is not None else None
    return branch if condition is not None and is_fixed(condition, shapes) else None


_COPIES = frozenset(
    {"Cast", "Concat", "Gather", "Identity", "Reshape", "Shape", "Slice", "Squeeze", "Unsqueeze"}
)
"""Operators that pass numbers on: what comes out the same at two sizes of everything is a fixed number."""


def is_fixed(value: ir.Value, shapes: Shapes) -> bool:
    """Whether no size of a symbolic dim changes a value; a comparison alone can agree at two sizes by chance."""
    if value not in shapes.data or value in shapes.varying:
        return False
    producer = value.producer()
    if producer is None or producer.op_type in _COPIES:
        return True
    return all(is_fixed(source, shapes) for source in producer.inputs if source is not None)


def splice(main: ir.Graph, node: ir.Node, branch: ir.Graph) -> None:
    """Move a branch's nodes and initializers before its If, and take the If out.

    Parameters
    ----------
    main
        The main graph; mutated. The If may be in a body.
    """
    graph = node.graph
    if not isinstance(graph, ir.Graph):
        raise ValueError(f"node {node.name!r} belongs to no graph")
    results = tuple(branch.outputs)
    inner = _taken_out(main, graph, branch)
    copies = [ir.node("Identity", [result]) for result in results]
    graph.insert_before(node, [*inner, *copies])
    for old, copy in zip(tuple(node.outputs), copies, strict=True):
        new = copy.outputs[0]
        new.type, new.shape = old.type, old.shape
        for user, slot in tuple(old.uses()):
            user.replace_input_with(slot, new)
        for index, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[index] = new
        new.name, old.name = old.name, None
        copy.name = f"{new.name}/taken"
    detach(node)
    graph.remove(node)
    for slot in range(len(node.inputs)):
        node.replace_input_with(slot, None)


def _taken_out(main: ir.Graph, graph: ir.Graph, branch: ir.Graph) -> list[ir.Node]:
    """The nodes of a branch, under names that `graph` does not have; its initializers go to `main`."""
    known = {value.name for value in (*graph.inputs, *main.initializers.values())}
    known |= {value.name for part in graph for value in part.outputs}
    initializers, inner = tuple(branch.initializers.values()), list(branch)
    branch.initializers.clear()
    branch.outputs.clear()
    branch.remove(inner)
    for value in (*initializers, *(made for part in inner for made in part.outputs)):
        if value.name in known:
            value.name = edit.fresh(main, str(value.name))
    for value in initializers:
        main.register_initializer(value)
    return inner


def infer_branch(model: ir.Model, branch: ir.Graph, around: Shapes, custom: Custom | None = None) -> Shapes:
    """Extents of what a branch of an If makes, beside those of the graph around it.

    Parameters
    ----------
    model
        The model that the branch is in.
    branch
        In topological order. Values without an element type get the inferred one.
    around
        Of the graph around it.
    custom
        As in `infer_shapes`.
    """
    fixed = {value: array for value, array in around.data.items() if value not in around.varying}
    dims, data = dict(around.dims), dict(around.data)
    walk_branch(model, branch, around.bindings, dims, data, custom)
    elsewhere, values = dict(around.other), fixed
    if not around.other:
        return replace(around, dims=dims, data=data)
    walk_branch(model, branch, around.bindings, elsewhere, values, custom)
    inner = {value: extents for value, extents in dims.items() if value not in around.dims}
    varying = changed_values({v: array for v, array in data.items() if v not in around.data}, values)
    return replace(
        around,
        dims=dims,
        data=data,
        dynamic=around.dynamic | changed_axes(inner, elsewhere),
        varying=around.varying | varying,
        other=elsewhere,
    )
