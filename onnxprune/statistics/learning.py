"""Passes over calibration samples with masks that change from run to run, at one graph of gradients.

Gradients elsewhere are taken at the model as it is. Here they are taken wherever the masks have led: weights times
masks are fed in place of the weights, or factors of units to a copy of the model that multiplies by them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.calibrate.dataset import Feed
from onnxprune.calibrate.sessions import open_session, run
from onnxprune.criteria.binary import BinaryMasks
from onnxprune.errors import DataError
from onnxprune.gradients.backward import LOSS
from onnxprune.gradients.masks import unit_factors
from onnxprune.gradients.objective import Draws, Objective, off_original
from onnxprune.gradients.prepare import prepare
from onnxprune.gradients.wrt import gradient_name
from onnxprune.graph.groups import Group
from onnxprune.statistics.gradients import Differentiation, Running, as_taken

Array = np.ndarray[Any, Any]

PASSES = 16
"""How often masks that are learned see every sample."""

RAMP = 0.75
"""Share of the steps in which the level grows."""

TRAVEL = 36.0
"""How far a logit gets whose gradient always has the same sign; it starts at 4.6."""


@dataclass(frozen=True, eq=False)
class Learning:
    """An open graph of gradients, parts of which are fed.

    Attributes
    ----------
    differentiation
        The samples and how they run.
    running
        The graph.
    targets
        Names of what is fed and differentiated with respect to.
    scale
        What makes the loss of a sample, a sum over its positions, one of about 1 (their mean).
    """

    differentiation: Differentiation
    running: Running
    targets: Sequence[str]
    scale: float

    @classmethod
    def of(
        cls,
        differentiation: Differentiation,
        targets: Sequence[str],
        *,
        model: ir.Model | None = None,
    ) -> Learning:
        """Build and open the graph.

        Parameters
        ----------
        targets
            Initializers of the model, or inputs of `model`.
        model
            A copy that takes more inputs; None: the model itself, whose `targets` become inputs.

        Raises
        ------
        GradientError
            An operator between a target and the loss has no gradient.
        """
        graph, data = differentiation.axis_graph, differentiation.data
        dense = open_session(prepare(graph.model), differentiation.provider)
        first = next(data.batches(differentiation.together))
        outputs = run(dense, as_taken(first, dense))
        objective = off_original(differentiation.objective(), outputs)
        running = differentiation.running(
            graph.model if model is None else model,
            targets,
            fed=targets if model is None else (),
            objective=objective,
        )
        return cls(differentiation, running, targets, 1.0 / _positions(objective, outputs))

    @property
    def loss(self) -> str:
        """What is differentiated, for people."""
        return self.running.objective.sentence

    def steps(
        self, passes: int, fed: Callable[[], Feed], first: int = 0
    ) -> Iterator[tuple[float, dict[str, Array]]]:
        """The loss of every run and its gradients by target, averaged over samples, pass after pass.

        Parameters
        ----------
        passes
            How often all samples run, each time in another order.
        fed
            Gives the targets' values, asked before every run.
        first
            How many passes there were before: the order of the samples goes on from there.
        """
        differentiation = self.differentiation
        data, total = differentiation.data, passes * len(differentiation.data)
        draws = Draws(differentiation.seed)
        wanted = [LOSS, *(gradient_name(name) for name in self.targets)]
        running, done = replace(self.running, names=wanted), 0
        for number in range(first, first + passes):
            order = np.random.default_rng([differentiation.seed, number]).permutation(len(data))
            mixed = data.take(order)
            for feed, labels in mixed.labelled_batches(differentiation.together):
                found = running.at(feed, labels, draws, fed())
                count = data.size_of(feed)
                loss = float(found[LOSS]) * self.scale / count
                if not math.isfinite(loss):
                    raise DataError(
                        "the loss is not finite on the calibration samples with some weights masked",
                        "Leave out samples with NaN or infinities, or take a criterion that learns no masks.",
                    )
                factor = np.float32(self.scale / count)
                yield loss, {name: found[gradient_name(name)] * factor for name in self.targets}
                done += count
                differentiation.progress(done, total)


def _positions(objective: Objective, outputs: Feed) -> float:
    """How many parts of a sample's loss are summed up."""
    if objective.kind == "distance":
        return 1.0
    shape = list(outputs[objective.output].shape)
    if objective.classes:
        shape.pop(objective.axis)
    return float(max(math.prod(shape[1:]), 1))


@dataclass(frozen=True, eq=False)
class LearnedMasks:
    """Masks after their passes.

    Attributes
    ----------
    logits
        What they cover, by name.
    masks
        All of them; None where there are none.
    loss
        What they were learned with, for people.
    passes
        How often the samples ran.
    """

    logits: Mapping[str, Array]
    masks: BinaryMasks | None = None
    loss: str = ""
    passes: int = PASSES

    @property
    def statistics(self) -> dict[str, float]:
        """For reports."""
        return {} if self.masks is None else self.masks.statistics

    def sentence(self, what: str) -> str:
        """What was learned, for reports; `what` is masked: "weights", "units"."""
        if self.masks is None:
            return "no masks were learned"
        return (
            f"masks were learned in {self.passes} passes with the {self.loss}: sigmoid(s) <= 0.5 alone would make "
            f"{self.masks.below:.1%} of the {what} zero (mean_sparse_prob {self.masks.mean_sparse_prob:.3f}, asked "
            f"for {self.masks.level:.3f}); what goes is what ranks lowest by sigmoid(s), as many as were asked for"
        )


def learn_masks(
    differentiation: Differentiation,
    groups: Iterable[Group],
    level: float,
    *,
    passes: int = PASSES,
    rate: float | None = None,
) -> LearnedMasks:
    """Logits of masks over the units of groups, by group id; groups that nothing sums over have none.

    Parameters
    ----------
    groups
        No unit may lie in two of them.
    level
        Share of their units that is to go.
    passes
        How often the samples run.
    rate
        Of Adam; by default what makes `TRAVEL` of all steps.

    Returns
    -------
    LearnedMasks
        Logits of shape (units,), by group id.
    """
    groups = list(groups)
    factored = unit_factors(differentiation.axis_graph, groups)
    mine = [group for group in groups if factored.factors[group.id]]
    if not mine:
        return LearnedMasks({})
    factors = [(group, factor) for group in mine for factor in factored.factors[group.id]]
    learning = Learning.of(differentiation, [each.name for _, each in factors], model=factored.model)
    ends = np.cumsum([group.units for group in mine])
    place = {group.id: slice(end - group.units, end) for group, end in zip(mine, ends, strict=True)}
    masks = new_masks(differentiation, np.ones(ends[-1]), level, passes, rate)

    def fed() -> Feed:
        drawn = masks.draw()
        return {each.name: each.spread(drawn[place[group.id]]) for group, each in factors}

    for _, found in learning.steps(passes, fed):
        gradient = np.zeros(len(masks.logits), np.float32)
        for group, each in factors:
            gradient[place[group.id]] += each.gather(found[each.name], group.units)
        masks.step(gradient)
    logits = {name: masks.logits[where].astype(np.float64) for name, where in place.items()}
    return LearnedMasks(logits, masks, learning.loss, passes)


def new_masks(
    differentiation: Differentiation, sizes: Array, level: float, passes: int, rate: float | None
) -> BinaryMasks:
    """Masks that are about to learn; by default a logit travels as far whatever the number of samples."""
    steps = max(passes * math.ceil(len(differentiation.data) / differentiation.together), 1)
    ramp = max(round(RAMP * steps), 1)
    return BinaryMasks(sizes, level, rate or TRAVEL / steps, differentiation.seed, ramp)
