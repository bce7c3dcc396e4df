"""`differentiate`: a model's backward graph as a file, for whoever wants gradients without a training framework."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxprune.analysis import Analysis
from onnxprune.calibrate.dataset import Dataset
from onnxprune.errors import Reason, UsageError
from onnxprune.gradients.backward import LOSS, build_backward
from onnxprune.gradients.masks import Masked
from onnxprune.gradients.objective import Objective, choose_objective
from onnxprune.gradients.wrt import gradient_name
from onnxprune.graph.axes import Axis
from onnxprune.job import Job, Progress, open_model
from onnxprune.model import edit, io
from onnxprune.model.io import LoadedModel
from onnxprune.rules import RuleTable
from onnxprune.select import matcher
from onnxprune.statistics.gradients import LEAST_IR, Differentiation, Running

FIRST = 2
"""Samples on which the graph is tried before it is written."""


@dataclass(frozen=True)
class Differentiated:
    """A backward graph.

    Attributes
    ----------
    model
        Forward, loss and gradients.
    sentence
        What is differentiated.
    added
        Names of the inputs that the loss has.
    gradients
        Names of the outputs with gradients, and for masks whose units they are about.
    loss
        On the first samples.
    samples
        How many these were.
    path
        Where the graph was written; None where it was not.
    notes
        What was decided on the way.
    """

    model: ir.Model = field(repr=False)
    sentence: str
    added: tuple[str, ...]
    gradients: Mapping[str, str]
    loss: float
    samples: int
    path: Path | None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        inputs = ", ".join(
            f"{value.name} {value.dtype.name.lower() if value.dtype else ''}{_shape(value)}"
            for value in self.model.graph.inputs
        )
        shapes = {value.name: _shape(value) for value in self.model.graph.outputs}
        lines = [f"loss: {self.sentence}; {self.loss:.6g} on {self.samples} samples", f"inputs: {inputs}"]
        lines.append(f"outputs: those of the model, {LOSS}, and {len(self.gradients)} gradients")
        lines += [f"  {name} {shapes[name]}  {what}".rstrip() for name, what in self.gradients.items()]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def _shape(value: ir.Value) -> str:
    if value.shape is None:
        return ""
    return f"[{', '.join(str(d if isinstance(d, int) else d.value or '?') for d in value.shape)}]"


def differentiate(
    model: str | os.PathLike[str] | LoadedModel,
    output: str | os.PathLike[str] | None = None,
    *,
    data: Any = None,
    wrt: Sequence[str] = (),
    units: bool = False,
    loss: str = "auto",
    samples: int | None = None,
    preprocess: Any = None,
    bindings: Mapping[str, int] | None = None,
    provider: str = "auto",
    attention: str = "heads",
    seed: int = 0,
    force: bool = False,
    rules: RuleTable | None = None,
    progress: Progress | None = None,
) -> Differentiated:
    """Build the graph of a model, a loss and its gradients, in standard ONNX operators; try it, and write it.

    The loss is the sum over all samples of a batch. It computes in float32, whatever the model's type.

    Parameters
    ----------
    model
        Path of an .onnx file, or what `load` returned. Never modified.
    output
        Where to write; nothing is written where it is None.
    data, samples, preprocess
        As in `prune`. Their labels say which loss fits, and the first samples try the graph. Without data generated
        ones do.
    wrt
        Globs, or `re:` and regular expressions, on names of initializers and activations. By default all float
        initializers of more than one element that are no sizes or scales.
    units
        Gradients of masks over the units of every group (channels, heads), one row per sample; without `wrt` of
        nothing else.
    loss
        "auto", "labels", "sampled" or "outputs", as in `prune`. The file is the same for labels that are given and
        labels that are drawn: they are an input.
    bindings, provider, attention, seed, force, rules, progress
        As in `prune`.

    Raises
    ------
    UsageError
        A pattern matches nothing, the loss does not go with model and data, or the output cannot be written.
    GradientError
        An operator on the way has no gradient; the message names it.
    """
    job = Job(
        data=data,
        samples=samples,
        preprocess=preprocess,
        bindings=dict(bindings or {}),
        provider=provider,
        compensate="none",
        loss=loss,
        attention=attention,
        seed=seed,
        rules=rules,
        progress=progress,
    )
    opened = open_model(model, job, output=output, force=force)
    analysis, data = opened.analysis, opened.inputs.fit
    graph = analysis.axis_graph
    objective = choose_objective(graph.model, graph.shapes, loss, data.labels, next(data.batches(1), None))
    job.say("differentiating")
    named = _values(analysis, wrt) if wrt or not units else []
    masked = _masks(analysis, data, job) if units else None
    built, gradients = _build(analysis, objective, named, masked)
    job.say("trying")
    value, count = _try(built, graph.model, objective, data, job)
    if output is not None:
        job.say("writing")
        source = analysis.source
        sources = (source.path, *source.data_files)
        io.save(built, output, external=bool(source.data_files), force=force, sources=sources)
    notes = opened.inputs.notes
    if (data.batchable or data.rows > 1) and masked is not None and not masked.by_sample:
        notes += ("gradients of masks are sums over the samples that run together: feed them one by one",)
    known = {given.name for given in graph.model.graph.inputs}
    added = tuple(str(given.name) for given in built.graph.inputs if given.name not in known)
    path = None if output is None else Path(output)
    return Differentiated(built, objective.sentence, added, gradients, value, count, path, notes)


def _build(
    analysis: Analysis, objective: Objective, named: Sequence[str], masked: Masked | None
) -> tuple[ir.Model, dict[str, str]]:
    """The graph; its outputs with gradients, and what each is about."""
    graph = analysis.axis_graph
    built = build_backward(
        analysis.source.ir if masked is None else masked.model,
        objective.loss,
        [*named, *(masked.targets if masked is not None else ())],
        rules=graph.rules,
        bindings=graph.shapes.bindings,
    )
    built.ir_version = max(built.ir_version, LEAST_IR)
    gradients = {gradient_name(name): "" for name in named}
    return built, gradients if masked is None else gradients | _join(built, masked, analysis)


def _values(analysis: Analysis, patterns: Sequence[str]) -> list[str]:
    """Names of what is differentiated with respect to."""
    graph = analysis.axis_graph
    source = analysis.source.ir.graph
    there = {*source.initializers, *(output.name for node in source for output in node.outputs)}
    weights = [str(value.name) for value in graph.parameters if str(value.name) in there]
    if not patterns:
        auxiliary = {str(value.name) for value in graph.parameters if _auxiliary(analysis, value)}
        names = [name for name in weights if name not in auxiliary]
        if not names:
            raise UsageError("the model has no float weights of its own", "Name activations with --wrt.")
        return names
    made = [output for node in graph.model.graph for output in node.outputs]
    floats = [
        str(v.name) for v in made if v.dtype is not None and v.dtype.is_floating_point() and v.name in there
    ]
    known = list(dict.fromkeys([*weights, *floats]))
    tests = [matcher(pattern, "--wrt", known, "float initializer or activation") for pattern in patterns]
    return [name for name in known if any(test(name) for test in tests)]


def _auxiliary(analysis: Analysis, value: ir.Value) -> bool:
    """Whether an initializer is a single number, or holds sizes or scales."""
    graph = analysis.axis_graph.graph
    if value.const_value is None or value.const_value.size < 2:
        return True
    axes = [Axis(value, dim) for dim in range(len(value.const_value.shape))]
    return any(
        getattr(other, "reason", None) is Reason.AUXILIARY
        for axis in axes
        if axis in graph
        for other in graph.adj[axis]
    )


def _masks(analysis: Analysis, data: Dataset, job: Job) -> Masked:
    first = data.take(range(min(FIRST, len(data))))
    trial = Differentiation(analysis.axis_graph, first, job.loss, FIRST, FIRST, job.provider, job.seed)
    masked, _ = trial.masked(analysis.groups.values())
    if not masked.targets:
        raise UsageError(
            "the model has no groups of units that anything sums over",
            "`onnxprune analyze` says what blocks them.",
        )
    return masked


def _join(built: ir.Model, masked: Masked, analysis: Analysis) -> dict[str, str]:
    """Add the gradients of a group's masks up, one output per group. Mutates `built`."""
    graph = built.graph
    outputs = {str(value.name): value for value in graph.outputs}
    found = {}
    for name, masks in masked.masks.items():
        parts = [outputs[gradient_name(mask)] for mask in masks]
        if not parts:
            continue
        found[f"gradient/{name}"] = f"units of {analysis.groups[name].name or name}"
        for part in parts:
            graph.outputs.remove(part)
        if len(parts) == 1:
            graph.outputs.append(parts[0])
            continue
        node = ir.node("Sum", parts)
        total = node.outputs[0]
        total.name, total.type, total.shape = f"gradient/{name}", parts[0].type, parts[0].shape
        node.name = edit.fresh(graph, f"gradient/of/{name}")
        graph.append(node)
        graph.outputs.append(total)
    return found


def _try(
    built: ir.Model, model: ir.Model, objective: Objective, data: Dataset, job: Job
) -> tuple[float, int]:
    """The loss on the first samples, and how many these are."""
    first = data.take(range(min(FIRST, len(data))))
    names = [str(value.name) for value in built.graph.outputs]
    running = Running.open(built, model, objective, names, job.provider, job.seed)
    return sum(float(found[LOSS]) for found in running.over(first, FIRST)), len(first)
