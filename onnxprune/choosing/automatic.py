"""`--criterion auto`: of several orders of the units the one that changes the outputs least on held-out samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxprune.allocate.ladder import Ladder
from onnxprune.analysis import Analysis
from onnxprune.choosing.choices import Choices
from onnxprune.choosing.evidence import Evidence
from onnxprune.choosing.planning import allocate
from onnxprune.choosing.scoring import OBS, TINY, Scored, score_groups
from onnxprune.criteria import CriterionTable
from onnxprune.job import Progress

OTHERS = ("wanda", "l2")
"""What `obs` is compared with: greedy elimination is no guarantee."""


def choose_criterion(
    analysis: Analysis,
    choices: Choices,
    evidence: Evidence,
    criteria: CriterionTable | None = None,
    progress: Progress | None = None,
) -> Scored:
    """Groups in the order of the criterion whose cut, refitted, changes the outputs least.

    All orders share the losses that were measured for `obs`: a group's error after the refit, scaled to the change
    of the outputs.

    Returns
    -------
    Scored
        Its `criterion` is what was chosen, its `notes` say why.
    """

    def tick(done: int, total: int) -> None:
        if progress is not None:
            progress("scoring", done, total)

    first = score_groups(
        analysis, replace(choices, criterion=OBS), criteria=criteria, evidence=evidence, progress=tick
    )
    found = {OBS: first}
    known = {} if criteria is None else criteria
    for name in OTHERS:
        if criteria is None or name in known:
            other = score_groups(
                analysis, replace(choices, criterion=name), criteria=criteria, evidence=evidence
            )
            found[name] = _with_losses(first, other, evidence)
    changes = {}
    for name, scored in found.items():
        keep = allocate(analysis, scored, choices).keep
        changes[name] = evidence.change({group: ~flags for group, flags in keep.items()})
    best = min(changes, key=lambda name: changes[name])
    others = ", ".join(f"{name} {change:.2g}" for name, change in changes.items() if name != best)
    note = (
        f"criterion auto took {best}: before the repair its cut changes the outputs by {changes[best]:.2g} of "
        f"their variance on {evidence.tried} ({others})"
    )
    return replace(found[best], criterion=best, notes=(note,) if others else ())


def _with_losses(first: Scored, other: Scored, evidence: Evidence) -> Scored:
    """The groups of `first` in the orders of `other`."""
    orders = {ladder.group.id: ladder for ladder in other.ladders}
    ladders = tuple(
        _reordered(ladder, orders[ladder.group.id], evidence) if ladder.group.id in orders else ladder
        for ladder in first.ladders
    )
    return replace(first, ladders=ladders)


def _reordered(ladder: Ladder, other: Ladder, evidence: Evidence) -> Ladder:
    found = evidence.elimination(ladder.group, other.rungs)
    if found is None or ladder.loss is None:
        return ladder
    loss = found.errors * (ladder.loss[-1] / max(float(found.errors[-1]), TINY))
    return replace(ladder, rungs=found.rungs, loss=np.maximum.accumulate(loss), scores=np.diff(loss))
