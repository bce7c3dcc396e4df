"""`validate`: what a model is worth on labelled data, and how far it is from another one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxprune.calibrate.data import read_dataset
from onnxprune.calibrate.dataset import Dataset, input_specs
from onnxprune.errors import DataError, UsageError
from onnxprune.evaluate.fidelity import Fidelity
from onnxprune.evaluate.metrics import find_metric
from onnxprune.evaluate.score import Metric, Score
from onnxprune.evaluate.validate import compare, tally_metric
from onnxprune.inputs import one_by_one
from onnxprune.job import Progress
from onnxprune.measuring import BATCH, as_runnable
from onnxprune.model.io import LoadedModel, load
from onnxprune.model.opset import check_version

Source = str | os.PathLike[str] | LoadedModel


@dataclass(frozen=True)
class Validation:
    """What `validate` found.

    Attributes
    ----------
    score
        Metric of the model; None without labels, unless the metric needs none.
    reference
        Metric of the model it was compared with; None where the metric is the comparison itself.
    fidelity
        Label-free distance from the other model.
    samples
        How many samples were looked at.
    notes
        What was done to the data, and how it was measured.
    """

    score: Score | None
    reference: Score | None
    fidelity: Fidelity | None
    samples: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = []
        if self.reference is not None:
            lines.append(f"original: {self.reference}")
        if self.score is not None:
            lines.append(f"{'model:   ' if self.reference else 'model:'} {self.score}")
        if self.fidelity is not None:
            lines += [f"fidelity of {line}" for line in self.fidelity.outputs]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def validate(
    model: Source,
    data: Any,
    *,
    against: Source | None = None,
    metric: str | None = None,
    samples: int | None = None,
    preprocess: Any = None,
    provider: str = "auto",
    output: str | None = None,
    batch_size: int = BATCH,
    progress: Progress | None = None,
) -> Validation:
    """Measure a model on labelled data, and its distance from another model on any data.

    Parameters
    ----------
    model
        Path of an .onnx file, or what `load` returned.
    data, samples, preprocess
        As in `prune`.
    against
        The original to compare with.
    metric
        "top1", "top5", "f1", "miou", "mse", "psnr", "perplexity", "agreement" (top-1 agreement with `against`,
        without labels) or ``module:function`` of one's own (see `onnxprune.evaluate.own`); by default top1
        where the data has labels.
    provider
        As in `prune`.
    output
        Name of the graph output that carries the logits; the first by default.
    batch_size
        Samples per run.
    progress
        Called with (stage, done, total).

    Raises
    ------
    DataError
        The data does not fit, or a metric of labels was asked for and there are none.
    UsageError
        Neither labels nor `against`: there would be nothing to measure. Or the models take different inputs, or
        there is no such metric, or agreement was asked for without `against`.
    """
    chosen = None if metric is None else find_metric(metric)
    subject = model if isinstance(model, LoadedModel) else load(model)
    original = against if isinstance(against, LoadedModel) or against is None else load(against)
    check_version(subject.ir)
    if original is not None:
        check_version(original.ir)
        _check_inputs(subject, original)
    dataset = read_dataset(data, input_specs(subject.ir), samples=samples, preprocess=preprocess)
    if dataset.labels is None and original is None and metric is None:
        raise UsageError(
            f"{dataset.source} has no labels, and there is no model to compare with",
            "Add labels to the data, or give the original with --against.",
        )
    if chosen is None and dataset.labels is not None:
        chosen = find_metric("top1")

    def tick(stage: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(stage, done, total) if progress is not None else None

    models = [subject.ir] if original is None else [subject.ir, original.ir]
    dataset = one_by_one(subject.ir, dataset, provider)
    run = as_runnable(models, dataset, provider)
    notes = dataset.notes
    if run is not None:
        models, dataset, notes = list(run.models), run.data, (*notes, *run.notes)
    scores: list[Score] = []
    if chosen is not None:
        scores = _scores(models, dataset, chosen, provider, batch_size, output, tick)
    fidelity = None
    if original is not None:
        fidelity = compare(
            models[1],
            models[0],
            dataset,
            provider,
            batch_size,
            output=output,
            progress=tick("comparing outputs"),
        )
    mine, reference = (*scores, None, None)[:2]
    return Validation(mine, reference, fidelity, len(dataset), notes)


def _scores(
    models: Sequence[ir.Model],
    dataset: Dataset,
    metric: Metric,
    provider: str,
    batch_size: int,
    output: str | None,
    tick: Callable[[str], Callable[[int, int], None]],
) -> list[Score]:
    """The metric of the model and, where it is no comparison itself, of the original."""
    found = []
    for number, one in enumerate(models[:1] if metric.reference == "original" else models):
        stage = f"measuring {metric.name}{' of the original' if number else ''}"
        try:
            tally = tally_metric(
                one,
                dataset,
                metric,
                provider,
                batch_size,
                output=output,
                original=models[1] if len(models) > 1 else None,
                progress=tick(stage),
            )
            found.append(metric.score(tally))
        except DataError as error:
            source = "" if dataset.source in error.what else f"{dataset.source}: "
            raise DataError(f"{source}{error.what}", error.hint) from None
    return found


def _check_inputs(subject: LoadedModel, original: LoadedModel) -> None:
    ours, theirs = input_specs(subject.ir), input_specs(original.ir)
    if {(spec.name, spec.dtype) for spec in ours} != {(spec.name, spec.dtype) for spec in theirs}:
        listed = [", ".join(f"{spec.name} ({spec})" for spec in specs) for specs in (ours, theirs)]
        raise UsageError(
            f"the two models take different inputs: {listed[0]} and {listed[1]}",
            "Compare a model with the one that it was made from.",
        )
