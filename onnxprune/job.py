"""A run: everything about it except the model and the choice of units."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnxprune.analysis import Analysis, analyze
from onnxprune.calibrate.sessions import open_session
from onnxprune.calibrate.synthetic import synthetic_count
from onnxprune.choosing.evidence import Evidence
from onnxprune.criteria import CriterionTable
from onnxprune.errors import ModelError, UsageError
from onnxprune.evaluate.metrics import find_metric
from onnxprune.evaluate.pieces import is_huge
from onnxprune.evaluate.soundness import Prover
from onnxprune.gradients.objective import LOSSES
from onnxprune.graph.ranking import ATTENTION
from onnxprune.inputs import Inputs, check_not_empty, choose_inputs, one_by_one
from onnxprune.memory import free_memory
from onnxprune.model import io
from onnxprune.model.detach import foreign_nodes
from onnxprune.model.opset import check_version
from onnxprune.rules import RuleTable

MODES = ("remove", "mask")

COMPENSATE = ("auto", "affine", "rescale", "bias", "none")
"""auto: with data the best of the others per layer, without data none."""
Progress = Callable[[str, int, int], None]
"""Called with (stage, steps done, steps in all; 0 where unknown)."""


@dataclass(frozen=True)
class Job:
    """How a plan is made, proven, written and measured.

    Parameters
    ----------
    mode
        "remove" cuts channels out, "mask" zeroes them and keeps all shapes.
    data, samples, preprocess
        Inputs for the proof, the calibration and the measurements. "synthetic" and "synthetic:N" generate
        calibration samples; without `data` nothing is calibrated, and the proof runs on generated inputs.
    bindings
        Sizes of symbolic dims.
    provider
        onnxruntime's provider: "auto", "cpu", "cuda", ...
    test
        Other samples to measure on, where some of `data` are not to be held back for that.
    compensate
        How the remaining weights are repaired: one of `COMPENSATE`.
    memory
        GiB that statistics and tensors between layers may take; None: 40 % of what is free, at most 8.
    metric
        What `onnxprune.evaluate.metrics.find_metric` takes; None: top1 where the data has labels.
    loss
        What criteria with gradients differentiate: one of `onnxprune.gradients.objective.LOSSES`.
    best_effort
        Accept what is reachable where the target is not.
    allow_inexact
        Cut axes that norms average over, too.
    refit_io
        Patterns of graph inputs and outputs that may get smaller.
    attention
        What goes in attention where both are possible: "heads" or "dims"; "auto": dims where the weights are
        repaired, which can make up for them, else heads.
    slim
        Whether `prune` removes first what contributes nothing.
    seed
        For generated inputs.
    threads
        Threads per operator with which the run time is measured; None: onnxruntime's default.
    rules, criteria
        Tables to use instead of the default ones.
    progress
        Called as the work goes on.

    Raises
    ------
    UsageError
        A value that means nothing, or options that need data where there is none.
    """

    mode: str = "remove"
    data: Any = None
    samples: int | None = None
    preprocess: Any = None
    bindings: Mapping[str, int] = field(default_factory=dict)
    provider: str = "auto"
    test: Any = None
    compensate: str = "auto"
    memory: float | None = None
    metric: str | None = None
    loss: str = "auto"
    best_effort: bool = False
    allow_inexact: bool = False
    refit_io: tuple[str, ...] = ()
    attention: str = "auto"
    slim: bool = True
    seed: int = 0
    threads: int | None = None
    rules: RuleTable | None = None
    criteria: CriterionTable | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        """Reject what means nothing before any work is done."""
        if self.mode not in MODES:
            raise UsageError(f"there is no mode {self.mode!r}", f"Known: {', '.join(MODES)}.")
        if self.compensate not in COMPENSATE:
            raise UsageError(f"there is no repair {self.compensate!r}", f"Known: {', '.join(COMPENSATE)}.")
        if self.attention not in ("auto", *ATTENTION):
            raise UsageError(
                f"attention cannot lose {self.attention!r}", f"Known: auto, {', '.join(ATTENTION)}."
            )
        if self.loss not in LOSSES:
            raise UsageError(f"there is no loss {self.loss!r}", f"Known: {', '.join(LOSSES)}.")
        if self.memory is not None and not self.memory > 0:
            raise UsageError(f"--memory {self.memory:g} is not positive", "Give GiB, such as 2.")
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed} is negative", "Give 0 or more.")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"--threads {self.threads} is not positive", "Give at least 1.")
        if self.samples is not None and self.samples < 1:
            raise UsageError(f"--samples {self.samples} is not positive", "Give at least 1.")
        if self.metric is not None:
            find_metric(self.metric)
        self._check_data()

    def _check_data(self) -> None:
        """Reject options that need other data than there is."""
        if self.data is None:
            for name in ("samples", "preprocess", "metric", "test"):
                if getattr(self, name) is not None:
                    raise UsageError(
                        f"--{name} says how to use data, but no --data was given",
                        f"Add --data, or leave --{name} out.",
                    )
            if self.compensate not in ("auto", "none"):
                raise UsageError(
                    f"--compensate {self.compensate} learns from samples, but no --data was given",
                    "Add --data (--data synthetic generates samples), or leave --compensate out.",
                )
        if synthetic_count(self.data) is not None and self.test is None:
            for name in ("preprocess", "metric"):
                if getattr(self, name) is not None:
                    raise UsageError(
                        f"--{name} is about real samples, and --data {self.data} generates them",
                        f"Give samples to measure on with --test, or leave --{name} out.",
                    )

    @property
    def budget(self) -> float:
        """Bytes that statistics and tensors between layers may take."""
        if self.memory is not None:
            return self.memory * 2**30
        return min(8 * 2.0**30, 0.4 * free_memory())

    @property
    def repairs(self) -> tuple[str, ...]:
        """Kinds of repair that are tried per layer; empty for none."""
        if self.compensate == "auto":
            return COMPENSATE[1:-1] if self.data is not None else ()
        return () if self.compensate == "none" else (self.compensate,)

    def attention_of(self, learns: bool) -> str:
        """What goes in attention: dimensions of heads are offered where queries and keys will be refitted."""
        if self.attention != "auto":
            return self.attention
        return "dims" if learns and "affine" in self.repairs else "heads"

    def say(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Report progress."""
        if self.progress is not None:
            self.progress(stage, done, total)

    def tick(self, stage: str) -> Callable[[int, int], None]:
        """A function that reports the progress of one stage."""
        return lambda done, total: self.say(stage, done, total)


@dataclass(frozen=True)
class Opened:
    """A model that was analysed, together with the inputs on which it is proven."""

    analysis: Analysis
    inputs: Inputs

    def evidence(self, job: Job) -> Evidence | None:
        """What the samples say; None without data, or where onnxruntime cannot run the model as it is."""
        model = self.analysis.axis_graph.model
        if job.data is None or foreign_nodes(model):
            return None
        try:
            huge = is_huge(model)
            open_session(model, job.provider, optimize=not huge, lean=huge)
        except ModelError:  # no kernels for its float type, say
            return None
        return Evidence(
            self.analysis,
            self.inputs.fit,
            provider=job.provider,
            budget=job.budget,
            seed=job.seed,
            kinds=job.repairs,
            loss=job.loss,
            tick=job.tick,
        )

    def prover(self, job: Job) -> Prover:
        """What compares masked and removed models on these inputs."""
        return Prover(
            self.analysis.axis_graph,
            self.analysis.groups,
            self.inputs.proof,
            job.provider,
            lambda _: job.say("proving masked == removed"),
        )


def open_model(
    path: str | os.PathLike[str] | io.LoadedModel,
    job: Job,
    *,
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
    calibrate: bool = False,
) -> Opened:
    """Load and analyse a model, and choose inputs for it.

    Parameters
    ----------
    output, force
        Where the result will go: checked before any work is done.
    calibrate
        Whether samples will be learned from, so that others have to be measured on.

    Raises
    ------
    UsageError
        The output exists or cannot be written, a binding names no symbolic dim, or the data does not fit.
    ModelError
        The file is no usable model.
    """
    job.say("loading")
    if output is not None and not isinstance(path, io.LoadedModel) and Path(path).exists():
        io.check_writable(output, force=force, sources=(path,))
    source = path if isinstance(path, io.LoadedModel) else io.load(path)
    check_version(source.ir)
    if output is not None:
        sources = (source.path, *source.data_files)
        io.check_writable(output, force=force, sources=sources, external=bool(source.data_files))
    _check_bindings(source, job.bindings)
    job.say("reading data")
    inputs = choose_inputs(
        source,
        data=job.data,
        samples=job.samples,
        preprocess=job.preprocess,
        bindings=job.bindings,
        provider=job.provider,
        seed=job.seed,
        test=job.test,
        calibrate=calibrate,
    )
    inputs = replace(inputs, notes=(*inputs.notes, *source.notes))
    job.say("analysing")
    analysis = analyze(
        source,
        bindings=inputs.bindings,
        rules=job.rules,
        allow_inexact=job.allow_inexact,
        refit_io=job.refit_io,
        attention=job.attention_of(calibrate),
    )
    if job.data is not None:
        check_not_empty(inputs.fit)
        if _is_fixed_inside(analysis):
            inputs = _singly(source, inputs, job.provider)
    return Opened(analysis, inputs)


def _is_fixed_inside(analysis: Analysis) -> bool:
    """Whether the size of the batch may stand inside the graph: some output does not follow that of the inputs."""
    shapes = analysis.axis_graph.shapes
    outputs = analysis.axis_graph.model.graph.outputs
    return not shapes.other or any(shapes.dims.get(v) and (v, 0) not in shapes.dynamic for v in outputs)


def _singly(source: io.LoadedModel, inputs: Inputs, provider: str) -> Inputs:
    """The same inputs one by one, where the model takes no batches of them."""
    fit = one_by_one(source.ir, inputs.fit, provider)
    if fit is inputs.fit:
        return inputs
    data = replace(inputs.data, batchable=False) if inputs.data is not inputs.fit else fit
    return replace(
        inputs,
        data=data,
        proof=replace(inputs.proof, batchable=False),
        fit=fit,
        notes=(*inputs.notes, *fit.notes[-1:]),
    )


def _check_bindings(source: io.LoadedModel, bindings: Mapping[str, int]) -> None:
    from onnxprune.model.binding import bind_dims

    known, _ = bind_dims(source.ir.graph.inputs, {})
    for name, size in bindings.items():
        if name not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise UsageError(
                f"--bind {name}: the model has no symbolic dim of that name", f"It has: {listed}."
            )
        if size < 1:
            raise UsageError(f"--bind {name}={size} is not positive", "Give the size of the dim.")
