"""The main job: analyse, score, solve, prove, write, measure, report."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir

from onnxprune.allocate.solve import Allocation
from onnxprune.analysis import Analysis
from onnxprune.choosing.automatic import choose_criterion
from onnxprune.choosing.choices import Choices
from onnxprune.choosing.evidence import Evidence
from onnxprune.choosing.exchanging import exchanged
from onnxprune.choosing.learned import learn
from onnxprune.choosing.rearranging import rearranged
from onnxprune.choosing.rounds import remeasured
from onnxprune.choosing.scoring import (
    AUTO,
    RETRAIN_FREE,
    Scored,
    check_criterion,
    needs_data,
    reads_data,
    score_groups,
)
from onnxprune.choosing.timed import Timing, solved
from onnxprune.clock import Clock
from onnxprune.collector import rarely_collected
from onnxprune.errors import Reason, SoundnessError, TargetError, UsageError
from onnxprune.evaluate.soundness import Soundness
from onnxprune.graph.axes import Bools
from onnxprune.job import Job, Opened, open_model
from onnxprune.measuring import check_metric, measure_both
from onnxprune.model import io
from onnxprune.model.finalize import finalize
from onnxprune.model.serialize import weight_bytes
from onnxprune.model.stored import requantised
from onnxprune.notes import learned_from, unmoved, warnings_of
from onnxprune.plans import Plan
from onnxprune.repair.sequence import Repairs, repair
from onnxprune.repair.turn import turned_model
from onnxprune.repair.write import write_masked, write_ranges
from onnxprune.report.assemble import barrier_results, group_results, refitted_io
from onnxprune.report.quantised import quantised_result
from onnxprune.report.report import Report, Size, TargetResult
from onnxprune.slimming.first import slim_first, slims, whole_weights
from onnxprune.surgery.keep import kept_positions
from onnxprune.surgery.mask import mask
from onnxprune.surgery.remove import remove
from onnxprune.threads import few_threads
from onnxprune.timing import check_threads, latency_result, timed

Source = str | os.PathLike[str] | io.LoadedModel


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
            f"Pruned({r.before.macs:,} -> {r.after.macs:,} MACs, "
            f"{r.before.params:,} -> {r.after.params:,} params, {self.path or 'not written'})"
        )


def choose_units(
    opened: Opened, choices: Choices, job: Job, evidence: Evidence | None, timing: Timing | None = None
) -> tuple[Allocation, Scored, Soundness, Timing | None]:
    """Score, solve and prove; groups that the proof rejects are left whole and the target is solved again.

    Parameters
    ----------
    timing
        What is known about run times, where they are the target; it comes back with what was measured.

    Raises
    ------
    TargetError
        The target is out of reach and `job.best_effort` is off.
    """
    analysis = opened.analysis
    if choices.criterion == AUTO and evidence is not None:
        scored = choose_criterion(analysis, choices, evidence, job.criteria, job.progress)
    else:
        scored = score_groups(
            analysis, choices, criteria=job.criteria, evidence=evidence, progress=job.tick("scoring")
        )
    if choices.scope == "learned" and evidence is not None:
        scored = learn(analysis, scored, choices, evidence, job.tick("learning the ranking"))
    if choices.rounds > 1:
        if evidence is None or not scored.measured:
            raise UsageError(
                f"--rounds {choices.rounds} needs measured losses, which there are none of",
                "Give --data, and --criterion obs or auto.",
            )
        scored = remeasured(analysis, scored, choices, evidence, job.tick("measuring again"))
    rejected: dict[str, str] = {}
    while True:
        tick = job.tick("measuring the run time")
        analysis, allocation, timing = solved(analysis, scored, choices, job.best_effort, timing, tick)
        notes: tuple[str, ...] = ()
        if evidence is not None:
            swap = rearranged if scored.criterion == RETRAIN_FREE else exchanged
            allocation, notes = swap(
                analysis, allocation, scored, choices, evidence, job.tick("exchanging units")
            )
        _, soundness = opened.prover(job).prove(allocation.keep)
        if not soundness.rejected_groups:
            scored = replace(scored, notes=(*scored.notes, *notes))
            soundness = replace(soundness, rejected_groups=tuple(rejected), why=rejected)
            return allocation, scored, soundness, timing
        rejected.update(soundness.why)
        scored = scored.without(soundness.rejected_groups, Reason.UNSOUND)


def build(
    analysis: Analysis, keep: Mapping[str, Bools], job: Job, evidence: Evidence | None = None
) -> tuple[ir.Model, Repairs]:
    """The pruned model in the form in which it is written, and how it was repaired."""
    graph = analysis.axis_graph
    kept = kept_positions(analysis.groups, keep)
    if evidence is None or not job.repairs or not kept:
        make = mask if job.mode == "mask" else remove
        return finalize(make(graph, kept)), Repairs()
    turns = []
    if "affine" in job.repairs:
        turns = evidence.turns({name: ~flags for name, flags in keep.items()})
    with turned_model(graph.model, turns):
        cut = remove(graph, kept)
        repairs = repair(
            graph,
            cut,
            kept,
            evidence.batches,
            kinds=job.repairs,
            turns=turns,
            provider=job.provider,
            budget=evidence.budget,
            seed=job.seed,
            progress=job.tick("repairing"),
        )
        if job.mode == "mask":
            masked = mask(graph, kept)
            write_masked(graph, masked, kept, repairs.arrays)
            write_ranges(masked, repairs.ranges)
            return finalize(masked), repairs
    return finalize(cut), repairs


@rarely_collected
def prune_model(
    path: Source,
    choices: Choices,
    job: Job,
    *,
    output: str | os.PathLike[str] | None,
    force: bool = False,
) -> Pruned:
    """Prune a model and, where `output` is given, write it. See `onnxprune.prune`."""
    job = replace(job, progress=Clock(job.progress))
    check_criterion(choices, job)
    check_threads(choices, job)
    reads = choices.scope == "learned" or reads_data(choices.criterion, job.criteria)
    learns = job.data is not None and (bool(job.repairs) or reads)
    opened = open_model(path, job, output=output, force=force, calibrate=learns)
    check_metric(opened, job)
    asked, first = choices, None
    if slims(choices, job):
        whole = whole_weights(opened.analysis, choices.ignore, choices.only, choices.preset)
        first = slim_first(opened, job, whole)
    if first is not None:
        opened, choices = first.opened, first.choices(choices)
    evidence = opened.evidence(job) if learns else None
    if evidence is None and learns and needs_data(choices, job):
        raise UsageError(
            f"the criterion {choices.criterion} or the scope {choices.scope} looks at samples, but onnxruntime "
            "cannot run the model as it is",
            "Take a criterion that looks at weights, such as l2, and --scope global.",
        )
    opened, timing = timed(opened, choices, job, repairs=evidence is not None and bool(job.repairs))
    with few_threads(evidence.largest if evidence is not None else 0):
        try:
            allocation, scored, soundness, timing = choose_units(opened, choices, job, evidence, timing)
        except TargetError as error:
            raise error if first is None else first.explained(error) from None
        plan = Plan.of(opened.analysis, allocation.keep)
        target = TargetResult(choices.target.kind, choices.target.value, allocation.achieved, allocation.met)
        if first is not None:
            plan, target = replace(plan, slim=first.whole), first.result(asked.target, allocation.achieved)
        done = _finish(opened, plan, job, asked, target, scored, soundness, output, force, evidence, timing)
        return done if first is None else replace(done, report=first.told(done.report))


@rarely_collected
def apply_plan(
    path: Source,
    make_plan: Callable[[Analysis], Plan],
    job: Job,
    *,
    output: str | os.PathLike[str] | None,
    force: bool = False,
    slim: Collection[str] | None = None,
) -> Pruned:
    """Replay a plan, prove it, and write the result. See `onnxprune.apply`.

    Parameters
    ----------
    slim
        As in the plan.

    Raises
    ------
    SoundnessError
        masked != removed for the plan. Nothing is written.
    """
    job = replace(job, progress=Clock(job.progress))
    learns = job.data is not None and bool(job.repairs)
    opened = open_model(path, job, output=output, force=force, calibrate=learns)
    check_metric(opened, job)
    first = None if slim is None else slim_first(opened, job, slim)
    opened = opened if first is None else first.opened
    plan = make_plan(opened.analysis)
    _, soundness = opened.prover(job).prove(plan.keep)
    if soundness.rejected_groups:
        why = "; ".join(f"{name}: {text}" for name, text in soundness.why.items())
        raise SoundnessError(
            f"the plan is unsound: masked != removed ({why})",
            "Take these groups out of the plan, or make a new plan with `onnxprune prune --plan`.",
        )
    full, cost = opened.analysis.cost if first is None else first.cost, opened.analysis.costs.cost(plan.keep)
    target = TargetResult("plan", 1.0, cost.macs / full.macs if full.macs else 1.0, True)
    evidence = opened.evidence(job) if learns else None
    with few_threads(evidence.largest if evidence is not None else 0):
        done = _finish(opened, plan, job, None, target, None, soundness, output, force, evidence)
    return done if first is None else replace(done, report=first.told(done.report))


def _finish(
    opened: Opened,
    plan: Plan,
    job: Job,
    choices: Choices | None,
    target: TargetResult,
    scored: Scored | None,
    soundness: Soundness,
    output: str | os.PathLike[str] | None,
    force: bool,
    evidence: Evidence | None,
    timing: Timing | None = None,
) -> Pruned:
    analysis, source = opened.analysis, opened.analysis.source
    job.say("cutting" if job.mode == "remove" else "masking")
    model, repairs = build(analysis, plan.keep, job, evidence)
    kept = kept_positions(analysis.groups, plan.keep if job.mode == "remove" else {})
    latency = None
    if timing is not None:
        job.say("measuring the run time")
        latency = latency_result(timing, source.ir, model if job.mode == "remove" else None, target.requested)
        target = replace(target, achieved=latency.measured, met=latency.met)
    measured = measure_both(opened, model, kept, job)
    size = weight_bytes(model)
    if output is not None:
        job.say("writing")
        sources = (source.path, *source.data_files)
        size = io.save(model, output, external=bool(source.data_files), force=force, sources=sources)
    seconds = {}
    if isinstance(job.progress, Clock):
        job.progress.stop()
        seconds = dict(job.progress.seconds)
    cost = analysis.costs.cost(plan.keep if job.mode == "remove" else {})
    fitted = opened.inputs.fit
    refitted = refitted_io(analysis, kept)
    learned = learned_from(opened, job, evidence, choices)
    report = Report(
        path=str(source.path),
        sha256=source.sha256,
        output="" if output is None else str(output),
        mode=job.mode,
        target=target,
        criterion=scored.criterion if scored else "plan",
        scope=choices.scope if choices else "plan",
        round_to=choices.round_to if choices else 1,
        seed=choices.seed if choices else job.seed,
        before=Size(analysis.cost.params, analysis.cost.macs, source.bytes, source.ir.graph.num_nodes()),
        after=Size(cost.params, cost.macs, size, model.graph.num_nodes()),
        groups=group_results(analysis, plan.keep, scored.excluded if scored else {}),
        barriers=barrier_results(analysis),
        coverage={"params": analysis.coverage.params, "macs": analysis.coverage.macs},
        soundness=soundness,
        calibration={
            "tier": fitted.tier if job.data is not None else "none",
            "samples": len(fitted) if job.data is not None else 0,
            "source": fitted.source if job.data is not None else "",
            "measured": opened.inputs.data.tier if job.data is not None else "none",
        },
        bindings=analysis.bindings,
        metric=measured.metric,
        fidelity=measured.fidelity,
        warnings=(
            *(scored.notes if scored else ()),
            *(timing.notes if timing else ()),
            *warnings_of(opened, job, choices, plan, target, soundness, measured, learned),
            *unmoved(refitted, job),
        ),
        refitted=refitted,
        repairs=repairs.layers,
        seconds=seconds,
        latency=latency,
        quantised=quantised_result(
            analysis.axis_graph.model, requantised(model.graph), soundness.torn, sorted(repairs.ranges)
        ),
    )
    return Pruned(model, plan, report, None if output is None else Path(output))
