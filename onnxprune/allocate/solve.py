"""Which units go: one level for every group, or one ranking over all of them.

uniform
    Every group loses the same share. With `--ratio` this is NNCF's rule: of `n` channels
    `max(n - ceil(n (1 - level) / 8) 8, 0)` go. With a budget the smallest level that meets it is used.
global
    One ranking over all groups, each weight divided by its own L2 norm before it is scored. Rungs go in that
    order until the target is met, at most `max_ratio` of a group.

Both cost functions are monotone in the level and in the length of the ranking, so the answer is found by
bisection over a finite list, exactly and without a tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.allocate.cost import Cost, CostModel
from onnxprune.allocate.ladder import Ladder
from onnxprune.allocate.target import Target

Bools = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Allocation:
    """Kept units per group, and how the target fares.

    Attributes
    ----------
    keep
        One flag per unit for each group that loses units.
    cost
        What remains.
    achieved
        The share that the target speaks of.
    met
        Whether the target was reached.
    reachable
        The share that could be reached at the most, when it was not.
    """

    keep: Mapping[str, Bools]
    cost: Cost
    achieved: float
    met: bool
    reachable: float


def solve(ladders: Sequence[Ladder], costs: CostModel, target: Target, scope: str) -> Allocation:
    """Choose how many rungs of each ladder go.

    Parameters
    ----------
    ladders
        One per group that may be cut.
    costs
        Of the model.
    target
        What to reach.
    scope
        "uniform" or "global".
    """
    units = sum(ladder.group.units for ladder in ladders)
    path = _uniform(ladders) if scope == "uniform" else _global(ladders)

    def judge(drops: Sequence[int]) -> Allocation:
        keep = {
            ladder.group.id: ladder.keep(dropped)
            for ladder, dropped in zip(ladders, drops, strict=True)
            if dropped
        }
        cost = costs.cost(keep)
        gone = sum(int((~flags).sum()) for flags in keep.values())
        achieved = target.achieved(costs.full, cost, units, gone)
        return Allocation(keep, cost, achieved, _meets(target, achieved), achieved)

    last = judge(path.drops(path.length))
    if target.kind == "ratio" and scope == "uniform":
        chosen = judge(path.drops(path.at_level(target.value)))
        met = any(chosen.keep) or target.value == 0
        return Allocation(chosen.keep, chosen.cost, chosen.achieved, met, last.achieved)
    if not last.met:
        return Allocation(last.keep, last.cost, last.achieved, False, last.achieved)
    low, high = 0, path.length
    while low < high:
        middle = (low + high) // 2
        if judge(path.drops(middle)).met:
            high = middle
        else:
            low = middle + 1
    chosen = judge(path.drops(low))
    return Allocation(chosen.keep, chosen.cost, chosen.achieved, True, last.achieved)


def _meets(target: Target, achieved: float) -> bool:
    return achieved >= target.value - 1e-12 if target.kind == "ratio" else achieved <= target.value + 1e-12


@dataclass(frozen=True)
class _Path:
    """A list of ever larger cuts: `drops(i)` gives the rungs that go per ladder at step i."""

    length: int
    drops: Callable[[int], list[int]]
    levels: Sequence[float] = ()

    def at_level(self, level: float) -> int:
        """The last step whose level does not exceed `level`."""
        return int(np.searchsorted(np.asarray(self.levels), level + 1e-12, side="right")) - 1


def _uniform(ladders: Sequence[Ladder]) -> _Path:
    """All levels at which some group loses one more rung."""
    levels = sorted({0.0, *(n / ladder.height for ladder in ladders for n in range(ladder.height + 1))})

    def drops(step: int) -> list[int]:
        level = levels[step]
        return [ladder.settle(math.floor(ladder.height * level + 1e-9)) for ladder in ladders]

    return _Path(len(levels) - 1, drops, levels)


def _global(ladders: Sequence[Ladder]) -> _Path:
    """All prefixes of the ranking of all rungs; equal scores in the order of groups and units."""
    scores = np.concatenate([ladder.scores / ladder.rungs.shape[1] for ladder in ladders] or [np.zeros(0)])
    owner = np.concatenate(
        [np.full(ladder.height, i, np.int64) for i, ladder in enumerate(ladders)] or [np.zeros(0, np.int64)]
    )
    order = owner[np.argsort(scores, kind="stable")]

    def drops(step: int) -> list[int]:
        counts = np.bincount(order[:step], minlength=len(ladders))
        return [ladder.settle(int(n)) for ladder, n in zip(ladders, counts, strict=True)]

    return _Path(len(order), drops)
