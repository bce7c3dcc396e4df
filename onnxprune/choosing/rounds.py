"""Several rounds: the losses of all groups are measured again when part of the way is gone.

The first losses are those of groups that are cut alone. Between two rounds all groups are cut as far as the round
says, their layers are refitted, and the change of the outputs is measured that each group adds from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from onnxprune.allocate.ladder import Ladder
from onnxprune.allocate.schedule import levels
from onnxprune.allocate.solve import Allocation
from onnxprune.analysis import Analysis
from onnxprune.choosing.choices import Choices
from onnxprune.choosing.evidence import Evidence
from onnxprune.choosing.planning import allocate
from onnxprune.choosing.scoring import LARGEST_CHANGE, TINY, Scored
from onnxprune.graph.axes import Bools


def remeasured(
    analysis: Analysis,
    scored: Scored,
    choices: Choices,
    evidence: Evidence,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Scored:
    """The same groups with losses as they are near the target.

    Parameters
    ----------
    scored
        With measured losses; without, rounds would change nothing.
    """
    target = choices.target
    goal = target.value if target.kind == "ratio" else 1 - target.value
    steps = levels(choices.schedule, choices.rounds, 0.0, goal)[:-1]
    for number, level in enumerate(steps):
        part = replace(target, value=level if target.kind == "ratio" else 1 - level)
        allocation = allocate(analysis, scored, replace(choices, target=part))
        scored = replace(scored, ladders=_measure(scored, allocation, evidence, number, len(steps), progress))
    return scored


def _measure(
    scored: Scored,
    allocation: Allocation,
    evidence: Evidence,
    number: int,
    total: int,
    progress: Callable[[int, int], None],
) -> tuple[Ladder, ...]:
    gone = {name: ~flags for name, flags in allocation.keep.items()}
    before = evidence.change(gone)
    found = []
    count = len(scored.ladders)
    for i, ladder in enumerate(scored.ladders):
        progress(number * count + i, total * count)
        found.append(_one(ladder, gone, before, evidence))
    return tuple(found)


def _one(ladder: Ladder, gone: dict[str, Bools], before: float, evidence: Evidence) -> Ladder:
    """A ladder whose loss beyond where it stands is what the outputs say now."""
    group, loss = ladder.group, ladder.loss
    here = int(gone[group.id].sum()) // ladder.rungs.shape[1] if group.id in gone else 0
    there = here + max(1, (ladder.height - here) // 2)
    if loss is None or there > ladder.most or not evidence.shows(group):
        return ladder
    more = np.isin(np.arange(group.units), ladder.rungs[:there])
    change = min(evidence.change({**gone, group.id: more}), LARGEST_CHANGE) - before
    expected = float(loss[there] - loss[here])
    factor = max(change, 0.0) / max(expected, TINY)
    beyond = loss[here] + (loss[here:] - loss[here]) * factor
    return replace(ladder, loss=np.maximum.accumulate(np.concatenate([loss[:here], beyond])))
