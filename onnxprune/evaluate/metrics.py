"""Metrics on labelled data, streamed: each batch gives a tally, tallies add up, the sum gives the score.

The table can be copied and extended: ``default_metrics() | {"mine": Metric("mine", "...", tally)}``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from onnxprune.errors import DataError

_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Score:
    """A measured metric.

    Parameters
    ----------
    name
        The metric.
    value
        For accuracies the share of correct samples, in [0, 1].
    interval
        95 % confidence interval of the value (for shares: Wilson's).
    samples
        How many labelled samples it rests on.
    """

    name: str
    value: float
    interval: tuple[float, float]
    samples: int

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.name} {self.value:.2%} (95 % interval {low:.2%} to {high:.2%}, {self.samples:,} samples)"
        )


class Tally(Protocol):
    """What a metric accumulates; tallies of disjoint samples add up in any order."""

    def __add__(self, other: Self, /) -> Self: ...

    def score(self, name: str) -> Score:
        """Turn the sums into the score of the metric `name`."""
        ...


@dataclass(frozen=True)
class Hits:
    """Correct samples out of all."""

    correct: int
    total: int

    def __add__(self, other: Hits, /) -> Hits:
        return Hits(self.correct + other.correct, self.total + other.total)

    def score(self, name: str) -> Score:
        """Return the share of correct samples with its Wilson interval."""
        return Score(name, self.correct / self.total, wilson(self.correct, self.total), self.total)


@dataclass(frozen=True)
class Metric:
    """One line of the table of metrics.

    Parameters
    ----------
    name
        As users write it.
    summary
        One line for people.
    tally
        Takes the output of one batch (as the model gives it) and its labels, and gives what can be added up.
        Raises DataError where the two do not fit the metric.
    """

    name: str
    summary: str
    tally: Callable[[npt.NDArray[Any], npt.NDArray[Any]], Tally]


def default_metrics() -> dict[str, Metric]:
    """Return a new table of the metrics that come with the package, by name."""
    return {
        "top1": Metric("top1", "share of samples whose label has the highest output", top_k(1)),
        "top5": Metric("top5", "share of samples whose label is among the 5 highest outputs", top_k(5)),
    }


def top_k(k: int) -> Callable[[npt.NDArray[Any], npt.NDArray[Any]], Hits]:
    """Make the tally of top-`k` accuracy.

    It takes outputs of shape ``(samples, classes)`` (further axes of extent 1 are ignored) and integer
    labels of shape ``(samples,)``. Of equal outputs the one with the lower index is the higher, as with
    argmax. A sample with a NaN is wrong.
    """

    def tally(outputs: npt.NDArray[Any], labels: npt.NDArray[Any]) -> Hits:
        scores, classes = _class_scores(outputs, k), _class_labels(labels)
        if len(scores) != len(classes):
            raise DataError(
                f"the output has {len(scores)} rows for {len(classes)} labels",
                "Choose the output that gives one row per sample (--output).",
            )
        count = scores.shape[1]
        if classes.size and (classes.min() < 0 or classes.max() >= count):
            wrong = classes.min() if classes.min() < 0 else classes.max()
            raise DataError(
                f"label {wrong} is not one of the model's {count} classes (0 to {count - 1})",
                "Give the index of the class among the outputs; some models count a background class first.",
            )
        own = np.take_along_axis(scores, classes[:, None], axis=1)
        before = np.arange(count) < classes[:, None]
        rank = np.sum((scores > own) | ((scores == own) & before), axis=1)
        correct = (rank < k) & ~np.isnan(scores).any(axis=1)
        return Hits(int(np.sum(correct)), len(classes))

    return tally


def wilson(correct: int, total: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share.

    Examples
    --------
    >>> low, high = wilson(776, 846)
    >>> round(low, 4), round(high, 4)
    (0.8968, 0.934)
    """
    if total == 0:
        return 0.0, 1.0
    share, z2 = correct / total, _Z95**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z95 * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    low = 0.0 if correct == 0 else centre - half
    high = 1.0 if correct == total else centre + half
    return low, high


def _class_scores(outputs: npt.NDArray[Any], k: int) -> npt.NDArray[Any]:
    shape = outputs.shape
    if outputs.ndim < 2 or any(extent != 1 for extent in shape[2:]):
        raise DataError(
            f"the output has shape {shape}, but accuracy needs (samples, classes)",
            "Choose the output that holds the logits (--output).",
        )
    if shape[1] <= k:
        raise DataError(
            f"top-{k} accuracy says nothing about {shape[1]} classes", "Choose a metric with a smaller k."
        )
    return outputs.reshape(shape[:2])


def _class_labels(labels: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    flat = labels.reshape(len(labels), -1)
    if flat.shape[1] != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"labels of shape {labels.shape} and dtype {labels.dtype.name} are no class indices",
            "Give one integer per sample.",
        )
    return flat[:, 0].astype(np.int64)
