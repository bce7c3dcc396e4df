"""Regularised binary masks: logits of masks that learn how many may go and which, the weights being frozen.

NNCF's `RB` sparsity, after Louizos et al. 2018 (https://arxiv.org/abs/1712.01312). A mask is 1 with probability
`sigmoid(s)`: with u uniform in (0, 1) it is `sigmoid(s + logit(u)) > 0.5`. The loss is the task's plus
`((D - (1 - level)) / 0.05)^2`, D being the expected density, the mean of `sigmoid(s)` over the weights that the
masks cover. The gradient passes the threshold as if it were not there: `dL/ds = dL/dm p (1 - p)` with
`p = sigmoid(s + logit(u))`. Adam (https://arxiv.org/abs/1412.6980) takes the steps. The level grows from 0 on
NNCF's exponential schedule, `1 - (1 - level)^(step / ramp)`, so that masks go one after another, those that
matter least first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

START = 0.99
"""Probability that a mask is 1 before anything was learned."""

TOLERANCE = 0.05
"""How far the density may be off for a penalty of 1."""

BETAS = 0.9, 0.999
"""How long Adam remembers gradients and their squares."""

_TINY = 1e-15


@dataclass(eq=False)
class BinaryMasks:
    """Masks that are drawn and learned, all of them in one row.

    Parameters
    ----------
    sizes
        Shape (masks,): how many weights each covers.
    level
        Share of the weights that is to go.
    rate
        Of Adam: about how far a logit moves in one step.
    seed
        Of what is drawn.
    ramp
        Steps in which the level is reached.
    logits
        Shape (masks,), float32; mutated by `step`.
    """

    sizes: Array
    level: float
    rate: float
    seed: int = 0
    ramp: int = 1
    logits: Array = field(init=False)

    def __post_init__(self) -> None:
        """Start where nearly all masks are 1."""
        count = len(self.sizes)
        self.logits = np.full(count, np.log(START / (1 - START)), np.float32)
        self._shares = (self.sizes / self.sizes.sum()).astype(np.float32)
        self._rng = np.random.default_rng(self.seed)
        self._drawn = np.ones(count, np.float32)
        self._mean, self._square = np.zeros(count, np.float32), np.zeros(count, np.float32)
        self._steps = 0

    def draw(self) -> Array:
        """Masks for one run, shape (masks,), float32, 0 or 1."""
        u = self._rng.random(len(self.logits), np.float32)
        np.clip(u, 1e-6, 1 - 1e-6, out=u)
        self._drawn = sigmoid(self.logits + np.log(u / (1 - u)))
        return (self._drawn > 0.5).astype(np.float32)

    def step(self, gradient: Array) -> None:
        """Learn from one run.

        Parameters
        ----------
        gradient
            Shape (masks,): of the task's loss, averaged over samples, with respect to the masks drawn last.
        """
        g = gradient * self._drawn * (1 - self._drawn) + self.penalty_gradient()
        self._steps += 1
        first, second = BETAS
        self._mean += (1 - first) * (g - self._mean)
        self._square += (1 - second) * (g * g - self._square)
        mean = self._mean / (1 - first**self._steps)
        square = self._square / (1 - second**self._steps)
        self.logits -= self.rate * mean / (np.sqrt(square) + _TINY)

    @property
    def density(self) -> float:
        """Share of the weights that is expected to stay."""
        return float(self._shares @ sigmoid(self.logits))

    @property
    def wanted(self) -> float:
        """The density of the step that comes: `1 - level` from the end of the ramp on."""
        return float((1 - self.level) ** min((self._steps + 1) / self.ramp, 1.0))

    @property
    def penalty(self) -> float:
        """`((density - wanted) / 0.05)^2`."""
        return ((self.density - self.wanted) / TOLERANCE) ** 2

    def penalty_gradient(self) -> Array:
        """Its gradient with respect to the logits, shape (masks,)."""
        p = sigmoid(self.logits)
        slope = 2 * (self.density - self.wanted) / TOLERANCE**2
        return np.asarray(slope * self._shares * p * (1 - p))

    @property
    def mean_sparse_prob(self) -> float:
        """`1 - mean(sigmoid(s))` over the weights: NNCF's statistic of that name."""
        return 1.0 - self.density

    @property
    def below(self) -> float:
        """Share of the weights that the inference mask, `sigmoid(s) > 0.5`, would make zero."""
        return float(self._shares @ (self.logits <= 0))

    @property
    def statistics(self) -> dict[str, float]:
        """What reports say: `mean_sparse_prob`, and `below` as `inference_level`."""
        return {"mean_sparse_prob": self.mean_sparse_prob, "inference_level": self.below}


def sigmoid(x: Array) -> Array:
    """`1 / (1 + exp(-x))`, without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))
