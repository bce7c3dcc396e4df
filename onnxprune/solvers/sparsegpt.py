"""SparseGPT: columns go from left to right, and later columns make up for the zeros of earlier ones.

Frantar and Alistarh 2023, https://arxiv.org/abs/2301.00774.
"""

from __future__ import annotations

from onnxprune.solvers.layer import DAMPENING, Bools, Matrix, Solution
from onnxprune.solvers.patterns import Choose, Pattern


def sparsegpt(
    weight: Matrix,
    hessian: Matrix,
    what: Pattern | Choose | Bools,
    *,
    locked: Bools | None = None,
    dampening: float = DAMPENING,
    block: int = 128,
) -> Solution:
    """Zero weights of one layer, and let the weights of later columns make up for it.

    Parameters
    ----------
    weight
        Shape (rows, columns) = (outputs, inputs). Not mutated.
    hessian
        Shape (columns, columns): second moments or covariance of the inputs, at any positive scale; symmetric. Not
        mutated.
    what
        A pattern; or a function that chooses in each stretch of `block` columns, given what each weight costs; or
        the mask, shape (rows, columns), set where weights are to be zero.
    locked
        Shape (rows, columns): zeros that stay, and that count as chosen.
    dampening
        Share of the mean diagonal that is added to the diagonal.
    block
        How many columns are chosen at a time. `NOfM` chooses m at a time, `Blocks` a multiple of their width.

    Raises
    ------
    ValueError
        Values that are not finite, shapes that do not fit, a pattern that does not divide the matrix, more zeros
        than there are weights.
    """
    raise NotImplementedError
