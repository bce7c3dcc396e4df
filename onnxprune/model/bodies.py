"""Bodies of If, Loop, Scan and their like, in the form in which they are analysed, and back.

While a model is worked on, every initializer is one of the main graph (a body sees what is around it), and no two
values or nodes bear the same name, wherever they are. So whatever finds parameters, layers and tensors by name in
the main graph finds those of bodies, too. `put_back` gives bodies their initializers and names again.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.model.edit import fresh
from onnxprune.model.nested import bodies_of, every_graph, inner_graphs_of

_INNER = "onnxprune.inner"
_NAME = "onnxprune.name"
_UNTYPED = "onnxprune.untyped"


def is_inner(value: ir.Value) -> bool:
    """Whether an initializer of the main graph was one of a body."""
    return bool(value.meta.get(_INNER))


def mark_inner(value: ir.Value, like: ir.Value | None = None) -> None:
    """Note that an initializer belongs into a body: always, or where the one that it was split off does."""
    if like is None or is_inner(like):
        value.meta[_INNER] = True


# --- from the file's form --------------------------------------------------------------------------------


def name_apart(graph: ir.Graph) -> None:
    """Give everything in bodies a name that nothing else has. Mutates `graph`.

    The two branches of an If may use the same names for different things.
    """
    bodies = inner_graphs_of(graph)
    if not bodies:
        return
    values = {str(v.name) for v in (*graph.inputs, *graph.initializers.values())}
    values |= {str(out.name) for node in graph for out in node.outputs}
    nodes = {str(node.name) for node in graph}
    for body in bodies:
        held = tuple(body.initializers.values())
        for value in dict.fromkeys((*body.inputs, *held, *(out for node in body for out in node.outputs))):
            if value.type is None:
                value.meta[_UNTYPED] = True
            _rename(graph, value, values)
        for node in body:
            _rename(graph, node, nodes)
        _reorder(body, held)


def _rename(graph: ir.Graph, thing: ir.Value | ir.Node, taken: set[str]) -> None:
    name = thing.name
    if not name:
        return
    if name in taken:
        thing.meta.setdefault(_NAME, name)
        thing.name = fresh(graph, name)
    taken.add(str(thing.name))


def _reorder(graph: ir.Graph, held: tuple[ir.Value, ...]) -> None:
    """Bring initializers back into an order: one that gets another name comes last."""
    graph.initializers.clear()
    for value in held:
        graph.register_initializer(value)


def move_initializers_out(graph: ir.Graph) -> None:
    """Make the initializers of bodies those of the main graph. Mutates `graph`, whose names are apart.

    What a body returns as it is comes out of an Identity afterwards: a body returns nothing of the graph around it.
    """
    for body in inner_graphs_of(graph):
        for name, value in tuple(body.initializers.items()):
            if value.is_graph_input() or value.const_value is None:
                continue
            if value.is_graph_output():
                _return_copy(graph, body, value)
            del body.initializers[name]
            value.meta[_INNER] = True
            graph.register_initializer(value)


def _return_copy(graph: ir.Graph, body: ir.Graph, value: ir.Value) -> None:
    node = ir.node("Identity", [value], name=fresh(graph, f"{value.name}/returned"))
    (copy,) = node.outputs
    copy.name, copy.type, copy.shape = fresh(graph, f"{value.name}/copy"), value.type, value.shape
    body.append(node)
    body.outputs[:] = [copy if out is value else out for out in body.outputs]


# --- and back --------------------------------------------------------------------------------------------


def put_back(graph: ir.Graph, *, initializers: bool = True) -> None:
    """Give everything in bodies its name back, and bodies the initializers that only they use. Mutates `graph`.

    Parameters
    ----------
    graph
        The main graph.
    initializers
        Whether they come back; else they stay where they are.
    """
    if not inner_graphs_of(graph):
        return
    around = _surroundings(graph)
    for name, value in tuple(graph.initializers.items()) if initializers else ():
        if not is_inner(value) or value.is_graph_input() or value.is_graph_output():
            continue
        paths = [around[user.graph] for user in value.consumers() if isinstance(user.graph, ir.Graph)]
        home = _deepest(paths)
        if home is not None and home is not graph:
            del graph.initializers[name]
            home.register_initializer(value)
    _restore_names(graph)


def _surroundings(graph: ir.Graph) -> dict[ir.Graph, tuple[ir.Graph, ...]]:
    """For every graph those around it, from the main graph to itself."""
    found: dict[ir.Graph, tuple[ir.Graph, ...]] = {graph: (graph,)}
    for outer in every_graph(graph):
        for node in outer:
            found.update({body: (*found[outer], body) for body in bodies_of(node)})
    return found


def _deepest(paths: list[tuple[ir.Graph, ...]]) -> ir.Graph | None:
    """The last graph that all paths have in common."""
    home = None
    for level in zip(*paths, strict=False):
        if any(graph is not level[0] for graph in level):
            break
        home = level[0]
    return home


def _restore_names(graph: ir.Graph) -> None:
    """Names of the file come back where nothing that can be seen from there bears them by now."""
    around = _surroundings(graph)
    names = {part: _names(part) for part in around}
    inside: dict[ir.Graph, list[ir.Graph]] = {part: [] for part in around}
    for part, path in around.items():
        for outer in path[:-1]:
            inside[outer].append(part)
    for part, path in around.items():
        if part is graph:
            continue
        seen = [names[other] for other in (*path, *inside[part])]
        held = tuple(part.initializers.values())
        values = (*part.inputs, *held, *(out for node in part for out in node.outputs))
        for value in values:
            if value.meta.pop(_UNTYPED, False) and value.shape is None:
                value.type = None
        for thing in (*dict.fromkeys(values), *part):
            old = thing.meta.pop(_NAME, None)
            if old is not None and not any(old in known for known in seen):
                names[part].discard(str(thing.name))
                thing.name = old
                names[part].add(old)
        _reorder(part, held)


def _names(graph: ir.Graph) -> set[str]:
    found = {str(value.name) for value in (*graph.inputs, *graph.initializers.values())}
    for node in graph:
        found.add(str(node.name))
        found.update(str(out.name) for out in node.outputs)
    return found
