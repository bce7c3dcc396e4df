"""The best weights for a given mask: least squares row by row."""

from __future__ import annotations

from onnxprune.solvers.layer import DAMPENING, Bools, Matrix, Solution


def refit(weight: Matrix, mask: Bools, hessian: Matrix, *, dampening: float = DAMPENING) -> Solution:
    """Let the weights that are left make up for the zeros as well as they can.

    The result minimises `(w - w') (H + l I) (w - w')^T` exactly, l being `dampening` times the mean diagonal: no
    update of the same mask has a smaller damped error. Its undamped `error` is smallest for dampening 0.

    Parameters
    ----------
    weight
        Shape (rows, columns) = (outputs, inputs). Not mutated.
    mask
        Shape (rows, columns): set where weights are to be zero.
    hessian
        Shape (columns, columns): second moments or covariance of the inputs, at any positive scale. Not mutated.
    dampening
        Share of the mean diagonal that is added to the diagonal.

    Raises
    ------
    ValueError
        Values that are not finite, shapes that do not fit.
    """
    raise NotImplementedError
