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
snip_momentum_block
    `S <- 0.9 S + 1.0 |sum W G_b|`, the sum being over all weights that make the unit: `|dL_b / dm|` with one
    factor m = 1 by which they are multiplied (Neural Compressor's block-wise variant, a unit being the block).
movement
    `-sum_b sum W G_b`: grows where a step of training would move the unit's weights away from zero (Sanh et al.
    2020, https://arxiv.org/abs/2005.07683). The weights do not move, so this is the first-order change of the
    loss when they go. Weights that the loss does not depend on in scale (behind a normalisation) get 0.
rb
    `s`, the logit of a mask over the unit that was learned on the samples (NNCF's regularised binary sparsity,
    `onnxprune.criteria.binary`; Louizos et al. 2018, https://arxiv.org/abs/1712.01312).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.criteria.criterion import Array, UnitActivations, UnitWeights, data_missing, one_per_unit
from onnxprune.criteria.unit_gradients import (
    LOGITS,
    MASKS,
    WEIGHTS,
    MaskGradients,
    UnitGradients,
    WeightGradients,
)
from onnxprune.errors import UsageError

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
    jointly
        Whether a function of all parameters together, side by side, instead of the sum of each one's.
    """

    name: str
    function: Callable[[WeightGradients, np.random.Generator], Array]
    source: str = ""
    scaled: bool = False
    jointly: bool = False

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
        for member in [beside(gradients.weights)] if self.jointly else gradients.weights:
            found = one_per_unit(self.name, self.function(member, rng), len(total), "WeightGradients")
            total = total + found * (member.norm if normalize and self.scaled else 1.0)
        return total


@dataclass(frozen=True)
class LogitCriterion:
    """A way of scoring units by masks over them that were learned.

    Logits compare between groups as they are: one penalty holds for all.

    Parameters
    ----------
    name
        As the command line names it.
    source
        Where the definition comes from.
    """

    name: str
    source: str = ""

    @property
    def kinds(self) -> frozenset[str]:
        """Logits of masks."""
        return frozenset({LOGITS})

    @property
    def needs_data(self) -> bool:
        """Masks learn from samples."""
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
        """The logits themselves; see `AnyCriterion.score`."""
        if gradients is None:
            raise data_missing(self.name, "gradients")
        return gradients.logits


def beside(weights: Sequence[WeightGradients]) -> WeightGradients:
    """Parameters of the same units as one, their features side by side."""
    changes = [each.change for each in weights if each.change is not None]
    return WeightGradients(
        np.concatenate([each.values for each in weights], axis=1),
        np.concatenate([each.gradient for each in weights], axis=1),
        np.sum([each.saliency for each in weights], axis=0),
        float(np.linalg.norm([each.norm for each in weights])),
        np.sum(changes, axis=0) if len(changes) == len(weights) else None,
    )


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
    return _momentum(weights.saliency, alpha, beta)


def snip_momentum_block(
    weights: WeightGradients, _: np.random.Generator, alpha: float = ALPHA, beta: float = BETA
) -> Array:
    """The same with the magnitude of what a batch says of the unit as a whole.

    Examples
    --------
    >>> import numpy as np
    >>> one = np.ones((1, 1))
    >>> weights = WeightGradients(one, one, np.array([[3.0, 3.0]]), 1.0, np.array([[1.0, -3.0]]))
    >>> snip_momentum_block(weights, np.random.default_rng(0), alpha=0.5).tolist()
    [3.5]
    """
    if weights.change is None:
        raise UsageError(
            "the criterion snip_momentum_block looks at signed sums per batch, which these gradients lack",
            "Give WeightGradients its `change`.",
        )
    return _momentum(np.abs(weights.change), alpha, beta)


def _momentum(batches: Array, alpha: float, beta: float) -> Array:
    scores = np.zeros(len(batches))
    for batch in batches.T:
        scores = alpha * scores + beta * batch
    return scores


def movement(weights: WeightGradients, _: np.random.Generator) -> Array:
    """Minus the sum of weight times gradient."""
    return np.asarray(-(weights.values * weights.gradient).sum(axis=1))


CRITERIA: dict[str, MaskCriterion | GradientCriterion | LogitCriterion] = {
    "taylor": MaskCriterion("taylor", taylor, "arXiv:1611.06440"),
    "fisher": MaskCriterion("fisher", fisher, "arXiv:1801.05787"),
    "retrain_free": MaskCriterion("retrain_free", retrain_free, "arXiv:2204.09656"),
    "gradient": GradientCriterion("gradient", gradient, scaled=True),
    "snip": GradientCriterion("snip", snip, "arXiv:1810.02340"),
    "snip_momentum": GradientCriterion("snip_momentum", snip_momentum, "arXiv:1810.02340"),
    "snip_momentum_block": GradientCriterion(
        "snip_momentum_block", snip_momentum_block, "arXiv:1810.02340", jointly=True
    ),
    "movement": GradientCriterion("movement", movement, "arXiv:2005.07683"),
    "rb": LogitCriterion("rb", "arXiv:1712.01312"),
}
