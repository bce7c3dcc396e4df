"""Moments of what a layer sees in the cut model, together with what it is to reach according to the original."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.repair.fit import Fit
from onnxprune.repair.flat import Flat
from onnxprune.repair.targets import Target
from onnxprune.statistics.batches import Batches
from onnxprune.statistics.collect import read_moments, share_of_rows
from onnxprune.statistics.gates import Gates
from onnxprune.statistics.moments import Moments
from onnxprune.statistics.norms import LinearMap
from onnxprune.statistics.piecewise import Feed, Piecewise
from onnxprune.statistics.probes import Drawn, Probe
from onnxprune.statistics.views import Sight, name_of, view_of

Array = np.ndarray[Any, Any]
Show = Callable[[Probe, int, ir.Value, ir.Value, ir.Value | None], None]
"""Makes outputs of a layer's rows: by its number, of the input, the target and the other addend, all in groups."""

HELD_OUT = 5
"""Every fifth batch serves to choose among repairs, the others to fit them."""


@dataclass
class Collector:
    """Runs original and cut model up to a few layers, and collects moments of rows `(input, target)`.

    Parameters
    ----------
    teacher, student
        The original and the cut model, run piece by piece over the same batches.
    targets
        Layers that do not depend on each other.
    batches
        The batches.
    rng
        For the positions that are drawn.
    seen
        Where the original's layers are seen, by their keys.
    """

    teacher: Piecewise
    student: Piecewise
    targets: Sequence[Target]
    batches: Batches
    rng: np.random.Generator
    seen: Mapping[str, Sight]
    _sights: list[Sight] = field(init=False)
    _shares: list[float] = field(init=False)
    _drawn: list[list[Drawn]] = field(init=False)
    _goals: list[list[Array]] = field(init=False)

    def __post_init__(self) -> None:
        """Draw the positions once, so that both models show the same ones."""
        teachers = [target.pair.teacher for target in self.targets]
        self._sights = [self.seen[layer.key] for layer in teachers]
        self._shares = [
            share_of_rows(layer, sight) for layer, sight in zip(teachers, self._sights, strict=True)
        ]
        self._drawn = [
            [
                sight.draw(self.rng, share, batch)
                for sight, share in zip(self._sights, self._shares, strict=True)
            ]
            for batch in range(len(self.batches))
        ]

    def collect(self) -> list[tuple[Moments, Moments]]:
        """Per layer the moments to fit on, and those to choose on (the same where there is one batch only)."""
        self._goals = list(self._find_goals())
        return [both(*known) for known in _in_sides(self._moments(), len(self.targets))]

    def behind(
        self, fits: Sequence[Fit], seen: Sequence[tuple[Moments, Moments]]
    ) -> list[tuple[Moments, Moments]]:
        """The moments that `collect` found, with targets that count behind the activations.

        Parameters
        ----------
        fits
            What the layers give now; see `onnxprune.repair.flat` for what that is needed for.
        seen
            What `collect` returned. Layers without a flat activation behind them keep theirs.
        """
        found = list(seen)
        numbers = [n for n, target in enumerate(self.targets) if target.flat is not None]
        if numbers:
            parts = _in_sides(self._hidden(numbers, fits), len(numbers))
            for n, known in zip(numbers, parts, strict=True):
                first, second = both(*known)
                found[n] = _completed(seen[n][0], first), _completed(seen[n][1], second)
        return found

    def _find_goals(self) -> Iterator[list[Array]]:
        """Per batch and layer: what the original has at the drawn positions, in the channels that are left."""
        probes: list[Probe] = []

        def extend(graph: ir.Graph, known: Mapping[str, ir.Value]) -> None:
            for n, target in enumerate(self.targets):
                layer = target.pair.teacher
                probe = self._probe(graph, n, layer)
                value = known[name_of(view_of(layer, target.value))]
                product = isinstance(layer, Gates)  # its result is inside the node
                rows = probe.product_rows(value) if product else probe.output_rows(value, layer.outputs)
                probe.show(rows, "rows")
                probes.append(probe)

        def more(batch: int) -> Feed:
            drawn = zip(probes, self._drawn[batch], strict=True)
            return {name: array for probe, d in drawn for name, array in probe.feed(d).items()}

        goals = [view_of(target.pair.teacher, target.value) for target in self.targets]
        for found in self.teacher.advance(goals, extend, more):
            rows = [found[f"probe{n}/rows"] for n in range(len(self.targets))]
            yield [
                r if target.kept is None else r[:, target.kept]
                for r, target in zip(rows, self.targets, strict=True)
            ]

    def _moments(self) -> Iterator[list[Moments]]:
        """Per batch and layer: of rows `(input, target)`."""

        def show(probe: Probe, _n: int, x: ir.Value, goal: ir.Value, skip: ir.Value | None) -> None:
            t = goal if skip is None else probe.op("Sub", goal, skip)
            probe.moments(probe.op("Concat", x, t, axis=2))

        return self._student_moments(range(len(self.targets)), show)

    def _hidden(self, numbers: Sequence[int], fits: Sequence[Fit]) -> Iterator[list[Moments]]:
        """Per batch and some of the layers: of rows `(input, target)` against targets, behind the activation."""

        def show(probe: Probe, n: int, x: ir.Value, goal: ir.Value, skip: ir.Value | None) -> None:
            weight, bias, flat = fits[n].weight, fits[n].bias, self.targets[n].flat
            made = probe.op("MatMul", x, probe.constant("weight", weight.transpose(0, 2, 1)))
            made = probe.op("Add", made, probe.constant("bias", bias[:, None]))
            whole = made if skip is None else probe.op("Add", made, skip)
            near = goal if flat is None else _nearest(probe, goal, whole, flat)
            t = near if skip is None else probe.op("Sub", near, skip)
            probe.moments(probe.op("Concat", x, t, axis=2), t)

        return self._student_moments(numbers, show)

    def _probe(self, graph: ir.Graph, number: int, layer: LinearMap) -> Probe:
        place = self._sights[number].place
        count = place.count(self._shares[number])
        return Probe(graph, layer, f"probe{number}", count, place if place.flat else None)

    def _student_moments(self, numbers: Sequence[int], show: Show) -> Iterator[list[Moments]]:
        """Per batch and some of the layers: what `show` makes of their rows in the cut model."""
        parts: dict[bool, list[int]] = {}
        for n in numbers:
            parts.setdefault(self.targets[n].circular, []).append(n)
        ways = [self._shown(part, show, circular) for circular, part in parts.items()]
        order = np.argsort([n for part in parts.values() for n in part])
        for batch in zip(*ways, strict=True):
            found = [moments for part in batch for moments in part]
            yield [found[n] for n in order]

    def _shown(self, numbers: Sequence[int], show: Show, circular: bool) -> Iterator[list[Moments]]:
        """The same for layers that are all circular, of which the original's inputs are looked at, or all not."""
        probes: list[Probe] = []

        def extend(graph: ir.Graph, known: Mapping[str, ir.Value]) -> None:
            for n in numbers:
                target, layer = self.targets[n], self.targets[n].pair.student
                seen = target.pair.teacher if circular else layer
                probe = self._probe(graph, n, seen)
                x = probe.input_rows(known[name_of(view_of(seen, seen.x))])
                if circular and target.inputs is not None:
                    x = probe.picked(x, target.inputs)
                goal = probe.in_groups(probe.given("target", ir.DataType.FLOAT, 2), layer.outputs)
                skip = None
                if target.skip is not None:
                    rows = probe.output_rows(known[name_of(view_of(layer, target.skip))], layer.outputs)
                    skip = probe.in_groups(rows, layer.outputs)
                show(probe, n, x, goal, skip)
                probes.append(probe)

        def more(batch: int) -> Feed:
            feed: dict[str, Any] = {}
            for n, probe in zip(numbers, probes, strict=True):
                rows = self._goals[batch][n]
                feed |= probe.feed(self._drawn[batch][n], len(rows))
                feed[f"{probe.name}/target"] = rows
            return feed

        if circular:
            layers = [self.targets[n].pair.teacher for n in numbers]
            runner, wanted = self.teacher, [view_of(layer, layer.x) for layer in layers]
        else:
            runner, wanted = self.student, [view for n in numbers for view in self.targets[n].needs]
        shown = runner.advance(list(dict.fromkeys(wanted)), extend, more)
        for batch, found in enumerate(shown):
            counts = [self._sights[n].rows(self._drawn[batch][n], batch) for n in numbers]
            yield [read_moments(found, f"probe{n}", c) for n, c in zip(numbers, counts, strict=True)]


def _nearest(probe: Probe, goal: ir.Value, made: ir.Value, flat: Flat) -> ir.Value:
    """The target closest to what is made that the activation cannot tell from the goal."""
    for end, within, cut in ((flat.low, "Greater", "Min"), (flat.high, "Less", "Max")):
        if np.isfinite(end):  # LessOrEqual is not there before opset 12
            edge = probe.constant(within, np.array(end))
            goal = probe.op("Where", probe.op(within, goal, edge), goal, probe.op(cut, made, edge))
    return goal


def _in_sides(batches: Iterable[Sequence[Moments]], layers: int) -> list[list[Moments | None]]:
    """Sums over the batches to fit on, and over those to choose on, per layer."""
    sides: list[list[Moments | None]] = [[None, None] for _ in range(layers)]
    for batch, found in enumerate(batches):
        side = 1 if batch % HELD_OUT == HELD_OUT - 1 else 0
        for known, part in zip(sides, found, strict=True):
            add_part(known, side, part)
    return sides


def add_part(known: list[Moments | None], side: int, part: Moments) -> None:
    """Add moments of a batch to those of a side; one in which a layer never ran says nothing. Mutates `known`."""
    old = known[side]
    if part.count:
        known[side] = part if old is None else old + part


def _completed(whole: Moments, part: Moments) -> Moments:
    """Moments of the same rows `(x, t)` with other targets, from those of `(x, t)` against t."""
    features = part.gram.shape[1] - part.gram.shape[2]
    gram = whole.gram.copy()
    gram[:, :, features:] = part.gram
    gram[:, features:, :features] = part.gram[:, :features].transpose(0, 2, 1)
    return Moments(whole.count, part.total, gram)


def both(seen: Moments | None, held: Moments | None) -> tuple[Moments, Moments]:
    """Moments to fit on and to choose on; the same where nothing was held out, or nothing else ran."""
    first = held if seen is None else seen
    if first is None:
        raise ValueError("no batch to fit on")
    return first, first if held is None else held
