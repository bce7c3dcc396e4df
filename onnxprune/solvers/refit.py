"""The best weights for a given mask: least squares row by row.

With Z the zeros of a row and K the others, `w'_K = w_K + (H_KK)^-1 H_KZ w_Z`. By the inverse of a matrix in blocks
that is the same as `w' = w - w_Z ((H^-1)_ZZ)^-1 (H^-1)_Z:`, which is cheaper where Z is the smaller part.
"""

from __future__ import annotations

import numpy as np

from onnxprune.solvers.layer import DAMPENING, Bools, Layer, Matrix, Solution, flags


def refit(weight: Matrix, mask: Bools, hessian: Matrix, *, dampening: float = DAMPENING) -> Solution:
    """Let the weights that are left make up for the zeros as well as they can.

    The result minimises `(w - w') (H + l I) (w - w')^T` exactly, l being `dampening` times the mean diagonal: no
    update of the same mask has a smaller damped error. The undamped `error` is smallest for dampening 0, and it may
    be a little larger than that of another update when both are damped. Takes about `2/3 m^3` floating-point
    operations for each different row of the mask, m being the number of its zeros or of what it keeps, whichever is
    less.

    Parameters
    ----------
    weight
        Shape (rows, columns) = (outputs, inputs). Not mutated.
    mask
        Shape (rows, columns): set where weights are to be zero.
    hessian
        Shape (columns, columns): second moments or covariance of the inputs, at any positive scale; symmetric. Not
        mutated.
    dampening
        Share of the mean diagonal that is added to the diagonal.

    Raises
    ------
    ValueError
        Values that are not finite, shapes that do not fit.
    """
    layer = Layer.of(weight, hessian)
    mask = flags(mask, layer.weight, "the mask").copy()
    damped = layer.damp(dampening)
    new = np.where(mask, 0.0, layer.weight)
    lost = layer.weight - new
    pull = lost @ damped.hessian
    multiplier = np.zeros_like(new)
    few = (mask.sum(axis=1) * 2 <= mask.shape[1]) & damped.invertible
    inverse = np.linalg.inv(damped.hessian) if few.any() else damped.hessian
    for rows in _alike(mask):
        zero = np.flatnonzero(mask[rows[0]])
        if few[rows[0]]:
            solved = np.linalg.solve(inverse[np.ix_(zero, zero)], layer.weight[np.ix_(rows, zero)].T)
            multiplier[np.ix_(rows, zero)] = solved.T
        else:
            kept = np.flatnonzero(~mask[rows[0]])
            solved = np.linalg.solve(damped.hessian[np.ix_(kept, kept)], pull[np.ix_(rows, kept)].T)
            new[np.ix_(rows, kept)] += solved.T
    if few.any():
        new[few] = np.where(mask[few], 0.0, layer.weight[few] - multiplier[few] @ inverse)
    return Solution(new, mask, layer.error(new), damped.dampening)


def _alike(mask: Bools) -> list[np.ndarray]:
    """Rows that have the same zeros, together."""
    found: dict[bytes, list[int]] = {}
    for row, bits in enumerate(np.packbits(mask, axis=1)):
        found.setdefault(bits.tobytes(), []).append(row)
    return [np.array(rows) for rows in found.values()]
