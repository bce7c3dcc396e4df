"""From an analysis to a plan: score the units, order them, solve for the target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxprune.allocate.ladder import Ladder, build_ladder
from onnxprune.allocate.solve import Allocation, solve
from onnxprune.allocate.target import Target
from onnxprune.analysis import Analysis
from onnxprune.criteria import Criterion, CriterionTable, default_criteria
from onnxprune.criteria.gather import unit_weights
from onnxprune.errors import Reason, TargetError, UsageError
from onnxprune.select import PRESETS, excluded_groups

SCOPES = ("global", "uniform")


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
        "global": one ranking over all groups. "uniform": the same level for every group.
    round_to
        Channels that stay are a multiple of this.
    min_channels
        At least this many channels of a group stay, and never fewer than `round_to`.
    max_ratio
        At most this share of a group's units goes. None: 0.9 with the global scope, all with the uniform one.
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
            raise UsageError(f"min_channels {self.min_channels} is not positive", "At least one channel stays.")
        if self.max_ratio is not None and not 0 < self.max_ratio <= 1:
            raise UsageError(f"max_ratio {self.max_ratio:g} is not in (0, 1]", "0.9 keeps a tenth of a group.")
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
    """

    ladders: tuple[Ladder, ...] = field(repr=False)
    excluded: Mapping[str, Reason]

    def without(self, groups: tuple[str, ...], reason: Reason) -> Scored:
        """The same without some groups."""
        ladders = tuple(ladder for ladder in self.ladders if ladder.group.id not in groups)
        return Scored(ladders, {**self.excluded, **dict.fromkeys(groups, reason)})


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
    criterion = find_criterion(choices.criterion, criteria or default_criteria())
    excluded = excluded_groups(
        analysis.axis_graph, analysis.groups, ignore=choices.ignore, only=choices.only, preset=choices.preset
    )
    share = choices.max_ratio if choices.max_ratio is not None else (0.9 if choices.scope == "global" else 1.0)
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
            scores,
            round_to=choices.round_to,
            min_channels=choices.min_channels,
            max_ratio=share,
        )
        if ladder.most:
            ladders.append(ladder)
        else:
            excluded[name] = Reason.TOO_NARROW
    if analysis.groups and all(reason is Reason.NO_SCORE for reason in excluded.values()) and not ladders:
        raise UsageError(
            f"the criterion {criterion.name} reads {', '.join(sorted(criterion.kinds))} parameters, and no group has any",
            "Use another criterion, l2 for one; bn-scale needs BatchNormalization nodes that are not folded.",
        )
    return Scored(tuple(ladders), excluded)


def find_criterion(name: str, criteria: CriterionTable) -> Criterion:
    """The criterion of that name; UsageError where there is none."""
    if name not in criteria:
        raise UsageError(f"there is no criterion {name!r}", f"Known: {', '.join(sorted(criteria))}.")
    return criteria[name]


def allocate(analysis: Analysis, scored: Scored, choices: Choices) -> Allocation:
    """Solve for the target with the groups that may be cut."""
    return solve(scored.ladders, analysis.costs, choices.target, choices.scope)


def check_reached(analysis: Analysis, scored: Scored, allocation: Allocation, target: Target) -> None:
    """Raise TargetError where the target was not met, with what is reachable and what blocks the rest."""
    if allocation.met:
        return
    blocks = [
        f"{b.where}: {b.reason.sentence} ({b.macs:,} MACs, {b.params:,} params)" for b in analysis.blocked[:5]
    ]
    blocks += [f"group {name}: {reason.sentence}" for name, reason in list(scored.excluded.items())[:5]]
    reachable = (
        f"{allocation.reachable:.1%} of the units can be dropped"
        if target.kind == "ratio"
        else f"{allocation.reachable:.1%} of the {'MACs' if target.kind == 'macs' else 'parameters'} is as low as it gets"
    )
    if not scored.ladders:
        reachable = "nothing can be cut"
    raise TargetError(
        f"the target to {target.sentence} is out of reach: {reachable}",
        "\n".join(["What blocks the rest:", *(f"  {line}" for line in blocks)] if blocks else [])
        + "\nLower the target, change --round-to, --ignore or --only, or take what is reachable with --best-effort.",
    )
