"""Generated samples, for proofs and for calibration where there are no real ones: same seed, same samples."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxprune.calibrate.checks import kind
from onnxprune.calibrate.dataset import (
    Dataset,
    Feed,
    InputSpec,
    bound_extent,
    is_batchable,
    rows_per_sample,
    symbol,
)
from onnxprune.calibrate.drawing import Drawing
from onnxprune.errors import UsageError

KEYWORD = "synthetic"
"""As `--data`: generate calibration samples. A file or folder of that name is `./synthetic`."""

COUNT = 256
"""Samples where no number is given."""

KEPT = 256 << 20
"""Bytes."""


@dataclass(frozen=True, eq=False)
class SyntheticFeeds:
    """Samples drawn when they are asked for; sample `i` depends on the seed and on `i` alone.

    The first ones are kept, up to `KEPT` bytes: a calibration reads them several times.
    """

    inputs: tuple[InputSpec, ...]
    shapes: tuple[tuple[int, ...], ...]
    drawings: tuple[Drawing, ...]
    count: int
    seed: int
    kept: dict[int, Feed] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> Feed:
        if not -self.count <= index < self.count:
            raise IndexError(index)
        index %= self.count
        if index in self.kept:
            return self.kept[index]
        rng = np.random.default_rng([self.seed, index])
        feed = {
            spec.name: drawing.draw(rng, spec.dtype, shape)
            for spec, shape, drawing in zip(self.inputs, self.shapes, self.drawings, strict=True)
        }
        if (len(self.kept) + 1) * sum(array.nbytes for array in feed.values()) <= KEPT:
            self.kept[index] = feed
        return feed


def synthetic_count(data: object) -> int | None:
    """How many samples `data` asks to generate; None where it means something else.

    Raises
    ------
    UsageError
        What follows the keyword is no number of samples.

    Examples
    --------
    >>> synthetic_count("synthetic:64"), synthetic_count("./synthetic")
    (64, None)
    """
    if not isinstance(data, str) or data.partition(":")[0] != KEYWORD:
        return None
    if data == KEYWORD:
        return COUNT
    number = data.removeprefix(f"{KEYWORD}:")
    if not re.fullmatch("[0-9]+", number) or int(number) < 1:
        raise UsageError(
            f"--data {data}: {number!r} is no number of samples to generate",
            f"Give one, as in --data {KEYWORD}:{COUNT}; a file or a module of that name needs its folder or "
            "package in front of it.",
        )
    return int(number)


def synthetic_dataset(
    inputs: Sequence[InputSpec],
    bindings: Mapping[str, int],
    *,
    samples: int,
    seed: int,
    int_ranges: Mapping[str, int] | None = None,
    drawings: Mapping[str, Drawing] | None = None,
) -> Dataset:
    """Make a dataset of random samples: normal floats, integers in ``[0, n)``, booleans, words.

    Parameters
    ----------
    inputs
        What the model takes.
    bindings
        Sizes of symbolic axes by name (``input.axis`` for an axis without a name). The axis that leads every
        input counts samples and is 1; a symbol that leads only some inputs is 1 where it is not bound.
    samples
        How many samples.
    seed
        Not negative.
    int_ranges
        For integer inputs by name: the number of values, counted from 0; 2 where nothing is said.
    drawings
        What inputs look like, by name; the others are drawn as above.

    Raises
    ------
    UsageError
        If an axis is not bound, an input is of a kind that cannot be drawn, or a range does not fit.
    """
    ranges, known = dict(int_ranges or {}), drawings or {}
    drawn = tuple(known.get(spec.name, Drawing(count=ranges.get(spec.name, 2))) for spec in inputs)
    if samples < 1 or seed < 0:
        raise UsageError(
            f"{samples} samples with seed {seed} were asked for",
            "Give at least 1 sample and a seed of 0 or more.",
        )
    for spec, drawing in zip(inputs, drawn, strict=True):
        _check_drawable(spec, drawing.count)
    batchable = is_batchable(inputs)
    ones = {symbol(spec, 0): 1 for spec in inputs if spec.shape and not isinstance(spec.shape[0], int)}
    sizes = {**bindings, **ones} if batchable else {**ones, **bindings}
    shapes = tuple(_shape(spec, sizes) for spec in inputs)
    feeds = SyntheticFeeds(tuple(inputs), shapes, drawn, samples, seed)
    return Dataset(feeds, None, "synthetic", KEYWORD, batchable, rows_per_sample(inputs))


def _check_drawable(spec: InputSpec, high: int) -> None:
    family = kind(spec.dtype)
    if family not in ("float", "int", "bool", "string"):
        raise UsageError(
            f"no values can be generated for input {spec.name!r} ({spec})", "Give real samples with --data."
        )
    if family == "int" and (high < 1 or int(np.asarray(high - 1).astype(spec.dtype)) != high - 1):
        raise UsageError(
            f"input {spec.name!r} ({spec}) cannot take integers from 0 to {high - 1}",
            "Choose a range that fits.",
        )


def _shape(spec: InputSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    extents = []
    for axis in range(len(spec.shape)):
        extent = bound_extent(spec, axis, sizes)
        if extent is None:
            raise UsageError(
                f"axis {axis} of input {spec.name!r} ({spec}) has no size",
                f"Give one with --bind {symbol(spec, axis)}=N.",
            )
        extents.append(extent)
    return tuple(extents)
