"""Metrics against target arrays: mean squared error and PSNR."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from onnxprune.errors import DataError
from onnxprune.evaluate.fit import Array, check_numbers, check_rows
from onnxprune.evaluate.intervals import Floats, Ratio, student_interval
from onnxprune.evaluate.score import Score

_DECIBELS = 10 / math.log(10)


@dataclass(frozen=True)
class SquaredErrors:
    """The mean squared errors of single samples, summed."""

    errors: Ratio

    def __add__(self, other: SquaredErrors, /) -> SquaredErrors:
        return SquaredErrors(self.errors + other.errors)

    def score(self, name: str) -> Score:
        """Return the mean over samples of their mean squared errors: every sample counts the same.

        The interval is normal, from the variance of the samples' errors, with Student's t, and not below 0.
        """
        value, samples = self.errors.value, self.errors.units
        interval, note = student_interval(value, self.errors.error, samples)
        if interval is not None:
            interval = max(interval[0], 0.0), interval[1]
        return Score(name, value, interval, samples, "", note=note)


@dataclass(frozen=True)
class SignalToNoise:
    """Squared errors, and the range of the targets."""

    errors: Ratio
    low: float
    high: float

    def __add__(self, other: SignalToNoise, /) -> SignalToNoise:
        errors = self.errors + other.errors
        return SignalToNoise(errors, min(self.low, other.low), max(self.high, other.high))

    def score(self, name: str) -> Score:
        """Return ``10 log10(peak^2 / mse)`` in dB, where the peak is the range (max - min) of all targets.

        The mean squared error is that over all samples; a mean of the samples' own PSNRs would be higher or
        equal. Where outputs and targets are equal the value is infinite. The interval is normal in dB, by the
        delta method from the variance of the samples' errors, with Student's t; the peak is taken as given.

        Raises
        ------
        DataError
            If all targets are the same number: there is no peak.
        """
        if self.high <= self.low:
            raise DataError(
                f"all targets are {self.low:g}, so {name} has no peak to relate the error to",
                "Give targets that vary, or use mse.",
            )
        mse, samples = self.errors.value, self.errors.units
        peak = self.high - self.low
        value = 20 * math.log10(peak) - 10 * math.log10(mse) if mse else math.inf
        error = _DECIBELS * self.errors.error / mse if mse else 0.0
        interval, note = student_interval(value, error, samples)
        return Score(name, value, interval, samples, "dB", note=note)


def mean_squared_error(outputs: Array, targets: Array) -> SquaredErrors:
    """Sum up the squared errors of one batch (see :meth:`SquaredErrors.score`).

    Parameters
    ----------
    outputs, targets
        Numbers of the same shape ``(samples, ...)``; axes of extent 1 do not matter.

    Raises
    ------
    DataError
        For different shapes, and for NaN or infinity.
    """
    return SquaredErrors(Ratio.of(_errors(outputs, targets)))


def signal_to_noise(outputs: Array, targets: Array) -> SignalToNoise:
    """Sum up the squared errors of one batch, for the PSNR (see :meth:`SignalToNoise.score`).

    Parameters
    ----------
    outputs, targets
        As in :func:`mean_squared_error`.

    Raises
    ------
    DataError
        As there.
    """
    errors = Ratio.of(_errors(outputs, targets))
    return SignalToNoise(errors, float(targets.min()), float(targets.max()))


def _errors(outputs: Array, targets: Array) -> Floats:
    """Return the mean squared error of each sample, ``(samples,)``."""
    check_rows(outputs, targets)
    ours, theirs = ([d for d in array.shape[1:] if d != 1] for array in (outputs, targets))
    if ours != theirs or outputs.size == 0:
        raise DataError(
            f"the output has shape {outputs.shape}, but the targets have {targets.shape}",
            "Give labels of the output's shape, or choose another output (--output) or metric (--metric).",
        )
    check_numbers(outputs)
    check_numbers(targets, "the array of labels")
    shape = len(outputs), -1
    difference = outputs.reshape(shape).astype(np.float64) - targets.reshape(shape).astype(np.float64)
    return np.asarray(np.mean(difference**2, axis=1))
