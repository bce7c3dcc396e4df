"""The ways of cutting a graph: which axes have to be cut together, and along which factor of each Reshape.

Hard relations (ties, contractions) always hold. A Reshape that splits `C -> (H, D)` offers a choice instead:
cut C along H (whole heads) or along D (the same position of every head). A `Cut` is a set of hard components
together with one choice at every Reshape that touches them, closed under both. Cuts that share a hard
component exclude each other.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np

from onnxprune.graph.axes import Axis, Barrier, Index
from onnxprune.graph.build import AxisGraph
from onnxprune.graph.positions import components
from onnxprune.graph.relations import Edge

Site = tuple[int, Axis]
"""A Reshape (by id) and one of its axes, where one factor has to be chosen."""

MAX_CUTS = 8
"""Cuts that are looked for around one hard component. Where many Reshapes hang together, further ones would
differ from these in a single choice."""


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

    def is_pinned(self, edge: Edge) -> bool:
        """Whether a choice leaves nothing to choose from, whatever else is chosen."""
        return bool(self.pinned[self.positions(edge.a)].all() or self.pinned[self.positions(edge.b)].all())

    def component(self, axis: Axis) -> int:
        """Axis-level hard component of an axis."""
        return int(self.hard[self.klass[self.number[axis]]])


@dataclass(frozen=True)
class Cut:
    """A closed set of hard components and the choices that join them.

    Attributes
    ----------
    components, choices
        The components, and the choice that each Reshape in them has taken.
    pinned
        Axes that keep all positions in this cut: factors of a Reshape that has chosen another one.
    """

    components: frozenset[int]
    choices: tuple[Edge, ...]
    pinned: tuple[Axis, ...] = ()


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
    choices.sort(key=lambda e: (e.a.name, e.b.name, e.factor))  # whatever the order of the nodes

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
    """Cuts in a fixed order: at most `MAX_CUTS` for each hard component, one where it meets no Reshape."""
    sites: dict[Site, list[Edge]] = defaultdict(list)
    by_component: dict[int, list[Site]] = defaultdict(list)
    for edge in layout.choices:
        for axis in (edge.a, edge.b):
            site = (id(edge.where), axis)
            if site not in sites:
                by_component[layout.component(axis)].append(site)
            sites[site].append(edge)
    grower = _Grower(layout, sites, by_component)
    covered: set[int] = set()
    found: Counter[int] = Counter()
    cuts: list[Cut] = []
    for edge in sorted(layout.choices, key=layout.is_pinned):
        ends = {layout.component(edge.a), layout.component(edge.b)}
        if id(edge) in covered or any(found[c] >= MAX_CUTS for c in ends):
            continue
        cut = grower.grow(edge)
        covered.update(id(e) for e in cut.choices)
        found.update(cut.components)
        cuts.append(cut)
    closed = set(by_component)
    cuts.extend(Cut(frozenset([c]), ()) for c in np.unique(layout.hard).tolist() if c not in closed)
    return cuts


class _Grower:
    """Grows one cut at a time.

    What its choices have tied so far is kept in a union-find, so that the next choice costs what it touches,
    not what was chosen before. When a cut is done, the arrays are as they were.
    """

    def __init__(
        self,
        layout: Layout,
        sites: dict[Site, list[Edge]],
        by_component: dict[int, list[Site]],
    ) -> None:
        self.layout = layout
        self.sites = sites
        self.by_component = by_component
        self.root = np.arange(len(layout.label), dtype=np.int64)  # of every hard label
        self.pinned = layout.pinned.copy()  # per root
        self.changed: list[Index] = []

    def grow(self, seed: Edge) -> Cut:
        """Start from one choice and go on until every Reshape that the cut touches has chosen a factor.

        An axis that holds a factor which was not chosen is pinned. Of several ways to go on, the one is taken
        that leaves the seed the most units, then the one that leaves the most on the axis at hand.
        """
        chosen: list[Edge] = []
        pinned: list[Axis] = []
        inside: set[int] = set()
        decided: set[Site] = set()
        waiting: deque[Site] = deque()

        def take(edge: Edge) -> None:
            chosen.append(edge)
            self._join(edge)
            for axis in (edge.a, edge.b):
                decided.add((id(edge.where), axis))
                component = self.layout.component(axis)
                if component not in inside:
                    inside.add(component)
                    waiting.extend(self.by_component[component])

        take(seed)
        while waiting:
            site = waiting.popleft()
            if site in decided or self.pinned[self._roots(site[1])].all():
                continue  # a pinned axis has nothing to choose
            open_edges = [e for e in self.sites[site] if (site[0], _other(e, site[1])) not in decided]
            best = max(
                (*open_edges, None), key=lambda edge: self._value(seed, site, edge, inside)
            )  # the first of equals
            if best is not None:
                take(best)
            else:
                decided.add(site)
                pinned.append(site[1])
                self._pin(site[1])
        for labels in self.changed:
            self.root[labels] = labels
            self.pinned[labels] = self.layout.pinned[labels]
        self.changed.clear()
        return Cut(frozenset(inside), tuple(chosen), tuple(pinned))

    def _value(self, seed: Edge, site: Site, edge: Edge | None, inside: set[int]) -> tuple[int, int, bool]:
        """Free units on the seed's axis and on the site's, were `edge` taken (None: were the site pinned)."""
        if edge is None:
            return self._free_units(seed.a, None, [site[1]]), 0, False
        lost = [
            axis
            for other in (e for end in (edge.a, edge.b) for e in self.sites[site[0], end] if e is not edge)
            for axis in (other.a, other.b)
            if axis not in (edge.a, edge.b) and self.layout.component(axis) in inside
        ]
        return self._free_units(seed.a, edge, lost), self._free_units(site[1], edge, lost), True

    def _free_units(self, axis: Axis, edge: Edge | None, lost: Sequence[Axis]) -> int:
        """Units on `axis` that no barrier holds, were `edge` taken and the axes `lost` pinned."""
        mine = self._roots(axis)
        ends = self._ends(edge) if edge is not None else (np.zeros(0, np.int64),) * 3
        gone = [self._roots(other) for other in lost]
        roots = np.unique(np.concatenate([mine, ends[0], *gone]))
        local = np.searchsorted(roots, ends[0])
        joined = components(len(roots), local[ends[1]], local[ends[2]])
        held = self.pinned[roots]
        for other in gone:
            held[np.searchsorted(roots, other)] = True
        pinned = np.zeros(len(roots), bool)
        np.logical_or.at(pinned, joined, held)
        units = np.unique(joined[np.searchsorted(roots, mine)])
        return int((~pinned[units]).sum())

    def _roots(self, axis: Axis) -> Index:
        return self._find(self.layout.label[self.layout.positions(axis)])

    def _pin(self, axis: Axis) -> None:
        roots = np.unique(self._roots(axis))
        self.pinned[roots] = True
        self.changed.append(roots)

    def _join(self, edge: Edge) -> None:
        roots, a, b = self._ends(edge)
        low = roots[components(len(roots), a, b)]
        self.root[roots] = low
        np.logical_or.at(self.pinned, low, self.pinned[roots])
        self.changed.append(roots)

    def _ends(self, edge: Edge) -> tuple[Index, Index, Index]:
        """Roots of all positions of both axes (sorted), and the tied ones as indices into them."""
        a, b = self._roots(edge.a), self._roots(edge.b)
        roots = np.unique(np.concatenate([a, b]))
        left, right = np.searchsorted(roots, a), np.searchsorted(roots, b)
        return roots, left[_index(edge.a_index)], right[_index(edge.b_index)]

    def _find(self, labels: Index) -> Index:
        root = self.root[labels]
        while True:
            above = self.root[root]
            if np.array_equal(above, root):
                break
            root = above
        self.root[labels] = root
        self.changed.append(labels)
        return root


def _other(edge: Edge, axis: Axis) -> Axis:
    return edge.b if edge.a == axis else edge.a


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
