"""Models in which Ifs do not choose and Loops do not wait, so that the proof goes everywhere.

The samples may take one branch only, and a Loop may not run on them at all. So each branch of each If that a cut
changes something in is taken in some model, and Loops of unknown length run twice there: that what one iteration
leaves is what the next one takes shows then, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from onnxprune.graph.axes import Kept
from onnxprune.graph.build import AxisGraph
from onnxprune.model.forcing import Branch, Forced, name_of
from onnxprune.model.iterate import branches_of, is_if, is_loop, trip_count
from onnxprune.model.nested import bodies_of, read_by


@dataclass
class _Found:
    """Ifs and Loops that a cut changes something in: the branches around each If, outer ones first; and names."""

    paths: list[tuple[Branch, ...]] = field(default_factory=list)
    loops: list[str] = field(default_factory=list)


def forced_runs(axis_graph: AxisGraph, kept: Kept) -> list[Forced]:
    """As few models as it takes to take every branch, and to run every Loop, that a cut changes something in.

    Parameters
    ----------
    kept
        Of the cut.
    """
    touched = {axis.value for axis in kept}
    if not touched or not any(is_if(op.node) or is_loop(op.node) for op in axis_graph.ops):
        return []
    found = _Found()
    _collect(axis_graph, axis_graph.model.graph, (), touched, found)
    waiting = found.paths
    loops = frozenset(found.loops)
    runs = []
    while waiting:
        taken: dict[str, bool] = {}
        for path in waiting:
            if all(taken.get(name, value) == value for name, value in path):
                taken.update(path)
        waiting = [path for path in waiting if any(taken.get(name) != value for name, value in path)]
        runs.append(Forced(taken, loops))
    return runs or ([Forced({}, loops)] if loops else [])


def _collect(
    axis_graph: AxisGraph, graph: ir.Graph, path: tuple[Branch, ...], touched: set[ir.Value], found: _Found
) -> None:
    for node in graph:
        bodies = bodies_of(node)
        if not bodies or not any(value in touched for value in (*read_by(node), *node.outputs)):
            continue
        if is_if(node):
            for branch, taken in zip(branches_of(node), (True, False), strict=True):
                inner = (*path, (name_of(node), taken))
                found.paths.append(inner)
                _collect(axis_graph, branch, inner, touched, found)
            continue
        if is_loop(node) and not trip_count(node, axis_graph.shapes.data):
            found.loops.append(name_of(node))
        for body in bodies:
            _collect(axis_graph, body, path, touched, found)
