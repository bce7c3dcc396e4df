"""Movement sparsity without training: importance that accumulates while the mask grows.

NNCF's, after Sanh et al. 2020 (https://arxiv.org/abs/2005.07683). Every block of the pattern has an importance S.
A step of training would change it by the gradient that passes the mask,

    S <- S - (sum of W G_b over the block + lambda 0.5 prod(block) sigmoid'(S) / blocks)

G_b being the gradient of batch b's mean loss with respect to the masked weights, and the second term that of
`lambda 0.5 prod(block) mean(sigmoid(S))`. Here nothing else moves. Each round is a pass over the samples:

1. The threshold is -inf: nothing is masked, importance accumulates. The first third of the rounds, at least one.
2. The threshold rises as `T - (T - T_0) (1 - p)^3` to its final value T. T_0 is the importance that one weight
   in a thousand is below. Weights come back when their importance grows again.
3. The mask `S > T` is frozen, and a solver may make up for it. As weights do not move, that takes no pass.

Asked for by level, stage 2 raises the share of masked weights as the schedule says, and T is what follows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.allocate.schedule import levels
from onnxprune.criteria.binary import sigmoid
from onnxprune.patterns import Pattern
from onnxprune.patterns.pattern import Bools
from onnxprune.sparsity.choices import Sparsity
from onnxprune.sparsity.layers import WeightLayer
from onnxprune.sparsity.rb import Blocks
from onnxprune.sparsity.select import Scored, select
from onnxprune.statistics.gradients import Differentiation
from onnxprune.statistics.learning import Learning

Array = np.ndarray[Any, Any]

POWER = 3
"""Of the curve on which the threshold rises."""

LOWEST = 0.001
"""Share of the weights below the threshold where it begins to rise."""


@dataclass(frozen=True)
class Moved:
    """What importance led to.

    Attributes
    ----------
    zeros
        By the weight's name, flags (outputs, columns).
    importance
        By the weight's name, (outputs, columns): to every weight that of its block.
    thresholds
        Of every round, and the final one; -inf where nothing was masked.
    regularization
        The factor lambda.
    loss
        What was differentiated, for people.
    structured
        By the name of a group, how many of its units lost all of their weights, and how many it has. None
        where weights were not resolved to units.
    """

    zeros: Mapping[str, Bools]
    importance: Mapping[str, Array]
    thresholds: tuple[float, ...]
    regularization: float
    loss: str = ""
    structured: Mapping[str, tuple[int, int]] | None = None

    @property
    def statistics(self) -> dict[str, float]:
        """By NNCF's names."""
        return {
            "importance_threshold": self.thresholds[-1],
            "importance_regularization_factor": self.regularization,
        }

    def sentence(self, _: str) -> str:
        """What was learned, for reports."""
        text = (
            f"importance accumulated in {len(self.thresholds) - 1} rounds with the {self.loss}; the mask is "
            f"importance > {self.thresholds[-1]:.4g}"
        )
        if self.structured is None:
            return text
        gone = {name: pair for name, pair in self.structured.items() if pair[0]}
        if not gone:
            return f"{text}; no unit of any group lost all of its weights, so all weights of groups are back"
        listed = ", ".join(f"{lost} of {units} of {name}" for name, (lost, units) in gone.items())
        return f"{text}; units that lost all of their weights: {listed}; weights of the others are back"


def accumulate(importance: Array, products: Array, regularization: float, size: float) -> Array:
    """Importance of a layer's blocks after one batch.

    Parameters
    ----------
    importance
        One number per block.
    products
        The same shape: `sum of W G_b` over each block.
    regularization
        The factor lambda.
    size
        Weights per block.

    Examples
    --------
    >>> import numpy as np
    >>> accumulate(np.zeros(2), np.array([1.0, -1.0]), 0.0, 1).tolist()
    [-1.0, 1.0]
    >>> accumulate(np.zeros(2), np.zeros(2), 1.0, 4).tolist()
    [-0.25, -0.25]
    """
    p = sigmoid(importance)
    slope = regularization * 0.5 * size * p * (1 - p) / importance.size
    return np.asarray(importance - products - slope)


def rising(progress: float, start: float, final: float) -> float:
    """The threshold in stage 2.

    Examples
    --------
    >>> rising(0.0, -8.0, 0.0), rising(0.5, -8.0, 0.0), rising(1.0, -8.0, 0.0)
    (-8.0, -1.0, 0.0)
    """
    return final - (final - start) * (1 - progress) ** POWER


def learn_movement(
    layers: Sequence[WeightLayer],
    pattern: Pattern,
    differentiation: Differentiation,
    sparsity: Sparsity,
    scope: str,
    gone: Mapping[str, Bools],
) -> Moved:
    """Importance of the blocks of layers, and the mask that follows.

    Parameters
    ----------
    layers
        Of the model of `differentiation`; their weights are not mutated.
    sparsity
        Level or threshold, rounds, schedule, regularisation.
    scope
        What a level is shared by; see `onnxprune.sparsity.select`.
    gone
        By name, weights that are zero and stay so.
    """
    blocks = {layer.name: Blocks(layer, pattern) for layer in layers}
    weights = {layer.name: layer.matrix().astype(np.float32) for layer in layers}
    importance = {name: np.zeros(each.shape) for name, each in blocks.items()}
    learning = Learning.of(differentiation, list(weights))
    masking = _Masking(blocks, sparsity, scope, gone)
    warm = max(1, math.ceil(sparsity.rounds / 3))
    thresholds: list[float] = []
    zeros, start = dict(gone), -math.inf
    for number in range(sparsity.rounds):
        if number == warm:
            row = np.concatenate([each.ravel() for each in importance.values()])
            start = float(np.quantile(row, LOWEST))
        threshold = -math.inf
        if number >= warm:
            zeros, threshold = masking.at(importance, number - warm + 1, sparsity.rounds - warm + 1, start)
        thresholds.append(threshold)
        fed = {
            layer.name: layer.from_matrix(np.where(zeros[layer.name], 0, weights[layer.name])).astype(
                np.float32
            )
            for layer in layers
        }
        for _, found in learning.steps(1, fed.copy, number):
            for layer in layers:
                name = layer.name
                products = blocks[name].sums(weights[name] * layer.gradient(found[name]))
                size = layer.grid.size / products.size
                importance[name] = accumulate(importance[name], products, sparsity.regularization, size)
    zeros, final = masking.at(importance, 1, 1, start)
    spread = {name: each.spread(importance[name]) for name, each in blocks.items()}
    return Moved(zeros, spread, (*thresholds, final), sparsity.regularization, learning.loss)


@dataclass(frozen=True)
class _Masking:
    """From importance to a mask."""

    blocks: Mapping[str, Blocks]
    sparsity: Sparsity
    scope: str
    gone: Mapping[str, Bools]

    def at(
        self, importance: Mapping[str, Array], step: int, steps: int, start: float
    ) -> tuple[dict[str, Bools], float]:
        """The mask after so many of the steps of stage 2, and its threshold."""
        spread = {name: each.spread(importance[name]) for name, each in self.blocks.items()}
        asked = self.sparsity
        if asked.threshold is not None:
            threshold = asked.threshold
            if step < steps:
                threshold = rising(step / steps, min(start, threshold), threshold)
            return {name: (s <= threshold) | self.gone[name] for name, s in spread.items()}, threshold
        level = levels(asked.schedule, steps, 0.0, asked.level)[step - 1]
        scored = [
            Scored(name, each.layer.grid, spread[name], self.gone[name]) for name, each in self.blocks.items()
        ]
        zeros = select(
            scored,
            asked.shape,
            level,
            scope=self.scope,
            min_ratio=min(asked.min_ratio, level),
            max_ratio=asked.max_ratio,
        )
        masked = [spread[name][flags & ~self.gone[name]] for name, flags in zeros.items()]
        return zeros, max((float(each.max()) for each in masked if each.size), default=-math.inf)
