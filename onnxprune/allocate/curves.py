"""How far each group is cut when it is known what every cut costs in quality.

Rungs go where the loss per saved MAC (or parameter, or unit) is least, a stretch of the lower convex hull of a
group's loss at a time, until the target is met; then whatever the last stretch overshot is given back where it
helps most. For losses that add up and costs that are linear in each group this is the Lagrangian relaxation of the
exact problem, and its gap is at most one stretch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.allocate.ladder import Ladder, Scores

LOOKED_AT = 16
"""Stops of a ladder that are tried where each saves something else."""

Size = Callable[[Sequence[int]], float]
Near = Callable[[int], Iterable[int]]


@dataclass(frozen=True)
class _Stretch:
    """From where a group stands to one of its stops."""

    price: float
    number: int
    stop: int


def spend(
    ladders: Sequence[Ladder], size: Size, goal: float, near: Near | None = None, *, steps: bool = False
) -> list[int]:
    """Rungs to drop per ladder.

    Parameters
    ----------
    ladders
        With their losses.
    size
        What remains when so many rungs of each ladder are gone: MACs, parameters, units or seconds.
    goal
        At most this much is to remain; where that is out of reach, the least that is.
    near
        Which ladders save something else per rung when one of them moves, itself among them; by default all.
    steps
        Whether rungs of one ladder save unequally much, some of them nothing, so that what is saved is asked for
        `LOOKED_AT` stops on the way instead of one.
    """
    stops = [sorted({ladder.settle(n) for n in range(ladder.height + 1)}) for ladder in ladders]
    losses = [_loss(ladder) for ladder in ladders]
    drops = [each[0] for each in stops]
    now = size(drops)
    known: dict[int, _Stretch | None] = {}
    while now > goal:
        for number, loss in enumerate(losses):
            if number not in known:
                known[number] = _cheapest(number, loss, stops[number], drops, now, size, steps)
        found = [known[number] for number in range(len(ladders))]
        best = min((each for each in found if each is not None), key=lambda each: each.price, default=None)
        if best is None:
            break
        drops = _walk(best, stops[best.number], drops, size, goal)
        now = size(drops)
        for number in range(len(ladders)) if near is None else near(best.number):
            known.pop(number, None)
    return _give_back(losses, stops, drops, size, goal)


def _loss(ladder: Ladder) -> Scores:
    if ladder.loss is None:
        raise ValueError(f"nobody measured what group {ladder.group.id} loses")
    return ladder.loss


def _cheapest(
    number: int, loss: Scores, stops: Sequence[int], drops: Sequence[int], now: float, size: Size, steps: bool
) -> _Stretch | None:
    """The stretch of a group with the least loss per cost saved; None where nothing is left to save."""
    here = drops[number]
    ahead = [stop for stop in stops if stop > here]
    if not ahead:
        return None
    if steps:
        chosen = range(len(ahead)) if len(ahead) <= LOOKED_AT else np.linspace(0, len(ahead) - 1, LOOKED_AT)
        ahead = [ahead[int(i)] for i in chosen]
        saved = [now - size(_with(drops, number, stop)) for stop in ahead]
    else:
        each = (now - size(_with(drops, number, ahead[0]))) / (ahead[0] - here)
        saved = [each * (stop - here) for stop in ahead]
    found = [
        _Stretch(float((loss[stop] - loss[here]) / gain), number, stop)
        for stop, gain in zip(ahead, saved, strict=True)
        if gain > 0
    ]
    return min(found, key=lambda stretch: stretch.price, default=None)


def _walk(stretch: _Stretch, stops: Sequence[int], drops: list[int], size: Size, goal: float) -> list[int]:
    """As much of a stretch as the goal needs."""
    here = drops[stretch.number]
    inside = [stop for stop in stops if here < stop <= stretch.stop]
    low, high = 0, len(inside) - 1
    while low < high:
        middle = (low + high) // 2
        if size(_with(drops, stretch.number, inside[middle])) <= goal:
            high = middle
        else:
            low = middle + 1
    return _with(drops, stretch.number, inside[low])


def _give_back(
    losses: Sequence[Scores], stops: Sequence[Sequence[int]], drops: list[int], size: Size, goal: float
) -> list[int]:
    """Undo last steps, the dearest first, as long as the goal is met."""
    if size(drops) > goal:
        return drops
    while True:
        best: tuple[float, list[int]] | None = None
        for number, loss in enumerate(losses):
            lower = [stop for stop in stops[number] if stop < drops[number]]
            if not lower:
                continue
            trial = _with(drops, number, lower[-1])
            gain = float(loss[drops[number]] - loss[lower[-1]])
            if size(trial) <= goal and gain > 0 and (best is None or gain > best[0]):
                best = gain, trial
        if best is None:
            return drops
        drops = best[1]


def _with(drops: Sequence[int], number: int, stop: int) -> list[int]:
    return [stop if i == number else n for i, n in enumerate(drops)]
