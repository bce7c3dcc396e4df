"""Accuracy and fidelity of a model and its pruned copy, wherever onnxruntime can run them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxprune.calibrate.dataset import Array, Dataset, Feed, Feeds
from onnxprune.calibrate.sessions import open_session
from onnxprune.errors import DataError, ModelError
from onnxprune.evaluate.agreement import as_float32
from onnxprune.evaluate.fidelity import Fidelity
from onnxprune.evaluate.metrics import find_metric
from onnxprune.evaluate.smaller import Cuts, cut_feed, cuts_by_name
from onnxprune.evaluate.validate import Running, compare, tally_metric
from onnxprune.graph.axes import Kept
from onnxprune.job import Job, Opened
from onnxprune.model.convert import FLOATS, to_float32
from onnxprune.model.detach import foreign_nodes
from onnxprune.report.report import Measured

BATCH = 32
"""Samples per run."""


@dataclass(frozen=True)
class Measurements:
    """What could be measured.

    Attributes
    ----------
    metric
        None without labels, unless the metric needs none.
    fidelity
        None without data.
    notes
        What the report should say about how, or why not.
    """

    metric: Measured | None = None
    fidelity: Fidelity | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Runnable:
    """Models and samples in a form that onnxruntime can run."""

    models: tuple[ir.Model, ...]
    data: Dataset
    notes: tuple[str, ...] = ()


def check_metric(opened: Opened, job: Job) -> None:
    """Measure the original on one sample, so that labels that do not fit are found before any work is done.

    Raises
    ------
    DataError
        Outputs and labels do not fit the metric.
    """
    data, metric = opened.inputs.data, find_metric(job.metric or "top1")
    if job.data is not None and (data.labels is not None or metric.reference == "original"):
        run = as_runnable([opened.analysis.source.ir], data.take([0]), job.provider)
        if run is None:
            return
        try:
            tally_metric(run.models[0], run.data, metric, job.provider, 1, original=run.models[0])
        except DataError as error:
            raise DataError(
                f"{data.source}: {error.what}",
                error.hint or "Give labels that fit the model's first output, or data without labels.",
            ) from None


def measure_both(opened: Opened, pruned: ir.Model, kept: Kept, job: Job) -> Measurements:
    """Metric before and after where it has its labels, and label-free fidelity; on real data only.

    A metric that compares with the original is measured for the original, too: it agrees with itself.

    Parameters
    ----------
    kept
        Positions that `pruned` still has: its inputs and outputs may be smaller, too.
    """
    if job.data is None:
        return Measurements()
    original, data = opened.analysis.source.ir, opened.inputs.data
    run = as_runnable([original, pruned], data, job.provider)
    if run is None:
        names = ", ".join(sorted({node.op_type for node in foreign_nodes(original)}))
        return Measurements(
            notes=(f"onnxruntime cannot run {names}, so neither accuracy nor fidelity was measured",)
        )
    model, cut = run.models
    cuts = _interface(original, kept)
    metric = find_metric(job.metric or "top1")
    scored = data.labels is not None or metric.reference == "original"
    name = str(original.graph.outputs[0].name)
    before, after = (Running(metric, name, run.data) for _ in range(2))

    def watch(feed: Feed, labels: Array | None, whole: Feed, smaller: Feed) -> None:
        size, same = run.data.size_of(feed), metric.reference == "original"
        before.add(whole[name], whole[name] if same else labels, size)
        after.add(smaller[name], cut_feed(whole, cuts)[name] if same else labels, size)

    fidelity = compare(
        model,
        cut,
        run.data,
        job.provider,
        BATCH,
        cuts=cuts,
        progress=job.tick(f"measuring {metric.name}" if scored else "comparing outputs"),
        watch=watch if scored else None,
    )
    measured = Measured(metric.score(before.tally), metric.score(after.tally)) if scored else None
    return Measurements(measured, fidelity, run.notes)


def _interface(model: ir.Model, kept: Kept) -> Cuts:
    """What is left of the graph's inputs and outputs, where `--refit-io` made them smaller."""
    names = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    return {name: cut for name, cut in cuts_by_name(kept).items() if name in names}


def as_runnable(models: Sequence[ir.Model], data: Dataset, provider: str) -> Runnable | None:
    """The models as they are, or, where onnxruntime lacks kernels for their float type, in float32.

    Returns
    -------
    Runnable or None
        None where a model has operators that onnxruntime does not know.
    """
    if any(foreign_nodes(model) for model in models):
        return None
    try:
        open_session(models[0], provider)
    except ModelError:
        if not any(_is_other_float(model) for model in models):
            raise
    else:
        return Runnable(tuple(models), data)
    return Runnable(
        tuple(to_float32(model) for model in models),
        replace(data, feeds=_InFloat32(data.feeds)),
        ("onnxruntime has no kernels for the model's float type here, so it was measured in float32",),
    )


def _is_other_float(model: ir.Model) -> bool:
    return any(value.dtype in FLOATS for value in (*model.graph.inputs, *model.graph.initializers.values()))


@dataclass(frozen=True, eq=False)
class _InFloat32:
    """Samples whose float arrays are float32."""

    feeds: Feeds

    def __len__(self) -> int:
        return len(self.feeds)

    def __getitem__(self, index: int, /) -> Feed:
        return {name: as_float32(array) for name, array in self.feeds[index].items()}
