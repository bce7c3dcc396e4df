"""Branches that the samples may not take: models in which the Ifs do not choose, so that every branch is proven.

An If inside a Loop or a Scan is not forced, nor is one that decides how long such a Loop goes on that has no known
number of iterations: it might never end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.graph.axes import Kept
from onnxprune.graph.build import AxisGraph
from onnxprune.model.iterate import branches_of, is_if, is_loop, trip_count
from onnxprune.model.nested import every_node, read_by

Branch = tuple[str, bool]
"""The name of an If's first output, and whether its condition holds."""


@dataclass(frozen=True)
class Choices:
    """How the Ifs of a model are forced.

    Attributes
    ----------
    runs
        One model each: which branch is taken, by the name of an If's first output.
    left
        Ifs that are not forced, as messages name them.
    """

    runs: tuple[Mapping[str, bool], ...] = ()
    left: tuple[str, ...] = ()


def choices_of(axis_graph: AxisGraph, kept: Kept) -> Choices:
    """As few models as it takes to take every branch of every If that a cut changes something in.

    Parameters
    ----------
    kept
        Of the cut.
    """
    touched = {axis.value for axis in kept}
    ifs = [op for op in axis_graph.ops if is_if(op.node)]
    if not ifs or not touched:
        return Choices()
    around = _paths(axis_graph.model.graph, ())
    open_paths: list[tuple[Branch, ...]] = []
    left: list[str] = []
    for op in reversed(ifs):  # outer ones first
        if not _sees(op.node, touched):
            continue
        path = around.get(op.node)
        if path is None or _drives_a_loop(axis_graph, op.node):
            left.append(op.label)
            continue
        open_paths += [(*path, (_name(op.node), taken)) for taken in (True, False)]
    runs = []
    while open_paths:
        taken: dict[str, bool] = {}
        for path in open_paths:
            if all(taken.get(name, value) == value for name, value in path):
                taken.update(path)
        open_paths = [path for path in open_paths if any(taken.get(name) != value for name, value in path)]
        runs.append(taken)
    return Choices(tuple(runs), tuple(left))


def _name(node: ir.Node) -> str:
    return str(node.outputs[0].name)


def _paths(graph: ir.Graph, path: tuple[Branch, ...]) -> dict[ir.Node, tuple[Branch, ...]]:
    """Ifs that no Loop, Scan or other operator is around, and the branches around each."""
    found: dict[ir.Node, tuple[Branch, ...]] = {}
    for node in graph:
        if is_if(node):
            found[node] = path
            for branch, taken in zip(branches_of(node), (True, False), strict=True):
                found |= _paths(branch, (*path, (_name(node), taken)))
    return found


def _sees(node: ir.Node, touched: set[ir.Value]) -> bool:
    """Whether a cut changes anything inside the branches of an If."""
    return any(value in touched for value in (*read_by(node), *node.outputs))


def _drives_a_loop(axis_graph: AxisGraph, start: ir.Node) -> bool:
    """Whether a Loop of unknown length depends on what an If returns."""
    known: Mapping[ir.Value, np.ndarray] = axis_graph.shapes.data
    reached: set[ir.Value] = set(start.outputs)
    for node in every_node(axis_graph.model.graph):
        if any(value in reached for value in read_by(node)):
            if is_loop(node) and trip_count(node, known) is None:
                return True
            reached.update(node.outputs)
    return False
