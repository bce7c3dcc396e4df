"""Recurrent layers that lost hidden units: what the gates got from all states is to come from those that are left.

A layer's states depend on its own R, so that there is nothing to run before it is repaired. Both sides of the fit
are therefore the original's: states of one step ago, of the units that are left, and what R made of all of them.
Repaired in this way, the cut layer's states are close to the original's, which is what R was fitted on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.graph.axes import Axis, Kept
from onnxprune.graph.build import AxisGraph
from onnxprune.model.nested import every_node
from onnxprune.model.taps import reached
from onnxprune.repair.fit import Fit, fit
from onnxprune.repair.gates import gates_to_repair, outputs_left
from onnxprune.repair.rows import HELD_OUT, add_part, both
from onnxprune.repair.targets import undecided
from onnxprune.statistics.batches import Batches
from onnxprune.statistics.collect import share_of_rows
from onnxprune.statistics.gates import Gates, R
from onnxprune.statistics.moments import Moments
from onnxprune.statistics.piecewise import Feed, Piecewise
from onnxprune.statistics.probes import Probe
from onnxprune.statistics.views import Sight, name_of, view_of, why_unseen

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class States:
    """The product of a recurrent layer's states by R, in the cut model and in the original."""

    student: Gates
    teacher: Gates


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
            left[op.node.name or op.node.op_type] = "its states of all steps are no output"
        elif op.node.op_type == "GRU" and not op.int("linear_before_reset", 0):
            left[op.node.name or op.node.op_type] = "its states are reset before they are multiplied"
        elif why := why_unseen(axis_graph, pairs[R][1]):
            left[op.node.name or op.node.op_type] = why
        else:
            found.append(States(*pairs[R]))
    return found, left


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
            add_part(known, side, _moments(layer.teacher, states, kept))
    fits: list[Fit | None] = []
    for layer, known in zip(layers, sides, strict=True):
        whole, held = both(*known)
        student = layer.student
        bias = student.bias_vector().reshape(student.groups, -1)
        finite = np.isfinite(whole.gram).all() and np.isfinite(held.gram).all()
        fits.append(fit(whole, held, student.matrix(), bias, kinds) if finite else None)
    return fits


def _rows(
    teacher: Piecewise,
    layers: Sequence[States],
    batches: Batches,
    known_at: Mapping[str, Sight],
    rng: np.random.Generator,
) -> Iterator[list[Array]]:
    """Per batch and layer: states of the original at positions that are drawn, (directions, rows, hidden)."""
    where = [known_at[layer.teacher.key] for layer in layers]
    shares = [share_of_rows(layer.teacher, sight) for layer, sight in zip(layers, where, strict=True)]
    views = [view_of(layer.teacher, layer.teacher.x) for layer in layers]
    probes: list[Probe] = []

    def extend(graph: ir.Graph, known: Mapping[str, ir.Value]) -> None:
        for n, layer in enumerate(layers):
            place = where[n].place
            flat = place if place.flat else None
            probe = Probe(graph, layer.teacher, f"states{n}", place.count(shares[n]), flat)
            probe.show(probe.input_rows(known[name_of(views[n])]), "rows")
            probes.append(probe)

    def more(batch: int) -> Feed:
        feed: dict[str, Array] = {}
        for probe, sight, share in zip(probes, where, shares, strict=True):
            feed |= probe.feed(sight.draw(rng, share, batch))
        return feed

    for batch, found in enumerate(teacher.advance(views, extend, more)):
        rows = [found[f"states{n}/rows"] for n in range(len(layers))]
        yield [r if sight.sizes[batch] else r[:, :0] for r, sight in zip(rows, where, strict=True)]


def _moments(gates: Gates, states: Array, kept: Kept) -> Moments:
    """Of rows (states that are left, what R makes of all for the gates that are left), per direction."""
    states = states.astype(np.float64)
    made = states @ gates.matrix().transpose(0, 2, 1) + gates.bias_vector().reshape(gates.groups, 1, -1)
    units = kept[Axis(gates.weight, 2)].reshape(-1, gates.columns)
    units = np.tile(units, (gates.groups // len(units), 1))
    rows = outputs_left(gates, kept)
    gates_left = np.ones(made.shape[::2], bool) if rows is None else rows.reshape(gates.groups, -1)
    parts = [
        np.concatenate([states[d][:, units[d]], made[d][:, gates_left[d]]], axis=1)
        for d in range(gates.groups)
    ]
    return Moments.of(np.stack(parts))
