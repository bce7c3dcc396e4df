"""Recurrent layers that lost hidden units: what the gates got from all states is to come from those that are left.

A layer's states depend on its own R, so that there is nothing to run before it is repaired. Both sides of the fit
are therefore the original's: states of one step ago, of the units that are left, and what R made of all of them.
Repaired in this way, the cut layer's states are close to the original's, which is what R was fitted on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.graph.axes import Axis, Index, Kept
from onnxprune.graph.build import AxisGraph
from onnxprune.model.nested import every_node
from onnxprune.model.taps import reached
from onnxprune.repair.fit import Fit, fit
from onnxprune.repair.gates import SHARED, gates_to_repair, outputs_left
from onnxprune.repair.resets import GATES, resets_first, seen_by_gates, start_of, why_not
from onnxprune.repair.rows import HELD_OUT, add_part, both
from onnxprune.repair.targets import undecided
from onnxprune.statistics.batches import Batches
from onnxprune.statistics.collect import share_of_rows
from onnxprune.statistics.gates import Gates, R
from onnxprune.statistics.moments import Moments
from onnxprune.statistics.piecewise import Feed, Piecewise
from onnxprune.statistics.probes import Probe
from onnxprune.statistics.views import Sight, is_inside, name_of, view_of, why_unseen

Array = np.ndarray[Any, Any]

UNSEEN = "its states of all steps are no output"
RESET_INSIDE = "its states are reset before they are multiplied, inside the body of another node"


@dataclass(frozen=True)
class States:
    """The product of a recurrent layer's states by R, in the cut model and in the original."""

    student: Gates
    teacher: Gates

    @property
    def parts(self) -> int:
        """Products with inputs of their own: one per direction, or one per direction and gate."""
        return self.teacher.groups * (GATES if resets_first(self.teacher.node) else 1)


def states_to_repair(axis_graph: AxisGraph, cut: ir.Model, kept: Kept) -> tuple[list[States], dict[str, str]]:
    """Recurrent layers that lost hidden units, and by name why others that did are left as they are."""
    made = {str(out.name): node for node in every_node(cut.graph) for out in node.outputs if out.name}
    behind: set[ir.Value] | None = None
    found: list[States] = []
    left: dict[str, str] = {}
    for op in axis_graph.ops:
        fed_back = [s for s in axis_graph.sinks if s.where is op and s.slot == R and s.axis in kept]
        if not fed_back:
            continue
        if behind is None:
            lost = {sink.where.node for sink in axis_graph.sinks if sink.axis in kept}
            behind = reached(axis_graph.model.graph, lost)
        if why := undecided(axis_graph, op.node, behind):
            left[op.node.name or op.node.op_type] = why
            continue
        pairs = gates_to_repair(op.node, made[str(op.outputs[0].name)])
        if isinstance(pairs, str):
            left[op.node.name or op.node.op_type] = pairs
        elif R not in pairs:
            left[op.node.name or op.node.op_type] = SHARED if op.node.outputs[0].name else UNSEEN
        elif why := _why_left(axis_graph, pairs[R][1]):
            left[op.node.name or op.node.op_type] = why
        else:
            found.append(States(*pairs[R]))
    return found, left


def _why_left(axis_graph: AxisGraph, gates: Gates) -> str:
    """Why what R sees is not known; "" where it is."""
    if not resets_first(gates.node):
        return why_unseen(axis_graph, gates)
    return RESET_INSIDE if is_inside(gates) else why_not(gates.node)


def refit_states(
    teacher: Piecewise,
    layers: Sequence[States],
    kept: Kept,
    batches: Batches,
    kinds: Sequence[str],
    seen: Mapping[str, Sight],
    rng: np.random.Generator,
) -> list[Fit | None]:
    """The best R and bias of each layer; None where states are not finite.

    Parameters
    ----------
    teacher
        Of the original; not moved on.
    kept
        Positions that the cut model has.
    seen
        Where layers are seen, by their keys.
    """
    sides: list[list[Moments | None]] = [[None, None] for _ in layers]
    for number, rows in enumerate(_rows(teacher.fork(), layers, batches, seen, rng)):
        side = 1 if number % HELD_OUT == HELD_OUT - 1 else 0
        for known, layer, states in zip(sides, layers, rows, strict=True):
            add_part(known, side, _moments(layer, states, kept))
    fits: list[Fit | None] = []
    for layer, known in zip(layers, sides, strict=True):
        whole, held = both(*known)
        weight, bias = layer.student.matrix(), layer.student.bias_vector()
        finite = np.isfinite(whole.gram).all() and np.isfinite(held.gram).all()
        apart = weight.reshape(layer.parts, -1, weight.shape[2]), bias.reshape(layer.parts, -1)
        found = fit(whole, held, *apart, kinds) if finite else None
        fits.append(found and replace(found, weight=found.weight.reshape(weight.shape)))
    return fits


def _rows(
    teacher: Piecewise,
    layers: Sequence[States],
    batches: Batches,
    known_at: Mapping[str, Sight],
    rng: np.random.Generator,
) -> Iterator[list[Array]]:
    """Per batch and layer: what R sees in the original at positions that are drawn, (parts, rows, hidden)."""
    where = [known_at[layer.teacher.key] for layer in layers]
    shares = [share_of_rows(layer.teacher, sight) for layer, sight in zip(layers, where, strict=True)]
    views = [view_of(layer.teacher, layer.teacher.x) for layer in layers]
    probes: list[Probe] = []
    drawn: list[Index] = []

    def extend(graph: ir.Graph, known: Mapping[str, ir.Value]) -> None:
        for n, layer in enumerate(layers):
            place = where[n].place
            flat = place if place.flat else None
            probe = Probe(graph, layer.teacher, f"states{n}", place.count(shares[n]), flat)
            probes.append(probe)
            if not resets_first(layer.teacher.node):
                probe.show(probe.input_rows(known[name_of(views[n])]), "rows")
                continue
            for key, value in _whole(layer.teacher).items():
                probe.show(probe.op("Cast", known[str(value.name)], to=ir.DataType.FLOAT), key)

    def more(batch: int) -> Feed:
        feed: dict[str, Array] = {}
        drawn.clear()
        for probe, sight, share in zip(probes, where, shares, strict=True):
            chosen = sight.draw(rng, share, batch)
            feed |= probe.feed(chosen)
            drawn.append(chosen.places)
        return feed

    for batch, found in enumerate(teacher.advance(views, extend, more)):
        rows = [_seen(layer.teacher, found, f"states{n}", drawn[n]) for n, layer in enumerate(layers)]
        yield [r if sight.sizes[batch] else r[:, :0] for r, sight in zip(rows, where, strict=True)]


def _whole(gates: Gates) -> dict[str, ir.Value]:
    """Values that say what R sees in a GRU that resets first, by what they are."""
    x, start = gates.node.inputs[0], start_of(gates.node)
    values = {"x": x, "states": gates.x, "start": start}
    return {key: value for key, value in values.items() if value is not None and value.const_value is None}


def _seen(gates: Gates, found: Feed, name: str, places: Index) -> Array:
    """What R sees at some places, (parts, rows, hidden)."""
    if not resets_first(gates.node):
        return found[f"{name}/rows"]
    start = start_of(gates.node)
    first = None if start is None or start.const_value is None else start.const_value.numpy()
    given = found.get(f"{name}/start", first)
    whole = seen_by_gates(gates.node, found[f"{name}/x"], found[f"{name}/states"], given)
    return np.asarray(whole[:, :, places].reshape(-1, len(places), gates.columns))


def _moments(layer: States, states: Array, kept: Kept) -> Moments:
    """Of rows (states that are left, what R makes of all for the gates that are left), per part."""
    gates, states = layer.teacher, states.astype(np.float64)
    matrix = gates.matrix().reshape(layer.parts, -1, gates.columns)
    made = states @ matrix.transpose(0, 2, 1) + gates.bias_vector().reshape(layer.parts, 1, -1)
    units = kept[Axis(gates.weight, 2)].reshape(-1, gates.columns)
    units = np.repeat(np.tile(units, (gates.groups // len(units), 1)), layer.parts // gates.groups, axis=0)
    rows = outputs_left(gates, kept)
    gates_left = np.ones(made.shape[::2], bool) if rows is None else rows.reshape(layer.parts, -1)
    parts = [
        np.concatenate([states[d][:, units[d]], made[d][:, gates_left[d]]], axis=1)
        for d in range(layer.parts)
    ]
    return Moments.of(np.stack(parts))
