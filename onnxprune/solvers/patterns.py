"""Which zeros are wanted: any elements, equally many in each row, N in each M, whole blocks.

A pattern says how many zeros there are; the solvers ask it stretch by stretch which ones, by what each would cost. The
counts are exact: what a stretch cannot take is left to the next. Weights that cost nothing go first: locked ones,
then those of columns in which the layer sees only zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onnxprune.solvers.layer import Bools, Matrix

Choose = Callable[[Matrix, int], Bools]
"""From the costs (rows, width) of a stretch of columns and the first column's index: what goes, same shape.

Costs of locked weights are -1, of weights in dead columns 0.
"""


@dataclass(frozen=True)
class Elements:
    """Exactly `zeros` elements of the whole matrix; every stretch of columns gives the same share of its weights."""

    zeros: int


@dataclass(frozen=True)
class PerRow:
    """Exactly `zeros` elements of every row; every stretch of columns gives the same share."""

    zeros: int


@dataclass(frozen=True)
class NOfM:
    """`n` zeros in each group of `m` neighbours of a row."""

    n: int
    m: int


@dataclass(frozen=True)
class Blocks:
    """Exactly `zeros` blocks of shape (rows, columns) go whole; whole columns: blocks of all rows and one column."""

    zeros: int
    shape: tuple[int, int]


Pattern = Elements | PerRow | NOfM | Blocks
