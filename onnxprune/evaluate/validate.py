"""Measuring a model on labelled data, and comparing two models on any data, batch by batch."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from onnxprune.calibrate.checks import did_you_mean
from onnxprune.calibrate.dataset import Dataset, Progress
from onnxprune.calibrate.sessions import open_session, run, stream
from onnxprune.errors import DataError, UsageError
from onnxprune.evaluate.fidelity import Fidelity, OutputTally, tally_output
from onnxprune.evaluate.metrics import Metric, Score, default_metrics
from onnxprune.evaluate.smaller import Cuts, cut_feed

if TYPE_CHECKING:
    import onnx_ir as ir


def measure(
    model: ir.Model,
    dataset: Dataset,
    metric: str = "top1",
    provider: str = "cpu",
    batch_size: int = 32,
    *,
    output: str | None = None,
    metrics: Mapping[str, Metric] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Score:
    """Measure a metric of a model on labelled data.

    Parameters
    ----------
    model
        Not mutated.
    dataset
        Labelled samples that fit the model.
    metric
        A name of the table.
    provider
        What :func:`~onnxprune.calibrate.providers.resolve_providers` takes.
    batch_size
        Samples per run; only one batch is in memory.
    output
        Name of the output that the metric looks at (the logits); by default the first one.
    metrics
        The table; :func:`~onnxprune.evaluate.metrics.default_metrics` by default.
    threads
        As in :func:`~onnxprune.calibrate.sessions.open_session`.
    progress
        Called with (samples done, samples in all).

    Raises
    ------
    UsageError
        If there is no such metric, output or provider.
    DataError
        If the dataset has no labels, or outputs and labels do not fit the metric.
    ModelError
        If onnxruntime refuses the model.
    """
    table = default_metrics() if metrics is None else metrics
    if metric not in table:
        raise UsageError(
            f"there is no metric {metric!r}{did_you_mean(metric, table)}", f"Known: {', '.join(table)}."
        )
    if dataset.labels is None:
        raise DataError(
            f"{metric} needs labels, and {dataset.source} has none",
            "Add an array 'labels', class folders or a labels.csv, or compare with --against only.",
        )
    if len(dataset) == 0:
        raise DataError(f"{dataset.source} holds no samples", "Give at least one.")
    session = open_session(model, provider, threads=threads)
    name = output or session.get_outputs()[0].name
    tallies = []
    for found, labels in stream(session, dataset, batch_size, outputs=[name], progress=progress):
        if labels is not None:
            tallies.append(table[metric].tally(found[name], labels))
    return functools.reduce(operator.add, tallies).score(metric)


def compare(
    original: ir.Model,
    pruned: ir.Model,
    dataset: Dataset,
    provider: str = "cpu",
    batch_size: int = 32,
    *,
    output: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    cuts: Cuts = MappingProxyType({}),
) -> Fidelity:
    """Compare the outputs of two models on the same samples.

    Parameters
    ----------
    original, pruned
        Models with the same inputs and the same names of outputs; not mutated.
    dataset
        Samples that fit both; labels are not looked at.
    provider, batch_size, threads, progress
        As in :func:`measure`.
    output
        Name of the output to put first; by default the first one of the original. Outputs that are no
        tensors are left out.
    cuts
        Kept positions of the inputs and outputs that are smaller in the pruned model, by name and axis.

    Raises
    ------
    UsageError
        If the models differ in the names of their outputs, or there is no such output or provider.
    ModelError
        If onnxruntime refuses one of the models.
    """
    teacher, student = (open_session(model, provider, threads=threads) for model in (original, pruned))
    names = _common_outputs(teacher, student, output)
    tallies = dict.fromkeys(names, OutputTally())
    done = 0
    for feed in dataset.batches(batch_size):
        reference, other = (
            cut_feed(run(teacher, feed, names), cuts),
            run(student, cut_feed(feed, cuts), names),
        )
        size = len(next(iter(feed.values()))) if dataset.batchable else 1
        for name in names:
            rows = dataset.batchable and reference[name].shape[:1] == (size,)
            tallies[name] += tally_output(reference[name], other[name], rows=rows)
        done += size
        if progress is not None:
            progress(done, len(dataset))
    return Fidelity(tuple(tally.fidelity(name) for name, tally in tallies.items()), done)


def _common_outputs(teacher: Any, student: Any, main: str | None) -> Sequence[str]:
    ours, theirs = (
        [node.name for node in session.get_outputs() if node.type.startswith("tensor(")]
        for session in (teacher, student)
    )
    if set(ours) != set(theirs):
        raise UsageError(
            f"the two models have different outputs: {', '.join(ours)} and {', '.join(theirs)}",
            "Compare a model with one that was made from it.",
        )
    if main is not None and main not in ours:
        raise UsageError(
            f"the model has no output {main!r}{did_you_mean(main, ours)}", f"Its outputs: {', '.join(ours)}."
        )
    return ours if main is None else [main, *(name for name in ours if name != main)]
