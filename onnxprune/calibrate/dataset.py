"""The nouns of this room: what a model takes in, and a bounded run of samples that fit it.

A *sample* is one dict of input name -> array. Where the leading axis of every input is dynamic ("batchable"
models) a sample has 1 there and samples can be stacked into batches; otherwise a sample has exactly the
shape that the model declares and is run alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxprune.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    import onnx_ir as ir

Array: TypeAlias = npt.NDArray[Any]
Dim: TypeAlias = int | str | None
Feed: TypeAlias = dict[str, Array]
Tier: TypeAlias = Literal["real", "synthetic"]
Progress: TypeAlias = Callable[[int, int], None]
"""Called with (samples done, samples in all)."""

_GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class InputSpec:
    """One input of a model, as its callers see it.

    Parameters
    ----------
    name
        Name of the graph input.
    dtype
        Element type (``ml_dtypes.bfloat16`` for bf16 inputs, ``object`` for strings).
    shape
        One entry per axis: a fixed extent, the name of a symbolic extent, or None where nothing is known.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[Dim, ...]

    def __str__(self) -> str:
        dims = ", ".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"{self.dtype.name}[{dims}]"


class Feeds(Protocol):
    """A sequence of samples; may read, decode or generate each one only when asked for it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Feed: ...


@dataclass(frozen=True, eq=False)
class Selected:
    """Some of the samples of another sequence, in the given order; nothing is copied."""

    feeds: Feeds
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> Feed:
        return self.feeds[self.indices[index]]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples that fit a model, perhaps with labels.

    Parameters
    ----------
    feeds
        One dict of input name -> array per sample.
    labels
        ``rows`` labels per sample along the leading axis, of any shape behind it, or None.
    tier
        Whether the samples are real data or generated.
    source
        Where they come from, for people: a path, ``module:name``, ``synthetic``.
    batchable
        Whether samples may be stacked along the leading axis.
    rows
        Rows that one sample carries along the leading axis: 1, or the fixed batch size of a model that has
        one.
    notes
        What was done to the data that its owner should know (casts, a subset, how labels were read).
    """

    feeds: Feeds = field(repr=False)
    labels: Array | None = field(repr=False)
    tier: Tier
    source: str
    batchable: bool = True
    rows: int = 1
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.feeds)

    def take(self, indices: Sequence[int] | Array) -> Dataset:
        """Return the samples at `indices`, in that order, with their labels; nothing is decoded."""
        chosen = tuple(int(index) for index in indices)
        labels = self.labels
        if labels is not None:
            rows = np.asarray(chosen, dtype=np.int64)[:, None] * self.rows + np.arange(self.rows)
            labels = labels[rows.reshape(-1)]
        return replace(self, feeds=Selected(self.feeds, chosen), labels=labels)

    def batches(self, size: int) -> Iterator[Feed]:
        """Yield feeds of up to `size` consecutive samples, stacked along the leading axis.

        Samples of different shapes are never stacked together, and samples of a model that is not batchable
        come one by one whatever `size` says.

        Raises
        ------
        UsageError
            If `size` is less than 1.
        """
        return (feed for feed, _ in self.labelled_batches(size))

    def label_batches(self, size: int) -> Iterator[Array | None]:
        """Yield the labels that belong to each feed of ``batches(size)``; this reads the feeds too."""
        return (labels for _, labels in self.labelled_batches(size))

    def labelled_batches(self, size: int) -> Iterator[tuple[Feed, Array | None]]:
        """Yield what :meth:`batches` yields, each with its labels (None without labels)."""
        if size < 1:
            raise UsageError(f"a batch size of {size} was asked for", "Give a batch size of at least 1.")
        return self._runs(size if self.batchable else 1)

    def size_of(self, feed: Feed) -> int:
        """Samples in a batch."""
        return len(next(iter(feed.values()))) if self.batchable else 1

    def _runs(self, size: int) -> Iterator[tuple[Feed, Array | None]]:
        run: list[Feed] = []
        for index in range(len(self)):
            feed = self.feeds[index]
            if run and (len(run) == size or not _stackable(run[0], feed)):
                yield _stack(run), self._labels_of(index - len(run), index)
                run = []
            run.append(feed)
        if run:
            yield _stack(run), self._labels_of(len(self) - len(run), len(self))

    def _labels_of(self, start: int, stop: int) -> Array | None:
        return None if self.labels is None else self.labels[start * self.rows : stop * self.rows]


HELD_OUT = 5
"""Every fifth sample is held out."""

FEWEST = 20
"""Of fewer samples than this none is held out."""


def hold_out(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """Samples to learn from and samples to try on: every fifth, or all for both where there are few."""
    if len(dataset) < FEWEST:
        return dataset, dataset
    held = [number % HELD_OUT == HELD_OUT - 1 for number in range(len(dataset))]
    return dataset.take(np.flatnonzero(~np.array(held))), dataset.take(np.flatnonzero(held))


def is_batchable(inputs: Sequence[InputSpec]) -> bool:
    """Tell whether samples can be stacked: every input has a leading axis and it is dynamic."""
    return bool(inputs) and all(spec.shape and not isinstance(spec.shape[0], int) for spec in inputs)


def rows_per_sample(inputs: Sequence[InputSpec]) -> int:
    """Return the fixed batch size that all inputs share, or 1 where there is none."""
    leading = {spec.shape[0] if spec.shape else None for spec in inputs}
    only = leading.pop() if len(leading) == 1 else None
    return only if isinstance(only, int) and only > 0 else 1


def spread(total: int, count: int) -> Array:
    """Choose `count` of `total` positions, evenly spread and always the same.

    One position is taken from each of `count` consecutive stretches, at an offset that follows the golden
    ratio: data sorted by class keeps its classes, and data that cycles through its classes does not fall in
    step with the stride.

    Returns
    -------
    numpy.ndarray
        ``min(count, total)`` increasing int64 positions.

    Examples
    --------
    >>> spread(6, 3).tolist()
    [0, 3, 4]
    >>> spread(2, 5).tolist()
    [0, 1]
    """
    count = min(count, total)
    stretch = np.arange(count, dtype=np.int64)
    low = stretch * total // max(count, 1)
    width = (stretch + 1) * total // max(count, 1) - low
    return low + ((stretch * _GOLDEN) % 1.0 * width).astype(np.int64)


def bound_extent(spec: InputSpec, axis: int, bindings: Mapping[str, int]) -> int | None:
    """Return the extent of one axis where it is fixed or bound, else None.

    An axis is bound by its symbol, or by ``input.axis`` where the model gives it no name.
    """
    dim = spec.shape[axis]
    return dim if isinstance(dim, int) else bindings.get(symbol(spec, axis))


def symbol(spec: InputSpec, axis: int) -> str:
    """Return the name under which a dynamic axis is bound: its own, or ``input.axis`` where it has none."""
    dim = spec.shape[axis]
    return str(dim) if dim else f"{spec.name}.{axis}"


def input_specs(model: ir.Model) -> tuple[InputSpec, ...]:
    """Describe the inputs that a caller has to feed (graph inputs that have no initializer).

    Sequences and optionals are not among them: what reads these is cut out wherever a model has to run
    (`onnxprune.model.detach`).

    Raises
    ------
    UnsupportedError
        If a tensor has no element type or no rank, or an input is of another kind still.
    """
    from onnxprune.model.detach import is_odd

    specs = []
    for value in model.graph.inputs:
        if value.name in model.graph.initializers or is_odd(value):
            continue
        if value.dtype is None or value.shape is None:
            raise UnsupportedError(
                f"graph input {value.name!r} is no tensor of known element type and rank",
                "Export the model with typed tensor inputs; extents may be symbolic.",
            )
        dims = tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
        specs.append(InputSpec(value.name or "", np.dtype(value.dtype.numpy()), dims))
    return tuple(specs)


def _stackable(first: Feed, second: Feed) -> bool:
    return all(array.shape[1:] == second[name].shape[1:] for name, array in first.items())


def _stack(run: Sequence[Feed]) -> Feed:
    if len(run) == 1:
        return run[0]
    return {name: np.concatenate([feed[name] for feed in run]) for name in run[0]}
