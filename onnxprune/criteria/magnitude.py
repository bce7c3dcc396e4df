"""Criteria that look at weights alone.

l1, l2
    `sum |W_i|` and `||W_i||_2` of unit i's weights (Li et al. 2017, https://arxiv.org/abs/1608.08710;
    NNCF `filter_importance`).
geometric-median
    `sum_j ||W_i - W_j||_2`: a unit that is close to all others is redundant (He et al. 2019,
    https://arxiv.org/abs/1811.00250).
lamp
    `s_i / (sum of s_j over all units j that are not smaller)` with `s_i = ||W_i||_2^2`: what goes with unit i, as a
    share of what is left when all smaller ones are gone (Lee et al. 2021, https://arxiv.org/abs/2010.07611,
    there for single weights). Comparable across layers; the largest unit of a layer always has 1.
bn-scale
    `|gamma_i|` of the BatchNormalization after the layer (Liu et al. 2017, https://arxiv.org/abs/1708.06519).
random
    Uniform, from the seed: the baseline that every other criterion should beat.
"""

from __future__ import annotations

import numpy as np

from onnxprune.criteria.criterion import Array, Criterion


def l1(values: Array, _: np.random.Generator) -> Array:
    """Sum of magnitudes per unit; `values` has shape (units, features).

    Examples
    --------
    >>> import numpy as np
    >>> l1(np.array([[1.0, -2.0], [0.0, 0.5]]), np.random.default_rng(0)).tolist()
    [3.0, 0.5]
    """
    return np.asarray(np.abs(values).sum(axis=1))


def l2(values: Array, _: np.random.Generator) -> Array:
    """Euclidean norm per unit; `values` has shape (units, features)."""
    return np.asarray(np.sqrt(np.square(values).sum(axis=1)))


_NEAR = 1e-6
"""Squared distances below this share of the squared norms are computed without the binomial formula."""


def geometric_median(values: Array, _: np.random.Generator) -> Array:
    """Sum of distances to all units of the same parameter; `values` has shape (units, features)."""
    squares = np.square(values).sum(axis=1)
    total = np.zeros(len(values))
    step = max(1, 16_000_000 // max(len(values), 1))
    for start in range(0, len(values), step):
        part = values[start : start + step]
        distance = squares[start : start + step, None] + squares[None] - 2 * (part @ values.T)
        near = np.argwhere(distance < _NEAR * (squares[start : start + step, None] + squares[None]))
        for i, j in near:  # here the differences of squares have lost their digits
            distance[i, j] = np.square(part[i] - values[j]).sum()
        total[start : start + step] = np.sqrt(distance).sum(axis=1)
    return total


def lamp(values: Array, _: np.random.Generator) -> Array:
    """Squared norm per unit over the sum of all that are not smaller; `values` has shape (units, features).

    Of equal units the one with the lower index counts as smaller. Units of zeros have score 0.

    Examples
    --------
    >>> import numpy as np
    >>> lamp(np.array([[2.0], [1.0], [1.0]]), np.random.default_rng(0)).round(3).tolist()
    [1.0, 0.167, 0.2]
    """
    squares = np.square(values).sum(axis=1)
    order = np.argsort(squares, kind="stable")
    ascending = squares[order]
    rest = np.cumsum(ascending[::-1])[::-1]
    scores = np.zeros(len(values))
    scores[order] = np.divide(ascending, rest, out=np.zeros_like(rest), where=rest > 0)
    return scores


def random(values: Array, rng: np.random.Generator) -> Array:
    """Uniform numbers in [0, 1), one per unit."""
    return np.asarray(rng.random(len(values)))


CRITERIA: dict[str, Criterion] = {
    "l1": Criterion("l1", l1, source="arXiv:1608.08710", each=True),
    "l2": Criterion("l2", l2, source="arXiv:1608.08710", each=True),
    "geometric-median": Criterion("geometric-median", geometric_median, source="arXiv:1811.00250"),
    "lamp": Criterion("lamp", lamp, source="arXiv:2010.07611"),
    "bn-scale": Criterion("bn-scale", l1, frozenset({"bn-scale"}), source="arXiv:1708.06519"),
    "random": Criterion("random", random, once=True),
}
