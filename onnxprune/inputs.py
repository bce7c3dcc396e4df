"""The inputs on which a model is proven and measured: real samples, or generated ones that it accepts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxprune.calibrate.data import read_dataset
from onnxprune.calibrate.dataset import Dataset, hold_out, input_specs, symbol
from onnxprune.calibrate.sessions import open_session, run
from onnxprune.calibrate.synthetic import synthetic_dataset
from onnxprune.errors import ModelError, UsageError
from onnxprune.model.binding import candidates
from onnxprune.model.detach import foreign_nodes
from onnxprune.model.io import LoadedModel

log = logging.getLogger(__name__)

PROOF_SAMPLES = 4
"""Real samples on which masked == removed is proven."""

SYNTHETIC_SAMPLES = 2


@dataclass(frozen=True)
class Inputs:
    """Samples and the sizes of symbolic dims that go with them.

    Attributes
    ----------
    data
        Samples for metrics and fidelity.
    proof
        A few samples for the proof.
    fit
        Samples for statistics, repair and choices; none of them is among `data` where there are enough.
    division
        How the samples were divided, for the report of a run that learns from them.
    bindings
        Sizes of symbolic dims.
    notes
        What was decided on the way, for the report.
    """

    data: Dataset
    proof: Dataset
    bindings: Mapping[str, int]
    notes: tuple[str, ...]
    fit: Dataset
    division: str = ""


def choose_inputs(
    source: LoadedModel,
    *,
    data: Any = None,
    samples: int | None = None,
    preprocess: Any = None,
    bindings: Mapping[str, int] | None = None,
    provider: str = "auto",
    seed: int = 0,
    test: Any = None,
    calibrate: bool = False,
) -> Inputs:
    """Read the given data, or generate samples that the model accepts.

    Symbolic dims take their sizes from `bindings`, else from the first sample, else a guess: 1 for a batch,
    and for other dims the first size with which onnxruntime runs the model.

    Parameters
    ----------
    test
        Other samples to measure on, read like `data`.
    calibrate
        Whether samples will be learned from. Then, without `test`, every fifth one is held back to measure on.

    Raises
    ------
    UsageError, DataError
        The data does not fit the model, or no generated sample does.
    """
    specs = input_specs(source.ir)
    given = dict(bindings or {})
    if data is not None:
        dataset = read_dataset(data, specs, samples=samples, preprocess=preprocess, bindings=given)
        if not len(dataset):
            raise UsageError(f"the data {dataset.source} holds no samples", "Give at least one.")
        first = dataset.feeds[0]
        for spec in specs:
            for axis, dim in enumerate(spec.shape):
                if not isinstance(dim, int):
                    given.setdefault(symbol(spec, axis), int(first[spec.name].shape[axis]))
        proof = dataset.take(range(min(PROOF_SAMPLES, len(dataset))))
        if test is not None:
            other = read_dataset(test, specs, samples=None, preprocess=preprocess, bindings=given)
            if not len(other):
                raise UsageError(f"the data {other.source} holds no samples", "Give at least one.")
            return Inputs(other, proof, given, (*dataset.notes, *other.notes), dataset)
        fit, measured, division = _divide(dataset) if calibrate else (dataset, dataset, "")
        return Inputs(measured, proof, given, dataset.notes, fit, division)
    count = SYNTHETIC_SAMPLES
    ranges = _index_ranges(source.ir)
    failure: ModelError | None = None
    for sizes in candidates(source.ir.graph.inputs, given):
        made = synthetic_dataset(specs, sizes, samples=count, seed=seed, int_ranges=ranges)
        failure = _refusal(source.ir, made, provider)
        if failure is None:
            return Inputs(made, made, sizes, _notes(sizes, given), made)
    raise UsageError(
        f"no generated input runs through the model; onnxruntime says: {failure}",
        "Give real samples with --data, or the sizes of symbolic dims with --bind NAME=N.",
    )


def _divide(dataset: Dataset) -> tuple[Dataset, Dataset, str]:
    """Samples to learn from, samples to measure on, and what to say about them."""
    learned, measured = hold_out(dataset)
    if measured is dataset:
        note = (
            f"{len(dataset)} samples are too few to hold some back: what is measured is measured on the samples "
            "that the model was calibrated on"
        )
        return dataset, dataset, note
    note = (
        f"calibrated on {len(learned)} of the samples, measured on the other {len(measured)} "
        "(--test takes samples of their own to measure on)"
    )
    return learned, measured, note


def _refusal(model: ir.Model, data: Dataset, provider: str) -> ModelError | None:
    """Why the model does not run on `data`; None where it does, or where only the proof can tell."""
    if foreign_nodes(model):
        return None
    try:
        session = open_session(model, provider, optimize=False)
    except ModelError as error:
        if model.graph.num_nodes():
            log.debug("the model as it is does not load: %s", error)
        return None  # a missing kernel for its float type, say: the proof runs in float32
    try:
        run(session, data.feeds[0])
    except ModelError as error:
        return error
    return None


def _index_ranges(model: ir.Model) -> dict[str, int]:
    """For integer inputs that index an embedding: how many rows it has."""
    ranges: dict[str, int] = {}
    for value in model.graph.inputs:
        for node in _through_casts(value):
            if node.op_type != "Gather" or node.inputs[0] is None or node.inputs[0] is value:
                continue
            table = node.inputs[0].const_value
            if table is not None:
                axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
                dims = table.shape.numpy()
                rows = dims[axis] if dims else 1
                ranges[str(value.name)] = min(rows, ranges.get(str(value.name), rows))
    return ranges


def _through_casts(value: ir.Value) -> Iterator[ir.Node]:
    for node in value.consumers():
        if node.op_type in ("Cast", "Identity", "Unsqueeze", "Reshape", "Flatten"):
            yield from _through_casts(node.outputs[0])
        else:
            yield node


def _notes(sizes: Mapping[str, int], given: Mapping[str, int]) -> tuple[str, ...]:
    guessed = [f"{name}={size}" for name, size in sizes.items() if name not in given]
    if not guessed:
        return ()
    return (f"sizes of symbolic dims not given with --bind, so assumed: {', '.join(guessed)}",)
