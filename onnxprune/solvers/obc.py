"""Optimal brain compression: in each row the cheapest weight goes, and all others of the row make up for it.

Frantar and Alistarh 2022, https://arxiv.org/abs/2208.11580.
"""

from __future__ import annotations

from onnxprune.solvers.layer import DAMPENING, Bools, Matrix, Solution
from onnxprune.solvers.patterns import Blocks, Elements, NOfM, PerRow

MEMORY = 256 * 2**20
"""Bytes that a batch of rows may take."""


def obc(
    weight: Matrix,
    hessian: Matrix,
    what: Elements | PerRow | NOfM | Blocks,
    *,
    locked: Bools | None = None,
    dampening: float = DAMPENING,
    memory: int = MEMORY,
) -> Solution:
    """Zero the cheapest weights of each row, one after the other.

    Takes about `rows * columns * t^2` multiply-adds, where t is the number of steps in each row: all columns for
    `Elements` and `Blocks`, which then compare rows.

    Parameters
    ----------
    weight
        Shape (rows, columns) = (outputs, inputs). Not mutated.
    hessian
        Shape (columns, columns): second moments or covariance of the inputs, at any positive scale; symmetric. Not
        mutated.
    what
        A pattern; blocks must be one row high.
    locked
        Shape (rows, columns): zeros that stay, and that count as chosen.
    dampening
        Share of the mean diagonal that is added to the diagonal.
    memory
        Bytes that a batch of rows may take.

    Raises
    ------
    ValueError
        As of `sparsegpt`; blocks of several rows.
    """
    raise NotImplementedError
