"""The nouns of measuring: a metric gives a tally per batch, tallies add up, the sum gives a score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, Self, TypeAlias

import numpy.typing as npt

from onnxprune.evaluate.intervals import Interval

Unit: TypeAlias = Literal["share", "dB", ""]
"""What a value is: a share in [0, 1] (shown in percent), decibels, or a plain number."""


@dataclass(frozen=True)
class Score:
    """A measured metric.

    Parameters
    ----------
    name
        The metric.
    value
        In `unit`.
    interval
        95 % confidence interval of the value; each metric's docstring says by which method. None where there
        is none.
    samples
        How many samples it rests on.
    unit
        Of the value and its interval.
    higher_is_better
        Whether a higher value is a better one.
    note
        Why there is no interval.
    """

    name: str
    value: float
    interval: Interval | None
    samples: int
    unit: Unit = "share"
    higher_is_better: bool = True
    note: str = ""

    def __str__(self) -> str:
        unit = " dB" if self.unit == "dB" else ""
        if self.interval is None:
            said = f"no interval: {self.note}"
        else:
            low, high = map(self._shown, self.interval)
            said = f"95 % interval {low} to {high}{unit}"
        count = f"{self.samples:,} sample{'s' if self.samples != 1 else ''}"
        return f"{self.name} {self._shown(self.value)}{unit} ({said}, {count})"

    def _shown(self, value: float) -> str:
        form = {"share": ".2%", "dB": ".2f", "": ".4g"}[self.unit]
        return f"{value:{form}}"


class Tally(Protocol):
    """What a metric accumulates; tallies of disjoint samples add up in any order."""

    def __add__(self, other: Self, /) -> Self: ...

    def score(self, name: str) -> Score:
        """Turn the sums into the score of the metric `name`.

        Raises
        ------
        DataError
            If the samples hold nothing that the metric counts.
        """
        ...


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
        Takes the output of one batch (as the model gives it) and what `reference` says, and gives what can
        be added up. Raises DataError where the two do not fit the metric.
    higher_is_better
        Whether a higher value is a better one.
    reference
        What the output is held against: the labels of the batch, or the same output of the original model.
    """

    name: str
    summary: str
    tally: Callable[[npt.NDArray[Any], npt.NDArray[Any]], Tally]
    higher_is_better: bool = True
    reference: Literal["labels", "original"] = "labels"

    def score(self, tally: Tally) -> Score:
        """Turn the sum of all tallies into a score that says in which direction it is good."""
        return replace(tally.score(self.name), higher_is_better=self.higher_is_better)
