"""Slimming as the first step of pruning: shares stay those of the model as it was given."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from onnxprune.allocate.cost import Cost
from onnxprune.allocate.target import Target
from onnxprune.analysis import Analysis, analyze
from onnxprune.choosing.choices import Choices
from onnxprune.errors import TargetError
from onnxprune.job import Job, Opened
from onnxprune.report.report import Report, SlimFirst, TargetResult
from onnxprune.select import excluded_groups
from onnxprune.slimming.run import slim_opened
from onnxprune.slimming.steps import is_whole

_LEAST = 1e-13
"""A share of units that counts as reached without a cut: targets are positive."""


@dataclass(frozen=True)
class First:
    """What slimming found, and how shares of what it left become shares of the whole.

    Attributes
    ----------
    opened
        The slimmed model, analysed as the original was, with the same samples. Its source is the original.
    cost
        Of the original.
    units
        Of all groups that pruning may cut, before slimming.
    done
        What went.
    whole
        Weights of groups that were to stay whole; a plan remembers them.
    """

    opened: Opened
    cost: Cost
    units: int
    done: SlimFirst
    whole: tuple[str, ...]

    def choices(self, choices: Choices) -> Choices:
        """The same target for the slimmed model."""
        target = choices.target
        if target.kind == "ratio":
            left = self.units - self.done.units
            rest = target.value * self.units - self.done.units
            return replace(choices, target=Target("ratio", min(max(rest / max(left, 1), _LEAST), 1.0)))
        return replace(choices, target=Target(target.kind, min(target.value / self._share(target.kind), 1.0)))

    def result(self, target: Target, achieved: float) -> TargetResult:
        """What was asked for, and which share of the original was reached."""
        if target.kind == "ratio":
            dropped = self.done.units + achieved * (self.units - self.done.units)
            share = dropped / self.units if self.units else 0.0
        else:
            share = achieved * self._share(target.kind)
        return TargetResult(target.kind, target.value, share, target.met_by(share))

    def explained(self, error: TargetError) -> TargetError:
        """The error, whose shares are those of the slimmed model, with the shares that belong to it."""
        left = f"{self._share('macs'):.1%} of the MACs and {self._share('params'):.1%} of the parameters"
        return TargetError(
            f"{error.what}; shares are those of the model without the {self.done.units} units that contribute "
            f"nothing, which has {left} of the file",
            error.hint,
        )

    def told(self, report: Report) -> Report:
        """The report with the original's sizes, and what went first."""
        before = replace(report.before, params=self.cost.params, macs=self.cost.macs)
        return replace(report, before=before, warnings=(*self.done.notes, *report.warnings), slim=self.done)

    def _share(self, kind: str) -> float:
        """What the slimmed model has of the original's MACs or parameters."""
        whole = getattr(self.cost, kind)
        return getattr(self.opened.analysis.cost, kind) / whole if whole else 1.0


def slims(choices: Choices, job: Job) -> bool:
    """Whether pruning slims first.

    Masks keep shapes, a run time is measured as a share of the file's, and NNCF's rule gives every group its level.
    """
    return (
        job.slim and job.mode == "remove" and choices.target.kind != "latency" and choices.scope != "uniform"
    )


def whole_weights(
    analysis: Analysis, ignore: Sequence[str], only: Sequence[str], preset: str | None
) -> tuple[str, ...]:
    """Names of the weights that make the units of groups that are kept whole on request."""
    parts = analysis.partition
    groups = {group.id: group for group in (*parts.groups, *parts.alternatives)}
    kept = excluded_groups(analysis.axis_graph, groups, ignore=ignore, only=only, preset=preset)
    return tuple(sorted({str(use.axis.value.name) for name in kept for use in groups[name].sources}))


def slim_first(opened: Opened, job: Job, whole: Collection[str]) -> First | None:
    """Slim a model before it is pruned; None where nothing was found, and the model is as it was.

    Parameters
    ----------
    opened
        The model.
    whole
        Weights whose units stay; only where there are none whole branches go, too.

    Raises
    ------
    SoundnessError
        As `onnxprune.slim`.
    """
    done, _, notes = slim_opened(opened, job, whole=frozenset(whole), branches=not whole, lazy=True)
    if not done.gone and not done.branches:
        return None
    analysis = opened.analysis
    slimmed = analyze(
        replace(analysis.source, ir=done.model),
        bindings=analysis.bindings,
        rules=job.rules,
        allow_inexact=analysis.allow_inexact,
        refit_io=analysis.refit_io and job.refit_io,
        attention=analysis.attention,
    )
    groups = done.gone.values()
    told = SlimFirst(
        zero=sum(group.zero for group in groups),
        constant=sum(group.constant for group in groups),
        duplicate=sum(group.duplicate for group in groups),
        branches=tuple(done.branches),
        macs=slimmed.cost.macs,
        params=slimmed.cost.params,
        notes=notes,
    )
    chosen = [group for group in slimmed.partition.groups if not is_whole(group, whole)]
    units = sum(group.units for group in chosen) + told.units
    slimmed = replace(slimmed, source=analysis.source)  # what is measured is compared with the original
    return First(replace(opened, analysis=slimmed), analysis.cost, units, told, tuple(sorted(whole)))
