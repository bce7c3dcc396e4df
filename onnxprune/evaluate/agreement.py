"""Whether two sets of results agree: one tolerance for floats, another for integers, and what rounding explains."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Feed = Mapping[str, np.ndarray[Any, Any]]
TOLERANCE = 1e-4
"""Largest difference, as a share of the largest output."""

ROUNDING = 4.0
"""How many times the measured rounding a difference may exceed the tolerance by."""

DISCRETE_TOLERANCE = 1e-3
"""Share of integers or booleans that may differ: the last digit of a float decides some argmax."""


@dataclass(frozen=True)
class Figures:
    """What a comparison found.

    Attributes
    ----------
    sound
        Whether everything is within the tolerance.
    max_abs_diff, max_abs_output
        Over the graph's outputs.
    why
        Where it is not.
    form
        In which form the models were compared (see `Soundness`).
    equal
        Whether everything agrees bit for bit.
    torn
        Weights that were compared before they are rounded (see `Soundness`).
    """

    sound: bool
    max_abs_diff: float
    max_abs_output: float
    why: str = ""
    form: str = ""
    equal: bool = False
    torn: tuple[str, ...] = ()

    def joined(self, other: Figures) -> Figures:
        """Of both comparisons together."""
        return Figures(
            self.sound and other.sound,
            max(self.max_abs_diff, other.max_abs_diff),
            max(self.max_abs_output, other.max_abs_output),
            self.why or other.why,
            self.form or other.form,
            self.equal and other.equal,
            self.torn or other.torn,
        )


def compare_outputs(
    expected: Sequence[Feed],
    got: Sequence[Feed],
    tolerance: float = TOLERANCE,
    inner: Collection[str] = (),
    rounding: Mapping[str, float] | None = None,
) -> Figures:
    """Compare tensors of the masked and the removed model, sample by sample.

    Parameters
    ----------
    inner
        Names that are no graph outputs: they must agree too, but do not enter the figures.
    rounding
        By name, how far rounding alone moves a tensor.
    """
    figures = Figures(True, 0.0, 0.0, equal=True)
    for left, right in zip(expected, got, strict=True):
        for name, a in left.items():
            allowance = ROUNDING * (rounding or {}).get(name, 0.0)
            result = _compare_tensor(name, a, right[name], tolerance, allowance)
            if not result.sound:
                return result
            if name not in inner:
                figures = figures.joined(result)
            figures = replace(figures, equal=figures.equal and result.equal)
    return figures


def _compare_tensor(
    name: str, a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], tolerance: float, allowance: float
) -> Figures:
    if a.shape != b.shape:
        return Figures(False, 0.0, 0.0, f"{name!r} has shape {b.shape} instead of {a.shape}")
    if a.dtype.kind != "f":
        differing = int(np.sum(a != b))
        sound = differing <= DISCRETE_TOLERANCE * a.size
        why = "" if sound else f"{name!r} differs in {differing} of {a.size} places"
        return Figures(sound, 0.0, 0.0, why, equal=not differing)
    x, y = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(x)
    if not np.array_equal(x[~finite], y[~finite], equal_nan=True) or not np.isfinite(y[finite]).all():
        return Figures(False, 0.0, 0.0, f"{name!r} is not finite in the same places")
    top = float(np.abs(x[finite]).max(initial=0.0))
    diff = float(np.abs(x[finite] - y[finite]).max(initial=0.0))
    if diff > tolerance * top + allowance:
        return Figures(False, diff, top, f"{name!r} differs by {diff:.3g} (largest {top:.3g})")
    return Figures(True, diff, top, equal=diff == 0)


def as_float32(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A float array as float32, any other as it is."""
    is_float = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    return array.astype(np.float32) if is_float else array
