"""Criteria that look at what consumers see of the units on calibration data.

Below, `x` are the values of one feature of a unit over all positions, and `W` is the consumer's weight matrix; see
`UnitActivations` for both.

activation-mean
    `sum |E[x]|` over a unit's features (Molchanov et al. 2017, https://arxiv.org/abs/1611.06440). The magnitude of
    the mean, not the mean of magnitudes: after ReLU they are the same, elsewhere opposite signs cancel.
apoz
    1 - the average percentage of zeros: the share of positions with `x > 0`, averaged over a unit's features and
    over the consumers of its group (Hu et al. 2016, https://arxiv.org/abs/1607.03250).
variance
    `sum Var[x]` over a unit's features: a unit that hardly varies can become a bias (the square of the standard
    deviation of activations in https://arxiv.org/abs/1611.06440).
flap
    `sum Var[x] ||W[:, feature]||_2^2`: what the consumer's output loses when the feature is replaced by its mean
    (An et al. 2024, https://arxiv.org/abs/2312.11983). In rankings over all groups the scores of each consumer
    are standardised, as theirs are.
wanda
    `sum |W| ||x||_2` over features and outputs (Sun et al. 2023, https://arxiv.org/abs/2306.11695, summed over what
    belongs to a unit). `||x||_2` is divided by the root of the number of positions, so that consumers that see more
    of them do not weigh more.
"""

from __future__ import annotations

import numpy as np

from onnxprune.criteria.criterion import ActivationCriterion, Array, UnitActivations, as_is


def activation_mean(seen: UnitActivations, _: np.random.Generator) -> Array:
    """Sum of the features' mean activations, in magnitude; shape (units,)."""
    return np.asarray(np.abs(seen.mean).sum(axis=1))


def apoz(seen: UnitActivations, _: np.random.Generator) -> Array:
    """Average share of positions at which a feature is positive; shape (units,), in [0, 1]."""
    return np.asarray(seen.nonzero.mean(axis=1))


def variance(seen: UnitActivations, _: np.random.Generator) -> Array:
    """Sum of the features' variances; shape (units,)."""
    return np.asarray(seen.variance.sum(axis=1))


def flap(seen: UnitActivations, _: np.random.Generator) -> Array:
    """Sum of the features' variances, each times the energy of its weights; shape (units,)."""
    return np.asarray((seen.variance * seen.weight_energy).sum(axis=1))


def wanda(seen: UnitActivations, _: np.random.Generator) -> Array:
    """Sum of the features' root mean squares, each times the magnitude of its weights; shape (units,)."""
    return np.asarray((np.sqrt(seen.second_moment) * seen.weight_l1).sum(axis=1))


def standardized(scores: Array) -> Array:
    """Scores of one consumer with mean 0 and standard deviation 1; zeros where all are equal.

    Examples
    --------
    >>> import numpy as np
    >>> standardized(np.array([1.0, 2.0])).tolist()
    [-1.0, 1.0]
    """
    largest = np.abs(scores).max()
    scaled = scores / largest if largest > 0 else scores
    deviation = scaled.std()
    if deviation <= 1e-12:  # nothing but rounding
        return np.zeros_like(scores)
    return np.asarray((scaled - scaled.mean()) / deviation)


CRITERIA: dict[str, ActivationCriterion] = {
    "activation-mean": ActivationCriterion("activation-mean", activation_mean, "arXiv:1611.06440"),
    "apoz": ActivationCriterion("apoz", apoz, "arXiv:1607.03250", across=as_is, average=True),
    "variance": ActivationCriterion("variance", variance, "arXiv:1611.06440"),
    "flap": ActivationCriterion("flap", flap, "arXiv:2312.11983", across=standardized),
    "wanda": ActivationCriterion("wanda", wanda, "arXiv:2306.11695"),
}
