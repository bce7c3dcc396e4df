"""The best weights for the inputs that are left: least squares with a ridge toward the old weights.

A layer computed `t = W x + b` and now sees `x` with fewer channels. From the moments of `(x, t)`

    W' = (C_tx + l W_0) (C_xx + l I)^-1        b' = mean(t) - W' mean(x)

with covariances C and `l` a share of the mean variance, chosen by the error on samples that the fit has not
seen. `W_0` are the old weights of what is left; they stay where the inputs of a group do not vary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.statistics.moments import Matrix, Moments

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Shares of the mean variance that are tried."""

CONSTANT = 1e-5
"""Variances below this share of the mean square are no more than the rounding of float32 sums."""


Stored = Callable[[Matrix], Matrix]
"""What a matrix of weights becomes where the file stores it in few bits."""


@dataclass(frozen=True)
class Fit:
    """Weights of one layer, and how well they do on samples that were held out.

    Attributes
    ----------
    kind
        "affine", "rescale", "bias" or "none" (the old weights).
    weight
        Shape (groups, outputs per group, features).
    bias
        Shape (groups, outputs per group).
    error, before
        Mean squared error per row on the held-out samples, with these weights and with the old ones.
    energy
        Variance of the targets per row, for scale.
    """

    kind: str
    weight: Matrix
    bias: Matrix
    error: float
    before: float
    energy: float


def fit(
    seen: Moments,
    held: Moments,
    weight: Matrix,
    bias: Matrix,
    kinds: Sequence[str] = ("affine", "bias"),
    stored: Stored | None = None,
) -> Fit:
    """Choose the best repair of one layer.

    Parameters
    ----------
    seen, held
        Moments of rows `(x, t)`: features, then targets; to fit on, and to choose on.
    weight
        Shape (groups, outputs per group, features): the old weights.
    bias
        Shape (groups, outputs per group): the old bias.
    kinds
        What to try besides leaving everything as it is.
    stored
        Weights are compared as they will be stored, with the biases that go best with them.
    """
    features = weight.shape[2]
    before = error_of(held, weight, bias)
    energy = float(np.einsum("gii->", held.covariance[:, features:, features:]))
    best = Fit("none", weight, bias, before, before, energy)
    for kind in kinds:
        for w, b in _candidates(kind, seen, weight):
            if not (np.isfinite(w).all() and np.isfinite(b).all()):
                continue
            if stored is not None and kind != "bias":
                w = stored(w)
                b = _centring(seen, w)
            error = error_of(held, w, b)
            if error < best.error:
                best = Fit(kind, w, b, error, before, energy)
    return best


def again(seen: Moments, held: Moments, found: Fit, stored: Stored | None = None) -> Fit:
    """Weights that do better on other targets than those that were found, or the ones that were found.

    Parameters
    ----------
    seen, held, stored
        As of `fit`, of targets that follow from what `found` gives.
    """
    better = fit(seen, held, found.weight, found.bias, ("affine",), stored)
    if better.kind == "none":
        return found
    return replace(better, before=found.before, energy=found.energy)


def _candidates(kind: str, seen: Moments, weight: Matrix) -> list[tuple[Matrix, Matrix]]:
    features = weight.shape[2]
    covariance, mean = seen.covariance, seen.mean
    xx, xt = covariance[:, :features, :features], covariance[:, :features, features:]
    x = mean[:, :features]

    def centred(w: Matrix) -> tuple[Matrix, Matrix]:
        return w, _centring(seen, w)

    if kind == "bias":
        return [centred(weight)]
    if kind == "rescale":
        variance = (weight * (weight @ xx)).sum(axis=2)
        shared = (weight * xt.transpose(0, 2, 1)).sum(axis=2)
        varies = variance > CONSTANT * (np.square(np.einsum("gof,gf->go", weight, x)) + variance)
        scale = np.where(varies, shared / np.where(varies, variance, 1.0), 1.0)
        return [centred(weight * scale[:, :, None])]
    found = []
    level = np.einsum("gii->g", xx) / max(features, 1)
    constant = level <= CONSTANT * (level + np.square(x).sum(axis=1) / max(features, 1))
    eye = np.eye(features)
    for share in RIDGES:
        ridge = np.maximum(share * level, 1e-12)[:, None, None]
        try:
            solved = np.linalg.solve(xx + ridge * eye, xt + ridge * weight.transpose(0, 2, 1))
        except np.linalg.LinAlgError:
            continue
        solved = np.where(constant[:, None, None], weight, solved.transpose(0, 2, 1))
        found.append(centred(np.ascontiguousarray(solved)))
    return found


def _centring(seen: Moments, weight: Matrix) -> Matrix:
    """The bias with which weights reach the mean of the targets."""
    features = weight.shape[2]
    x, t = seen.mean[:, :features], seen.mean[:, features:]
    return np.asarray(t - np.einsum("gof,gf->go", weight, x))


def error_of(moments: Moments, weight: Matrix, bias: Matrix) -> float:
    """Mean over the rows `(x, t)` of `||t - W x - b||^2`.

    Parameters
    ----------
    moments
        Of the rows: features, then targets.
    weight
        Shape (groups, outputs per group, features).
    bias
        Shape (groups, outputs per group).
    """
    features = weight.shape[2]
    second, mean = moments.gram / max(moments.count, 1.0), moments.mean
    xx, xt = second[:, :features, :features], second[:, :features, features:]
    tt = np.einsum("gii->g", second[:, features:, features:])
    x, t = mean[:, :features], mean[:, features:]
    product = np.einsum("gof,gf->go", weight, x)
    explained = (weight * (weight @ xx - 2 * xt.transpose(0, 2, 1))).sum()
    shifted = (bias * (bias + 2 * product - 2 * t)).sum()
    return float(tt.sum() + explained + shifted)
