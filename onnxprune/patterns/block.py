"""Blocks of a matrix, single weights among them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.patterns.pattern import Array, Bools, Grid, Reduce


@dataclass(frozen=True)
class Block:
    """Blocks of `rows` outputs by `columns` columns, as Neural Compressor divides `[C_out, k_h k_w C_in]`.

    Parameters
    ----------
    rows, columns
        Extents of a block.
    """

    rows: int
    columns: int

    @property
    def name(self) -> str:
        """Such as "4x1"."""
        return f"{self.rows}x{self.columns}"

    @property
    def most(self) -> float:
        """Everything."""
        return 1.0

    def refuses(self, grid: Grid) -> str:
        """The extents have to be multiples of the block's."""
        if grid.outputs % self.rows:
            return f"{grid.outputs} outputs are not divisible by {self.rows}"
        if grid.columns % self.columns:
            return f"{grid.columns} inputs are not divisible by {self.columns}"
        return ""

    def goes(self, grid: Grid) -> int:
        """All weights of a block."""
        return self.rows * self.columns

    def reduce(self, scores: Array, grid: Grid, how: Reduce) -> Array:
        """Shape (block rows, block columns)."""
        apart = scores.reshape(grid.outputs // self.rows, self.rows, -1, self.columns)
        return np.asarray(how(apart, axis=(1, 3)))

    def spread(self, values: Array, grid: Grid) -> Array:
        """Repeat each value over its block."""
        return values.repeat(self.rows, axis=0).repeat(self.columns, axis=1)

    def zeros(self, gone: Bools, scores: Array, grid: Grid) -> Bools:
        """All weights of the flagged blocks."""
        return self.spread(gone, grid)


@dataclass(frozen=True)
class Element(Block):
    """Every weight for itself."""

    rows: int = 1
    columns: int = 1

    @property
    def name(self) -> str:
        """As the command line names it."""
        return "element"
