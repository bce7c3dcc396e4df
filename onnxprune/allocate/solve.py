"""Which units go: one level for every group, or one ranking over all of them.

uniform
    Every group loses the same share. With `--ratio` this is NNCF's rule: of `n` channels
    `max(n - ceil(n (1 - level) / 8) 8, 0)` go, which may be fewer than the level says. With a budget the
    level rises until it is met; at the last level groups go one after the other, so that rounding does not
    overshoot.
global
    One ranking over all groups, each weight divided by its own L2 norm before it is scored. Rungs go in that
    order until the target is met, at most `max_ratio` of a group. Where the loss of every group was measured, the
    ranking is by loss per cost saved (`onnxprune.allocate.curves`).

Both cost functions are monotone in the level and in the length of the ranking, so the answer is found by
bisection over a finite list, exactly and without a tolerance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxprune.allocate.cost import Cost, CostModel
from onnxprune.allocate.curves import Near, Size, spend
from onnxprune.allocate.ladder import Ladder
from onnxprune.allocate.target import Target
from onnxprune.graph.axes import Bools


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
        The share that can be reached at the most.
    by_rule
        Whether the rounding rule of uniform levels decided, which may drop fewer units than the level says.
    """

    keep: Mapping[str, Bools]
    cost: Cost
    achieved: float
    met: bool
    reachable: float
    by_rule: bool = False


def solve(
    ladders: Sequence[Ladder], costs: CostModel, target: Target, scope: str, units: int | None = None
) -> Allocation:
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
        "global", "local" or "uniform"; the last takes a ratio as NNCF does: as the level of every ladder,
        whatever rounding then leaves of it.
    units
        Of how many units a ratio is the share; by default of those of all ladders.
    """
    if units is None:
        units = sum(ladder.group.units for ladder in ladders)
    path = _path(ladders, scope)

    def judge(drops: Sequence[int]) -> Allocation:
        keep = {
            ladder.group.id: ladder.keep(dropped)
            for ladder, dropped in zip(ladders, drops, strict=True)
            if dropped
        }
        cost = costs.cost(keep)
        gone = sum(int((~flags).sum()) for flags in keep.values())
        achieved = target.achieved(costs.full, cost, units, gone)
        return Allocation(keep, cost, achieved, target.met_by(achieved), achieved)

    last = judge(path.drops(path.length))
    if target.kind == "ratio" and scope == "uniform":
        chosen = judge(path.drops(path.up_to(target.value)))
        return replace(chosen, reachable=last.achieved, by_rule=True)
    if not last.met:
        return last
    if scope == "global" and ladders and all(ladder.loss is not None for ladder in ladders):
        drops = spend(
            ladders,
            *_sizes(ladders, costs, target, units),
            _near(ladders, costs, target),
            steps=target.kind == "latency",
        )
        return replace(judge(drops), reachable=last.achieved)
    low, high = 0, path.length
    while low < high:
        middle = (low + high) // 2
        if judge(path.drops(middle)).met:
            high = middle
        else:
            low = middle + 1
    return replace(judge(path.drops(low)), reachable=last.achieved)


def _sizes(ladders: Sequence[Ladder], costs: CostModel, target: Target, units: int) -> tuple[Size, float]:
    """What remains for any numbers of rungs, in the units of the target, and how much may."""
    removals = [costs.removals(ladder.group, ladder.rungs) for ladder in ladders]
    amount = costs.amount(target.kind)

    def size(drops: Sequence[int]) -> float:
        if target.kind == "ratio":
            gone = sum(n * ladder.rungs.shape[1] for ladder, n in zip(ladders, drops, strict=True))
            return float(units - gone)
        if amount is not None:
            gone_now = [each[n] for each, n in zip(removals, drops, strict=True) if n]
            return float(costs.after(gone_now, amount))
        cost = costs.cost({lad.group.id: lad.keep(n) for lad, n in zip(ladders, drops, strict=True) if n})
        return float(cost.params)

    whole = size([0] * len(ladders)) if ladders else 0.0
    share = 1 - target.value if target.kind == "ratio" else target.value
    return size, whole * (share + 1e-12)


def _near(ladders: Sequence[Ladder], costs: CostModel, target: Target) -> Near | None:
    """Which ladders save something else per rung when one of them moves."""
    if target.kind == "ratio":
        return lambda number: (number,)
    amount = costs.amount(target.kind)
    if amount is None:
        return None  # vectors that are stored once may tie any two groups
    coupled = costs.coupled([ladder.group for ladder in ladders], amount)
    return lambda number: np.flatnonzero(coupled[number]).tolist()


@dataclass(frozen=True)
class _Path:
    """Ever larger cuts: at step i the first i rungs of the order are gone.

    Attributes
    ----------
    ladders
        The ladders whose rungs are ordered.
    order
        Shape (steps,): the ladder that loses a rung at each step.
    keys
        Shape (steps,), ascending: what the rungs were ordered by.
    """

    ladders: Sequence[Ladder]
    order: np.ndarray[Any, np.dtype[np.int64]]
    keys: np.ndarray[Any, np.dtype[np.float64]]

    @property
    def length(self) -> int:
        """Number of steps."""
        return len(self.order)

    def drops(self, step: int) -> list[int]:
        """Rungs that go per ladder at a step, rounded as each ladder allows."""
        counts = np.bincount(self.order[:step], minlength=len(self.ladders))
        return [ladder.settle(int(n)) for ladder, n in zip(self.ladders, counts, strict=True)]

    def up_to(self, key: float) -> int:
        """The step after which no rung with a key of at most `key` is left."""
        return int(np.searchsorted(self.keys, key + 1e-12, side="right"))


def _path(ladders: Sequence[Ladder], scope: str) -> _Path:
    """Order all rungs: by the level at which they go (local, uniform) or by score; equal ones by group and unit."""
    uniform = scope != "global"
    keys = [_levels(ladder) if uniform else ladder.scores / ladder.rungs.shape[1] for ladder in ladders]
    owners = [np.full(ladder.height, number, np.int64) for number, ladder in enumerate(ladders)]
    flat = np.concatenate([*keys, np.zeros(0)])
    order = np.argsort(flat, kind="stable")
    return _Path(ladders, np.concatenate([*owners, np.zeros(0, np.int64)])[order], flat[order])


def _levels(ladder: Ladder) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The level from which on each rung is gone: 1/n, 2/n, ..."""
    return np.arange(1, ladder.height + 1) / ladder.height
