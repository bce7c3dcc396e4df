"""How far one model's outputs are from another's on the same inputs; no labels needed.

Streamed: each pair of outputs gives an :class:`OutputTally`, tallies add up, the sum gives an
:class:`OutputFidelity`. All sums are in float64. An element counts as equal where both models give the same
value, infinities and NaN included; where only one of them is finite the difference is infinite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Floats: TypeAlias = npt.NDArray[np.float64]

_TINY = 1e-12
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class OutputFidelity:
    """Distance of one output from its reference. What does not apply is None.

    Parameters
    ----------
    name
        The output.
    rows
        Rows compared: samples where the leading axis counts samples, else whole tensors.
    top1_agreement
        Share of rows with the same highest class; for logits (float, rank 2, more than one class).
    kl
        Mean over rows of KL(reference || other) in nats, of the softmax where rows are no probabilities
        yet; for logits.
    cosine
        Mean over rows of the cosine similarity, or that of all rows as one where each has a single number (such a
        row has no direction, only a sign); floats only.
    sqnr_db
        ``10 log10(sum reference^2 / sum difference^2)``, infinite where the outputs are equal; floats only.
    max_abs_diff
        Largest absolute difference; floats only.
    max_abs
        Largest absolute value of the reference, to relate `max_abs_diff` to; floats only.
    equal
        Share of elements that are equal.
    mismatched
        Pairs that could not be compared because their shapes differ; they count nowhere else.
    """

    name: str
    rows: int
    top1_agreement: float | None
    kl: float | None
    cosine: float | None
    sqnr_db: float | None
    max_abs_diff: float | None
    max_abs: float | None
    equal: float | None
    mismatched: int = 0

    def __str__(self) -> str:
        parts = [
            _said("top-1 agreement", self.top1_agreement, ".2%"),
            _said("KL", self.kl, ".3g"),
            _said("cosine", self.cosine, ".6f"),
            _said("SQNR", self.sqnr_db, ".1f", " dB"),
            _said("max |diff|", self.max_abs_diff, ".3g"),
            _said("equal", self.equal if self.cosine is None else None, ".2%"),
            f"{self.mismatched} pairs of different shape" if self.mismatched else "",
        ]
        return f"{self.name}: {', '.join(part for part in parts if part)}"


@dataclass(frozen=True)
class Fidelity:
    """Distance of a model from another one, output by output.

    Parameters
    ----------
    outputs
        One entry per output, the main one first.
    samples
        Samples run.
    """

    outputs: tuple[OutputFidelity, ...]
    samples: int

    @property
    def main(self) -> OutputFidelity:
        """The output that speaks for the model: the first, or the one that was asked for."""
        return self.outputs[0]

    def __str__(self) -> str:
        return "\n".join(map(str, self.outputs))


@dataclass(frozen=True)
class OutputTally:
    """Sums over pairs of outputs; ``+`` merges tallies of disjoint samples."""

    rows: int = 0
    elements: int = 0
    equal: int = 0
    mismatched: int = 0
    float_rows: int = 0
    class_rows: int = 0
    agree: int = 0
    kl: float = 0.0
    cosine: float = 0.0
    signal: float = 0.0
    power: float = 0.0
    noise: float = 0.0
    max_abs_diff: float = 0.0
    max_abs: float = 0.0

    def __add__(self, other: OutputTally, /) -> OutputTally:
        return OutputTally(
            *(
                max(mine, theirs) if field.name.startswith("max_") else mine + theirs
                for field in fields(self)
                for mine, theirs in [(getattr(self, field.name), getattr(other, field.name))]
            )
        )

    def fidelity(self, name: str) -> OutputFidelity:
        """Turn the sums into the fidelity of the output `name`."""
        is_float, is_class = self.float_rows > 0, self.class_rows > 0
        return OutputFidelity(
            name,
            self.rows,
            top1_agreement=self.agree / self.class_rows if is_class else None,
            kl=self.kl / self.class_rows if is_class else None,
            cosine=self._mean_cosine if is_float else None,
            sqnr_db=_decibels(self.signal, self.noise) if is_float else None,
            max_abs_diff=self.max_abs_diff if is_float else None,
            max_abs=self.max_abs if is_float else None,
            equal=self.equal / self.elements if self.elements else None,
            mismatched=self.mismatched,
        )

    @property
    def _mean_cosine(self) -> float:
        if self.elements != self.float_rows:
            return self.cosine / self.float_rows
        if not self.signal and not self.power:
            return 1.0
        length = math.sqrt(self.signal) * math.sqrt(self.power)
        dot = (self.signal + self.power - self.noise) / 2
        return max(-1.0, min(dot / length, 1.0)) if length and math.isfinite(dot) else 0.0


def tally_output(reference: Array, other: Array, *, rows: bool) -> OutputTally:
    """Compare one output of two models on the same batch.

    Parameters
    ----------
    reference, other
        The outputs of the original and of the changed model.
    rows
        Whether the leading axis counts samples; else the whole tensor is one row. (Logits always have one
        row per entry of their leading axis.)

    Returns
    -------
    OutputTally
    """
    if reference.shape != other.shape:
        return OutputTally(mismatched=1)
    count = len(reference) if rows and reference.ndim else 1
    size = reference.size
    if not (_is_float(reference) and _is_float(other)):
        return OutputTally(rows=count, elements=size, equal=int(np.sum(reference == other)))
    if size == 0:
        return OutputTally(rows=count)
    a, b = reference.astype(np.float64), other.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    finite = np.isfinite(a) & np.isfinite(b)
    difference = np.where(same, 0.0, np.where(finite, _safe(a) - _safe(b), np.inf))
    signal = np.where(np.isfinite(a), _safe(a), 0.0)
    classes = _tally_classes(a, b) if a.ndim == 2 and a.shape[1] > 1 else OutputTally()
    return classes + OutputTally(
        rows=count,
        elements=size,
        equal=int(np.sum(same)),
        float_rows=count,
        cosine=_cosines(a.reshape(count, -1), b.reshape(count, -1)),
        signal=float(np.sum(signal**2)),
        power=float(np.sum(np.where(np.isfinite(b), _safe(b), 0.0) ** 2)),
        noise=float(np.sum(difference**2)),
        max_abs_diff=float(np.max(np.abs(difference))),
        max_abs=float(np.max(np.abs(signal))),
    )


def _tally_classes(a: Floats, b: Floats) -> OutputTally:
    broken = np.isnan(b).any(axis=1) & ~np.isnan(a).any(axis=1)
    agree = (np.argmax(a, axis=1) == np.argmax(b, axis=1)) & ~broken
    return OutputTally(class_rows=len(a), agree=int(np.sum(agree)), kl=_divergence(a, b))


def _divergence(a: Floats, b: Floats) -> float:
    """Sum over rows of KL(a || b): 0 for equal rows, infinite where a row is no distribution."""
    probabilities = _are_probabilities(a) and _are_probabilities(b)
    p, q = (a, b) if probabilities else (_softmax(a), _softmax(b))
    ratio = np.log(np.maximum(p, _TINY)) - np.log(np.maximum(q, _TINY))
    rows = np.nan_to_num(np.sum(p * ratio, axis=1), nan=math.inf)
    same = ((a == b) | (np.isnan(a) & np.isnan(b))).all(axis=1)
    return max(0.0, float(np.sum(np.where(same, 0.0, rows))))


def _are_probabilities(rows: Floats) -> bool:
    return bool(np.all(rows >= 0) and np.all(np.abs(rows.sum(axis=1) - 1) < _SUM_TOLERANCE))


def _softmax(rows: Floats) -> Floats:
    with np.errstate(invalid="ignore", over="ignore"):
        powers = np.exp(rows - rows.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _cosines(a: Floats, b: Floats) -> float:
    """Sum of the cosines of all rows: 1 for two zero rows, 0 where only one is zero or `b` broke."""
    broken = (~np.isfinite(b) & (a != b) & ~(np.isnan(a) & np.isnan(b))).any(axis=1)
    a, b = np.where(np.isfinite(a), a, 0.0), np.where(np.isfinite(b), b, 0.0)
    dot = np.sum(a * b, axis=1)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    cosines = np.where(both_zero, 1.0, np.divide(dot, norms, out=np.zeros_like(dot), where=norms > 0))
    return float(np.sum(np.where(broken, 0.0, np.clip(cosines, -1.0, 1.0))))


def _safe(values: Floats) -> Floats:
    return np.where(np.isfinite(values), values, 0.0)


def _is_float(array: Array) -> bool:
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return -math.inf if signal == 0 or math.isinf(noise) else 10 * math.log10(signal / noise)


def _said(name: str, value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{name} {value:{form}}{unit}"
