"""Criteria that look at gradients of a loss on calibration data.

Below, `g_n` is the gradient of sample n's loss with respect to a factor of 1 by which all consumers see a unit
(`MaskGradients`), `g_b` the sum of that over batch b; `W` are the weights that make the unit, `G` the gradient of
the loss of all samples and `G_b` that of batch b with respect to them (`WeightGradients`).

taylor
    `sum_n |g_n|`: the change of each sample's loss, to first order, when the unit goes (Molchanov et al. 2017,
    https://arxiv.org/abs/1611.06440, equation 8, with the consumers' view of the unit as its activation). The
    magnitude is taken per sample: over a trained model's samples the gradients themselves cancel.
fisher
    `sum_n g_n^2 / 2`: the change of the loss to second order, with the Fisher information as the curvature (Theis
    et al. 2018, https://arxiv.org/abs/1801.05787; the squared Taylor expansion of Molchanov et al. 2019,
    https://arxiv.org/abs/1906.10771).
retrain_free
    `sum_b g_b^2`: the first stage of Kwon et al. 2022 (https://arxiv.org/abs/2204.09656), as Neural Compressor
    accumulates it. Its other stages are `onnxprune.choosing.rearranging` and the repair.
gradient
    `sum |G|` over the unit's weights.
snip
    `sum |W G|` (Lee et al. 2019, https://arxiv.org/abs/1810.02340).
snip_momentum
    `S <- 0.9 S + 1.0 sum |W G_b|`, batch after batch (Neural Compressor's default).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.criteria.criterion import Array, UnitActivations, UnitWeights, data_missing, one_per_unit
from onnxprune.criteria.unit_gradients import MASKS, WEIGHTS, MaskGradients, UnitGradients, WeightGradients

ALPHA, BETA = 0.9, 1.0
"""Neural Compressor's factors of what was known before, and of the new batch."""


@dataclass(frozen=True)
class MaskCriterion:
    """A way of scoring units by the gradients of masks over them.

    Scores are changes of the loss, so they compare between groups as they are.

    Parameters
    ----------
    name
        As the command line names it.
    function
        `(MaskGradients, rng) -> scores of shape (units,)`, higher = keep.
    source
        Where the definition comes from.
    """

    name: str
    function: Callable[[MaskGradients, np.random.Generator], Array]
    source: str = ""

    @property
    def kinds(self) -> frozenset[str]:
        """No parameter: gradients of masks."""
        return frozenset({MASKS})

    @property
    def needs_data(self) -> bool:
        """A loss is taken on samples."""
        return True

    def score(
        self,
        members: Sequence[UnitWeights],
        *,
        normalize: bool,
        rng: np.random.Generator,
        activations: Sequence[UnitActivations] | None = None,
        gradients: UnitGradients | None = None,
    ) -> Array | None:
        """Score one group by its masks; see `AnyCriterion.score`. Nothing else is looked at."""
        if gradients is None:
            raise data_missing(self.name, "gradients")
        if gradients.masks is None:
            return None
        found = self.function(gradients.masks, rng)
        return one_per_unit(self.name, found, gradients.masks.units, "MaskGradients")


@dataclass(frozen=True)
class GradientCriterion:
    """A way of scoring units by the gradients of the weights that make them.

    Parameters
    ----------
    name
        As the command line names it.
    function
        `(WeightGradients, rng) -> scores of shape (units,)`, higher = keep.
    source
        Where the definition comes from.
    scaled
        Whether scores change when a weight is divided by a number and what follows multiplies by it: then they are
        multiplied by the weight's L2 norm for rankings over all groups.
    """

    name: str
    function: Callable[[WeightGradients, np.random.Generator], Array]
    source: str = ""
    scaled: bool = False

    @property
    def kinds(self) -> frozenset[str]:
        """Gradients of weights."""
        return frozenset({WEIGHTS})

    @property
    def needs_data(self) -> bool:
        """A loss is taken on samples."""
        return True

    def score(
        self,
        members: Sequence[UnitWeights],
        *,
        normalize: bool,
        rng: np.random.Generator,
        activations: Sequence[UnitActivations] | None = None,
        gradients: UnitGradients | None = None,
    ) -> Array | None:
        """Sum over the parameters that make a group's units; see `AnyCriterion.score`."""
        if gradients is None:
            raise data_missing(self.name, "gradients")
        if not gradients.weights:
            return None
        total = np.zeros(gradients.weights[0].units)
        for member in gradients.weights:
            found = one_per_unit(self.name, self.function(member, rng), len(total), "WeightGradients")
            total = total + found * (member.norm if normalize and self.scaled else 1.0)
        return total


def taylor(gradients: MaskGradients, _: np.random.Generator) -> Array:
    """Sum of magnitudes over samples.

    Examples
    --------
    >>> import numpy as np
    >>> g = np.array([[1.0, -3.0], [1.0, 1.0]])
    >>> taylor(MaskGradients(g, g.sum(axis=1, keepdims=True)), np.random.default_rng(0)).tolist()
    [4.0, 2.0]
    """
    return np.asarray(np.abs(gradients.samples).sum(axis=1))


def fisher(gradients: MaskGradients, _: np.random.Generator) -> Array:
    """Half the sum of squares over samples."""
    return np.asarray(np.square(gradients.samples).sum(axis=1) / 2)


def retrain_free(gradients: MaskGradients, _: np.random.Generator) -> Array:
    """Sum of squares over batches."""
    return np.asarray(np.square(gradients.batches).sum(axis=1))


def gradient(weights: WeightGradients, _: np.random.Generator) -> Array:
    """Sum of the gradients' magnitudes."""
    return np.asarray(np.abs(weights.gradient).sum(axis=1))


def snip(weights: WeightGradients, _: np.random.Generator) -> Array:
    """Sum of the magnitudes of weight times gradient."""
    return np.asarray(np.abs(weights.values * weights.gradient).sum(axis=1))


def snip_momentum(
    weights: WeightGradients, _: np.random.Generator, alpha: float = ALPHA, beta: float = BETA
) -> Array:
    """The same batch after batch; what earlier ones said fades.

    Examples
    --------
    >>> import numpy as np
    >>> one = np.ones((1, 1))
    >>> weights = WeightGradients(one, one, np.array([[1.0, 2.0, 4.0]]), 1.0)
    >>> snip_momentum(weights, np.random.default_rng(0), alpha=0.5).tolist()
    [5.25]
    """
    scores = np.zeros(weights.units)
    for batch in weights.saliency.T:
        scores = alpha * scores + beta * batch
    return scores


CRITERIA: dict[str, MaskCriterion | GradientCriterion] = {
    "taylor": MaskCriterion("taylor", taylor, "arXiv:1611.06440"),
    "fisher": MaskCriterion("fisher", fisher, "arXiv:1801.05787"),
    "retrain_free": MaskCriterion("retrain_free", retrain_free, "arXiv:2204.09656"),
    "gradient": GradientCriterion("gradient", gradient, scaled=True),
    "snip": GradientCriterion("snip", snip, "arXiv:1810.02340"),
    "snip_momentum": GradientCriterion("snip_momentum", snip_momentum, "arXiv:1810.02340"),
}
