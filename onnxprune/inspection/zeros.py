"""Where the zeros of one weight lie: in whole channels, N of every M, in blocks, or anywhere. Arrays only.

The patterns are those of `onnxprune.patterns`, looked for instead of made. `2:4` holds where every run of 4 input
channels has at least 2 zeros, `4x1` where all zeros lie in blocks of nothing but zeros. A pattern that does not
divide a weight is not considered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.graph.axes import Bools
from onnxprune.patterns import Grid, parse_pattern

OUTPUTS, INPUTS, CHANNELS = "output channels", "input channels", "input and output channels"
ELEMENT = "element"
N_M = ("2:4", "4:8", "1:4")
BLOCKS = ("16x1", "8x1", "4x1", "1x16", "1x8", "1x4")
ORDER = (OUTPUTS, INPUTS, CHANNELS, "2:4", "4:8", *BLOCKS, "1:4", ELEMENT)
"""From the most useful pattern to the least: of those that hold, the first names a layer."""


@dataclass(frozen=True, eq=False)
class Zeros:
    """Zeros of one weight.

    Attributes
    ----------
    elements, zeros
        How many numbers there are, and how many of them are zero.
    filters
        Shape (outputs,): which output channels have only zero weights.
    channels
        Shape (inputs,): which input channels do; with several groups those of one group after the other.
    shares
        Per pattern that divides the weight: the share of the zeros that lie in all-zero channels or blocks, or
        the share of runs of M that have N zeros. Empty where nothing is zero.
    """

    elements: int
    zeros: int
    filters: Bools
    channels: Bools
    shares: Mapping[str, float]

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns that hold without exception, the most useful first; `element` alone where none does."""
        if not self.zeros:
            return ()
        found = tuple(pattern for pattern in ORDER if self.shares.get(pattern) == 1.0)
        return found or (ELEMENT,)


def count(nonzero: Bools, columns: int) -> Zeros:
    """Count zeros and find their patterns.

    Parameters
    ----------
    nonzero
        Shape (groups, outputs per group, taps x columns): where a weight is not zero, columns running fastest, as
        `Consumer.arranged` has it.
    columns
        Input channels that each group sees.
    """
    groups, rows, width = nonzero.shape
    zeros = nonzero.size - int(np.count_nonzero(nonzero))
    filters = ~nonzero.any(axis=2).ravel()
    taps = width // columns if columns else 0
    by_tap = nonzero.reshape(groups, rows, taps, columns)
    channels = ~by_tap.any(axis=(1, 2))
    if not zeros:
        return Zeros(nonzero.size, 0, filters, channels.ravel(), {})
    in_filters = filters.reshape(groups, rows).sum(axis=1)
    in_channels = channels.sum(axis=1)
    in_rows = int(in_filters.sum()) * width
    in_columns = int(in_channels.sum()) * taps * rows
    both = int((in_filters * in_channels).sum()) * taps
    shares = {
        OUTPUTS: in_rows / zeros,
        INPUTS: in_columns / zeros,
        CHANNELS: (in_rows + in_columns - both) / zeros,
    }
    matrix, grid = nonzero.reshape(groups * rows, width), Grid(groups * rows, columns, taps)
    for pattern in N_M:
        n, m = map(int, pattern.split(":"))
        if not parse_pattern(pattern).refuses(grid):
            shares[pattern] = _share_of_runs(matrix, n, m)
    for pattern in BLOCKS:
        height, breadth = map(int, pattern.split("x"))
        if not parse_pattern(pattern).refuses(grid):
            shares[pattern] = _empty_blocks(matrix, height, breadth) * height * breadth / zeros
    return Zeros(nonzero.size, zeros, filters, channels.ravel(), shares)


def _share_of_runs(matrix: Bools, n: int, m: int) -> float:
    """Share of the runs of `m` columns that have at least `n` zeros."""
    flags = matrix.view(np.uint8)
    present = flags[:, ::m].copy(order="K")
    for place in range(1, m):  # adding strided planes is many times faster than reducing a short axis
        present += flags[:, place::m]
    return int(np.count_nonzero(present <= m - n)) / present.size


def _empty_blocks(matrix: Bools, height: int, breadth: int) -> int:
    """How many blocks of `height` rows and `breadth` columns have nothing but zeros; one of the two is 1."""
    planes = [matrix[place::height] for place in range(height)]
    if breadth > 1:
        planes = [matrix[:, place::breadth] for place in range(breadth)]
    live = planes[0].copy(order="K")
    for plane in planes[1:]:
        live |= plane
    return live.size - int(np.count_nonzero(live))
