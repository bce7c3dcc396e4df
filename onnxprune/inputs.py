"""The inputs on which a model is proven and measured: real samples, or generated ones that it accepts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir

from onnxprune.calibrate.checks import kind
from onnxprune.calibrate.data import read_dataset
from onnxprune.calibrate.dataset import Dataset, InputSpec, hold_out, input_specs, is_batchable, symbol
from onnxprune.calibrate.sessions import LOOKED_UP, open_session, run, why_widened
from onnxprune.calibrate.synthetic import synthetic_count, synthetic_dataset
from onnxprune.errors import ModelError, UsageError
from onnxprune.evaluate.pieces import is_huge, open_runner
from onnxprune.expected import drawings, index_ranges, lengths
from onnxprune.model.binding import candidates
from onnxprune.model.detach import foreign_nodes
from onnxprune.model.io import LoadedModel

log = logging.getLogger(__name__)

PROOF_SAMPLES = 4
"""Real samples on which masked == removed is proven."""

SYNTHETIC_SAMPLES = 2

REASON = 240
"""Characters of what onnxruntime says that a note quotes."""

CROWD = 16
"""Positions that integers may index where nothing says how many there are: nodes of a graph, say."""


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
    ranges
        For generated integers by input: the number of values, counted from 0.
    """

    data: Dataset
    proof: Dataset
    bindings: Mapping[str, int]
    notes: tuple[str, ...]
    fit: Dataset
    division: str = ""
    ranges: Mapping[str, int] = field(default_factory=dict)


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
    data
        What `read_dataset` takes; "synthetic" or "synthetic:N": calibration samples are generated, while the proof
        runs on random ones as without data.
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
    wanted = synthetic_count(data)
    if wanted is not None:
        other = None if test is None else _read(test, specs, given, preprocess=preprocess)
        made = _generated(source, specs, given, provider, seed)
        lifelike = _lifelike(source.ir, specs, made, min(wanted, samples or wanted), provider, seed)
        if other is not None:
            return replace(made, data=other, notes=(*made.notes, *lifelike.notes, *other.notes), fit=lifelike)
        fit, measured, division = _divide(lifelike) if calibrate else (lifelike, lifelike, "")
        notes = (*made.notes, *lifelike.notes)
        return replace(made, data=measured, notes=notes, fit=fit, division=division)
    if data is None:
        return _generated(source, specs, given, provider, seed)
    dataset = _read(data, specs, given, samples=samples, preprocess=preprocess)
    proof = dataset.take(range(min(PROOF_SAMPLES, len(dataset))))
    if test is not None:
        other = _read(test, specs, given, preprocess=preprocess)
        return Inputs(other, proof, given, (*dataset.notes, *other.notes), dataset)
    fit, measured, division = _divide(dataset) if calibrate else (dataset, dataset, "")
    return Inputs(measured, proof, given, dataset.notes, fit, division)


def _read(
    data: Any,
    specs: Sequence[InputSpec],
    given: dict[str, int],
    *,
    samples: int | None = None,
    preprocess: Any,
) -> Dataset:
    """Real samples; the first gives their sizes to the symbolic dims that have none in `given` yet."""
    dataset = read_dataset(data, specs, samples=samples, preprocess=preprocess, bindings=given)
    if not len(dataset):
        raise UsageError(f"the data {dataset.source} holds no samples", "Give at least one.")
    first = dataset.feeds[0]
    for spec in specs:
        for axis, dim in enumerate(spec.shape):
            if not isinstance(dim, int):
                given.setdefault(symbol(spec, axis), int(first[spec.name].shape[axis]))
    return dataset


def _generated(
    source: LoadedModel, specs: Sequence[InputSpec], given: Mapping[str, int], provider: str, seed: int
) -> Inputs:
    """Random samples of the first sizes that the model accepts: these are what a proof wants."""
    failure: ModelError | None = None
    tables = index_ranges(source.ir)
    beyond = False  # whether an integer ever looked up more than there is
    for sizes, ranges in _attempts(source.ir, specs, given, tables):
        if ranges.keys() != tables.keys() and not beyond:
            break
        made = synthetic_dataset(specs, sizes, samples=SYNTHETIC_SAMPLES, seed=seed, int_ranges=ranges)
        known = lengths(specs, {name: array.shape for name, array in made.feeds[0].items()})
        if known:
            made = synthetic_dataset(
                specs, sizes, samples=SYNTHETIC_SAMPLES, seed=seed, int_ranges=ranges, drawings=known
            )
        failure, unloaded = _refusal(source.ir, made, provider)
        beyond = beyond or (failure is not None and failure.hint == LOOKED_UP)
        if failure is None:
            notes = (*_notes(sizes, given), *unloaded)
            return Inputs(made, made, sizes, notes, made, ranges=ranges)
    raise _no_input(failure)


def _attempts(
    model: ir.Model, specs: Sequence[InputSpec], given: Mapping[str, int], ranges: Mapping[str, int]
) -> Iterator[tuple[dict[str, int], Mapping[str, int]]]:
    """Sizes of symbolic dims and ranges of integers to try.

    Integers without a table may index positions of other inputs (the nodes of a graph). Then an axis that leads
    some inputs only is no batch, and one position of it is not enough; at last all integers are zero.
    """
    inputs = model.graph.inputs
    for sizes in candidates(inputs, given):
        yield sizes, ranges
    free = [spec.name for spec in specs if kind(spec.dtype) == "int" and spec.name not in ranges]
    if not free:
        return
    leading = {symbol(spec, 0) for spec in specs if spec.shape and not isinstance(spec.shape[0], int)}
    many = {} if is_batchable(specs) else dict.fromkeys(leading - given.keys(), CROWD)
    for most in (CROWD, 2) if many else ():
        for sizes in candidates(inputs, {**given, **many}):
            yield sizes, {**ranges, **dict.fromkeys(free, most)}
    for sizes in candidates(inputs, given):
        yield sizes, {**ranges, **dict.fromkeys(free, 1)}


def _lifelike(
    model: ir.Model, specs: Sequence[InputSpec], made: Inputs, count: int, provider: str, seed: int
) -> Dataset:
    """Samples to calibrate on, which look like what the model was made for as far as its graph tells."""
    shapes = {name: array.shape for name, array in made.proof.feeds[0].items()}
    known = drawings(model, specs, shapes, made.ranges)
    dataset = synthetic_dataset(specs, made.bindings, samples=count, seed=seed, drawings=known)
    drawn = "; ".join(f"{name}: {known[name]}" for name in list(known)[:4])
    more = f"; and {len(known) - 4} more" if len(known) > 4 else ""
    failure, _ = _refusal(model, dataset, provider)
    if failure is not None:
        raise _no_input(failure)
    return replace(dataset, notes=(f"synthetic samples were drawn as {drawn}{more}",))


def _no_input(failure: ModelError | None) -> UsageError:
    return UsageError(
        f"no generated input runs through the model; onnxruntime says: {failure}",
        "Give real samples with --data, or the sizes of symbolic dims with --bind NAME=N.",
    )


def _divide(dataset: Dataset) -> tuple[Dataset, Dataset, str]:
    """Samples to learn from, samples to measure on, and what to say about them."""
    learned, measured = hold_out(dataset)
    if measured is dataset:
        note = (
            f"{len(dataset)} sample{' is' if len(dataset) == 1 else 's are'} too few to hold some back: what is "
            "measured is measured on the samples that the model was calibrated on"
        )
        return dataset, dataset, note
    note = (
        f"calibrated on {len(learned)} of the samples, measured on the other {len(measured)} "
        "(--test takes samples of their own to measure on)"
    )
    return learned, measured, note


def _refusal(model: ir.Model, data: Dataset, provider: str) -> tuple[ModelError | None, tuple[str, ...]]:
    """Why the model does not run on `data`; None where it does, or where only the proof can tell, with a note."""
    if foreign_nodes(model):
        return None, ()
    huge = is_huge(model)
    try:
        session = open_session(model, provider, optimize=False, lean=huge)
    except ModelError as error:
        if model.graph.num_nodes():
            log.debug("the model as it is does not load: %s", error)
        return None, ()  # the proof can tell
    try:
        if huge:
            open_runner(model, provider).run(data.feeds[0])
        else:
            run(session, data.feeds[0])
    except ModelError as error:
        return error, ()
    why = " ".join(why_widened(session).split())
    if not why:
        return None, ()
    why = why if len(why) <= REASON else f"{why[:REASON]}..."
    return None, (f"the model itself does not run here, only a copy of it in float32: {why}",)


def one_by_one(model: ir.Model, dataset: Dataset, provider: str) -> Dataset:
    """The dataset, whose samples are not stacked where the model only takes them one by one.

    Some exporters leave the size of the batch inside the graph, in a Reshape, although the input's axis has a name.
    """
    if not dataset.batchable or len(dataset) < 2 or foreign_nodes(model):
        return dataset
    session = open_session(model, provider, optimize=False)
    try:
        run(session, next(dataset.take([0, 1]).batches(2)))
    except ModelError as error:
        try:
            run(session, dataset.feeds[0])
        except ModelError:
            return dataset  # whoever runs it next will say what is wrong
        log.debug("samples run one by one: %s", error)
        note = "the model takes one sample at a time, although its inputs name a batch axis"
        return replace(dataset, batchable=False, notes=(*dataset.notes, note))
    return dataset


def check_not_empty(dataset: Dataset) -> None:
    """Raise UsageError where the first sample holds nothing that could be learned from or measured."""
    feed = dataset.feeds[0] if len(dataset) else {}
    if feed and not any(array.size for array in feed.values()):
        shapes = ", ".join(f"{name!r} {list(array.shape)}" for name, array in feed.items())
        raise UsageError(
            f"the samples of {dataset.source} are empty: {shapes}",
            "Leave --data out, or export the model with inputs that hold something.",
        )


def _notes(sizes: Mapping[str, int], given: Mapping[str, int]) -> tuple[str, ...]:
    guessed = [f"{name}={size}" for name, size in sizes.items() if name not in given]
    if not guessed:
        return ()
    return (f"sizes of symbolic dims not given with --bind, so assumed: {', '.join(guessed)}",)
