"""What a pattern is: a division of a weight into blocks of one size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]

Reduce = Callable[..., Any]

REDUCTIONS: Mapping[str, Reduce] = {"mean": np.mean, "sum": np.sum, "max": np.max}
"""How the scores of a block's weights become one; Neural Compressor's `criterion_reduce_type`."""


@dataclass(frozen=True)
class Grid:
    """The extents of a weight as a matrix (outputs, taps x channels).

    Attributes
    ----------
    outputs
        Output channels.
    channels
        Input channels that each of them sees.
    taps
        Positions of the kernel; 1 for a matrix.
    """

    outputs: int
    channels: int
    taps: int = 1

    @property
    def columns(self) -> int:
        """Of the matrix."""
        return self.taps * self.channels

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix."""
        return self.outputs, self.columns

    @property
    def size(self) -> int:
        """Weights."""
        return self.outputs * self.columns


class Pattern(Protocol):
    """Divides a weight into blocks, and says which weights are zero when blocks go."""

    @property
    def name(self) -> str:
        """As the command line names it."""
        ...

    @property
    def most(self) -> float:
        """The largest share of the weights that can go."""
        ...

    def refuses(self, grid: Grid) -> str:
        """Why a weight of these extents cannot be divided; empty where it can."""
        ...

    def goes(self, grid: Grid) -> int:
        """How many weights become zero when one block goes."""
        ...

    def reduce(self, scores: Array, grid: Grid, how: Reduce) -> Array:
        """One score per block, shape of `gone`.

        Parameters
        ----------
        scores
            Shape (outputs, columns), higher = keep.
        how
            One of `REDUCTIONS`' functions.
        """
        ...

    def spread(self, values: Array, grid: Grid) -> Array:
        """Shape (outputs, columns): to every weight the value of its block."""
        ...

    def zeros(self, gone: Bools, scores: Array, grid: Grid) -> Bools:
        """Shape (outputs, columns): which weights are zero when the flagged blocks go.

        Parameters
        ----------
        gone
            One flag per block.
        scores
            Shape (outputs, columns): of N:M they say which of a block's weights.
        """
        ...
