"""After the budget is spent: units that went are swapped with others of their group where that lowers the error.

The error is one of layers, each for itself. Whether the outputs gain is seen on samples that the statistics have
not seen, and if they do not, everything stays as it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from onnxprune.allocate.solve import Allocation
from onnxprune.analysis import Analysis
from onnxprune.choosing.choices import Choices
from onnxprune.choosing.evidence import Evidence
from onnxprune.choosing.scoring import OBS, Scored
from onnxprune.graph.axes import Bools
from onnxprune.report.tables import plural

log = logging.getLogger(__name__)


def exchanged(
    analysis: Analysis,
    allocation: Allocation,
    scored: Scored,
    choices: Choices,
    evidence: Evidence,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> tuple[Allocation, tuple[str, ...]]:
    """As many units of every group, others where that helps (`onnxprune.criteria.exchange`).

    Parameters
    ----------
    allocation
        What `scored` led to. Returned as it is where nothing was swapped, where the units did not go in the order
        of least error, where the outputs gain nothing on held-out samples, or where other units share fewer
        parameters, so that the target would be missed.

    Returns
    -------
    Allocation
        With other flags in `keep`.
    tuple[str, ...]
        What the report should say: how many units were swapped, and by how much the error of their groups fell.
    """
    if scored.criterion != OBS:
        return allocation, ()
    keep, swapped, shares = dict(allocation.keep), 0, []
    for number, (name, flags) in enumerate(allocation.keep.items()):
        progress(number, len(keep))
        found = evidence.exchange(analysis.groups[name], ~flags)
        if found is not None and found.swapped:
            keep[name] = ~found.gone
            swapped += found.swapped
            shares.append(1 - found.after / found.before)
    if not swapped:
        return allocation, ()
    other = with_units(analysis, allocation, scored, choices, keep)
    if other is None:
        return allocation, ()
    before, after = _change(evidence, allocation.keep), _change(evidence, keep)
    if after >= before:
        log.info("exchanging %d units changes the outputs by %.3g, not %.3g: left", swapped, after, before)
        return allocation, ()
    note = (
        f"after the elimination {plural(swapped, 'unit')} of {plural(len(shares), 'group')} came back in exchange "
        f"for others: the error of the layers behind them falls by {np.mean(shares):.1%} on average, the change of "
        f"the outputs on {evidence.tried} from {before:.3g} to {after:.3g} of their variance"
    )
    return other, (note,)


def with_units(
    analysis: Analysis, allocation: Allocation, scored: Scored, choices: Choices, keep: Mapping[str, Bools]
) -> Allocation | None:
    """As many units of every group, but other ones; None where these share fewer parameters and miss the target."""
    cost = analysis.costs.cost(keep)
    if choices.target.kind == "latency":  # widths are what they were, and what was measured is, too
        return replace(allocation, keep=keep, cost=cost)
    gone = sum(int((~flags).sum()) for flags in keep.values())
    achieved = choices.target.achieved(analysis.costs.full, cost, scored.units, gone)
    if allocation.met and not choices.target.met_by(achieved):
        return None
    return replace(allocation, keep=keep, cost=cost, achieved=achieved)


def _change(evidence: Evidence, keep: Mapping[str, Bools]) -> float:
    return evidence.change({name: ~flags for name, flags in keep.items()})
