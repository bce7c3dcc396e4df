"""Metrics of the user's own: ``module:function``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.calibrate.streams import import_object
from onnxprune.errors import DataError, OnnxPruneError, UsageError
from onnxprune.evaluate.fit import Array
from onnxprune.evaluate.intervals import Ratio, student_interval
from onnxprune.evaluate.score import Metric, Score

_FORM = "A metric is module:function, and the function takes (outputs, labels) and returns a number"


@dataclass(frozen=True)
class BatchMeans:
    """Values of whole batches, weighted by their samples."""

    values: Ratio

    def __add__(self, other: BatchMeans, /) -> BatchMeans:
        return BatchMeans(self.values + other.values)

    def score(self, name: str) -> Score:
        """Return the mean of the batches' values, weighted by their numbers of samples.

        The interval is normal, by the delta method for a ratio with batches as units (nothing is known about
        single samples), with Student's t. It is rough with few batches, and None with one.
        """
        value = self.values.value
        interval, note = student_interval(value, self.values.error, self.values.units, unit="batch")
        return Score(name, value, interval, int(self.values.bottom), "", note=note)


def own_metric(spec: str) -> Metric:
    """Make a metric of a function of the user's.

    Parameters
    ----------
    spec
        ``module:function``; the module is looked up in the current folder too. The function is called with
        the output of a batch as the model gives it, mostly ``(samples, ...)``, and its labels
        ``(samples, ...)``, and returns a number: the mean over these samples. Higher is better, unless the
        function has an attribute ``higher_is_better`` that is False.

    Raises
    ------
    UsageError
        If there is no such function, or its ``higher_is_better`` is no bool.
    """
    try:
        function = import_object(spec)
    except UsageError as error:
        raise UsageError(error.what, f"{_FORM}; run from the folder that holds the module.") from error
    if not callable(function):
        raise UsageError(f"{spec!r} is a {type(function).__name__}, not a function", f"{_FORM}.")
    higher = getattr(function, "higher_is_better", True)
    if not isinstance(higher, bool):
        raise UsageError(f"{spec!r}: higher_is_better is {higher!r}", "Set it to True or False.")

    def tally(outputs: Array, labels: Array) -> BatchMeans:
        count = len(labels)
        return BatchMeans(Ratio.of([count * _call(function, outputs, labels, spec)], [count]))

    return Metric(spec, "a function of the user's, averaged over samples", tally, higher)


def _call(function: Any, outputs: Array, labels: Array, spec: str) -> float:
    try:
        found = function(outputs, labels)
    except OnnxPruneError:
        raise
    except Exception as error:
        raise DataError(
            f"metric {spec!r} failed on an output of shape {outputs.shape} and labels of shape "
            f"{labels.shape}: {type(error).__name__}: {error}",
            "Repair the function, or give it the output and labels that it takes.",
        ) from error
    if np.ndim(found):
        raise DataError(
            f"metric {spec!r} returned an array of shape {np.shape(found)}", f"{_FORM}: their mean."
        )
    try:
        value = float(found)
    except (TypeError, ValueError) as error:
        raise DataError(f"metric {spec!r} returned a {type(found).__name__}", f"{_FORM}.") from error
    if not math.isfinite(value):
        raise DataError(
            f"metric {spec!r} returned {value}", "Return a finite number; samples cannot be left out."
        )
    return value
