"""Rows that are equal up to a positive factor. Arrays only."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxprune.graph.axes import Index

Array = np.ndarray[Any, Any]

TOLERANCE = 1e-6
"""Largest distance of two rows of length 1 that count as the same: a few roundings of float32."""

_CHUNK = 1 << 22


def proportional(rows: Array, keys: Index | None = None) -> tuple[Index, Array]:
    """Sort rows into classes.

    Parameters
    ----------
    rows
        Shape (n, k).
    keys
        Shape (n, m): only rows with equal keys are compared.

    Returns
    -------
    label, scale
        For every row the first row of its class, and its length (0 for rows of zeros): rows of one class are
        `scale` times the same row.

    Examples
    --------
    >>> label, scale = proportional(np.array([[3.0, 4.0], [4.0, 3.0], [6.0, 8.0], [-3.0, -4.0]]))
    >>> label.tolist(), scale.tolist()
    ([0, 1, 0, 3], [5.0, 5.0, 10.0, 5.0])
    """
    n, k = rows.shape
    direction = np.random.default_rng(0).standard_normal(k)
    direction /= np.linalg.norm(direction) or 1.0
    scale, place = np.empty(n), np.empty(n)
    step = max(_CHUNK // max(k, 1), 1)
    for start in range(0, n, step):
        part = rows[start : start + step].astype(np.float64)
        length = np.sqrt(np.einsum("ij,ij->i", part, part))
        scale[start : start + step] = length
        place[start : start + step] = part @ direction / np.where(length > 0, length, 1.0)
    label = np.arange(n)
    buckets: dict[tuple[int, ...], list[int]] = {}
    cells = np.round(place / (4 * TOLERANCE)).astype(np.int64)
    for i, cell in enumerate(cells.tolist()):
        key = () if keys is None else tuple(keys[i].tolist())
        near = (j for c in (cell - 1, cell, cell + 1) for j in buckets.get((*key, c), ()))
        same = next((j for j in near if _same(rows[i], rows[j], scale[i], scale[j])), None)
        if same is None:
            buckets.setdefault((*key, cell), []).append(i)
        else:
            label[i] = same
    return label, scale


def _same(a: Array, b: Array, length: float, other: float) -> bool:
    if not length or not other:
        return not length and not other
    distance = a.astype(np.float64) / length - b.astype(np.float64) / other
    return bool(np.linalg.norm(distance) <= TOLERANCE)


def joined(*keys: Array, numbers: Array | None = None) -> Index:
    """Classes of positions that agree in all integer `keys`, and in `numbers` up to the tolerance.

    Parameters
    ----------
    keys
        Arrays of one shape.
    numbers
        Of that shape, or with one more axis at the end: compared by their logarithms, so relatively, with sign.

    Returns
    -------
    array
        Of the shape of the keys: a number per class.
    """
    shape = np.broadcast_shapes(*(key.shape for key in keys))
    columns = [np.broadcast_to(key, shape).ravel() for key in keys]
    if numbers is not None:
        wide = numbers if numbers.ndim > len(shape) else numbers[..., None]
        flat = np.broadcast_to(wide, (*shape, wide.shape[-1])).reshape(-1, wide.shape[-1])
        columns += [np.sign(column).astype(np.int64) for column in flat.T]
        for column in flat.T:
            columns.append(_close(np.log(np.abs(np.where(column == 0, 1.0, column)))))
    _, label = np.unique(np.array(columns).T, axis=0, return_inverse=True)
    return np.asarray(label.reshape(shape), np.int64)


def _close(numbers: Array) -> Index:
    """Classes of numbers: each starts at its smallest and reaches as far as the tolerance."""
    order = np.argsort(numbers, kind="stable")
    label = np.empty(len(numbers), np.int64)
    start, current = -np.inf, -1
    for i in order.tolist():
        if numbers[i] - start > TOLERANCE:
            start, current = numbers[i], current + 1
        label[i] = current
    return label
