"""The main job: analyse, score, solve, prove, write, measure, report."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.allocate.solve import Allocation
from onnxprune.allocate.target import Target
from onnxprune.analysis import Analysis, analyze
from onnxprune.apply.keep import kept_positions
from onnxprune.apply.mask import mask
from onnxprune.apply.remove import remove
from onnxprune.criteria import CriterionTable
from onnxprune.errors import Reason, TargetError, UsageError
from onnxprune.evaluate.fidelity import Fidelity
from onnxprune.evaluate.metrics import Score
from onnxprune.evaluate.soundness import Prover, Soundness
from onnxprune.evaluate.validate import compare, measure
from onnxprune.inputs import Inputs, choose_inputs
from onnxprune.model import io
from onnxprune.model.finalize import finalize
from onnxprune.plan import Plan
from onnxprune.planning import Choices, Scored, allocate, check_reached, score_groups
from onnxprune.report.report import (
    BarrierResult,
    GroupResult,
    Measured,
    Report,
    Size,
    TargetResult,
)
from onnxprune.rules import RuleTable

MODES = ("remove", "mask")
Bools = np.ndarray[Any, np.dtype[np.bool_]]
Progress = Callable[[str, int, int], None]
"""Called with (stage, steps done, steps in all; 0 where unknown)."""


@dataclass(frozen=True)
class Pruned:
    """The result of `prune` and `apply`.

    Attributes
    ----------
    model
        The pruned model.
    plan
        What was kept.
    report
        What happened.
    path
        Where the model was written; None where it was not.
    """

    model: ir.Model = field(repr=False)
    plan: Plan
    report: Report
    path: Path | None

    def __repr__(self) -> str:
        r = self.report
        return (
            f"Pruned({r.before.macs:,} -> {r.after.macs:,} MACs, {r.before.params:,} -> {r.after.params:,} params, "
            f"{self.path or 'not written'})"
        )


@dataclass(frozen=True)
class Job:
    """Everything about a run except the model and the choice of units.

    Parameters
    ----------
    mode
        "remove" cuts channels out, "mask" zeroes them and keeps all shapes.
    data, samples, preprocess
        Inputs for the proof and the measurements; generated ones without `data`.
    bindings
        Sizes of symbolic dims.
    provider
        onnxruntime's provider: "auto", "cpu", "cuda", ...
    metric
        Metric for labelled data.
    best_effort
        Accept what is reachable where the target is not.
    seed
        For generated inputs.
    rules, criteria
        Tables to use instead of the default ones.
    progress
        Called as the work goes on.
    """

    mode: str = "remove"
    data: Any = None
    samples: int | None = None
    preprocess: Any = None
    bindings: Mapping[str, int] = field(default_factory=dict)
    provider: str = "auto"
    metric: str = "top1"
    best_effort: bool = False
    seed: int = 0
    rules: RuleTable | None = None
    criteria: CriterionTable | None = None
    progress: Progress = lambda stage, done, total: None

    def __post_init__(self) -> None:
        """Reject unknown modes."""
        if self.mode not in MODES:
            raise UsageError(f"there is no mode {self.mode!r}", f"Known: {', '.join(MODES)}.")


@dataclass(frozen=True)
class Opened:
    """A model that was analysed, together with the inputs on which it is proven."""

    analysis: Analysis
    inputs: Inputs


def open_model(path: str | os.PathLike[str] | io.LoadedModel, job: Job) -> Opened:
    """Load and analyse a model, and choose inputs for it."""
    job.progress("loading", 0, 0)
    source = path if isinstance(path, io.LoadedModel) else io.load(path)
    _check_bindings(source, job.bindings)
    job.progress("reading data", 0, 0)
    inputs = choose_inputs(
        source,
        data=job.data,
        samples=job.samples,
        preprocess=job.preprocess,
        bindings=job.bindings,
        provider=job.provider,
        seed=job.seed,
    )
    job.progress("analysing", 0, 0)
    bindings = {name: job.bindings.get(name, _per_sample(name, source, inputs)) for name in inputs.bindings}
    return Opened(analyze(source, bindings=bindings, rules=job.rules), inputs)


def _check_bindings(source: io.LoadedModel, bindings: Mapping[str, int]) -> None:
    from onnxprune.model.shapes import bind_dims

    known, _ = bind_dims(source.ir.graph.inputs, {})
    for name, size in bindings.items():
        if name not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise UsageError(f"--bind {name}: the model has no symbolic dim of that name", f"It has: {listed}.")
        if size < 1:
            raise UsageError(f"--bind {name}={size} is not positive", "Give the size of the dim.")


def _per_sample(name: str, source: io.LoadedModel, inputs: Inputs) -> int:
    return inputs.bindings[name]


def choose_units(opened: Opened, choices: Choices, job: Job) -> tuple[Allocation, Scored, Soundness]:
    """Score, solve and prove; groups that the proof rejects are left whole and the target is solved again.

    Raises
    ------
    TargetError
        The target is out of reach and `job.best_effort` is off, or nothing at all can be cut.
    """
    analysis = opened.analysis
    scored = score_groups(
        analysis,
        choices,
        criteria=job.criteria,
        progress=lambda done, total: job.progress("scoring", done, total),
    )
    rejected: list[str] = []
    while True:
        allocation = allocate(analysis, scored, choices)
        if not job.best_effort or not scored.ladders:
            check_reached(analysis, scored, allocation, choices.target)
        keep, soundness = _prover(opened, job).prove(allocation.keep)
        if not soundness.rejected_groups:
            return allocation, scored, _with_rejected(soundness, rejected)
        rejected.extend(soundness.rejected_groups)
        scored = scored.without(soundness.rejected_groups, Reason.UNSOUND)


def _with_rejected(soundness: Soundness, rejected: list[str]) -> Soundness:
    from dataclasses import replace

    return replace(soundness, rejected_groups=tuple(rejected))


def _prover(opened: Opened, job: Job) -> Prover:
    return Prover(
        opened.analysis.axis_graph,
        opened.analysis.groups,
        opened.inputs.proof,
        job.provider,
        lambda line: job.progress("proving masked == removed", 0, 0),
    )


def build(analysis: Analysis, keep: Mapping[str, Bools], mode: str) -> ir.Model:
    """The pruned model in the form in which it is written."""
    kept = kept_positions(analysis.groups, keep)
    make = mask if mode == "mask" else remove
    return finalize(make(analysis.axis_graph, kept))


def prune_model(
    path: str | os.PathLike[str] | io.LoadedModel,
    choices: Choices,
    job: Job,
    *,
    output: str | os.PathLike[str] | None,
    force: bool = False,
) -> Pruned:
    """Prune a model and, where `output` is given, write it. See `onnxprune.prune`."""
    if output is not None:
        given = path.path if isinstance(path, io.LoadedModel) else Path(path)
        if given.exists():
            io.check_writable(output, force=force, sources=(given,))
    opened = open_model(path, job)
    allocation, scored, soundness = choose_units(opened, choices, job)
    plan = Plan.of(opened.analysis, allocation.keep)
    target = TargetResult(
        choices.target.kind, choices.target.value, allocation.achieved, allocation.met and plan.dropped > 0
    )
    if not plan.dropped and not job.best_effort and choices.target.value < 1:
        raise TargetError(
            f"nothing was cut: the target to {choices.target.sentence} is smaller than one step of --round-to "
            f"{choices.round_to}",
            "Use a smaller --round-to or a stronger target.",
        )
    return _finish(opened, plan, job, choices, target, scored.excluded, soundness, output, force)


def apply_plan(
    path: str | os.PathLike[str] | io.LoadedModel,
    make_plan: Callable[[Analysis], Plan],
    job: Job,
    *,
    output: str | os.PathLike[str] | None,
    force: bool = False,
) -> Pruned:
    """Replay a plan, prove it, and write the result. See `onnxprune.apply`.

    Raises
    ------
    SoundnessError
        masked != removed for the plan. Nothing is written.
    """
    from onnxprune.errors import SoundnessError

    if output is not None:
        given = path.path if isinstance(path, io.LoadedModel) else Path(path)
        if given.exists():
            io.check_writable(output, force=force, sources=(given,))
    opened = open_model(path, job)
    plan = make_plan(opened.analysis)
    _, soundness = _prover(opened, job).prove(plan.keep)
    if soundness.rejected_groups:
        raise SoundnessError(
            f"the plan is unsound: masked != removed with {', '.join(soundness.rejected_groups)}",
            "Take these groups out of the plan, or make a new plan with `onnxprune prune --plan`.",
        )
    cost = opened.analysis.costs.cost(plan.keep)
    target = TargetResult("plan", 1.0, cost.macs / max(opened.analysis.cost.macs, 1), True)
    return _finish(opened, plan, job, None, target, {}, soundness, output, force)


def _finish(
    opened: Opened,
    plan: Plan,
    job: Job,
    choices: Choices | None,
    target: TargetResult,
    excluded: Mapping[str, Reason],
    soundness: Soundness,
    output: str | os.PathLike[str] | None,
    force: bool,
) -> Pruned:
    analysis, source = opened.analysis, opened.analysis.source
    job.progress(job.mode, 0, 0)
    model = build(analysis, plan.keep, job.mode)
    metric, fidelity = _measure(opened, model, job)
    size = _bytes(model)
    if output is not None:
        job.progress("writing", 0, 0)
        size = io.save(
            model,
            output,
            external=bool(source.data_files),
            force=force,
            sources=(source.path, *source.data_files),
        )
    cost = analysis.costs.cost(plan.keep if job.mode == "remove" else {})
    report = Report(
        path=str(source.path),
        sha256=source.sha256,
        output="" if output is None else str(output),
        mode=job.mode,
        target=target,
        criterion=choices.criterion if choices else "plan",
        scope=choices.scope if choices else "plan",
        round_to=choices.round_to if choices else 1,
        seed=choices.seed if choices else job.seed,
        before=Size(analysis.cost.params, analysis.cost.macs, source.bytes, source.ir.graph.num_nodes()),
        after=Size(cost.params, cost.macs, size, model.graph.num_nodes()),
        groups=group_results(analysis, plan.keep, excluded),
        barriers=barrier_results(analysis),
        coverage={"params": analysis.coverage.params, "macs": analysis.coverage.macs},
        soundness=soundness,
        calibration={
            "tier": opened.inputs.data.tier if job.data is not None else "none",
            "samples": len(opened.inputs.data) if job.data is not None else 0,
            "source": opened.inputs.data.source,
        },
        bindings=analysis.bindings,
        metric=metric,
        fidelity=fidelity,
        warnings=_warnings(opened, job, target, soundness, metric),
    )
    return Pruned(model, plan, report, None if output is None else Path(output))


def _measure(opened: Opened, model: ir.Model, job: Job) -> tuple[Measured | None, Fidelity | None]:
    """Metric before and after where labels are there, and label-free fidelity, on real data only."""
    data = opened.inputs.data
    if job.data is None:
        return None, None
    original = opened.analysis.source.ir
    batch = 32

    def tick(stage: str) -> Callable[[int, int], None]:
        return lambda done, total: job.progress(stage, done, total)

    fidelity = compare(original, model, data, job.provider, batch, progress=tick("comparing outputs"))
    if data.labels is None:
        return None, fidelity
    before, after = (
        measure(m, data, job.metric, job.provider, batch, progress=tick(f"measuring {job.metric}"))
        for m in (original, model)
    )
    return Measured(before, after), fidelity


def _bytes(model: ir.Model) -> int:
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def group_results(
    analysis: Analysis, keep: Mapping[str, Bools], excluded: Mapping[str, Reason]
) -> tuple[GroupResult, ...]:
    """One entry per group, those that stay whole by choice with the reason."""
    results = []
    for name, group in analysis.groups.items():
        reason = excluded.get(name)
        results.append(
            GroupResult(
                name,
                group.name,
                group.units,
                int(keep[name].sum()) if name in keep else group.units,
                len(group.axes),
                tuple(use.axis.name for use in group.sources),
                tuple(use.axis.name for use in group.sinks),
                group.block_count,
                reason.name if reason else "",
                reason.sentence if reason else "",
            )
        )
    return tuple(results)


def barrier_results(analysis: Analysis) -> tuple[BarrierResult, ...]:
    """What is blocked and why, the costliest first."""
    return tuple(
        BarrierResult(b.reason.name, b.reason.sentence, b.where, b.layers, b.params, b.macs)
        for b in analysis.blocked
    )


def _warnings(
    opened: Opened, job: Job, target: TargetResult, soundness: Soundness, metric: Measured | None
) -> tuple[str, ...]:
    lines = list(opened.inputs.notes)
    if job.data is None:
        lines.append("no data was given, so no accuracy was measured: the proof ran on generated inputs")
    elif metric is None:
        lines.append("the data has no labels, so no accuracy was measured")
    if not target.met:
        lines.append(f"the target was not met: {target.requested:g} requested, {target.achieved:.4g} achieved")
    if soundness.rejected_groups:
        lines.append(f"kept whole because masked != removed: {', '.join(soundness.rejected_groups)}")
    if soundness.detached:
        lines.append(
            "onnxruntime cannot run "
            + ", ".join(soundness.detached)
            + ": the proof covers everything around it"
        )
    if job.mode == "mask":
        lines.append("masked channels are zero but still there: the model is neither smaller nor faster")
    return tuple(lines)


__all__ = ["Job", "Pruned", "Score", "Target", "apply_plan", "open_model", "prune_model"]
