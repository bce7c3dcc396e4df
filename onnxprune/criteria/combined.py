"""Criteria added up by rank: "l2+apoz" asks for units that both keep.

Scores of two criteria have no common scale, ranks do. Within a group the lowest score has rank 0 and the highest 1;
equal ones share the average of theirs. A unit's score is the sum of its ranks. In a ranking over all groups every
group thus has the same spread, so that groups lose similar shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.criteria.criterion import AnyCriterion, Array, UnitActivations, UnitWeights, extra
from onnxprune.criteria.unit_gradients import UnitGradients


@dataclass(frozen=True)
class CombinedCriterion:
    """The sum of the ranks that several criteria give.

    Parameters
    ----------
    name
        As the command line names it: the names of the parts, with plus signs between.
    parts
        The criteria that are added.
    """

    name: str
    parts: tuple[AnyCriterion, ...]

    @property
    def kinds(self) -> frozenset[str]:
        """What the parts read."""
        return frozenset().union(*(part.kinds for part in self.parts))

    @property
    def source(self) -> str:
        """Where the definitions of the parts come from."""
        return ", ".join(dict.fromkeys(part.source for part in self.parts if part.source))

    @property
    def needs_data(self) -> bool:
        """Whether one of the parts does."""
        return any(part.needs_data for part in self.parts)

    def score(
        self,
        members: Sequence[UnitWeights],
        *,
        normalize: bool,
        rng: np.random.Generator,
        activations: Sequence[UnitActivations] | None = None,
        gradients: UnitGradients | None = None,
    ) -> Array | None:
        """Sum of the parts' ranks, None where one of them finds nothing to read; see `AnyCriterion.score`."""
        total: Array | None = None
        for part in self.parts:
            scores = part.score(
                members, normalize=normalize, rng=rng, activations=activations, **extra(part, gradients)
            )
            if scores is None:
                return None
            total = ranks(scores) if total is None else total + ranks(scores)
        return total


_TIED = 1e-9
"""Scores that differ by less than this share are the same score, rounded in two ways."""


def ranks(scores: Array) -> Array:
    """Ranks of scores, divided by their number less one; equal scores share the average of their ranks.

    Parameters
    ----------
    scores
        Shape (units,).

    Returns
    -------
    array of shape (units,)
        In [0, 1]; 0 for a single unit.

    Examples
    --------
    >>> import numpy as np
    >>> ranks(np.array([3.0, 1.0, 7.0, 1.0, 9.0])).tolist()
    [0.5, 0.125, 0.75, 0.125, 1.0]
    """
    order = np.argsort(scores, kind="stable")
    ascending = scores[order]
    starts = np.diff(ascending, prepend=-np.inf) > _TIED * np.abs(ascending)
    run = np.cumsum(starts) - 1
    length = np.bincount(run)
    average = np.cumsum(length) - (length + 1) / 2
    found = np.empty(len(scores))
    found[order] = average[run] / max(len(scores) - 1, 1)
    return found
