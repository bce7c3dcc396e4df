"""Whether a smaller weight is an exact part of a larger one, and which channels it is made of. Arrays only.

Trained weights are almost all different numbers. So most numbers of the part occur once in the whole and say which
row and column they come from; the guess that follows is then checked number by number. Where only rows or only
columns went, whole rows or columns are looked up instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.graph.axes import Index

Array = np.ndarray[Any, Any]

LIMIT = 1 << 23
"""Elements of a weight that lost rows and columns, above which it is not searched: sorting them takes 50 times the
memory of a byte each."""


@dataclass(frozen=True, eq=False)
class Part:
    """What is known about a weight that lost channels.

    Attributes
    ----------
    exact
        True: it is what the original holds at `rows` and `columns`. False: it holds rows, columns or numbers that
        the original does not. None: neither could be shown.
    rows, columns
        Positions in the original, ascending as in the part; None unless exact.
    """

    exact: bool | None
    rows: Index | None = None
    columns: Index | None = None


def locate(whole: Array, part: Array) -> Part:
    """Find a weight in the one that it was cut out of.

    Parameters
    ----------
    whole, part
        Shapes (rows, taps, columns) and (fewer rows, the same taps, fewer columns).
    """
    wide = np.float64 if np.float64 in (whole.dtype, part.dtype) else np.float32
    whole, part = whole.astype(wide), part.astype(wide)
    if part.shape[2] == whole.shape[2]:
        return _of_rows(whole, part)
    if part.shape[0] == whole.shape[0]:
        turned = _of_rows(whole.transpose(2, 1, 0), part.transpose(2, 1, 0))
        return Part(turned.exact, turned.columns, turned.rows)
    return _of_both(whole, part) if part.size > 0 and whole.size <= LIMIT else Part(None)


def _of_rows(whole: Array, part: Array) -> Part:
    """Rows are looked up as a whole; of equal ones the first that is left is taken."""
    places: dict[bytes, list[int]] = {}
    for number, row in enumerate(whole):
        places.setdefault(row.tobytes(), []).append(number)
    rows = []
    for row in part:
        left = places.get(row.tobytes())
        if not left:
            return Part(False)
        rows.append(left.pop(0))
    return Part(True, np.array(rows, np.int64), np.arange(whole.shape[2]))


def _of_both(whole: Array, part: Array) -> Part:
    values, first, times = np.unique(whole, return_index=True, return_counts=True)
    place = np.minimum(np.searchsorted(values, part), len(values) - 1)
    if not bool((values[place] == part).all()):
        return Part(False)
    row, tap, column = np.unravel_index(first[place], whole.shape)
    telling = (times[place] == 1) & (tap == np.arange(part.shape[1])[:, None])
    rows = _agreed(row, telling, (1, 2))
    columns = _agreed(column, telling, (0, 1))
    if rows is None or columns is None:
        return Part(None)
    if not np.array_equal(whole[np.ix_(rows, np.arange(whole.shape[1]), columns)], part):
        return Part(None)
    return Part(True, rows, columns)


def _agreed(
    found: Index, telling: np.ndarray[Any, np.dtype[np.bool_]], axes: tuple[int, ...]
) -> Index | None:
    """The position that all telling numbers along some axes name; None where they name several, or none does."""
    low = np.where(telling, found, np.iinfo(np.int64).max).min(axis=axes)
    high = np.where(telling, found, -1).max(axis=axes)
    return low if bool((low == high).all()) else None
