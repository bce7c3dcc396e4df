"""The public functions, with the words of the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from onnxprune.allocate.target import Target, target_of
from onnxprune.analysis import Analysis, analyze
from onnxprune.choosing.choices import Choices
from onnxprune.choosing.scoring import score_groups
from onnxprune.choosing.timed import solved
from onnxprune.criteria import CriterionTable
from onnxprune.differentiation import differentiate
from onnxprune.errors import UsageError
from onnxprune.explanation import explain
from onnxprune.inspection.collect import stats
from onnxprune.job import Job, Progress
from onnxprune.model import io
from onnxprune.model.batchnorm import fold_batchnorm as fold
from onnxprune.model.finalize import finalize
from onnxprune.model.io import LoadedModel
from onnxprune.model.normalize import normalize
from onnxprune.plans import MadeWith, Plan, made_with, read_plan
from onnxprune.pruning import Pruned, apply_plan, prune_model
from onnxprune.rules import RuleTable
from onnxprune.slimming.run import slim
from onnxprune.sparsifying import sparsify
from onnxprune.timing import timed_alone
from onnxprune.validation import validate

__all__ = [
    "analyze",
    "apply",
    "differentiate",
    "explain",
    "load",
    "plan",
    "prune",
    "slim",
    "sparsify",
    "stats",
    "validate",
]

Source = str | os.PathLike[str] | LoadedModel


def load(path: str | os.PathLike[str], *, fold_batchnorm: bool = False) -> LoadedModel:
    """Read an ONNX model; weights in external files are memory-mapped, not read.

    Parameters
    ----------
    path
        Path of the .onnx file; never modified.
    fold_batchnorm
        Fold BatchNormalization nodes into the layers before them where that is possible. By default they stay.

    Raises
    ------
    UsageError, ModelError
        As in `onnxprune.model.io.load`.
    """
    source = io.load(path)
    return folded(source) if fold_batchnorm else source


def folded(source: LoadedModel) -> LoadedModel:
    """The same model with its BatchNormalization nodes folded; equal up to the rounding of the weights."""
    return replace(source, ir=finalize(fold(normalize(source.ir))))


def plan(
    analysis: Analysis,
    *,
    macs: float | None = None,
    params: float | None = None,
    ratio: float | None = None,
    latency: float | None = None,
    criterion: str = "auto",
    scope: str | None = None,
    round_to: int | None = None,
    ignore: Sequence[str] = (),
    only: Sequence[str] = (),
    preset: str | None = None,
    seed: int = 0,
    best_effort: bool = False,
    provider: str = "auto",
    threads: int | None = None,
    criteria: CriterionTable | None = None,
) -> Plan:
    """Choose the units that go. Nothing is proven or written here: `apply` does that.

    Parameters
    ----------
    analysis
        From `analyze`.
    macs, params, ratio, latency
        One target: keep at most this share of the MACs, of the parameters or of the measured run time, or drop this
        share of the units. By default at most 70 % of the MACs are kept.
    criterion
        "l1", "l2", "geometric-median", "bn-scale", "random" or a registered one.
    scope
        "local" (every group loses the same share, until the target is reached; the default with `ratio`), "global"
        (one ranking over all groups; the default without), "uniform" (NNCF's rule: one level for every group,
        widths rounded up) or, in `prune` with data, "learned" (a ranking that is searched for).
    round_to
        Channels that stay are a multiple of this. By default of 8, and of 4 in groups of fewer than 64 channels
        where the scope ranks groups.
    ignore, only
        Globs on node or initializer names, or `re:` and a regular expression.
    preset
        "nncf": first and strided convolutions stay whole, uniform scope.
    seed
        For the random criterion.
    best_effort
        Return what is reachable where the target is not.
    provider, threads
        Where the run time is measured that `latency` speaks of, as in `prune`.

    Raises
    ------
    UsageError
        Contradicting or meaningless options, patterns that match nothing.
    TargetError
        The target is out of reach.
    """
    target = target_of(macs, params, ratio, latency)
    choices = make_choices(target, criterion, scope, round_to, tuple(ignore), tuple(only), preset, seed)
    if choices.scope == "learned" or choices.rounds > 1:
        raise UsageError("a plan without samples cannot be learned", "Use `prune` with data.")
    analysis, timing = timed_alone(analysis, choices, Job(provider=provider, threads=threads, seed=seed))
    scored = score_groups(analysis, choices, criteria=criteria)
    _, allocation, _ = solved(analysis, scored, choices, best_effort, timing)
    return Plan.of(analysis, allocation.keep)


def make_choices(
    target: Target,
    criterion: str,
    scope: str | None,
    round_to: int | None,
    ignore: tuple[str, ...],
    only: tuple[str, ...],
    preset: str | None,
    seed: int,
    rounds: int = 1,
    schedule: str = "linear",
    max_ratio: float | None = None,
    min_ratio: float = 0.0,
) -> Choices:
    """`Choices` in which a preset decides what was left open."""
    if scope is None:
        scope = "uniform" if preset == "nncf" else "local" if target.kind == "ratio" else "global"
    return Choices(
        target=target,
        criterion=criterion,
        scope=scope,
        round_to=round_to,
        ignore=ignore,
        only=only,
        preset=preset,
        seed=seed,
        rounds=rounds,
        schedule=schedule,
        max_ratio=max_ratio,
        min_ratio=min_ratio,
    )


def prune(
    model: Source,
    output: str | os.PathLike[str] | None = None,
    *,
    macs: float | None = None,
    params: float | None = None,
    ratio: float | None = None,
    latency: float | None = None,
    criterion: str = "auto",
    scope: str | None = None,
    round_to: int | None = None,
    ignore: Sequence[str] = (),
    only: Sequence[str] = (),
    preset: str | None = None,
    rounds: int = 1,
    schedule: str = "linear",
    max_ratio: float | None = None,
    min_ratio: float = 0.0,
    mode: str = "remove",
    data: Any = None,
    samples: int | None = None,
    preprocess: Any = None,
    bindings: Mapping[str, int] | None = None,
    provider: str = "auto",
    metric: str | None = None,
    compensate: str = "auto",
    test: Any = None,
    memory: float | None = None,
    seed: int = 0,
    threads: int | None = None,
    loss: str = "auto",
    force: bool = False,
    best_effort: bool = False,
    allow_inexact: bool = False,
    refit_io: Sequence[str] = (),
    attention: str = "auto",
    slim: bool = True,
    rules: RuleTable | None = None,
    criteria: CriterionTable | None = None,
    progress: Progress | None = None,
) -> Pruned:
    """Prune a model: choose units, prove that removing them is sound, write the result, measure it.

    Parameters
    ----------
    model
        Path of an .onnx file, or what `load` returned. Never modified.
    output
        Where to write the pruned model; nothing is written where it is None.
    macs, params, ratio, latency, criterion, scope, round_to, ignore, only, preset, best_effort
        As in `plan`.
    rounds, schedule
        In how many rounds the losses of the groups are measured again on the way to the target, and how far each
        goes: "oneshot", "linear", "cos", "exp", "cube", "exponential", "exponential_with_bias" or "polynomial".
    max_ratio, min_ratio
        At most and at least this share of a group's units goes; what a group may not lose the others do.
    mode
        "remove" cuts channels out; "mask" zeroes them and keeps all shapes.
    data, samples, preprocess
        Samples for the proof, the calibration, the metric and the fidelity: a path, `module:name`, a
        `CalibrationDataReader` or an iterable of feeds. "synthetic" or "synthetic:N" calibrates on generated
        samples. Without data nothing is calibrated, the proof runs on generated inputs, no accuracy is measured.
    bindings
        Sizes of symbolic dims, for counting MACs and generating inputs.
    provider
        "auto", "cpu", "cuda" or another of onnxruntime's.
    metric
        "top1" (the default for labelled data), "top5", "f1", "miou", "mse", "psnr", "perplexity", "agreement"
        (with the original, without labels) or `module:function` of one's own.
    compensate
        Repair of the remaining weights: "auto" (with data the best kind per layer, else none), "affine", "rescale",
        "bias" or "none".
    test
        Other samples to measure metric and fidelity on. Without it, every fifth sample of `data` is held back
        for that where the others are learned from.
    memory
        GiB that statistics and tensors between layers may take; by default 40 % of what is free, at most 8.
    seed
        For the random criterion, for generated inputs, and for labels and signs that are drawn.
    threads
        Threads per operator with which the run time is measured that `latency` speaks of; by default onnxruntime's
        own number. It is measured on `provider`, with a batch of 1 where `bindings` or the model say nothing else.
    loss
        What criteria with gradients differentiate: "labels" (the loss that goes with the data's labels), "sampled"
        (cross-entropy with classes drawn from the model's own predictions), "outputs" (random combinations of
        them), or "auto": labels where there are some that fit, else sampled for a classifier, else outputs.
    force
        Replace an existing output.
    allow_inexact
        Cut axes that norms average over, too (the width of a residual stream under LayerNorm): the norm is then
        one of the channels that stay, which is not what it was.
    refit_io
        Graph inputs and outputs that may get smaller with the layers around them (keys and values of a cache):
        globs on their names, or `re:` and a regular expression. All others keep their shapes.
    attention
        What goes in attention where both are possible: whole "heads", or "dims" of all heads alike. "auto": dims
        where the weights are repaired, which can make up for them, else heads.
    slim
        Remove first what contributes nothing (see `onnxprune.slim`); targets stay shares of the model as given.
        Not with the mode "mask", a target of run time, or the scope "uniform".
    rules, criteria
        Tables to use instead of the default ones.
    progress
        Called with (stage, done, total).

    Returns
    -------
    Pruned
        The model, its plan and the report.

    Raises
    ------
    OnnxPruneError
        See `onnxprune.errors`; nothing is written then.
    """
    choices = make_choices(
        target_of(macs, params, ratio, latency),
        criterion,
        scope,
        round_to,
        tuple(ignore),
        tuple(only),
        preset,
        seed,
        rounds,
        schedule,
        max_ratio,
        min_ratio,
    )
    job = Job(
        mode=mode,
        data=data,
        samples=samples,
        preprocess=preprocess,
        bindings=dict(bindings or {}),
        provider=provider,
        metric=metric,
        compensate=compensate,
        test=test,
        memory=memory,
        best_effort=best_effort,
        allow_inexact=allow_inexact,
        refit_io=tuple(refit_io),
        attention=attention,
        slim=slim,
        seed=seed,
        threads=threads,
        loss=loss,
        rules=rules,
        criteria=criteria,
        progress=progress,
    )
    return prune_model(model, choices, job, output=output, force=force)


def apply(
    model: Source,
    plan: Plan | str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    mode: str = "remove",
    data: Any = None,
    samples: int | None = None,
    preprocess: Any = None,
    compensate: str = "auto",
    test: Any = None,
    memory: float | None = None,
    bindings: Mapping[str, int] | None = None,
    provider: str = "auto",
    force: bool = False,
    rules: RuleTable | None = None,
    progress: Progress | None = None,
) -> Pruned:
    """Replay a plan on the model that it was made for; proven like everything else.

    Parameters
    ----------
    model
        Path of an .onnx file, or what `load` returned.
    plan
        A `Plan`, or the path of one.
    output, mode, data, samples, preprocess, compensate, test, memory, bindings, provider, force, rules, progress
        As in `prune`.

    Raises
    ------
    UsageError
        The plan does not fit the model.
    SoundnessError
        masked != removed.
    """
    made = (
        MadeWith(plan.inexact, plan.refit_io, plan.attention, plan.slim)
        if isinstance(plan, Plan)
        else made_with(plan)
    )
    job = Job(
        mode=mode,
        data=data,
        samples=samples,
        preprocess=preprocess,
        compensate=compensate,
        test=test,
        memory=memory,
        bindings=dict(bindings or {}),
        provider=provider,
        allow_inexact=made.allow_inexact,
        refit_io=tuple(f"re:^{re.escape(name)}$" for name in made.refit_io),
        attention=made.attention,
        rules=rules,
        progress=progress,
    )

    def make(analysis: Analysis) -> Plan:
        if not isinstance(plan, Plan):
            return read_plan(plan, analysis)
        if plan.model_sha256 != analysis.source.sha256:
            raise UsageError("the plan was made for another model", "Make a new plan for this one.")
        return plan

    return apply_plan(model, make, job, output=output, force=force, slim=made.slim)
