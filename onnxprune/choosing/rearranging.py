"""`retrain_free` after its search: how many units each group loses stays, which ones is decided together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxprune.allocate.solve import Allocation
from onnxprune.analysis import Analysis
from onnxprune.choosing.choices import Choices
from onnxprune.choosing.evidence import Evidence
from onnxprune.choosing.exchanging import with_units
from onnxprune.choosing.scoring import RETRAIN_FREE, Scored
from onnxprune.criteria.rearrange import rearrange
from onnxprune.report.tables import plural


def rearranged(
    analysis: Analysis,
    allocation: Allocation,
    scored: Scored,
    choices: Choices,
    evidence: Evidence,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> tuple[Allocation, tuple[str, ...]]:
    """As many units of every group, others where their summed gradients say so (`onnxprune.criteria.rearrange`).

    Parameters
    ----------
    allocation
        What `scored` led to. Returned as it is where nothing was swapped, where another criterion chose, or where
        other units share fewer parameters, so that the target would be missed.

    Returns
    -------
    Allocation
        With other flags in `keep`.
    tuple[str, ...]
        What the report should say.
    """
    if scored.criterion != RETRAIN_FREE:
        return allocation, ()
    keep, swapped, shares = dict(allocation.keep), 0, []
    for number, (name, flags) in enumerate(allocation.keep.items()):
        progress(number, len(keep))
        gradients = evidence.mask_gradients.get(name)
        if gradients is None:
            continue
        found = rearrange(gradients.batches, ~flags, analysis.groups[name].blocks)
        if found.after < found.before:
            keep[name] = ~found.gone
            swapped += int((found.gone & flags).sum())
            shares.append(1 - found.after / found.before)
    if not swapped:
        return allocation, ()
    other = with_units(analysis, allocation, scored, choices, keep)
    if other is None:
        return allocation, ()
    note = (
        f"rearranged: {plural(swapped, 'unit')} of {plural(len(shares), 'group')} came back for others; "
        f"the loss that the gradients of a group's masks foresee together falls by {np.mean(shares):.1%} on average"
    )
    return other, (note,)
