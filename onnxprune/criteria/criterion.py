"""What a criterion is: arrays in, one score per unit out; higher = keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.errors import UsageError

Array = np.ndarray[Any, np.dtype[np.floating[Any]]]


@dataclass(frozen=True)
class UnitWeights:
    """The slices of one parameter that belong to a group's units.

    Attributes
    ----------
    kind
        "weight", "bn-scale", "bias", ... as the rules name parameters.
    values
        Shape (units, features), float64: everything of the parameter that belongs to each unit.
    norm
        L2 norm of the whole parameter, for rankings across layers.
    """

    kind: str
    values: Array
    norm: float


@dataclass(frozen=True)
class Criterion:
    """A way of scoring units.

    Parameters
    ----------
    name
        As the command line names it.
    function
        `(values of shape (units, features), rng) -> scores of shape (units,)`, higher = keep.
    kinds
        Kinds of parameters that it reads.
    source
        Where the definition comes from.
    once
        Look at the first such parameter of a group only, instead of summing over all.
    """

    name: str
    function: Callable[[Array, np.random.Generator], Array]
    kinds: frozenset[str] = frozenset({"weight"})
    source: str = ""
    once: bool = False

    def score(
        self, members: Sequence[UnitWeights], *, normalize: bool, rng: np.random.Generator
    ) -> Array | None:
        """Scores of one group's units: the sum over its members.

        Parameters
        ----------
        members
            Slices of the group's parameters.
        normalize
            Divide each parameter by its own L2 norm first, so that layers can be ranked together.
        rng
            Randomness for criteria that use it; seeded by the caller.

        Returns
        -------
        array of shape (units,), or None
            None where the group has no parameter that this criterion reads.

        Raises
        ------
        UsageError
            The function returned something else than one score per unit.
        """
        used = [m for m in members if m.kind in self.kinds]
        if not used:
            return None
        total = np.zeros(len(used[0].values))
        for member in used[:1] if self.once else used:
            scale = 1.0 / member.norm if normalize and member.norm > 0 else 1.0
            scores = np.asarray(self.function(member.values * scale, rng))
            if scores.shape != total.shape:
                raise UsageError(
                    f"the criterion {self.name} gives scores of shape {scores.shape} for {len(total)} units",
                    "Its function takes (units, features) and returns one score per unit.",
                )
            total = total + scores
        return total


class CriterionTable(Mapping[str, Criterion]):
    """An immutable table of criteria; `table | other` is a new one in which `other` wins."""

    def __init__(self, criteria: Mapping[str, Criterion] | None = None) -> None:
        self._criteria = dict(criteria or {})

    def __getitem__(self, name: str) -> Criterion:
        return self._criteria[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._criteria)

    def __len__(self) -> int:
        return len(self._criteria)

    def __or__(self, other: Mapping[str, Criterion]) -> CriterionTable:
        return CriterionTable({**self._criteria, **other})
