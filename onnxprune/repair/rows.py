"""Moments of what a layer sees in the cut model, together with what it is to reach according to the original."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.graph.build import AxisGraph
from onnxprune.repair.targets import Target
from onnxprune.statistics.batches import Batches
from onnxprune.statistics.collect import geometry, share_of_rows
from onnxprune.statistics.moments import Moments
from onnxprune.statistics.piecewise import Feed, Piecewise
from onnxprune.statistics.probes import Drawn, Geometry, Probe

HELD_OUT = 5
"""Every fifth batch serves to choose among repairs, the others to fit them."""


@dataclass
class Collector:
    """Runs original and cut model up to a few layers, and collects moments of rows `(input, target)`.

    Parameters
    ----------
    axis_graph
        Of the original.
    teacher, student
        The original and the cut model, run piece by piece over the same batches.
    targets
        Layers that do not depend on each other.
    batches
        The batches.
    rng
        For the positions that are drawn.
    """

    axis_graph: AxisGraph
    teacher: Piecewise
    student: Piecewise
    targets: Sequence[Target]
    batches: Batches
    rng: np.random.Generator
    _where: list[Geometry] = field(init=False)
    _shares: list[float] = field(init=False)
    _drawn: list[list[Drawn]] = field(init=False)

    def __post_init__(self) -> None:
        """Draw the positions once, so that both models show the same ones."""
        teachers = [target.pair.teacher for target in self.targets]
        self._where = [geometry(self.axis_graph, layer, self.batches.unit) for layer in teachers]
        self._shares = [
            share_of_rows(layer, place, self.batches.samples)
            for layer, place in zip(teachers, self._where, strict=True)
        ]
        self._drawn = [
            [
                place.draw(self.rng, share, size)
                for place, share in zip(self._where, self._shares, strict=True)
            ]
            for size in self.batches.sizes
        ]

    def collect(self) -> list[tuple[Moments, Moments]]:
        """Per layer the moments to fit on, and those to choose on (the same where there is one batch only)."""
        sides: list[list[Moments | None]] = [[None, None] for _ in self.targets]
        for batch, found in enumerate(self._moments(list(self._goals()))):
            side = 1 if batch % HELD_OUT == HELD_OUT - 1 else 0
            for known, part in zip(sides, found, strict=True):
                old = known[side]
                known[side] = part if old is None else old + part
        return [both(*known) for known in sides]

    def _goals(self) -> Iterator[list[np.ndarray[Any, Any]]]:
        """Per batch and layer: what the original has at the drawn positions, in the channels that are left."""
        probes: list[Probe] = []

        def extend(graph: ir.Graph, known: Mapping[str, ir.Value]) -> None:
            for n, target in enumerate(self.targets):
                layer = target.pair.teacher
                probe = Probe(graph, layer, f"probe{n}", self._where[n].count(self._shares[n]))
                probe.show(probe.output_rows(known[str(target.value.name)], layer.outputs), "rows")
                probes.append(probe)

        def more(batch: int) -> Feed:
            drawn = zip(probes, self._drawn[batch], strict=True)
            return {name: array for probe, d in drawn for name, array in probe.feed(d).items()}

        for found in self.teacher.advance([target.value for target in self.targets], extend, more):
            rows = [found[f"probe{n}/rows"] for n in range(len(self.targets))]
            yield [
                r if target.kept is None else r[:, target.kept]
                for r, target in zip(rows, self.targets, strict=True)
            ]

    def _moments(self, goals: Sequence[Sequence[np.ndarray[Any, Any]]]) -> Iterator[list[Moments]]:
        probes: list[Probe] = []

        def extend(graph: ir.Graph, known: Mapping[str, ir.Value]) -> None:
            for n, target in enumerate(self.targets):
                layer = target.pair.student
                probe = Probe(graph, layer, f"probe{n}", self._where[n].count(self._shares[n]))
                x = probe.input_rows(known[str(layer.x.name)])
                t = probe.given("target", ir.DataType.FLOAT, 2)
                if target.skip is not None:
                    t = probe.op("Sub", t, probe.output_rows(known[str(target.skip.name)], layer.outputs))
                probe.moments(probe.op("Concat", x, probe.in_groups(t, layer.outputs), axis=2))
                probes.append(probe)

        def more(batch: int) -> Feed:
            feed: dict[str, Any] = {}
            for probe, drawn, rows in zip(probes, self._drawn[batch], goals[batch], strict=True):
                feed |= probe.feed(drawn, len(rows))
                feed[f"{probe.name}/target"] = rows
            return feed

        wanted = list(dict.fromkeys(value for target in self.targets for value in target.needs))
        for found, rows in zip(self.student.advance(wanted, extend, more), goals, strict=True):
            yield [
                Moments(
                    float(len(r)),
                    found[f"probe{n}/total"][:, 0].astype(np.float64),
                    found[f"probe{n}/gram"].astype(np.float64),
                )
                for n, r in enumerate(rows)
            ]


def both(seen: Moments | None, held: Moments | None) -> tuple[Moments, Moments]:
    """Moments to fit on and to choose on; the same where nothing was held out."""
    if seen is None:
        raise ValueError("no batch to fit on")
    return seen, seen if held is None else held
