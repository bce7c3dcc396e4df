"""The target `latency` in a run: what is timed, under which conditions, and what the report says about it."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from onnxprune.analysis import Analysis
from onnxprune.calibrate.timing import Stopwatch
from onnxprune.choosing.choices import Choices
from onnxprune.choosing.timed import Timing, one_feed, with_times
from onnxprune.errors import UsageError
from onnxprune.inputs import choose_inputs
from onnxprune.job import Job, Opened
from onnxprune.report.report import LatencyResult


def check_threads(choices: Choices, job: Job) -> None:
    """Raise UsageError where threads were given and no time is measured."""
    if job.threads is not None and choices.target.kind != "latency":
        raise UsageError(
            f"--threads {job.threads} says how --latency is measured, and --latency was not given",
            "Add --latency, or leave --threads out.",
        )


def timed(opened: Opened, choices: Choices, job: Job, repairs: bool) -> tuple[Opened, Timing | None]:
    """The same model with costs that predict its run time on the job's provider, where that is the target."""
    if choices.target.kind != "latency":
        return opened, None
    analysis = opened.analysis
    feed = one_feed(analysis.source.ir, opened.inputs.proof, analysis.bindings)
    watch = Stopwatch(job.provider, job.threads)
    analysis, timing = with_times(analysis, choices, watch, feed, repairs, job.tick("timing layers"))
    return replace(opened, analysis=analysis), timing


def timed_alone(analysis: Analysis, choices: Choices, job: Job) -> tuple[Analysis, Timing | None]:
    """The same for an analysis, on generated inputs."""
    check_threads(choices, job)
    if choices.target.kind != "latency":
        return analysis, None
    inputs = choose_inputs(analysis.source, bindings=analysis.bindings, provider=job.provider, seed=job.seed)
    opened, timing = timed(Opened(analysis, inputs), choices, job, repairs=False)
    return opened.analysis, timing


def latency_result(
    timing: Timing, original: ir.Model, result: ir.Model | None, requested: float
) -> LatencyResult:
    """What was requested, predicted and measured.

    Parameters
    ----------
    result
        The finished model, which is timed beside the original; None: what was measured before the repair counts.
    """
    chosen = timing.chosen
    share = chosen.share if result is None else timing.beside(original, result)
    return LatencyResult(
        requested=requested,
        predicted=chosen.predicted,
        measured=share.value,
        noise=share.noise,
        met=share.value <= requested + share.noise,
        before_ms=share.before * 1e3,
        after_ms=share.after * 1e3,
        fixed=timing.fixed,
        conditions=timing.watch.conditions,
        inputs={name: tuple(array.shape) for name, array in timing.feed.items()},
        trials=tuple((trial.predicted, trial.share.value) for trial in timing.trials if trial.share.before),
    )
