"""Calibration samples in batches of known size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxprune.calibrate.dataset import Dataset
from onnxprune.errors import DataError

Feed = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, eq=False)
class Batches(Sequence[Feed]):
    """Feeds of a model's inputs, all of one shape but for the number of samples.

    Attributes
    ----------
    feeds
        One per batch.
    sizes
        Samples in each of them.
    unit
        For how many samples the shapes hold that the model was analysed with.
    """

    feeds: Sequence[Feed] = field(repr=False)
    sizes: tuple[int, ...]
    unit: int = 1

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.feeds)

    def __getitem__(self, index: Any, /) -> Any:
        """One feed."""
        return self.feeds[index]

    def __iter__(self) -> Iterator[Feed]:
        """All feeds."""
        return iter(self.feeds)

    @property
    def samples(self) -> int:
        """In all batches together."""
        return sum(self.sizes)

    @classmethod
    def of(cls, dataset: Dataset, size: int, unit: int = 1) -> Batches:
        """Read a dataset in batches of up to `size` samples.

        Raises
        ------
        DataError
            The samples differ in shape, so that their positions cannot be told apart.
        """
        feeds = list(dataset.batches(size))
        shapes = {
            tuple(
                (name, array.shape[1:] if dataset.batchable else array.shape) for name, array in feed.items()
            )
            for feed in feeds
        }
        if len(shapes) > 1:
            first, second = ({name: shape for name, shape in each} for each in sorted(shapes, key=str)[:2])
            name = next(name for name in first if first[name] != second[name])
            raise DataError(
                f"{dataset.source}: samples differ in shape (input {name!r}: {first[name]} and {second[name]})",
                "Calibrate on samples of one shape, or use --criterion l2 --compensate none.",
            )
        if dataset.batchable:
            return cls(feeds, tuple(len(next(iter(feed.values()))) for feed in feeds), unit)
        return cls(feeds, (1,) * len(feeds))
