"""`slim`: take out of a model what contributes nothing, compare, write, report."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxprune.analysis import Analysis, analyze
from onnxprune.clock import Clock
from onnxprune.collector import rarely_collected
from onnxprune.errors import RangeError, SoundnessError
from onnxprune.evaluate.soundness import Prover, Soundness, compare_models
from onnxprune.graph.groups import Group
from onnxprune.job import Job, Opened, Progress, open_model
from onnxprune.model import edit, io
from onnxprune.model.detach import foreign_nodes
from onnxprune.model.finalize import finalize
from onnxprune.model.normalize import normalize
from onnxprune.model.serialize import weight_bytes
from onnxprune.report.report import Size
from onnxprune.report.slimmed import SlimReport
from onnxprune.report.tables import plural
from onnxprune.rules import RuleTable
from onnxprune.slimming.steps import Slimming

Source = str | os.PathLike[str] | io.LoadedModel


@dataclass(frozen=True)
class Slimmed:
    """The result of `slim`.

    Attributes
    ----------
    model
        The model without what contributed nothing.
    report
        What went, and what was left for which reason.
    path
        Where the model was written; None where it was not.
    """

    model: ir.Model = field(repr=False)
    report: SlimReport
    path: Path | None

    def __repr__(self) -> str:
        return f"Slimmed({self.report!r}, {self.path or 'not written'})"


@rarely_collected
def slim(
    model: Source,
    output: str | os.PathLike[str] | None = None,
    *,
    data: Any = None,
    samples: int | None = None,
    preprocess: Any = None,
    bindings: Mapping[str, int] | None = None,
    provider: str = "auto",
    seed: int = 0,
    force: bool = False,
    rules: RuleTable | None = None,
    progress: Progress | None = None,
) -> Slimmed:
    """Remove what contributes nothing to a model's outputs; they stay what they were.

    Channels and heads go that all consumers multiply by zero (masked, but not removed), that hold the same number
    for every input (it goes into the consumers' biases), or that are a positive multiple of another one (the
    consumers read that instead); and sums with zero, together with the branches that made the zeros.

    Parameters
    ----------
    model
        Path of an .onnx file, or what `load` returned. Never modified.
    output
        Where to write the result; nothing is written where it is None.
    data, samples, preprocess, bindings, provider, seed, force, rules, progress
        As in `prune`; the data serves the proof alone.

    Returns
    -------
    Slimmed
        The model and the report.

    Raises
    ------
    SoundnessError
        The result computes something else. Nothing is written.
    OnnxPruneError
        See `onnxprune.errors`; nothing is written then.
    """
    job = Job(
        data=data,
        samples=samples,
        preprocess=preprocess,
        bindings=dict(bindings or {}),
        provider=provider,
        compensate="none",
        attention="heads",
        seed=seed,
        rules=rules,
        progress=Clock(progress),
    )
    opened = open_model(model, job, output=output, force=force)
    done, same, notes = slim_opened(opened, job)
    source = opened.analysis.source
    size = weight_bytes(done.model)
    if output is not None:
        job.say("writing")
        sources = (source.path, *source.data_files)
        size = io.save(done.model, output, external=bool(source.data_files), force=force, sources=sources)
    report = _report(opened, done, same, (*opened.inputs.notes, *notes), size, output, job)
    return Slimmed(done.model, report, None if output is None else Path(output))


def slim_opened(
    opened: Opened,
    job: Job,
    *,
    whole: frozenset[str] = frozenset(),
    branches: bool = True,
    lazy: bool = False,
) -> tuple[Slimming, Soundness, tuple[str, ...]]:
    """Take steps until nothing more is found, and compare the result with the input.

    Where the weights that were rewritten make outputs differ by more than the tolerance (half precision rounds
    them), only zeros are cut out.

    Parameters
    ----------
    whole
        Names of weights whose units stay.
    branches
        Whether sums with zero go.
    lazy
        Compare only where something went.

    Returns
    -------
    slimming, soundness, notes
        The result, its comparison, and lines for the report.

    Raises
    ------
    SoundnessError
        Input and result differ all the same.
    """
    foreign = foreign_nodes(opened.analysis.axis_graph.model)
    notes = []
    if foreign:
        names = ", ".join(node.name or node.op_type for node in foreign[:4])
        notes.append(
            f"onnxruntime cannot run {names}: outputs were not compared as a whole, and only units of zeros "
            "were looked for"
        )
    try:
        done = _run(opened, job, folds=not foreign, whole=whole, drops=branches)
    except RangeError as error:
        notes.append(f"constants were not folded and duplicates not merged: {error.what}")
        done = _run(opened, job, folds=False, whole=whole, drops=branches)
    if foreign or (lazy and not done.gone and not done.branches):
        return done, Soundness(False, math.nan, math.nan), tuple(notes)
    job.say("comparing with the input")
    same = _compare(opened, done, job)
    if same.why and done.folds:
        notes.append(
            "constants were not folded and duplicates not merged, because outputs would change: "
            f"{same.why['outputs']}"
        )
        done = _run(opened, job, folds=False, whole=whole, drops=branches)
        same = _compare(opened, done, job)
    if same.why:
        raise SoundnessError(
            f"the slimmed model computes something else: {same.why['outputs']}",
            "Nothing was written. It is a bug of onnxprune: please report it.",
        )
    return done, same, tuple(notes)


def _run(opened: Opened, job: Job, *, folds: bool, whole: frozenset[str], drops: bool) -> Slimming:
    source = opened.analysis.source

    def analyse(model: ir.Model) -> Analysis:
        job.say("looking for what contributes nothing")
        return analyze(replace(source, ir=model), bindings=opened.analysis.bindings, rules=job.rules)

    def prover(analysis: Analysis, groups: Mapping[str, Group]) -> Prover:
        return Prover(
            analysis.axis_graph,
            groups,
            opened.inputs.proof,
            job.provider,
            lambda _: job.say("proving masked == removed"),
        )

    done = Slimming(
        opened.analysis,
        finalize(opened.analysis.axis_graph.model),
        analyse,
        prover,
        folds=folds,
        whole=whole,
        drops=drops,
    )
    done.run()
    edit.drop_unused(done.model.graph, keep=frozenset(str(v.name) for v in done.model.graph.inputs))
    return done


def _compare(opened: Opened, done: Slimming, job: Job) -> Soundness:
    before, after = normalize(opened.analysis.source.ir), normalize(done.model)
    return compare_models(before, after, opened.inputs.proof, job.provider)


def _report(
    opened: Opened,
    done: Slimming,
    same: Soundness,
    notes: tuple[str, ...],
    size: int,
    output: str | os.PathLike[str] | None,
    job: Job,
) -> SlimReport:
    analysis, source = opened.analysis, opened.analysis.source
    seconds = {}
    if isinstance(job.progress, Clock):
        job.progress.stop()
        seconds = dict(job.progress.seconds)
    lines = list(notes)
    if job.data is None:
        lines.append("no data was given: the proof ran on generated inputs")
    if not done.gone and not done.branches:
        fewer = source.ir.graph.num_nodes() - done.model.graph.num_nodes()
        folded = f", {plural(fewer, 'node')} of constants folded" if fewer > 0 else ""
        lines.append(f"nothing was found that contributes nothing: the output is the same model{folded}")
    return SlimReport(
        path=str(source.path),
        sha256=source.sha256,
        output="" if output is None else str(output),
        before=Size(analysis.cost.params, analysis.cost.macs, source.bytes, source.ir.graph.num_nodes()),
        after=Size(done.analysis.cost.params, done.analysis.cost.macs, size, done.model.graph.num_nodes()),
        groups=tuple(done.gone.values()),
        branches=tuple(done.branches),
        masks=done.masks,
        left=(*done.left, *done.rejected),
        difference=same.max_abs_diff,
        largest=same.max_abs_output,
        samples=same.samples,
        tier=same.tier,
        bindings=analysis.bindings,
        warnings=tuple(lines),
        seconds=seconds,
    )
