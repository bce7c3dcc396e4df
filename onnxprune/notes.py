"""What the report of a pruned model should say besides its figures."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.analysis import Analysis
from onnxprune.choosing.choices import Choices
from onnxprune.choosing.evidence import Evidence
from onnxprune.choosing.scoring import reads_data
from onnxprune.evaluate.soundness import Soundness
from onnxprune.inputs import Inputs
from onnxprune.job import Job, Opened
from onnxprune.measuring import Measurements
from onnxprune.plans import Plan
from onnxprune.report.remarks import remarks
from onnxprune.report.report import RefittedIO, TargetResult


def warnings_of(
    opened: Opened,
    job: Job,
    choices: Choices | None,
    plan: Plan,
    target: TargetResult,
    soundness: Soundness,
    measured: Measurements,
    learned: Sequence[str],
) -> tuple[str, ...]:
    """What a reader of the report should know about how the result came about.

    Parameters
    ----------
    learned
        What `learned_from` says.
    """
    lines = [*opened.inputs.notes, *measured.notes, *learned]
    if job.data is None:
        lines.append("no data was given, so no accuracy was measured: the proof ran on generated inputs")
    elif opened.inputs.fit.tier == "synthetic":
        lines += _synthetic(opened.inputs)
    if job.data is not None and opened.inputs.data.tier == "real" and not _has_metric(opened, measured):
        lines.append("the data has no labels, so no accuracy was measured")
    if not target.met and target.kind != "latency":
        figures = f"{target.requested:g} requested, {target.achieved:.4g} achieved"
        by_level = choices is not None and choices.scope == "uniform" and target.kind == "ratio"
        why = "widths are rounded up, so fewer units went than the level says" if by_level else ""
        lines.append(f"{why or 'the target was not met'}: {figures}")
    if not plan.dropped:
        lines.append("nothing was cut: the output is the same model")
    lines += _inexact(opened.analysis, plan)
    lines += [f"{name} is kept whole because masked != removed: {why}" for name, why in soundness.why.items()]
    if soundness.detached:
        lines.append(
            f"onnxruntime cannot run {', '.join(soundness.detached)}: the proof covers everything around it"
        )
    lines += [
        f"proven only as far as the samples go, because this does not run: {name}"
        for name in soundness.unforced
    ]
    lines += remarks(opened.analysis)
    if job.mode == "mask":
        lines.append("masked channels are zero but still there: the model is neither smaller nor faster")
    return tuple(lines)


def _has_metric(opened: Opened, measured: Measurements) -> bool:
    return opened.inputs.data.labels is not None or measured.metric is not None


def _synthetic(inputs: Inputs) -> list[str]:
    """What calibration on generated samples is worth."""
    lines = [
        f"calibrated on {len(inputs.fit)} synthetic samples: real ones, a few dozen without labels, are better "
        "(--data)"
    ]
    if inputs.data.tier == "synthetic":
        lines.append(
            "no accuracy was measured, and fidelity on synthetic samples says little about real ones "
            "(--test takes real samples)"
        )
    return lines


def learned_from(opened: Opened, job: Job, evidence: Evidence | None, choices: Choices | None) -> list[str]:
    """How the samples were divided, or that nothing could be learned from them."""
    if evidence is not None:
        return [opened.inputs.division] if opened.inputs.division else []
    wanted = bool(job.repairs) or (choices is not None and reads_data(choices.criterion, job.criteria))
    if job.data is None or not wanted:
        return []
    return ["onnxruntime cannot run the model as it is, so nothing was learned from the samples or repaired"]


def unmoved(refitted: tuple[RefittedIO, ...], job: Job) -> list[str]:
    """Inputs and outputs that might have got smaller and did not."""
    same = [io.name for io in refitted if io.before == io.after]
    if not same or job.mode == "mask":
        return []
    more = f" and {len(same) - 4} more" if len(same) > 4 else ""
    return [
        f"--refit-io: {', '.join(same[:4])}{more} kept their shapes, because no channel of theirs was cut "
        "(`onnxprune explain` says what holds an axis)"
    ]


def _inexact(analysis: Analysis, plan: Plan) -> list[str]:
    """What `--allow-inexact` has changed, in one line."""
    cut = [name for name in analysis.inexact if name in plan.keep]
    if not cut:
        return []
    where = analysis.inexact[cut[0]]
    return [
        f"inexact, as asked for with --allow-inexact: {', '.join(cut)}. Norms such as {where} average over the "
        "channels that stay, so even channels that do nothing change the result when they go; the proof compares "
        "with the masked model whose norms see the same channels"
    ]
