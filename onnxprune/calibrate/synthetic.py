"""Generated samples, for checks and repairs where no data was given: same seed, same samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxprune.calibrate.checks import kind
from onnxprune.calibrate.dataset import (
    Array,
    Dataset,
    Feed,
    InputSpec,
    bound_extent,
    is_batchable,
    rows_per_sample,
    symbol,
)
from onnxprune.errors import UsageError


@dataclass(frozen=True, eq=False)
class SyntheticFeeds:
    """Samples drawn when they are asked for; sample `i` depends on the seed and on `i` alone."""

    inputs: tuple[InputSpec, ...]
    shapes: tuple[tuple[int, ...], ...]
    count: int
    seed: int
    int_ranges: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> Feed:
        if not -self.count <= index < self.count:
            raise IndexError(index)
        rng = np.random.default_rng([self.seed, index % self.count])
        return {
            spec.name: _draw(rng, spec.dtype, shape, self.int_ranges.get(spec.name, 2))
            for spec, shape in zip(self.inputs, self.shapes, strict=True)
        }


def synthetic_dataset(
    inputs: Sequence[InputSpec],
    bindings: Mapping[str, int],
    *,
    samples: int,
    seed: int,
    int_ranges: Mapping[str, int] | None = None,
) -> Dataset:
    """Make a dataset of random samples: normal floats, integers in ``[0, n)``, booleans.

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

    Raises
    ------
    UsageError
        If an axis is not bound, an input is of a kind that cannot be drawn, or a range does not fit.
    """
    ranges = dict(int_ranges or {})
    if samples < 1 or seed < 0:
        raise UsageError(
            f"{samples} samples with seed {seed} were asked for",
            "Give at least 1 sample and a seed of 0 or more.",
        )
    for spec in inputs:
        _check_drawable(spec, ranges.get(spec.name, 2))
    batchable = is_batchable(inputs)
    ones = {symbol(spec, 0): 1 for spec in inputs if spec.shape and not isinstance(spec.shape[0], int)}
    sizes = {**bindings, **ones} if batchable else {**ones, **bindings}
    shapes = tuple(_shape(spec, sizes) for spec in inputs)
    feeds = SyntheticFeeds(tuple(inputs), shapes, samples, seed, ranges)
    return Dataset(feeds, None, "synthetic", "synthetic", batchable, rows_per_sample(inputs))


def _check_drawable(spec: InputSpec, high: int) -> None:
    family = kind(spec.dtype)
    if family not in ("float", "int", "bool"):
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


def _draw(rng: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...], high: int) -> Array:
    family = kind(dtype)
    if family == "float":
        return np.asarray(rng.standard_normal(shape)).astype(dtype)
    values = rng.integers(0, 2 if family == "bool" else high, size=shape)
    return np.asarray(values).astype(dtype)
