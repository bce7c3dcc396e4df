"""Run time as a function of what is kept: measured tables of layers, and what the whole model says about their sum.

    seconds(extents) = constant + scale * sum of tables(extents) + per_element * elements(extents)

A table holds the seconds of one layer at a few widths of each axis that can get smaller; between them it is
linear. The layers are those that multiply and add. All other nodes that shrink are taken as proportional to the
elements they make, and what does not shrink is a constant. The three coefficients are fitted to measured times of
whole models. Kwon et al. 2022 (https://arxiv.org/abs/2204.09656) look latencies up per layer, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxprune.allocate.cost import Amount, Extents
from onnxprune.graph.axes import Bools

Seconds = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, eq=False)
class Table:
    """Seconds of one layer at a grid of widths.

    Attributes
    ----------
    places
        Where the widths stand in the extents, one per axis of the grid.
    widths
        Per axis of the grid, ascending: the widths that were measured.
    seconds
        Shape (points of the first axis, points of the second, ...), not decreasing along any.
    """

    places: tuple[int, ...]
    widths: tuple[tuple[float, ...], ...]
    seconds: Seconds

    def at(self, widths: Sequence[float]) -> float:
        """Interpolated linearly along each axis; outside the grid as at its edge."""
        values = self.seconds
        for points, width in zip(self.widths, widths, strict=True):
            above = int(np.searchsorted(points, width))
            if above in (0, len(points)):
                values = values[min(above, len(points) - 1)]
            else:
                low, high = points[above - 1], points[above]
                share = (width - low) / (high - low)
                values = values[above - 1] * (1 - share) + values[above] * share
        return float(values)


def monotone(seconds: Seconds) -> Seconds:
    """Not decreasing along any axis: the mean of the least such table above and the largest below.

    Examples
    --------
    >>> import numpy as np
    >>> monotone(np.array([1.0, 4.0, 2.0, 5.0])).tolist()
    [1.0, 3.0, 3.0, 5.0]
    """
    above, below = seconds, seconds
    for axis in range(seconds.ndim):
        above = np.maximum.accumulate(above, axis=axis)
        below = np.flip(np.minimum.accumulate(np.flip(below, axis), axis=axis), axis)
    return (above + below) / 2


@dataclass(frozen=True, eq=False)
class LatencyModel:
    """Predicts the seconds of one run; an `onnxprune.allocate.cost.Amount`.

    Attributes
    ----------
    tables
        One per layer that can get smaller.
    elements
        Elements that all other nodes make, where their number changes.
    constant, scale, per_element
        Coefficients, see the module.
    """

    tables: tuple[Table, ...]
    elements: Amount
    constant: float = 0.0
    scale: float = 1.0
    per_element: float = 0.0
    _known: tuple[dict[tuple[float, ...], float], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        """Make room for what was looked up."""
        if len(self._known) != len(self.tables):
            object.__setattr__(self, "_known", tuple({} for _ in self.tables))

    def layers(self, extent: Extents) -> float:
        """The sum of all tables, as measured layer by layer."""
        values, total = extent.tolist(), 0.0
        for table, known in zip(self.tables, self._known, strict=True):
            widths = tuple(values[place] for place in table.places)
            found = known.get(widths)
            if found is None:
                found = known[widths] = table.at(widths)
            total += found
        return total

    def total(self, extent: Extents) -> float:
        """Seconds of one run at these extents."""
        elements = self.elements.total(extent)
        return self.constant + self.scale * self.layers(extent) + self.per_element * elements

    def reads(self, places: Bools) -> Bools:
        """As `onnxprune.allocate.cost.Amount.reads`."""
        tables = [places[:, list(table.places)].any(axis=1) for table in self.tables]
        return np.concatenate(
            [np.array(tables, bool).reshape(-1, len(places)).T, self.elements.reads(places)], 1
        )

    def calibrated(self, extents: Sequence[Extents], seconds: Seconds) -> LatencyModel:
        """The same tables with coefficients from whole models, measured at these extents.

        A single model says nothing about a constant: then the layers are all there is.
        """
        parts = np.array([[1.0, self.layers(extent), self.elements.total(extent)] for extent in extents])
        if len(extents) == 1 and parts[0, 1:].any():
            parts[:, 0] = 0.0
        constant, scale, per_element = nonnegative(parts, seconds).tolist()
        return replace(self, constant=constant, scale=scale, per_element=per_element)

    def corrected(self, slow: Extents, fast: Extents, seconds: tuple[float, float]) -> LatencyModel:
        """The line through two measured models: `a + b * seconds(extents)`.

        Where the one that was to be faster is not, b is 0: then nothing that is cut helps.
        """
        before, after = self.total(slow), self.total(fast)
        slope = max((seconds[0] - seconds[1]) / (before - after), 0.0) if before > after else 1.0
        return replace(
            self,
            constant=seconds[0] + slope * (self.constant - before),
            scale=slope * self.scale,
            per_element=slope * self.per_element,
        )


def nonnegative(parts: Seconds, wanted: Seconds) -> Seconds:
    """Coefficients, none of them negative, with the least relative error of `parts @ coefficients`.

    Parameters
    ----------
    parts
        Shape (measurements, coefficients).
    wanted
        Shape (measurements,), positive.

    Examples
    --------
    >>> import numpy as np
    >>> nonnegative(np.array([[1.0, 2.0], [1.0, 1.0]]), np.array([5.0, 3.0])).round(6).tolist()
    [1.0, 2.0]
    """
    rows = parts / wanted[:, None]
    size = np.abs(rows).max(axis=0, initial=0.0)
    size[size == 0] = 1.0
    best, least = np.zeros(parts.shape[1]), float(len(wanted))
    for count in range(1, parts.shape[1] + 1):
        for chosen in map(list, itertools.combinations(range(parts.shape[1]), count)):
            found = np.linalg.lstsq(rows[:, chosen] / size[chosen], np.ones(len(wanted)), rcond=None)[0]
            found /= size[chosen]
            error = float(np.square(rows[:, chosen] @ found - 1).sum())
            if (found >= 0).all() and error < least - 1e-12:
                best, least = np.zeros(parts.shape[1]), error
                best[chosen] = found
    return best
