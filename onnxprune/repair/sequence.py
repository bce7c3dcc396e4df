"""Repair a cut model layer by layer: inputs from the model repaired so far, targets from the original.

Both models run piece by piece over the calibration samples. Before a layer that lost input channels runs, it
gets the weights that bring its output closest to what the original computes there. Where the output is added to
a residual stream, the target is the stream, so that errors that came before are corrected and do not pile up.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.evaluate.smaller import cut_feed, cuts_by_name
from onnxprune.graph.axes import Kept
from onnxprune.graph.build import AxisGraph
from onnxprune.model import edit
from onnxprune.model.quantisers import find_quantisers, of_nodes
from onnxprune.repair.fit import Fit, again, fit
from onnxprune.repair.logits import Mixing
from onnxprune.repair.products import Factor, Goals, held_error, products_to_repair, refit_product, rows_of
from onnxprune.repair.ranges import refit_ranges
from onnxprune.repair.rows import Collector
from onnxprune.repair.states import States, refit_states, states_to_repair
from onnxprune.repair.targets import Pair, Target, layers_to_repair, target_of
from onnxprune.repair.turn import Turn
from onnxprune.repair.write import TOO_LARGE, fits, stored_as, write
from onnxprune.statistics.batches import Batches
from onnxprune.statistics.norms import LinearMap
from onnxprune.statistics.piecewise import Piecewise
from onnxprune.statistics.views import NEVER, Sight, is_inside, sights

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class LayerRepair:
    """What became of one layer that lost inputs, or that lies behind such layers.

    Attributes
    ----------
    name
        Of the layer.
    lost
        Whether it lost inputs.
    kind
        "affine", "rescale", "bias", "logits" for a product of queries and keys, or "none" where the old weights
        were best or nothing could be done.
    before, after
        Error of the layer's output on held-out samples, as a share of its variance, without and with the repair.
        Where the repair looked behind a Relu or Clip, `after` is what is left there at most. Of a product, as a
        share of its mean square.
    why
        Why nothing could be done.
    """

    name: str
    lost: bool
    kind: str
    before: float
    after: float
    why: str = ""


@dataclass(frozen=True)
class Repairs:
    """What the repair of a model did.

    Attributes
    ----------
    layers
        One entry per layer that lost inputs or lies behind such layers.
    arrays
        By a layer's key (`Consumer.key`): its new weight and bias (outputs,).
    ranges
        By the name of an activation that is rounded in another range: the scales and zero points, by initializer.
    """

    layers: tuple[LayerRepair, ...] = ()
    arrays: dict[str, tuple[Array, Array]] = field(default_factory=dict, repr=False)
    ranges: dict[str, dict[str, Array]] = field(default_factory=dict, repr=False)


def repair(
    axis_graph: AxisGraph,
    cut: ir.Model,
    kept: Kept,
    batches: Batches,
    *,
    kinds: Sequence[str],
    turns: Sequence[Turn] = (),
    provider: str = "cpu",
    budget: float = 2.0**31,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Repairs:
    """Give the layers of a cut model that lost inputs, and those behind them, the weights that make up for it.

    Parameters
    ----------
    axis_graph
        Of the original; not mutated.
    cut
        What `onnxprune.surgery.remove` made of it; its weights are mutated, and biases may be added.
    kept
        Positions that `cut` still has.
    batches
        Calibration samples.
    kinds
        What to try per layer: "affine", "rescale", "bias". A repair is taken only if it lowers the error on
        batches that it was not fitted on.
    turns
        How `axis_graph`'s model was turned before it was cut.
    budget
        Bytes that tensors between two layers may take, for both models.
    """
    pairs, left = layers_to_repair(axis_graph, cut, kept)
    teacher = Piecewise(axis_graph.model, batches, provider, budget / 2)
    cuts = cuts_by_name(kept)  # inputs may be smaller, too
    student = Piecewise(cut, [cut_feed(feed, cuts) for feed in batches], provider, budget / 2)
    factors, more = products_to_repair(axis_graph, cut, kept, batches.unit)
    if "affine" not in kinds:
        more |= {factor.product.label: "only an affine repair would do" for factor in factors}
        factors = []
    layers, stay = states_to_repair(axis_graph, cut, kept)
    more |= stay
    teachers = [*(pair.teacher for pair in pairs), *(states.teacher for states in layers)]
    found = sights(axis_graph, teachers, batches, provider)
    seen = {layer.key: sight for layer, sight in zip(teachers, found, strict=True)}
    never = {key for key, sight in seen.items() if not sum(sight.sizes)}
    more |= {pair.student.label: NEVER for pair in pairs if pair.lost and pair.teacher.key in never}
    more |= {states.student.label: NEVER for states in layers if states.teacher.key in never}
    pairs = [pair for pair in pairs if pair.teacher.key not in never]
    layers = [states for states in layers if states.teacher.key not in never]
    steps = _in_order(student, pairs, factors)
    rng = np.random.default_rng(seed)
    turned = {turn.product.label: turn for turn in turns}
    waiting = [step.node for step in steps]
    mending = _Mending(axis_graph, teacher, student, batches, kinds, turned, rng, seen, left | more, waiting)
    if layers:
        mending.states(layers, kept)
    while steps:
        first = steps[0]
        if isinstance(first, Factor):
            steps = steps[1:]
            mending.product(first)
        else:
            run = [step for step in itertools.takewhile(_is_layer, steps) if isinstance(step, Pair)]
            targets = ready(axis_graph, student, kept, run, mending.waiting)
            steps = steps[len(targets) :]
            mending.layers(targets)
        if progress is not None:
            progress(len(mending.done), len(mending.done) + len(steps))
    mending.only_turned()
    untouched = [
        LayerRepair(name, True, "none", float("nan"), float("nan"), why) for name, why in mending.left.items()
    ]
    return Repairs((*mending.done, *untouched), mending.arrays, mending.ranges)


@dataclass
class _Mending:
    """A repair under way.

    Attributes
    ----------
    turned
        By name, products that were turned before the cut.
    seen
        Where the original's layers are seen, by their keys.
    left
        By name, why layers are left as they are.
    waiting
        Nodes of the cut model that are still to be repaired; those that are repaired twice are there twice.
    done, arrays, ranges
        What becomes `Repairs`.
    """

    axis_graph: AxisGraph
    teacher: Piecewise
    student: Piecewise
    batches: Batches
    kinds: Sequence[str]
    turned: Mapping[str, Turn]
    rng: np.random.Generator
    seen: Mapping[str, Sight]
    left: dict[str, str]
    waiting: list[ir.Node]
    done: list[LayerRepair] = field(default_factory=list)
    arrays: dict[str, tuple[Array, Array]] = field(default_factory=dict)
    ranges: dict[str, dict[str, Array]] = field(default_factory=dict)

    def states(self, layers: Sequence[States], kept: Kept) -> None:
        """Refit what recurrent layers make of their own states."""
        found = refit_states(self.teacher, layers, kept, self.batches, self.kinds, self.seen, self.rng)
        for layer, best in zip(layers, found, strict=True):
            self._take(layer.student, layer.teacher, best, lost=True)

    def layers(self, targets: Sequence[Target]) -> None:
        """Refit layers that do not depend on each other."""
        for target in targets:
            self.waiting.remove(target.pair.student.node)
        targets = [target for target in targets if target.pair.lost or not target.circular]
        if not targets:
            return
        for target, found in zip(targets, self._fits(targets), strict=True):
            self._take(target.pair.student, target.pair.teacher, found, lost=target.pair.lost)

    def _take(self, layer: LinearMap, original: LinearMap, found: Fit | None, *, lost: bool) -> None:
        """Give a layer the weights that were found."""
        if found is None:
            self.left[layer.label] = "what it sees is not finite on the calibration samples"
            return
        if found.kind != "none":
            weight, vector = layer.from_matrix(found.weight), found.bias.ravel()
            if not fits(layer, weight, vector):
                self.left[layer.label] = TOO_LARGE
                return
            write(layer, weight, vector)
            self.arrays[original.key] = weight, vector
        scale = found.energy or 1.0
        before, after = found.before / scale, found.error / scale
        self.done.append(LayerRepair(layer.label, lost, found.kind, before, after))

    def _fits(self, targets: Sequence[Target]) -> list[Fit | None]:
        """The best weights of some layers; None where what a layer sees is not finite."""
        collector = Collector(self.teacher, self.student, targets, self.batches, self.rng, self.seen)
        moments = collector.collect()
        finite = [all(np.isfinite(each.gram).all() for each in pair) for pair in moments]
        fits = []
        for target, (seen, held) in zip(targets, moments, strict=True):
            layer = target.pair.student
            bias = layer.bias_vector().reshape(layer.groups, -1)
            fits.append(fit(seen, held, layer.matrix(), bias, self.kinds, stored_as(layer)))
        if "affine" in self.kinds:
            behind = collector.behind(fits, moments)
            fits = [
                found if target.flat is None else again(*pair, found, stored_as(target.pair.student))
                for target, pair, found in zip(targets, behind, fits, strict=True)
            ]
        return [found if usable else None for found, usable in zip(fits, finite, strict=True)]

    def product(self, factor: Factor) -> None:
        """Mix what is left of queries, so that their products with what is left of keys are what they were."""
        label = factor.product.label
        self.waiting.remove(factor.node)
        if self.student.has_run(factor.node):
            self.left[label] = "what its layer makes is needed before it"
            return
        goals = Goals.of(factor.product, self.teacher, self.batches, self.rng)
        rows = rows_of(factor, self.student, goals)
        if rows is None:
            self.left[label] = "its factors are not finite on the calibration samples"
            return
        mixing, weight, vector = refit_product(factor, rows)
        if mixing.helps and not fits(factor.layer, weight, vector):
            self.left[label] = TOO_LARGE
            return
        error = self._mix(factor, mixing, weight, vector, goals) if mixing.helps else mixing.before
        turn, scale = self.turned.get(label), mixing.energy or 1.0
        kind = "logits" if error < mixing.before or turn is not None else "none"
        before = mixing.before / scale if turn is None else turn.before
        self.done.append(LayerRepair(label, True, kind, before, error / scale))

    def _mix(self, factor: Factor, mixing: Mixing, weight: Array, vector: Array, goals: Goals) -> float:
        """Give the layer of a product other weights, and what it makes another range; the error that is left.

        Where numbers are rounded and clipped on the way, it is measured once more, and what was done is undone if
        it did not help.
        """
        layer = factor.layer
        tensor, bias = layer.weight.const_value, layer.bias_vector()
        write(layer, weight, vector)
        error = mixing.error
        if factor.route.rounded and tensor is not None:
            ahead = self.student.ahead([factor.values[factor.product.mixed]])
            way = self.student.behind(ahead, [factor.node])
            found = of_nodes(find_quantisers(self.student.model.graph), way)
            old = {quantiser: (quantiser.scale, quantiser.zero) for quantiser in found}
            changed = refit_ranges(self.student, found, [factor.node])
            rows = rows_of(factor, self.student, goals)
            error = float("inf") if rows is None else held_error(rows)
            if not error < mixing.before:
                write(factor.layer, weight, bias)
                edit.set_tensor(factor.layer.weight, tensor)
                for quantiser, numbers in old.items():
                    quantiser.give(*numbers)
                return mixing.before
            self.ranges |= {quantiser.label: quantiser.arrays for quantiser in changed}
        self.arrays[factor.route.layer.key] = weight, vector
        return error

    def only_turned(self) -> None:
        """Products that were turned and could not be mixed as well are not as they were."""
        for label, turn in self.turned.items():
            if self.left.pop(label, None) is not None:
                self.done.append(LayerRepair(label, True, "logits", turn.before, turn.after))


def _is_layer(step: Pair | Factor) -> bool:
    return isinstance(step, Pair)


def _in_order(student: Piecewise, pairs: Sequence[Pair], factors: Sequence[Factor]) -> list[Pair | Factor]:
    """Every product behind the last layer that its factors depend on, before any that depends on it."""
    behind: dict[int, list[Factor]] = {}
    for factor in factors:
        needed = student.ahead(factor.values)
        last = max((n for n, pair in enumerate(pairs) if pair.student.node in needed), default=-1)
        behind.setdefault(last, []).append(factor)
    steps: list[Pair | Factor] = [*behind.get(-1, [])]
    for n, pair in enumerate(pairs):
        steps += [pair, *behind.get(n, [])]
    return steps


def ready(
    axis_graph: AxisGraph, student: Piecewise, kept: Kept, pairs: Sequence[Pair], waiting: Sequence[ir.Node]
) -> list[Target]:
    """The first layers whose inputs do not depend on layers that are still to be repaired."""
    found: list[Target] = []
    for pair in (each.as_it_is() for each in pairs):
        target = target_of(axis_graph, student, kept, pair, waiting)
        if student.ahead(target.needs) & set(waiting):
            if found:
                break
            if is_inside(pair.student):  # layers behind it come back to it in the next run of the body
                target = target_of(axis_graph, student, kept, pair, waiting, circular=True)
        found.append(target)
    return found
