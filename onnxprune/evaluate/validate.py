"""Measuring a model on labelled data, and comparing two models on any data, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.calibrate.checks import did_you_mean
from onnxprune.calibrate.dataset import Array, Dataset, Feed, Progress
from onnxprune.errors import DataError, UsageError
from onnxprune.evaluate.fidelity import Fidelity, OutputTally, tally_output
from onnxprune.evaluate.metrics import Metric, Score, Tally, find_metric
from onnxprune.evaluate.pieces import Runner, open_runner
from onnxprune.evaluate.smaller import Cuts, cut_feed

if TYPE_CHECKING:
    import onnx_ir as ir

Watch = Callable[[Feed, "Array | None", Feed, Feed], None]
"""Takes a batch, its labels, and the outputs of two models."""


def measure(
    model: ir.Model,
    dataset: Dataset,
    metric: str = "top1",
    provider: str = "cpu",
    batch_size: int = 32,
    *,
    output: str | None = None,
    metrics: Mapping[str, Metric] | None = None,
    original: ir.Model | None = None,
    cuts: Cuts = MappingProxyType({}),
    threads: int | None = None,
    progress: Progress | None = None,
) -> Score:
    """Measure a metric of a model, on labelled data or against the original model.

    Parameters
    ----------
    model
        Not mutated.
    dataset
        Samples that fit the original; labelled, unless the metric looks at the original instead.
    metric
        A name of the table, or ``module:function``.
    provider
        What :func:`~onnxprune.calibrate.providers.resolve_providers` takes.
    batch_size
        Samples per run; only one batch is in memory.
    output
        Name of the output that the metric looks at (the logits); by default the first one.
    metrics
        The table; :func:`~onnxprune.evaluate.metrics.default_metrics` by default.
    original
        For metrics such as agreement; others do not look at it. Not mutated.
    cuts
        Kept positions of the inputs and outputs that are smaller in `model` than in the original.
    threads
        As in :func:`~onnxprune.calibrate.sessions.open_session`.
    progress
        Called with (samples done, samples in all).

    Raises
    ------
    UsageError
        If there is no such metric, output or provider, or no original where the metric needs one.
    DataError
        If the dataset has no labels, or outputs and labels do not fit the metric.
    ModelError
        If onnxruntime refuses the model.
    """
    chosen = find_metric(metric, metrics)
    tally = tally_metric(
        model,
        dataset,
        chosen,
        provider,
        batch_size,
        output=output,
        original=original,
        cuts=cuts,
        threads=threads,
        progress=progress,
    )
    return chosen.score(tally)


def tally_metric(
    model: ir.Model,
    dataset: Dataset,
    metric: Metric,
    provider: str = "cpu",
    batch_size: int = 32,
    *,
    output: str | None = None,
    original: ir.Model | None = None,
    cuts: Cuts = MappingProxyType({}),
    threads: int | None = None,
    progress: Progress | None = None,
) -> Tally:
    """Sum up a metric over a dataset; like :func:`measure`, but without the score.

    The score of a few samples may not exist where that of all does: theirs may all be labels to be ignored.
    """
    _check_reference(metric, dataset, original)
    student = open_runner(model, provider, threads=threads)
    teacher = None
    if metric.reference == "original" and original is not None:
        teacher = open_runner(original, provider, threads=threads)
    name = output or student.outputs[0]
    total = Running(metric, name, dataset)
    for feed, labels in dataset.labelled_batches(batch_size):
        found = student.run(cut_feed(feed, cuts), [name])[name]
        reference = labels if teacher is None else cut_feed(teacher.run(feed, [name]), cuts)[name]
        total.add(found, reference, dataset.size_of(feed))
        if progress is not None:
            progress(total.done, len(dataset))
    return total.tally


class Running:
    """A metric that is summed up batch by batch.

    Parameters
    ----------
    metric
        What is summed up.
    output
        Name of the output that it looks at, for errors.
    dataset
        Where the batches come from.
    """

    def __init__(self, metric: Metric, output: str, dataset: Dataset) -> None:
        self._metric, self._output, self._dataset = metric, output, dataset
        self._total: Tally | None = None
        self.done = 0

    def add(self, found: Array, reference: Array | None, size: int) -> None:
        """Add the next `size` samples: what the model says, and the labels or what the original says.

        Raises
        ------
        DataError
            They do not fit; it names the samples.
        """
        try:
            tally = self._metric.tally(np.asarray(found), np.asarray(reference))
        except DataError as error:
            span = f"samples {self.done} to {self.done + size - 1}" if size > 1 else f"sample {self.done}"
            raise DataError(f"output {self._output!r}, {span}: {error.what}", error.hint) from error
        self._total = tally if self._total is None else self._total + tally
        self.done += size

    @property
    def tally(self) -> Tally:
        """All of it.

        Raises
        ------
        DataError
            There were no samples.
        """
        if self._total is None:
            raise DataError(f"{self._dataset.source} holds no samples", "Give at least one.")
        return self._total


def _check_reference(metric: Metric, dataset: Dataset, original: ir.Model | None) -> None:
    if metric.reference == "original" and original is None:
        raise UsageError(
            f"{metric.name} compares a model with its original, and there is none here",
            "Give the original with --against, or choose a metric of labelled data.",
        )
    if metric.reference == "labels" and dataset.labels is None:
        raise DataError(
            f"{metric.name} needs labels, and {dataset.source} has none",
            "Add an array 'labels', class folders or a labels.csv, or compare with --against only.",
        )


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
    watch: Watch | None = None,
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
    watch
        Called for every batch, to measure something else meanwhile.

    Raises
    ------
    UsageError
        If the models differ in the names of their outputs, or there is no such output or provider.
    ModelError
        If onnxruntime refuses one of the models.
    """
    teacher, student = (open_runner(model, provider, threads=threads) for model in (original, pruned))
    names = _common_outputs(teacher, student, output)
    tallies = dict.fromkeys(names, OutputTally())
    done = 0
    for feed, labels in dataset.labelled_batches(batch_size):
        whole, other = teacher.run(feed, names), student.run(cut_feed(feed, cuts), names)
        if watch is not None:
            watch(feed, labels, whole, other)
        reference = cut_feed(whole, cuts)
        size = dataset.size_of(feed)
        for name in names:
            rows = dataset.batchable and reference[name].shape[:1] == (size,)
            tallies[name] += tally_output(reference[name], other[name], rows=rows)
        done += size
        if progress is not None:
            progress(done, len(dataset))
    return Fidelity(tuple(tally.fidelity(name) for name, tally in tallies.items()), done)


def _common_outputs(teacher: Runner, student: Runner, main: str | None) -> Sequence[str]:
    ours, theirs = teacher.outputs, student.outputs
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
