"""The second main job: choose weights that become zero, make up for them, write, measure, report."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxprune.choosing.evidence import Evidence
from onnxprune.clock import Clock
from onnxprune.criteria.weights import WeightCriterionTable
from onnxprune.errors import UsageError
from onnxprune.job import Job, Opened, Progress, open_model
from onnxprune.measuring import Measurements, check_metric, measure_both
from onnxprune.model import io
from onnxprune.model.finalize import finalize
from onnxprune.model.serialize import weight_bytes
from onnxprune.model.sparse import sparse_saves
from onnxprune.patterns import Head
from onnxprune.patterns.pattern import Bools
from onnxprune.report.quantised import quantised_line, quantised_result
from onnxprune.report.sparsity import LayerResult, SparsityReport
from onnxprune.report.tables import plural, some
from onnxprune.rules import RuleTable
from onnxprune.sparsity.benefit import buys, kernel_note, pays_from
from onnxprune.sparsity.choices import CONST, STORAGES, Settled, Sparsity
from onnxprune.sparsity.handled import handled, seen
from onnxprune.sparsity.heads import find_heads, make_heads_sparse
from onnxprune.sparsity.layers import WeightLayer, same_layers
from onnxprune.sparsity.rounds import Outcome, make_sparse, zeros_of
from onnxprune.threads import few_threads

Source = str | os.PathLike[str] | io.LoadedModel


@dataclass(frozen=True)
class Sparsified:
    """The result of `sparsify`.

    Attributes
    ----------
    model
        The sparse model.
    zeros
        By initializer name, flags of its shape: weights that are zero.
    report
        What happened.
    path
        Where the model was written; None where it was not.
    """

    model: ir.Model = field(repr=False)
    zeros: Mapping[str, Bools] = field(repr=False)
    report: SparsityReport
    path: Path | None

    def __repr__(self) -> str:
        return f"Sparsified({self.report!r}, {self.path or 'not written'})"


def sparsify(
    model: Source,
    output: str | os.PathLike[str] | None = None,
    *,
    sparsity: float | None = None,
    pattern: str = "element",
    criterion: str = "auto",
    scope: str | None = None,
    solver: str = "auto",
    reduce: str = "mean",
    min_ratio: float = 0.0,
    max_ratio: float = 1.0,
    rounds: int = 1,
    schedule: str = "cube",
    lock: bool = False,
    threshold: float | None = None,
    regularization: float = 0.0,
    structured: bool = False,
    ignore: Sequence[str] = (),
    only: Sequence[str] = (),
    storage: str = "dense",
    data: Any = None,
    samples: int | None = None,
    preprocess: Any = None,
    test: Any = None,
    memory: float | None = None,
    metric: str | None = None,
    loss: str = "auto",
    bindings: Mapping[str, int] | None = None,
    provider: str = "auto",
    seed: int = 0,
    force: bool = False,
    rules: RuleTable | None = None,
    criteria: WeightCriterionTable | None = None,
    progress: Progress | None = None,
) -> Sparsified:
    """Make weights of a model zero, in place, and let the others make up for them.

    Parameters
    ----------
    model
        Path of an .onnx file, or what `load` returned. Never modified.
    output
        Where to write the sparse model; nothing is written where it is None.
    sparsity
        Share of the weights of all handled layers that is zero in the end, in [0, 1); 0.5 by default, none
        with the criterion "const". Exactly so many, up to the size of a block.
    pattern
        "element", "N:M" (N zeros in each M input channels), blocks such as "4x1" (of the weight as outputs by
        columns), "channelx1" (input channels), "1xchannel" (output channels) or "head" (whole attention heads).
    criterion
        One of `onnxprune.criteria.weights`, "saliency" (the solver's own), "const" (no zero is added) or
        "auto": the solver's own, else normed_abs.
    scope
        "global": one ranking over all layers, "local": the same share of every layer, "row": of every output.
        By default what goes with the criterion.
    solver
        "mask" (the other weights stay as they are), "sparsegpt" or "obc" (they make up for the zeros), or
        "auto": with data obc in layers in which it takes seconds rather than minutes, else sparsegpt; without
        data mask.
    reduce
        "mean", "sum" or "max": how the scores of a block become one.
    min_ratio, max_ratio
        At least and at most this share of every layer's weights becomes zero.
    rounds, schedule
        In how many steps the level is reached, and how far each goes (as of `prune`).
    lock
        Weights that are zero already stay zero, and count.
    threshold, regularization, structured
        Of the criterion movement: weights go whose importance is at most the threshold, however many these are;
        the factor of the regularisation, which lowers importance batch after batch; weights come back where any
        weight of their unit (channel, head) stays, and units go as a whole.
    ignore, only
        Globs on node or initializer names, or `re:` and a regular expression.
    storage
        "dense" or "sparse": `sparse_initializer` for weights that take fewer bytes so.
    data, samples, preprocess, test, memory, metric, loss, bindings, provider, seed, force, rules, progress
        As in `prune`.
    criteria
        Table to use instead of the default one.

    Raises
    ------
    OnnxPruneError
        See `onnxprune.errors`; nothing is written then.
    """
    if sparsity is not None and threshold is not None:
        raise UsageError("--sparsity and --threshold contradict each other", "Give one of them.")
    if sparsity is None:
        sparsity = 0.0 if criterion == CONST else 0.5
    asked = Sparsity(
        level=sparsity,
        pattern=pattern,
        criterion=criterion,
        scope=scope,
        solver=solver,
        reduce=reduce,
        min_ratio=min_ratio,
        max_ratio=max_ratio,
        rounds=rounds,
        schedule=schedule,
        lock=lock,
        threshold=threshold,
        regularization=regularization,
        structured=structured,
        only=tuple(only),
        ignore=tuple(ignore),
        criteria=criteria,
    )
    job = Job(
        data=data,
        samples=samples,
        preprocess=preprocess,
        test=test,
        memory=memory,
        metric=metric,
        loss=loss,
        bindings=dict(bindings or {}),
        provider=provider,
        seed=seed,
        rules=rules,
        progress=progress,
    )
    return sparsify_model(model, asked, job, output=output, storage=storage, force=force)


def sparsify_model(
    path: Source,
    sparsity: Sparsity,
    job: Job,
    *,
    output: str | os.PathLike[str] | None,
    storage: str = "dense",
    force: bool = False,
) -> Sparsified:
    """Make a model sparse and, where `output` is given, write it. See `onnxprune.sparsify`."""
    if storage not in STORAGES:
        raise UsageError(f"there is no storage {storage!r}", f"Known: {', '.join(STORAGES)}.")
    job = replace(job, progress=Clock(job.progress))
    settled = sparsity.settled(job.data is not None)
    if job.loss != "auto" and not settled.differentiates:
        raise UsageError(
            f"--loss {job.loss} is about gradients, and the criterion {settled.name} reads none",
            "Leave it out, or take one that does, such as fisher.",
        )
    whole_heads = isinstance(sparsity.shape, Head)
    if whole_heads or sparsity.structured:
        job = replace(job, attention="heads")
    opened = open_model(path, job, output=output, force=force, calibrate=settled.reads)
    check_metric(opened, job)
    layers, left = handled(opened.analysis.axis_graph, sparsity, settled)
    if whole_heads:
        heads, layers, left = find_heads(opened.analysis, layers, left)
    evidence = opened.evidence(job) if settled.reads else None
    if settled.reads and evidence is None:
        raise UsageError(
            "samples are to be learned from, but onnxruntime cannot run the model as it is",
            "Take --solver mask with a criterion that looks at weights alone, such as normed_abs.",
        )
    if evidence is not None and not whole_heads:
        layers, left = seen(opened.analysis.axis_graph, layers, left, evidence)
    widest = max(layer.grid.columns for layer in layers)
    with few_threads(widest if evidence is not None else 0):
        if whole_heads:
            outcome = make_heads_sparse(opened.analysis, heads, layers, sparsity, settled, evidence)
        else:
            outcome = make_sparse(opened.analysis, layers, sparsity, settled, evidence)
    return _finish(opened, layers, left, sparsity, settled, outcome, evidence, job, output, storage, force)


def _finish(
    opened: Opened,
    layers: list[WeightLayer],
    left: Mapping[str, str],
    sparsity: Sparsity,
    settled: Settled,
    outcome: Outcome,
    evidence: Evidence | None,
    job: Job,
    output: str | os.PathLike[str] | None,
    storage: str,
    force: bool,
) -> Sparsified:
    source = opened.analysis.source
    mine = same_layers(outcome.model, layers)
    zeros = {layer.name: layer.flags(outcome.zeros[layer.name]) for layer in mine}
    results = _results(layers, mine, outcome, sparsity)
    model = finalize(outcome.model)
    measured = measure_both(opened, model, {}, job)
    stored = [] if storage == "dense" else sparse_saves(model, [layer.name for layer in layers])
    size = weight_bytes(model)
    if output is not None:
        job.say("writing")
        sources = (source.path, *source.data_files)
        size = io.save(
            model, output, external=bool(source.data_files), force=force, sources=sources, sparse=stored
        )
    seconds = {}
    if isinstance(job.progress, Clock):
        job.progress.stop()
        seconds = dict(job.progress.seconds)
    fitted = opened.inputs.fit
    report = SparsityReport(
        path=str(source.path),
        sha256=source.sha256,
        output="" if output is None else str(output),
        pattern=sparsity.shape.name,
        criterion=settled.name,
        scope=settled.scope,
        solver=settled.solver,
        storage=storage,
        requested=float("nan") if sparsity.threshold is not None else sparsity.level,
        rounds=outcome.levels,
        seed=job.seed,
        params=opened.analysis.cost.params,
        bytes_before=source.bytes,
        bytes_after=size,
        layers=results,
        left=left,
        buys=buys(sparsity.shape),
        calibration={
            "tier": fitted.tier if evidence is not None else "none",
            "samples": len(fitted) if evidence is not None else 0,
            "source": fitted.source if evidence is not None else "",
            "measured": opened.inputs.data.tier if job.data is not None else "none",
        },
        bindings=opened.analysis.bindings,
        metric=measured.metric,
        fidelity=measured.fidelity,
        warnings=_warnings(
            opened, job, sparsity, settled, outcome, results, stored, storage, measured, evidence
        ),
        learned=outcome.statistics,
        heads={name: which for name, (which, _) in outcome.heads.items()},
        seconds=seconds,
    )
    return Sparsified(model, zeros, report, None if output is None else Path(output))


def _results(
    layers: list[WeightLayer], mine: list[WeightLayer], outcome: Outcome, sparsity: Sparsity
) -> tuple[LayerResult, ...]:
    found = []
    before = zeros_of(layers)
    for layer, after in zip(layers, mine, strict=True):
        solution = outcome.solutions.get(layer.name)
        data = after.consumer.weight.const_value
        notes = [kernel_note(layer, sparsity.shape), solution.why if solution else ""]
        found.append(
            LayerResult(
                name=layer.label,
                weight=layer.name,
                shape=layer.shape,
                zeros_before=int(before[layer.name].sum()),
                zeros=int((after.matrix() == 0).sum()),
                size=layer.grid.size,
                kind=solution.kind if solution else "mask",
                before=solution.before if solution else float("nan"),
                after=solution.after if solution else float("nan"),
                bytes=0 if data is None else data.nbytes,
                note=", ".join(note for note in notes if note),
            )
        )
    return tuple(found)


def _warnings(
    opened: Opened,
    job: Job,
    sparsity: Sparsity,
    settled: Settled,
    outcome: Outcome,
    results: tuple[LayerResult, ...],
    stored: list[str],
    storage: str,
    measured: Measurements,
    evidence: Evidence | None,
) -> tuple[str, ...]:
    lines = [
        line
        for line in (*opened.inputs.notes, *measured.notes)
        if storage != "sparse" or io.DENSE not in line  # what becomes of them is said below
    ]
    if evidence is not None and opened.inputs.division:
        lines.append(opened.inputs.division)
    folds = settled.criterion is not None and settled.criterion.fold is not None
    if folds and evidence is not None and outcome.learned is None:
        lines.append(evidence.differentiated)
    lines += outcome.notes(sparsity.shape)
    if job.data is None:
        lines.append("no data was given, so no accuracy was measured")
    elif not settled.reads:
        lines.append("the samples were only measured on: neither the criterion nor the solver looks at any")
    if opened.inputs.fit.tier == "synthetic" and evidence is not None:
        lines.append(
            f"calibrated on {len(opened.inputs.fit)} synthetic samples: real ones are better (--data)"
        )
    size = sum(each.size for each in results)
    achieved = sum(each.zeros for each in results) / size
    by_level = sparsity.threshold is None and not sparsity.structured
    if by_level and math.floor(sparsity.level * size + 1e-9) > achieved * size:
        lines.append(
            f"{sparsity.level:.2%} zeros were requested, {achieved:.2%} achieved: whole blocks go, and every layer "
            "rounds down"
        )
    if sparsity.criterion != CONST and sparsity.threshold is None and achieved > sparsity.level + 1e-9:
        kept = "weights that were zero already stay zero, and count"
        lines.append(f"{sparsity.level:.2%} zeros were requested, and there are {achieved:.2%}: {kept}")
    if not sparsity.level and sparsity.criterion != CONST:
        lines.append("a level of 0 makes no weight zero: the output is the same model")
    if sparsity.rounds > 1 and settled.solver == "mask" and not settled.reads:
        lines.append(
            "rounds change nothing where the criterion looks at weights alone and no solver changes them"
        )
    if storage == "sparse":
        lines.append(_stored(stored, results))
    lines += _quantised(opened, storage)
    return tuple(lines)


def _quantised(opened: Opened, storage: str) -> list[str]:
    """What zeros are in a quantised model."""
    how = quantised_line(quantised_result(opened.analysis.axis_graph.model))
    sparse = "; they are not stored sparse, because what such a tensor leaves out is the number 0"
    return [f"quantised: {how}; zeros are zero points{sparse if storage == 'sparse' else ''}"] if how else []


def _stored(stored: list[str], results: tuple[LayerResult, ...]) -> str:
    """Which weights are stored sparse."""
    level = f"{pays_from(4):.0%} zeros in fp32, {pays_from(2):.0%} in fp16"
    if not stored:
        return f"no weight is stored sparse: that saves bytes from {level} on only"
    rest = len(results) - len(stored)
    more = f"; {plural(rest, 'other')} would grow (it saves bytes from {level} on)" if rest else ""
    return f"{plural(len(stored), 'weight')} stored sparse, {some(stored, 3)}{more}"
