"""Second stage of Kwon et al. 2022 (https://arxiv.org/abs/2204.09656): which units go, when it is known how many.

Scores of single units leave out how units act together. With the whole Fisher information of a group's masks, not
just its diagonal, the loss of a set S that goes is `||sum over S of g||^2`, `g` being a unit's gradients over the
batches. Greedy, as in the paper: every unit that stays, in ascending order of its own `||g||^2`, joins those that
go, and whichever of them then leaves the least comes back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.criteria.criterion import Array
from onnxprune.graph.axes import Bools, Index


@dataclass(frozen=True, eq=False)
class Rearranged:
    """The units that go, and what that costs.

    Attributes
    ----------
    gone
        One flag per unit; as many as before, in every block.
    before, after
        `||sum of g||^2` over those that went before, and over those that go now.
    """

    gone: Bools
    before: float
    after: float


def rearrange(gradients: Array, gone: Bools, blocks: Index | None = None) -> Rearranged:
    """Swap units that go for others while that lowers the norm of their summed gradients.

    Parameters
    ----------
    gradients
        Shape (units, batches), with respect to a mask per unit.
    gone
        One flag per unit.
    blocks
        Block of each unit, or None: units are swapped within their block.

    Examples
    --------
    >>> import numpy as np
    >>> g = np.array([[1.0], [1.1], [-1.2], [5.0]])
    >>> rearrange(g, np.array([True, True, False, False])).gone.tolist()
    [False, True, True, False]
    """
    gram = gradients @ gradients.T
    own = np.diagonal(gram)
    gone = gone.copy()
    before = _loss(gradients, gone)
    sums = gram @ gone
    for unit in np.flatnonzero(~gone)[np.argsort(own[~gone], kind="stable")]:
        joined = gone.copy()
        joined[unit] = True
        if blocks is not None:
            joined &= blocks == blocks[unit]
        candidates = np.flatnonzero(joined)
        left = own[candidates] - 2 * (sums[candidates] + gram[candidates, unit])
        back = candidates[np.argmin(left)]
        if left.min() < own[unit] - 2 * (sums[unit] + own[unit]) and back != unit:
            gone[unit], gone[back] = True, False
            sums += gram[:, unit] - gram[:, back]
    return Rearranged(gone, before, _loss(gradients, gone))


def _loss(gradients: Array, gone: Bools) -> float:
    return float(np.square(gradients[gone].sum(axis=0)).sum())
