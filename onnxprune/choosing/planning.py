"""From scored groups to a plan: solve for the target, or say what is out of reach."""

from __future__ import annotations

import math

from onnxprune.allocate.solve import Allocation, solve
from onnxprune.allocate.target import Target
from onnxprune.analysis import Analysis
from onnxprune.choosing.choices import NARROW, RANKED, Choices
from onnxprune.choosing.scoring import Scored, most_of_a_group
from onnxprune.errors import Reason, TargetError
from onnxprune.report.assemble import barrier_results
from onnxprune.report.tables import by_reason, plural, share, some


def allocate(analysis: Analysis, scored: Scored, choices: Choices) -> Allocation:
    """Solve for the target with the groups that may be cut."""
    scope = "global" if choices.scope in RANKED else choices.scope
    return solve(scored.ladders, analysis.costs, choices.target, scope, scored.units)


def check_reached(
    analysis: Analysis, scored: Scored, allocation: Allocation, choices: Choices, fixed: float | None = None
) -> None:
    """Raise TargetError where the target was not met, with what is reachable and what blocks the rest.

    A uniform level that is met up to its rounding is not an error, as long as anything is cut at all.

    Parameters
    ----------
    fixed
        The share of the run time that lies in nodes that never get smaller, where it is known.
    """
    if allocation.met or (allocation.by_rule and allocation.keep):
        return
    target = choices.target
    wanted = f"the target to {target.sentence} is out of reach"
    lines = _what_blocks(analysis, scored)
    if fixed is not None:
        lines = [f"About {fixed:.0%} of the run time lies in nodes that do not get smaller.", *lines]
    lines.append(
        "Choose a weaker target or a smaller --round-to, or take what is reachable with --best-effort."
    )
    if not scored.ladders:
        raise TargetError(f"{wanted}: nothing can be cut", "\n".join(lines))
    if allocation.by_rule:
        raise TargetError(
            f"nothing is cut at a level of {target.value:g}: it is less than one step of --round-to "
            f"{choices.rounding(NARROW)} in every group",
            "Use a higher --ratio or a smaller --round-to.",
        )
    raise TargetError(f"{wanted}: {_reachable(allocation, target, choices)}", "\n".join(lines))


def _reachable(allocation: Allocation, target: Target, choices: Choices) -> str:
    limits = f"widths are {choices.rounded}" if choices.rounded else ""
    if choices.scope in RANKED:
        limits += (
            f"{', and ' if limits else ''}a group loses at most {most_of_a_group(choices):.0%} of its units"
        )
    limits = f" ({limits})" if limits else ""
    if target.kind == "ratio":
        return f"at most {math.floor(1000 * allocation.reachable) / 1000:.1%} of them can be dropped{limits}"
    lowest = math.ceil(1000 * allocation.reachable - 1e-9) / 1000  # rounded to what can be asked for
    about = "about " if target.kind == "latency" else ""
    return f"{about}{lowest:.1%} of the {target.unit} is as low as it gets{limits}"


def _what_blocks(analysis: Analysis, scored: Scored) -> list[str]:
    """The costliest barriers and all groups that stay whole, one line per reason."""
    cost = analysis.cost
    lines = [
        f"  {plural(len(total.layers), 'layer')} ({share(total.macs, cost.macs)} of the MACs, "
        f"{share(total.params, cost.params)} of the parameters), {some(total.layers, 2)}: {total.explanation}"
        for total, _ in by_reason(barrier_results(analysis))[:5]
    ]
    whole: dict[Reason, list[str]] = {}
    for name, reason in scored.excluded.items():
        whole.setdefault(reason, []).append(name)
    lines += [
        f"  {plural(len(groups), 'group')}, {some(groups, 4)}: {reason.sentence}"
        for reason, groups in whole.items()
    ]
    return ["What blocks the rest:", *lines] if lines else []
