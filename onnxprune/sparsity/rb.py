"""RB for weights: a mask per block of the pattern, learned on calibration samples.

See `onnxprune.criteria.binary` for the masks and their loss. Every run draws masks, multiplies the weights by
them, and takes the gradient with respect to the products from one graph: `dL/dm` is the sum of `w dL/d(w m)` over
a block, whatever m is. The weights stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.calibrate.dataset import Feed
from onnxprune.patterns import Element, NofM, Pattern
from onnxprune.sparsity.layers import WeightLayer
from onnxprune.statistics.gradients import Differentiation
from onnxprune.statistics.learning import PASSES, LearnedMasks, Learning, new_masks

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Blocks:
    """The blocks of one layer, for masks and sums over them.

    Attributes
    ----------
    layer
        Whose weight they divide.
    pattern
        That divides it. N:M zeroes part of a block, so its masks are those of single weights.
    """

    layer: WeightLayer
    pattern: Pattern

    @property
    def _division(self) -> Pattern:
        return Element() if isinstance(self.pattern, NofM) else self.pattern

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one number per block."""
        return tuple(np.shape(self.sums(np.zeros(self.layer.grid.shape, np.float32))))

    def sums(self, matrix: Array) -> Array:
        """Over each block of an array (outputs, columns)."""
        return self._division.reduce(matrix, self.layer.grid, np.sum)

    def spread(self, values: Array) -> Array:
        """To every weight the value of its block, (outputs, columns)."""
        return self._division.spread(values, self.layer.grid)


def learn_logits(
    layers: Sequence[WeightLayer],
    pattern: Pattern,
    differentiation: Differentiation,
    level: float,
    *,
    passes: int = PASSES,
    rate: float | None = None,
) -> LearnedMasks:
    """Logits of masks over the blocks of layers.

    Parameters
    ----------
    layers
        Of the model of `differentiation`; their weights are not mutated.
    pattern
        It divides all of them.
    level
        Share of their weights that is to go.
    passes
        How often the samples run.
    rate
        Of Adam; by default what makes `onnxprune.statistics.learning.TRAVEL` of all steps.

    Returns
    -------
    LearnedMasks
        By the weight's name, to every weight the logit of its block, (outputs, columns).
    """
    blocks = [Blocks(layer, pattern) for layer in layers]
    shapes = [each.shape for each in blocks]
    counts = [int(np.prod(shape)) for shape in shapes]
    sizes = [np.full(n, layer.grid.size / n) for n, layer in zip(counts, layers, strict=True)]
    ends = np.cumsum(counts)
    places = [slice(end - n, end) for n, end in zip(counts, ends, strict=True)]
    masks = new_masks(differentiation, np.concatenate(sizes), level, passes, rate)
    names = [layer.name for layer in layers]
    learning = Learning.of(differentiation, names)
    weights = [layer.matrix().astype(np.float32) for layer in layers]

    def spread(row: Array) -> list[Array]:
        parts = zip(blocks, shapes, places, strict=True)
        return [each.spread(row[place].reshape(shape)) for each, shape, place in parts]

    def fed() -> Feed:
        drawn = spread(masks.draw())
        return {
            layer.name: layer.from_matrix(weight * mask).astype(np.float32)
            for layer, weight, mask in zip(layers, weights, drawn, strict=True)
        }

    gradient = np.zeros(len(masks.logits), np.float32)
    for _, found in learning.steps(passes, fed):
        for layer, each, weight, place in zip(layers, blocks, weights, places, strict=True):
            gradient[place] = each.sums(weight * layer.gradient(found[layer.name])).ravel()
        masks.step(gradient)
    logits = [each.astype(np.float64) for each in spread(masks.logits)]
    return LearnedMasks(dict(zip(names, logits, strict=True)), masks, learning.loss, passes)
