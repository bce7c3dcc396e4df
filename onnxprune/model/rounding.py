"""Rounding to scaled integers or 8-bit floats, and the choice of the scales: arrays in, arrays out.

The formulas are those of QuantizeLinear and DequantizeLinear: stored = saturate(round(x / scale) + zero),
rounding half to even, and x = (stored - zero) x scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

Array = np.ndarray[Any, Any]

_SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Shares of the largest weight that a scale may reach to: clipping a few helps the many, mostly with 4 bits."""

_BYTE = 8


@dataclass(frozen=True)
class Grid:
    """The numbers that may be stored.

    Attributes
    ----------
    dtype
        Of what is stored.
    low, high
        Ends of the range; narrower than the type's where the file's weights use half of it only, as they do
        where products of 8-bit numbers would saturate otherwise.
    middle
        The zero point of a symmetric weight; None where every scale has its own.
    """

    dtype: ir.DataType
    low: float
    high: float
    middle: float | None


def grid_of(stored: Array, zero: Array, dtype: ir.DataType) -> Grid:
    """The grid that a weight was quantised with, as its numbers show it."""
    low, high = limits(dtype)
    points = np.unique(zero.astype(np.float32))
    center = 0.0 if low < 0 else (high + 1) / 2
    symmetric = len(points) == 1 and float(points[0]) == center
    if not dtype.is_integer():
        return Grid(dtype, low, high, 0.0)
    wide = stored.astype(np.int64) if stored.size else np.full(1, center)
    half = 2.0 ** (dtype.bitwidth - 2)
    found_low, found_high = float(wide.min()), float(wide.max())
    if symmetric:
        halved = dtype.bitwidth == _BYTE and max(center - found_low, found_high - center) == half
        reach = half if halved else high - center
        return Grid(dtype, min(center - reach, found_low), center + reach, center)
    if dtype.bitwidth == _BYTE and stored.size and found_high - found_low < 2 * half:
        low, high = (-half, half - 1) if low < 0 else (0.0, 2 * half - 1)
        if found_low < low or found_high > high:
            low, high = limits(dtype)
    return Grid(dtype, low, high, None)


def limits(dtype: ir.DataType) -> tuple[float, float]:
    """The least and the largest number of a type."""
    if dtype.is_integer():
        signed = dtype.is_signed()
        bits = dtype.bitwidth
        return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    import ml_dtypes

    info: Any = ml_dtypes.finfo  # untyped
    return float(info(dtype.numpy()).min), float(info(dtype.numpy()).max)


def dequantize(stored: Array, scale: Array, zero: Array) -> Array:
    """What stored numbers mean, float32; all arrays broadcast."""
    if stored.dtype.kind in "iu" and stored.dtype.itemsize >= 4:
        difference = (stored.astype(np.int64) - zero.astype(np.int64)).astype(np.float32)
    else:
        difference = stored.astype(np.float32) - zero.astype(np.float32)
    return np.asarray(difference * scale.astype(np.float32))


def quantize(floats: Array, scale: Array, zero: Array, dtype: ir.DataType) -> Array:
    """The nearest numbers that can be stored; all arrays broadcast."""
    low, high = limits(dtype)
    safe = np.where(scale == 0, 1.0, scale.astype(np.float64))
    scaled = floats.astype(np.float64) / safe
    if not dtype.is_integer():
        return np.asarray(np.clip(scaled, low, high).astype(dtype.numpy()))
    whole = np.clip(np.rint(scaled) + zero.astype(np.float64), low, high)
    return np.asarray(whole.astype(np.int64).astype(dtype.numpy()))


def round_rows(floats: Array, scale: Array, zero: Array, grid: Grid) -> tuple[Array, Array, Array]:
    """Rows of floats as stored numbers, with one scale and one zero point each.

    Parameters
    ----------
    floats
        Shape (rows, elements).
    scale, zero
        Shape (rows,): what the rows were stored with before; a scale of 0 says that there was none.
    grid
        What may be stored.

    Returns
    -------
    stored, scale, zero
        Of the shapes and types of what was given, `stored` of the grid's type. Per row, from the old scale
        and those that reach from the least to the largest element, or to a share of them, the one with the
        least squared error.
    """
    wide = floats.astype(np.float64)
    best_scale, best_zero = scale.copy(), zero.copy()
    error = np.where(scale != 0, _error(wide, scale, zero, grid), np.inf)
    candidates = [_reaching(wide * share, grid) for share in _SHRINK]
    if grid.middle is not None and grid.low < 2 * grid.middle - grid.high:
        candidates.append(_from_the_longer_end(wide, grid))
    for new_scale, new_zero in candidates:
        new_scale, new_zero = new_scale.astype(scale.dtype), new_zero.astype(zero.dtype)
        found = _error(wide, new_scale, new_zero, grid)
        better = found < error
        error = np.where(better, found, error)
        best_scale = np.where(better, new_scale, best_scale).astype(scale.dtype)
        best_zero = np.where(better, new_zero, best_zero).astype(zero.dtype)
    return _clipped(wide, best_scale, best_zero, grid), best_scale, best_zero


def _reaching(floats: Array, grid: Grid) -> tuple[Array, Array]:
    """Scales and zero points with which rows just fit; 1 for rows of zeros."""
    if grid.middle is not None:
        scale = np.abs(floats).max(axis=1, initial=0.0) / (grid.high - grid.middle)
        zero = np.full(len(floats), grid.middle)
    else:
        low, high = floats.min(axis=1, initial=0.0), floats.max(axis=1, initial=0.0)
        scale = (high - low) / (grid.high - grid.low)
        zero = np.clip(np.rint(grid.low - low / np.where(scale == 0, 1.0, scale)), grid.low, grid.high)
    return np.where(scale == 0, 1.0, scale), zero


def _from_the_longer_end(floats: Array, grid: Grid) -> tuple[Array, Array]:
    """Scales of either sign with which the largest element of a row falls on the least number of the grid.

    Where zero is not in the middle of the grid, its lower half has one number more; with 4 bits that is much.
    """
    middle = grid.middle or 0.0
    largest = np.take_along_axis(floats, np.abs(floats).argmax(axis=1)[:, None], axis=1)[:, 0]
    scale = largest / (grid.low - middle)
    return np.where(scale == 0, 1.0, scale), np.full(len(floats), middle)


def _clipped(floats: Array, scale: Array, zero: Array, grid: Grid) -> Array:
    stored = quantize(floats, scale[:, None], zero[:, None], grid.dtype)
    if not grid.dtype.is_integer():
        return stored
    return np.clip(stored.astype(np.int64), int(grid.low), int(grid.high)).astype(stored.dtype)


def _error(floats: Array, scale: Array, zero: Array, grid: Grid) -> Array:
    meant = dequantize(_clipped(floats, scale, zero, grid), scale[:, None], zero[:, None])
    return np.asarray(((meant - floats) ** 2).sum(axis=1))
