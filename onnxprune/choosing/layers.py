"""Single layers, cut to several widths of every axis that groups can make smaller, each as a model of its own.

A layer is a node that multiplies and adds, in a quantised model with what rounds its operands and its result. It
is cut by the rules that cut whole models, so attributes such as the number of groups follow. Layers that are the
same (operators, attributes, shapes, what can be cut of them) are one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.allocate.cost import Terms
from onnxprune.allocate.ladder import Ladder
from onnxprune.allocate.latency import Table, monotone
from onnxprune.analysis import Analysis
from onnxprune.calibrate.timing import Ran
from onnxprune.choosing.alone import part_of, stand_alone
from onnxprune.graph.axes import Axis, Bools, extent_left
from onnxprune.graph.build import build_axis_graph
from onnxprune.model.finalize import as_stored
from onnxprune.model.quantized import QuantizedTensor
from onnxprune.model.shapes import infer_shapes
from onnxprune.rules.rule import Term, domain_of
from onnxprune.surgery.keep import kept_positions
from onnxprune.surgery.remove import remove

POINTS = (8, 6, 5, 4, 3, 2)
"""At how many widths of each axis layers are measured: the first with which they are few enough."""

MOST = 700
"""Points of all grids together; each takes some hundredths of a second."""

_VIEWS = frozenset(
    {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Shape", "Size", "Constant", "Cast", "Dropout"}
)
"""Operators that copy nothing, or nothing that is large."""


_Cut = tuple[dict[str, Bools], Mapping[Axis, Bools]]
"""Units that groups keep, and the positions that follow."""


@dataclass(frozen=True)
class _Width:
    """One axis of a layer's grid.

    Attributes
    ----------
    place
        Where its width stands in the extents.
    axes
        The layer's axes that get smaller with it.
    widths
        Ascending.
    kept
        One entry per width: which positions of these axes stay.
    """

    place: int
    axes: tuple[Axis, ...]
    widths: tuple[float, ...]
    kept: tuple[Mapping[Axis, Bools], ...]


@dataclass(frozen=True)
class Layer:
    """One layer and the widths at which its time is wanted; those with equal keys take equally long.

    Attributes
    ----------
    nodes
        As `onnxprune.choosing.alone.part_of` gives them.
    grid
        One entry per axis that gets smaller by itself.
    key
        See above.
    """

    nodes: tuple[ir.Node, ...]
    grid: tuple[_Width, ...]
    key: object

    @property
    def shape(self) -> tuple[int, ...]:
        """Points of the grid along each of its axes."""
        return tuple(len(axis.widths) for axis in self.grid)

    def table(self, seconds: np.ndarray[Any, np.dtype[np.float64]]) -> Table:
        """The table of the layer, from one time per point of the grid, the last axis fastest."""
        places = tuple(axis.place for axis in self.grid)
        widths = tuple(axis.widths for axis in self.grid)
        return Table(places, widths, monotone(seconds.reshape(self.shape)))


def find_layers(analysis: Analysis, ladders: Sequence[Ladder]) -> list[Layer]:
    """Every layer that some of the ladders make smaller, in the order of the graph."""
    found: list[Layer] = []
    for points in POINTS:
        found = _with_points(analysis, ladders, points)
        if sum(math.prod(shape) for shape in {layer.key: layer.shape for layer in found}.values()) <= MOST:
            break
    return found


def _with_points(analysis: Analysis, ladders: Sequence[Ladder], points: int) -> list[Layer]:
    costs, graph = analysis.costs, analysis.axis_graph
    owners: dict[int, list[Ladder]] = {}
    for ladder in ladders:
        for place in costs.places(ladder.group).tolist():
            owners.setdefault(place, []).append(ladder)
    known: dict[tuple[int, ...], list[_Cut]] = {}
    found = []
    for number in dict.fromkeys(number for number, _ in costs.node_terms):
        nodes = part_of(graph.ops[number].node)
        axes = [axis for value in _values(nodes) for axis in _axes(analysis, value)]
        by_owner: dict[tuple[int, ...], list[Axis]] = {}
        for axis in dict.fromkeys(axes):
            place = costs.place(axis)
            if place in owners:
                by_owner.setdefault(tuple(id(ladder) for ladder in owners[place]), []).append(axis)
        grid = []
        for ids, members in by_owner.items():
            cutters = owners[int(costs.place(members[0]) or 0)]
            if ids not in known:
                known[ids] = _cuts(analysis, cutters, points)
            grid.append(_width(analysis, members, known[ids]))
        if grid and all(len(axis.widths) > 1 for axis in grid):
            found.append(Layer(nodes, tuple(grid), _key(analysis, nodes, grid)))
    return found


def elements(analysis: Analysis) -> Terms:
    """Elements that nodes make that do not multiply and add, as far as groups have a say in their number."""
    costs, graph = analysis.costs, analysis.axis_graph
    layers = {node for number, _ in costs.node_terms for node in part_of(graph.ops[number].node)}
    touched = {place for group in analysis.groups.values() for place in costs.places(group).tolist()}
    terms = []
    for op in graph.ops:
        if op.node in layers or op.node.op_type in _VIEWS:
            continue
        for value in op.outputs:
            axes = _axes(analysis, value)
            if value.const_value is None and any(costs.place(axis) in touched for axis in axes):
                terms.append(Term(1.0, tuple(axes)))
    return costs.terms(terms)


def cut_layers(analysis: Analysis, layer: Layer) -> Iterator[Ran]:
    """The layer at every point of its grid, the last axis fastest, and inputs for it.

    Raises
    ------
    RefitError
        The layer cannot be cut by itself.
    """
    dims = analysis.axis_graph.shapes.dims
    model, twin = stand_alone(analysis, layer.nodes)
    graph = build_axis_graph(
        model, infer_shapes(model, {}, analysis.axis_graph.rules.infer), analysis.axis_graph.rules
    )
    divided = analysis.axis_graph.blocked  # beside other layers, blocks may be joined
    graph = replace(
        graph, blocked={Axis(twin[a.value], a.dim): found for a, found in divided.items() if a.value in twin}
    )
    inputs = [(old, new) for old, new in twin.items() if new in set(model.graph.inputs)]
    for point in itertools.product(*(axis.kept for axis in layer.grid)):
        kept = {axis: flags for part in point for axis, flags in part.items()}
        cut = remove(graph, {Axis(twin[axis.value], axis.dim): flags for axis, flags in kept.items()})
        feed = {}
        for old, new in inputs:
            shape = [
                extent_left(Axis(old, dim), kept, divided) or extent or 1
                for dim, extent in enumerate(dims[old])
            ]
            feed[str(new.name)] = _array(old, shape)
        yield as_stored(cut), feed


def _array(value: ir.Value, shape: Sequence[int]) -> np.ndarray[Any, Any]:
    dtype = ir.DataType.FLOAT if value.dtype is None else value.dtype
    if dtype.is_floating_point():
        return np.random.default_rng(0).standard_normal(shape).astype(dtype.numpy())
    return np.zeros(shape, dtype.numpy())


def _axes(analysis: Analysis, value: ir.Value) -> list[Axis]:
    return [Axis(value, dim) for dim in range(len(analysis.axis_graph.shapes.dims.get(value, ())))]


def _cuts(analysis: Analysis, ladders: Sequence[Ladder], points: int) -> list[_Cut]:
    """So many of the widths of axes that these ladders cut together, evenly spread."""
    longest = max(ladders, key=lambda ladder: len(_stops(ladder)))
    stops = _stops(longest)
    found: list[_Cut] = []
    for stop in sorted({stops[round(i)] for i in np.linspace(0, len(stops) - 1, points)}):
        share = stop / longest.height
        keep = {lad.group.id: lad.keep(lad.settle(math.floor(share * lad.height + 1e-9))) for lad in ladders}
        found.append((keep, kept_positions(analysis.groups, keep)))
    return found


def _stops(ladder: Ladder) -> list[int]:
    return sorted({0, *(ladder.settle(n) for n in range(ladder.height + 1))})


def _width(
    analysis: Analysis,
    axes: Sequence[Axis],
    cuts: Sequence[_Cut],
) -> _Width:
    place = int(analysis.costs.place(axes[0]) or 0)
    by_width: dict[float, Mapping[Axis, Bools]] = {}
    for keep, kept in cuts:
        width = float(analysis.costs.extents(keep)[place])
        by_width.setdefault(width, {axis: kept[axis] for axis in axes if axis in kept})
    widths = sorted(by_width)
    return _Width(place, tuple(axes), tuple(widths), tuple(by_width[width] for width in widths))


def _key(analysis: Analysis, nodes: Sequence[ir.Node], grid: Sequence[_Width]) -> object:
    """Equal for layers that take equally long at every point."""
    dims = analysis.axis_graph.shapes.dims
    part = {axis: number for number, width in enumerate(grid) for axis in width.axes}
    which = {value: number for number, value in enumerate(_values(nodes))}
    operators = tuple(
        (
            domain_of(node),
            node.op_type,
            tuple((name, str(attr.value)) for name, attr in sorted(node.attributes.items())),
            tuple(None if value is None else which[value] for value in (*node.inputs, *node.outputs)),
        )
        for node in nodes
    )
    values = tuple(
        (
            dims.get(value),
            value.dtype,
            value.const_value is not None,
            isinstance(value.const_value, QuantizedTensor),
            tuple(part.get(axis) for axis in _axes(analysis, value)),
        )
        for value in which
    )
    return operators, values, tuple(width.widths for width in grid)


def _values(nodes: Sequence[ir.Node]) -> list[ir.Value]:
    """What some nodes read and make, each once."""
    return list(dict.fromkeys(v for node in nodes for v in (*node.inputs, *node.outputs) if v is not None))
