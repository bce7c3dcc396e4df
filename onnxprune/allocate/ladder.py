"""How far and in which order each group can be cut.

A ladder lists a group's units in the order in which they go, in rungs that keep it valid: with blocks, one
unit of every block at a time. Rounding and minima say on which rungs one may stop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxprune.graph.axes import Bools, Index
from onnxprune.graph.groups import Group

Scores = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Ladder:
    """The order in which the units of a group go.

    Attributes
    ----------
    group
        The group.
    rungs
        Shape (rungs, units per rung): the units that go together, least important first.
    scores
        Shape (rungs,), ascending: the summed score of each rung.
    step
        Kept rungs are a multiple of this.
    floor
        At least this many rungs stay.
    least
        At least this many rungs go.
    loss
        Shape (rungs + 1,), from 0 on, not decreasing: what the outputs lose when the first n rungs go. None where
        nobody measured it.
    """

    group: Group
    rungs: Index
    scores: Scores
    step: int
    floor: int
    loss: Scores | None = None
    least: int = 0

    @property
    def height(self) -> int:
        """Number of rungs."""
        return len(self.rungs)

    def settle(self, dropped: int) -> int:
        """The largest number of rungs up to `dropped` that rounding and the minimum allow."""
        kept = self.height - dropped
        kept = max(math.ceil(kept / self.step) * self.step, self.floor)
        return max(self.height - kept, self.least)

    @property
    def most(self) -> int:
        """Rungs that can go at all."""
        return self.settle(self.height)

    def keep(self, dropped: int) -> Bools:
        """One flag per unit: what stays when the first `dropped` rungs go."""
        flags = np.ones(self.group.units, bool)
        flags[self.rungs[:dropped].ravel()] = False
        return flags


def build_ladder(
    group: Group,
    scores: Scores,
    *,
    round_to: int,
    min_channels: int,
    max_ratio: float = 1.0,
    min_ratio: float = 0.0,
) -> Ladder:
    """Order a group's units by score; equal scores by index. In a block each rung has one unit of each.

    Parameters
    ----------
    scores
        Shape (units,), higher = keep.
    round_to
        Channels that stay are a multiple of this (a head counts its dimensions).
    min_channels
        At least this many channels stay, and never fewer than `round_to`.
    max_ratio, min_ratio
        At most and at least this share of the units goes; where rounding or a minimum is in the way of the
        least share, less goes.
    """
    if group.blocks is None:
        rungs = np.argsort(scores, kind="stable")[:, None]
    else:
        members = [np.flatnonzero(group.blocks == block) for block in range(group.block_count)]
        rungs = np.stack([units[np.argsort(scores[units], kind="stable")] for units in members], axis=1)
    limits = _limits(group, rungs, round_to, min_channels, max_ratio)
    ladder = Ladder(group, rungs, scores[rungs].sum(axis=1), *limits)
    return replace(ladder, least=_least(ladder, min_ratio))


def measured_ladder(
    group: Group,
    rungs: Index,
    loss: Scores,
    *,
    round_to: int,
    min_channels: int,
    max_ratio: float = 1.0,
    min_ratio: float = 0.0,
) -> Ladder:
    """A ladder whose order is given, with the loss after each rung, shape (rungs + 1,)."""
    loss = np.maximum.accumulate(loss)
    limits = _limits(group, rungs, round_to, min_channels, max_ratio)
    ladder = Ladder(group, rungs, np.maximum.accumulate(np.diff(loss)), *limits, loss)
    return replace(ladder, least=_least(ladder, min_ratio))


def _least(ladder: Ladder, min_ratio: float) -> int:
    """Rungs that make up a share of a group, rounded up to where one may stop."""
    wanted = math.ceil(ladder.height * min_ratio - 1e-9)
    stops = [n for n in range(wanted, ladder.height + 1) if ladder.settle(n) == n]
    return stops[0] if stops else ladder.most


def _limits(
    group: Group, rungs: Index, round_to: int, min_channels: int, max_ratio: float
) -> tuple[int, int]:
    """Of how many rungs those that stay are a multiple, and how many stay at the least."""
    channels = group.width * rungs.shape[1]
    step = round_to // math.gcd(round_to, channels)
    floor = max(1, math.ceil(max(min_channels, round_to) / channels))
    floor = max(floor, len(rungs) - math.floor(len(rungs) * max_ratio + 1e-9))
    floor = math.ceil(floor / step) * step
    return step, min(floor, len(rungs))
