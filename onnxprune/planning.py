"""From an analysis to a plan: score the units, order them, solve for the target."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxprune.allocate.ladder import Ladder, build_ladder
from onnxprune.allocate.solve import Allocation, solve
from onnxprune.allocate.target import Target
from onnxprune.analysis import Analysis
from onnxprune.calibrate.checks import did_you_mean
from onnxprune.criteria import Criterion, CriterionTable, default_criteria
from onnxprune.criteria.gather import unit_weights
from onnxprune.errors import Reason, TargetError, UsageError
from onnxprune.report.assemble import barrier_results
from onnxprune.report.tables import by_reason, plural, share, some
from onnxprune.select import PRESETS, excluded_groups

SCOPES = ("global", "local", "uniform")


@dataclass(frozen=True)
class Choices:
    """How units are chosen.

    Parameters
    ----------
    target
        What to reach; by default keep at most 70 % of the MACs.
    criterion
        Name of a criterion.
    scope
        "global": one ranking over all groups. "local": the same share of every group, growing until the target is
        reached. "uniform": the same, but a ratio is NNCF's level, which rounding may leave unreached.
    round_to
        Channels that stay are a multiple of this.
    min_channels
        At least this many channels of a group stay, and never fewer than `round_to`.
    max_ratio
        At most this share of a group's units goes. None: 0.9 with the global scope, all with the others.
    ignore, only
        Patterns of groups to leave whole, or to cut exclusively.
    preset
        "nncf": leave the first convolution and strided ones whole, uniform scope unless said otherwise.
    seed
        For criteria that draw random numbers.
    """

    target: Target = Target("macs", 0.7)
    criterion: str = "l2"
    scope: str = "global"
    round_to: int = 8
    min_channels: int = 1
    max_ratio: float | None = None
    ignore: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    preset: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Reject values that mean nothing."""
        if self.scope not in SCOPES:
            raise UsageError(f"there is no scope {self.scope!r}", f"Known: {', '.join(SCOPES)}.")
        if self.round_to < 1:
            raise UsageError(f"--round-to {self.round_to} is not positive", "Use 1 for no rounding.")
        if self.min_channels < 1:
            raise UsageError(
                f"min_channels {self.min_channels} is not positive", "At least one channel stays."
            )
        if self.max_ratio is not None and not 0 < self.max_ratio <= 1:
            raise UsageError(
                f"max_ratio {self.max_ratio:g} is not in (0, 1]", "0.9 keeps a tenth of a group."
            )
        if self.preset is not None and self.preset not in PRESETS:
            raise UsageError(f"there is no preset {self.preset!r}", f"Known: {', '.join(PRESETS)}.")


@dataclass(frozen=True)
class Scored:
    """Scores of all groups that may be cut, and why the others may not.

    Attributes
    ----------
    ladders
        One per group that may be cut, in the order of the groups.
    excluded
        Groups that stay whole, with the reason.
    units
        Units of all groups that the user did not exclude: a ratio is a share of these.
    """

    ladders: tuple[Ladder, ...] = field(repr=False)
    excluded: Mapping[str, Reason]
    units: int

    def without(self, groups: tuple[str, ...], reason: Reason) -> Scored:
        """The same without some groups."""
        ladders = tuple(ladder for ladder in self.ladders if ladder.group.id not in groups)
        return Scored(ladders, {**self.excluded, **dict.fromkeys(groups, reason)}, self.units)


def score_groups(
    analysis: Analysis,
    choices: Choices,
    *,
    criteria: CriterionTable | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scored:
    """Score the units of every group and put them into the order in which they go.

    Raises
    ------
    UsageError
        There is no such criterion, it scores none of the groups, or a pattern matches nothing.
    """
    criterion = find_criterion(choices.criterion, criteria)
    excluded = excluded_groups(
        analysis.axis_graph, analysis.groups, ignore=choices.ignore, only=choices.only, preset=choices.preset
    )
    units = sum(group.units for name, group in analysis.groups.items() if name not in excluded)
    rng = np.random.default_rng(choices.seed)
    ladders: list[Ladder] = []
    for number, (name, group) in enumerate(analysis.groups.items()):
        if progress is not None:
            progress(number, len(analysis.groups))
        if name in excluded:
            continue
        members = unit_weights(analysis.axis_graph, group)
        scores = criterion.score(members, normalize=choices.scope == "global", rng=rng)
        if scores is None:
            excluded[name] = Reason.NO_SCORE
            continue
        ladder = build_ladder(
            group,
            np.asarray(scores, np.float64),
            round_to=choices.round_to,
            min_channels=choices.min_channels,
            max_ratio=_share(choices),
        )
        if ladder.most:
            ladders.append(ladder)
        else:
            excluded[name] = Reason.TOO_NARROW
    if analysis.groups and all(reason is Reason.NO_SCORE for reason in excluded.values()) and not ladders:
        raise UsageError(
            f"the criterion {criterion.name} reads {', '.join(sorted(criterion.kinds))} parameters, "
            "and no group has any",
            "Is there another criterion that reads what they have? bn-scale needs BatchNormalization nodes that "
            "are not folded.",
        )
    return Scored(tuple(ladders), excluded, units)


def _share(choices: Choices) -> float:
    """At most this share of a group goes."""
    return choices.max_ratio or (0.9 if choices.scope == "global" else 1.0)


def find_criterion(name: str, criteria: CriterionTable | None) -> Criterion:
    """Look a criterion up, in the default table where none is given; UsageError where there is none."""
    table = default_criteria() if criteria is None else criteria
    if name not in table:
        raise UsageError(
            f"there is no criterion {name!r}{did_you_mean(name, table)}",
            f"Known: {', '.join(sorted(table))}.",
        )
    return table[name]


def allocate(analysis: Analysis, scored: Scored, choices: Choices) -> Allocation:
    """Solve for the target with the groups that may be cut."""
    return solve(scored.ladders, analysis.costs, choices.target, choices.scope, scored.units)


def check_reached(analysis: Analysis, scored: Scored, allocation: Allocation, choices: Choices) -> None:
    """Raise TargetError where the target was not met, with what is reachable and what blocks the rest.

    A uniform level that is met up to its rounding is not an error, as long as anything is cut at all.
    """
    if allocation.met or (allocation.by_rule and allocation.keep):
        return
    target = choices.target
    wanted = f"the target to {target.sentence} is out of reach"
    lines = _what_blocks(analysis, scored)
    lines.append(
        "Choose a weaker target or a smaller --round-to, or take what is reachable with --best-effort."
    )
    if not scored.ladders:
        raise TargetError(f"{wanted}: nothing can be cut", "\n".join(lines))
    if allocation.by_rule:
        raise TargetError(
            f"nothing is cut at a level of {target.value:g}: it is less than one step of --round-to "
            f"{choices.round_to} in every group",
            "Use a higher --ratio or a smaller --round-to.",
        )
    raise TargetError(f"{wanted}: {_reachable(allocation, target, choices)}", "\n".join(lines))


def _reachable(allocation: Allocation, target: Target, choices: Choices) -> str:
    limits = f"widths are multiples of {choices.round_to}" if choices.round_to > 1 else ""
    if choices.scope == "global":
        limits += f"{', and ' if limits else ''}a group loses at most {_share(choices):.0%} of its units"
    limits = f" ({limits})" if limits else ""
    if target.kind == "ratio":
        return f"at most {math.floor(1000 * allocation.reachable) / 1000:.1%} of them can be dropped{limits}"
    unit = "MACs" if target.kind == "macs" else "parameters"
    lowest = math.ceil(1000 * allocation.reachable - 1e-9) / 1000  # rounded to what can be asked for
    return f"{lowest:.1%} of the {unit} is as low as it gets{limits}"


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
