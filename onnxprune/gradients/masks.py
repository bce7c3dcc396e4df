"""Masks over the units of groups: where they act, and in which form a graph can say their gradients.

A unit that goes is zeroed where it is summed over, at its sinks (`onnxprune.surgery.mask`). A mask over units is a
factor at just these places, so that minus its gradient is the first-order effect of the removal, whatever lies
between source and sink: a bias, an activation with f(0) != 0, a residual stream. Not every reader of a value sums
over the axis: the others pass units on, to sinks of their own. An Identity keeps the sinks' reading apart, and the
gradient with respect to its output is the sinks' share. Sinks that read the same value share one. Where an operator
sums over a state that it keeps itself (a recurrent layer), the factor is at the weight that this meets.

An operator that averages over units (`--allow-inexact`) is masked by leaving positions out, which is no factor: its
share of the effect of a removal is not in these gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.gradients.wrt import UnitMask
from onnxprune.graph.axes import Axis, Index
from onnxprune.graph.build import AxisGraph
from onnxprune.graph.groups import Group
from onnxprune.model import edit
from onnxprune.model.shapes import Shapes
from onnxprune.surgery.clone import Clone, clone_model

Reading = tuple[ir.Node, int]
"""A node and the input by which it reads a value."""


@dataclass(frozen=True, eq=False)
class Masked:
    """A model in which every mask over units has a value of its own.

    Attributes
    ----------
    model
        Computes what the original does.
    masks
        By group id: the gradient of a group's units is the sum over these. Empty where nothing sums over them.
    """

    model: ir.Model
    masks: Mapping[str, tuple[UnitMask, ...]]

    @property
    def by_sample(self) -> bool:
        """Whether all masks have an axis of samples."""
        return all(mask.sample_axis is not None for mask in self.targets)

    @property
    def targets(self) -> list[UnitMask]:
        """All masks."""
        return [mask for masks in self.masks.values() for mask in masks]


def unit_masks(axis_graph: AxisGraph, groups: Iterable[Group], *, by_sample: bool = True) -> Masked:
    """Masks over the units of some groups.

    Parameters
    ----------
    axis_graph
        Of the model, which is not mutated.
    groups
        Whose units are masked.
    by_sample
        Whether gradients are told apart by sample; otherwise each is one row, the sum over all that is run at once.
        A value whose axis of samples is not found has one row in any case.
    """
    groups = list(groups)
    wanted = {use.axis for group in groups for use in group.axes}
    clone = clone_model(axis_graph.model)
    places = _places(axis_graph, clone, wanted)
    masks: dict[str, tuple[UnitMask, ...]] = {}
    for group in groups:
        found: list[UnitMask] = []
        lies = [
            (use, value)
            for use in group.axes
            for value in places.get(use.axis, ())
            if value.graph is clone.model.graph  # nothing is known outside of what is inside a body
        ]
        for use, value in lies:
            samples = sample_axis(axis_graph, use.axis) if by_sample else None
            name = group.id if len(lies) == 1 else f"{group.id}/{len(found)}"
            blocked = axis_graph.blocked.get(use.axis)
            rows = None if blocked is None else blocked.rows
            found.append(UnitMask(str(value.name), use.axis.dim, use.unit, group.units, name, samples, rows))
        masks[group.id] = tuple(found)
    return Masked(clone.model, masks)


@dataclass(frozen=True, eq=False)
class Factor:
    """An input by which the positions of an axis are multiplied where sinks see them.

    Attributes
    ----------
    name
        Of the input.
    shape
        Of the input: the positions along the axis, 1 elsewhere.
    unit
        Unit of each position, -1 where it belongs to none and the factor has to be 1.
    """

    name: str
    shape: tuple[int, ...]
    unit: Index

    def spread(self, masks: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """What to feed for masks (units,): float32, of `shape`."""
        found = np.where(self.unit >= 0, masks[np.maximum(self.unit, 0)], 1.0)
        return found.astype(np.float32).reshape(self.shape)

    def gather(self, gradient: np.ndarray[Any, Any], units: int) -> np.ndarray[Any, Any]:
        """From a gradient of `shape` to that of the masks, (units,), float64."""
        mine = self.unit >= 0
        return np.bincount(self.unit[mine], gradient.reshape(-1)[mine].astype(np.float64), minlength=units)


@dataclass(frozen=True, eq=False)
class Factored:
    """A model that multiplies units by factors that it is fed.

    Attributes
    ----------
    model
        Computes what the original does where all factors are 1, and what the masked model does where some
        are 0.
    factors
        By group id; empty where nothing sums over a group's units.
    """

    model: ir.Model
    factors: Mapping[str, tuple[Factor, ...]]


def unit_factors(axis_graph: AxisGraph, groups: Iterable[Group]) -> Factored:
    """A copy of a model whose units can be masked from run to run, at the places where masks act.

    Parameters
    ----------
    axis_graph
        Of the model, which is not mutated.
    groups
        Whose units get factors.
    """
    groups = list(groups)
    clone = clone_model(axis_graph.model)
    places = _places(axis_graph, clone, {use.axis for group in groups for use in group.axes})
    graph = clone.model.graph
    factors = {}
    for group in groups:
        found: list[Factor] = []
        lies = [(use, value) for use in group.axes for value in places.get(use.axis, ())]
        for use, value in lies:
            shape = _along(axis_graph, use.axis)
            name = edit.fresh(graph, f"factor/{group.id}/{len(found)}")
            given = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))
            graph.inputs.append(given)
            _multiply(graph, value, given)
            found.append(Factor(name, shape, use.unit))
        factors[group.id] = tuple(found)
    return Factored(clone.model, factors)


def _along(axis_graph: AxisGraph, axis: Axis) -> tuple[int, ...]:
    """The positions of an axis, those of its blocks one row behind the other, and 1 elsewhere."""
    dims, blocked = axis_graph.shapes.dims[axis.value], axis_graph.blocked.get(axis)
    held = (axis.dim,) if blocked is None else (axis.dim, blocked.rows)
    return tuple((extent or 0) if dim in held else 1 for dim, extent in enumerate(dims))


def _multiply(main: ir.Graph, value: ir.Value, factor: ir.Value) -> None:
    """Multiply a value wherever it is read, in a body maybe; `main` is the main graph."""
    readers = tuple(value.uses())
    node = ir.node("Mul", [value, factor])
    made = node.outputs[0]
    made.name = node.name = edit.fresh(main, f"{value.name}/masked")
    made.type, made.shape = value.type, value.shape
    _place(value, node)
    for reader, slot in readers:
        reader.replace_input_with(slot, made)


def _places(axis_graph: AxisGraph, clone: Clone, wanted: set[Axis]) -> dict[Axis, list[ir.Value]]:
    """Values of the clone that sinks alone read, by the axis that they sum over."""
    axes_of: dict[ir.Value, dict[Reading, list[Axis]]] = {}
    for sink in axis_graph.sinks:
        if sink.axis in wanted:
            readings = axes_of.setdefault(sink.axis.value, {})
            readings.setdefault((sink.where.node, sink.slot), []).append(sink.axis)
    found: dict[Axis, list[ir.Value]] = {}
    for value, readings in axes_of.items():
        alike: dict[tuple[Axis, ...], list[Reading]] = {}
        for reading, summed in readings.items():
            alike.setdefault(tuple(sorted(set(summed), key=lambda axis: axis.dim)), []).append(reading)
        everything = {(use.node, use.idx) for use in value.uses()}
        for axes, mine in alike.items():
            whole = set(mine) == everything and not value.is_graph_output()
            place = clone.values[value] if whole else _apart(clone, value, mine)
            for axis in axes:
                found.setdefault(axis, []).append(place)
    return found


def _apart(clone: Clone, value: ir.Value, readings: list[Reading]) -> ir.Value:
    """An Identity between a value and some that read it; gives its output."""
    main, source = clone.model.graph, clone.values[value]
    node = ir.node("Identity", [source])
    made = node.outputs[0]
    made.name = node.name = edit.fresh(main, f"{value.name}/seen")
    made.type, made.shape = source.type, source.shape
    _place(source, node)
    for reader, slot in readings:
        clone.nodes[reader].replace_input_with(slot, made)
    return made


def _place(value: ir.Value, node: ir.Node) -> None:
    """Put a node that reads a value where that is known first: in the graph that the value belongs to."""
    graph, producer = value.graph, value.producer()
    if not isinstance(graph, ir.Graph):
        raise ValueError(f"{value.name!r} belongs to no graph")
    graph.insert_before(graph[0], node) if producer is None else graph.insert_after(producer, node)


def sample_axis(axis_graph: AxisGraph, axis: Axis) -> int | None:
    """Which axis of a value holds the samples, beside `axis`; None where none is found.

    One that is as long as the inputs' leading axis at both bindings of the symbolic dims, else a multiple of it
    (windows of an image). Where the batch has a fixed size, the leading axis if that is as long.
    """
    shapes = axis_graph.shapes
    batch = next((value for value in axis_graph.model.graph.inputs if not value.is_initializer()), None)
    counts = None if batch is None else _both(shapes, batch, 0)
    if counts is None or None in counts:
        return None
    multiples = []
    for dim in range(len(shapes.dims[axis.value])):
        extents = _both(shapes, axis.value, dim)
        if dim == axis.dim or extents is None or None in extents:
            continue
        if extents == counts and (counts[0] != counts[1] or (dim == 0 and counts[0] != 1)):
            return dim
        if counts[0] != counts[1] and _multiple(extents, counts):
            multiples.append(dim)
    return multiples[0] if multiples else None


def _multiple(extents: tuple[int | None, int | None], counts: tuple[int | None, int | None]) -> bool:
    """Whether there are as many entries per sample at both bindings."""
    shares = [divmod(extent or 0, count or 1) for extent, count in zip(extents, counts, strict=True)]
    return shares[0] == shares[1] and shares[0][0] > 0 and shares[0][1] == 0


def _both(shapes: Shapes, value: ir.Value, dim: int) -> tuple[int | None, int | None] | None:
    """Extent of an axis at both bindings."""
    dims = shapes.dims.get(value)
    if not dims or dim >= len(dims):
        return None
    other = shapes.other.get(value, dims)
    return dims[dim], other[dim]
