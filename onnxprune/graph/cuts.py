"""The ways of cutting a graph: which axes have to be cut together, and along which factor of each Reshape.

Hard relations (ties, contractions) always hold. A Reshape that splits `C -> (H, D)` offers a choice instead:
cut C along H (whole heads) or along D (the same position of every head). A `Cut` is a set of hard components
together with one choice at every Reshape that touches them, closed under both. Cuts that share a hard
component exclude each other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np

from onnxprune.graph.axes import Axis, Barrier
from onnxprune.graph.build import AxisGraph
from onnxprune.graph.positions import Index, components
from onnxprune.graph.relations import Edge


@dataclass(frozen=True)
class Layout:
    """Every axis's positions, numbered, with the hard relations already applied.

    Axes that are tied position by position in order form one class and share their numbers.

    Attributes
    ----------
    axes
        All axes of the graph, in a fixed order.
    klass
        Class of each axis.
    offset
        First position number of each class.
    extent
        Number of positions of each class.
    label
        For every position number, its hard component (the smallest number in it).
    pinned
        For every position number, whether its component contains a pinned position.
    hard
        Axis-level hard component of each class.
    choices
        The choice edges of the graph.
    """

    axes: tuple[Axis, ...]
    klass: Index
    offset: Index
    extent: Index
    label: Index
    pinned: np.ndarray[Any, np.dtype[np.bool_]]
    hard: Index
    choices: tuple[Edge, ...]
    number: dict[Axis, int]

    def positions(self, axis: Axis) -> Index:
        """Position numbers of an axis."""
        k = self.klass[self.number[axis]]
        return np.arange(self.offset[k], self.offset[k] + self.extent[k])

    def component(self, axis: Axis) -> int:
        """Axis-level hard component of an axis."""
        return int(self.hard[self.klass[self.number[axis]]])


@dataclass(frozen=True)
class Cut:
    """A closed set of hard components and the choices that join them."""

    components: frozenset[int]
    choices: tuple[Edge, ...]


def lay_out(axis_graph: AxisGraph) -> Layout:
    """Number the positions of all axes and apply ties and contractions."""
    graph: nx.MultiGraph[Any] = axis_graph.graph
    axes = tuple(node for node in graph if isinstance(node, Axis))
    number = {axis: i for i, axis in enumerate(axes)}
    same: list[tuple[int, int]] = []
    partial: list[Edge] = []
    choices: list[Edge] = []
    pins: list[int] = []
    for u, v, data in graph.edges(data=True):
        if isinstance(u, Barrier) or isinstance(v, Barrier):
            pins.append(number[v if isinstance(u, Barrier) else u])
            continue
        edge: Edge = data["edge"]
        if edge.kind == "choice":
            choices.append(edge)
        elif edge.a_index is None:
            same.append((number[edge.a], number[edge.b]))
        else:
            partial.append(edge)
    choices.sort(key=lambda e: (number[e.a], number[e.b], e.factor))

    root = _join(len(axes), same)
    roots, klass = np.unique(root, return_inverse=True)
    extents = np.array([axis_graph.extents[axes[r]] for r in roots], dtype=np.int64)
    offset = np.concatenate([[0], np.cumsum(extents)])[: len(roots)].astype(np.int64)
    total = int(extents.sum())

    left = [offset[klass[number[e.a]]] + _index(e.a_index) for e in partial]
    right = [offset[klass[number[e.b]]] + _index(e.b_index) for e in partial]
    label = components(total, _concat(left), _concat(right))
    pinned_root = np.zeros(total, bool)
    for k in sorted({int(klass[i]) for i in pins}):
        pinned_root[label[offset[k] : offset[k] + extents[k]]] = True
    hard = _join(len(roots), [(int(klass[number[e.a]]), int(klass[number[e.b]])) for e in partial])
    return Layout(axes, klass, offset, extents, label, pinned_root[label], hard, tuple(choices), number)


def find_cuts(layout: Layout) -> list[Cut]:
    """All cuts, in a fixed order; every hard component is in at least one."""
    sites: dict[tuple[int, Axis], list[Edge]] = defaultdict(list)
    by_component: dict[int, list[tuple[int, Axis]]] = defaultdict(list)
    for edge in layout.choices:
        for axis in (edge.a, edge.b):
            site = (id(edge.where), axis)
            if site not in sites:
                by_component[layout.component(axis)].append(site)
            sites[site].append(edge)
    covered: set[int] = set()
    cuts: list[Cut] = []
    for edge in layout.choices:
        if id(edge) in covered:
            continue
        cut = _close(layout, edge, sites, by_component)
        covered.update(id(e) for e in cut.choices)
        cuts.append(cut)
    closed = set(by_component)
    cuts.extend(Cut(frozenset([c]), ()) for c in np.unique(layout.hard).tolist() if c not in closed)
    return cuts


def _close(
    layout: Layout,
    seed: Edge,
    sites: dict[tuple[int, Axis], list[Edge]],
    by_component: dict[int, list[tuple[int, Axis]]],
) -> Cut:
    """Grow a cut from one choice until every Reshape that it touches has chosen a factor."""
    chosen: list[Edge] = []
    inside: set[int] = set()
    decided: set[tuple[int, Axis]] = set()
    undecided: list[tuple[int, Axis]] = []

    def take(edge: Edge) -> None:
        chosen.append(edge)
        for axis in (edge.a, edge.b):
            decided.add((id(edge.where), axis))
            component = layout.component(axis)
            if component not in inside:
                inside.add(component)
                undecided.extend(by_component[component])

    take(seed)
    while undecided:
        undecided = [site for site in undecided if site not in decided]
        forced = next((site for site in undecided if len(sites[site]) == 1), None)
        if forced is not None:
            take(sites[forced][0])
        elif undecided:
            site = undecided[0]
            take(_finest(layout, chosen, sites[site]))
    return Cut(frozenset(inside), tuple(chosen))


def _finest(layout: Layout, chosen: Sequence[Edge], options: Sequence[Edge]) -> Edge:
    """The option that leaves the most units to choose from; the first of equals."""
    scores = [_free_units(layout, (*chosen, option)) for option in options]
    return options[int(np.argmax(scores))]


def _free_units(layout: Layout, edges: Iterable[Edge]) -> int:
    edges = list(edges)
    axes = {axis for edge in edges for axis in (edge.a, edge.b)}
    labels = np.unique(np.concatenate([layout.label[layout.positions(axis)] for axis in axes]))
    joined = join_labels(layout, labels, edges)
    pinned = np.unique(joined[layout.pinned[labels]])
    last = edges[-1]
    touched = np.searchsorted(labels, layout.label[layout.positions(last.a)])
    units = np.unique(joined[touched])
    return int(np.setdiff1d(units, pinned).size)


def join_labels(layout: Layout, labels: Index, choices: Iterable[Edge]) -> Index:
    """Components of the hard labels `labels` (sorted, unique) once `choices` hold: an index into `labels`."""
    left, right = [], []
    for edge in choices:
        left.append(layout.label[layout.positions(edge.a)[_index(edge.a_index)]])
        right.append(layout.label[layout.positions(edge.b)[_index(edge.b_index)]])
    a = np.searchsorted(labels, _concat(left))
    b = np.searchsorted(labels, _concat(right))
    return components(len(labels), a, b)


def _join(n: int, pairs: list[tuple[int, int]]) -> Index:
    a = np.array([p[0] for p in pairs], dtype=np.int64)
    b = np.array([p[1] for p in pairs], dtype=np.int64)
    return components(n, a, b)


def _index(index: Index | None) -> Index:
    if index is None:
        raise ValueError("this edge relates whole axes")
    return index


def _concat(parts: list[Index]) -> Index:
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
