"""Scores of the weights of all layers: what criteria see of weights, inputs and gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxprune.choosing.evidence import Evidence
from onnxprune.criteria.weights import Array, Blocks, WeightCriterion, Weights
from onnxprune.patterns import Pattern
from onnxprune.sparsity.layers import WeightLayer
from onnxprune.sparsity.rb import learn_logits
from onnxprune.sparsity.select import Scored
from onnxprune.statistics.collect import input_statistics
from onnxprune.statistics.learning import LearnedMasks


@dataclass
class Scorer:
    """Scores layers round after round; what gradients left behind is carried on.

    Parameters
    ----------
    layers
        What to score; their weights are read from the model each time.
    pattern
        For criteria that sum over its blocks.
    criterion
        What scores.
    evidence
        What the samples say; None: the criterion looks at weights alone.
    folded
        What the criterion's fold made of the gradients so far, or the logits that were learned, by name.
    learned
        The masks of the last round, for a criterion that learns some.
    """

    layers: Sequence[WeightLayer]
    pattern: Pattern
    criterion: WeightCriterion
    evidence: Evidence | None = None
    folded: dict[str, Array] = field(default_factory=dict)
    learned: LearnedMasks | None = None

    def score(self, gone: Mapping[str, Array], level: float) -> list[Scored]:
        """Scores of all layers as the model is now.

        Parameters
        ----------
        level
            What they are for: masks that are learned learn how many go, too.
        gone
            By name, flags (outputs, columns) of weights that are zero and stay so.
        """
        inputs = self._inputs() if self.criterion.inputs else {}
        if self.criterion.fold is not None:
            self._fold()
        if self.criterion.learns:
            self._learn(level)
        found = []
        for layer in self.layers:
            seen = Weights(layer.matrix(), inputs.get(layer.name), self.folded.get(layer.name))
            scores = self.criterion.score(seen)
            found.append(Scored(layer.name, layer.grid, scores, gone.get(layer.name)))
        return found

    def _inputs(self) -> dict[str, Array]:
        """Root mean square of what each weight multiplies, by the weight's name."""
        evidence = self._given()
        statistics = input_statistics(
            evidence.analysis.axis_graph,
            [layer.consumer for layer in self.layers],
            evidence.batches,
            provider=evidence.provider,
            budget=evidence.budget,
            seed=evidence.seed,
            progress=evidence.tick("collecting statistics"),
        )
        found = {}
        for layer in self.layers:
            moments = statistics[layer.consumer.weight].moments
            squares = np.einsum("gff->gf", moments.gram) / max(moments.count, 1.0)
            per_output = layer.grid.outputs // len(squares)
            found[layer.name] = np.sqrt(np.maximum(squares, 0.0)).repeat(per_output, axis=0)
        return found

    def _fold(self) -> None:
        """Take the gradients of all batches in."""
        fold = self.criterion.fold
        if fold is None:
            raise ValueError(f"{self.criterion.name} looks at no gradients")
        values = {layer.name: layer.matrix() for layer in self.layers}
        blocks = {layer.name: Blocks(self.pattern, layer.grid) for layer in self.layers}
        for found in self._given().differentiation.by_batch(list(values)):
            for layer in self.layers:
                name = layer.name
                state = self.folded.get(name, np.zeros(()))
                self.folded[name] = fold(state, values[name], layer.gradient(found[name]), blocks[name])

    def _learn(self, level: float) -> None:
        """Learn masks for a level."""
        found = learn_logits(self.layers, self.pattern, self._given().differentiation, level)
        self.folded.update(found.logits)
        self.learned = found

    def _given(self) -> Evidence:
        if self.evidence is None:
            raise ValueError(f"{self.criterion.name} looks at samples")
        return self.evidence
