"""One layer: which weights become zero, and what the others become, from moments of rows `(input, target)`.

Let `W_t` be the least squares fit of the targets (what the original has there) to the inputs that the layer
sees in the sparse model. Up to a constant, any other weights `W'` cost `tr (W' - W_t) C (W' - W_t)^T`, C
being the covariance of the inputs. So solvers that know nothing of targets get `W_t` instead of the layer's
weight, and correct what layers before this one did. Weights are taken as they come out where that does better
than zeros alone on samples that were held out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxprune.patterns import Block, NofM, Pattern
from onnxprune.patterns.pattern import Bools
from onnxprune.repair.fit import CONSTANT, Fit, error_of, fit
from onnxprune.solvers import Blocks, Elements, NOfM, Solution, obc, refit, sparsegpt
from onnxprune.sparsity.layers import WeightLayer
from onnxprune.sparsity.select import Scored, count, select
from onnxprune.statistics.moments import Matrix, Moments

Array = np.ndarray[Any, Any]

OBC_MOST = 5e10
"""Rows times columns cubed up to which `auto` takes obc: a minute or so on two cores."""

REFIT_MOST = 2e11
"""Rows times columns that stay, cubed, up to which a mask gets its least squares weights."""

STRETCHES = 8
"""Into how many stretches of columns SparseGPT divides narrow layers, so that it chooses by what is left."""


@dataclass(frozen=True, eq=False)
class Order:
    """What one layer is asked for.

    Attributes
    ----------
    level
        Share of its weights that become zero.
    zeros
        Shape (outputs, columns): which ones; None: the solver chooses.
    gone
        The same shape: weights that are zero and stay so.
    """

    level: float
    zeros: Bools | None
    gone: Bools


@dataclass(frozen=True, eq=False)
class Solved:
    """What became of one layer.

    Attributes
    ----------
    fit
        Its weights and biases, and their errors on samples that were held out: `before` is that of zeros
        alone.
    zeros
        Shape (outputs, columns).
    """

    fit: Fit
    zeros: Bools


def solve_layer(
    layer: WeightLayer,
    order: Order,
    solver: str,
    pattern: Pattern,
    seen: Moments,
    held: Moments,
    *,
    shifts: bool,
) -> Solved:
    """Choose zeros and weights for one layer.

    Parameters
    ----------
    layer
        As it is in the sparse model.
    solver
        "sparsegpt" or "obc"; both end with least squares for the mask that they chose where that is
        affordable.
    seen, held
        Moments of rows `(x, t)`: features, then targets; to fit on, and to choose on.
    shifts
        Whether the layer has, or may get, a bias.
    """
    consumer = layer.consumer
    weight = consumer.matrix()
    bias = consumer.bias_vector().reshape(consumer.groups, -1)
    if not shifts:
        seen, held = _around_zero(seen), _around_zero(held)
    goal = fit(seen, held, weight, bias, ("affine",)).weight
    features = weight.shape[2]
    covariance = input_covariance(seen, features)
    zeros, solved = _solve(layer, order, solver, pattern, goal, covariance)
    flags = zeros.reshape(weight.shape)
    best = _better(seen, held, weight, bias, np.where(flags, 0.0, solved), flags, shifts=shifts)
    return Solved(best, zeros)


def solve_again(solved: Solved, seen: Moments, held: Moments) -> Solved:
    """The same zeros with weights that do better on other targets, or what was solved.

    Parameters
    ----------
    seen, held
        As of `solve_layer`, of targets that follow from what `solved` gives (`onnxprune.repair.flat`).
    """
    found, features = solved.fit, solved.fit.weight.shape[2]
    goal = fit(seen, held, found.weight, found.bias, ("affine",)).weight
    covariance, mean = input_covariance(seen, features), seen.mean
    flags = solved.zeros.reshape(found.weight.shape)
    weight = np.stack([refit(*part).weight for part in zip(goal, flags, covariance, strict=True)])
    bias = np.asarray(mean[:, features:] - np.einsum("gof,gf->go", weight, mean[:, :features]))
    error = error_of(held, weight, bias)
    if not error < error_of(held, found.weight, found.bias):
        return solved
    return replace(solved, fit=replace(found, kind="weights", weight=weight, bias=bias, error=error))


def input_covariance(moments: Moments, features: int) -> Matrix:
    """Shape (groups, features, features): of the first columns; zero where one varies by rounding only."""
    found = moments.covariance[:, :features, :features].copy()
    squares = np.square(moments.mean[:, :features])
    for part, square in zip(found, squares, strict=True):
        variance = np.diagonal(part)
        constant = variance <= CONSTANT * (square + variance)
        part[constant] = part[:, constant] = 0.0
    return found


def _around_zero(moments: Moments) -> Moments:
    """Moments that know of no mean, so that their covariance is the second moment."""
    return replace(moments, total=np.zeros_like(moments.total))


def _better(
    seen: Moments, held: Moments, weight: Matrix, bias: Matrix, solved: Matrix, flags: Bools, *, shifts: bool
) -> Fit:
    """The best of zeros alone, zeros and another bias, and what the solver gives, on held-out samples."""
    features = weight.shape[2]
    mean = seen.mean

    def centred(w: Matrix) -> Matrix:
        if not shifts:
            return bias
        return np.asarray(mean[:, features:] - np.einsum("gof,gf->go", w, mean[:, :features]))

    alone = np.where(flags, 0.0, weight)
    energy = float(np.einsum("gii->", held.covariance[:, features:, features:]))
    before = error_of(held, alone, bias)
    best = Fit("mask", alone, bias, before, before, energy)
    for kind, w in (("bias", alone), ("weights", solved)):
        b = centred(w)
        error = error_of(held, w, b)
        if np.isfinite(w).all() and error < best.error:
            best = Fit(kind, w, b, error, before, energy)
    return best


def solve_alone(
    layer: WeightLayer, order: Order, pattern: Pattern, matrix: Matrix, covariance: Matrix
) -> Matrix:
    """Weights (groups, outputs per group, features) for the inputs of the original, by SparseGPT.

    Parameters
    ----------
    matrix
        The layer's weight, of that shape.
    covariance
        Shape (groups, features, features), of its input.
    """
    return _solve(layer, order, "sparsegpt", pattern, matrix, covariance)[1]


def _solve(
    layer: WeightLayer, order: Order, solver: str, pattern: Pattern, goal: Matrix, covariance: Matrix
) -> tuple[Bools, Matrix]:
    """Zeros (outputs, columns) and weights (groups, outputs per group, features)."""
    zeros = order.zeros
    if zeros is None and count(order.level, layer.grid.size) <= int(order.gone.sum()):
        zeros = order.gone
    if zeros is None and layer.consumer.groups == 1 and _adaptive(pattern, order.level):
        found = _own(solver, goal[0], covariance[0], pattern, order)
        zeros = found.mask | order.gone
        if solver == "obc":  # which has refitted
            return zeros, found.weight[None]
    elif zeros is None:
        zeros = _by_saliency(layer, goal, covariance, pattern, order)
    flags = zeros.reshape(goal.shape)
    parts = zip(goal, flags, covariance, strict=True)
    exact = refits(layer.grid.outputs, goal.shape[2], float(flags.mean()))
    return zeros, np.stack([(refit if exact else _update)(*part).weight for part in parts])


def _update(goal: Matrix, zeros: Bools, covariance: Matrix) -> Solution:
    """The other weights by SparseGPT, which is cheaper than least squares row by row."""
    return sparsegpt(goal, covariance, zeros)


def affordable(rows: int, columns: int) -> bool:
    """Whether `obc` takes a layer in seconds rather than minutes."""
    return rows * columns**3 <= OBC_MOST


def refits(rows: int, columns: int, level: float) -> bool:
    """Whether least squares row by row, for a mask that is known, take seconds rather than minutes."""
    return rows * ((1 - level) * columns) ** 3 <= REFIT_MOST


def _adaptive(pattern: Pattern, level: float) -> bool:
    """Whether solvers choose zeros of this pattern as they go."""
    if isinstance(pattern, NofM):
        return abs(level - pattern.most) < 1e-9
    return isinstance(pattern, Block) and pattern.rows == 1


def _own(solver: str, goal: Matrix, covariance: Matrix, pattern: Pattern, order: Order) -> Solution:
    """What a solver gives that chooses zeros as it goes."""
    what: NOfM | Elements | Blocks
    size = count(order.level, goal.size)
    if isinstance(pattern, NofM):
        what = NOfM(pattern.n, pattern.m)
    elif isinstance(pattern, Block) and pattern.columns > 1:
        what = Blocks(size // pattern.columns, (1, pattern.columns))
    else:
        what = Elements(size)
    locked = order.gone if order.gone.any() else None
    if locked is not None:
        goal = refit(goal, locked, covariance).weight
    if solver == "obc":
        return obc(goal, covariance, what, locked=locked)
    stretch = min(128, max(16, goal.shape[1] // STRETCHES))
    return sparsegpt(goal, covariance, what, locked=locked, block=stretch)


def _by_saliency(
    layer: WeightLayer, goal: Matrix, covariance: Matrix, pattern: Pattern, order: Order
) -> Bools:
    """Zeros by `w^2 / [C^-1]_jj`, what a weight costs when the others of its output make up for it."""
    saliency = np.stack([_saliency(w, c) for w, c in zip(goal, covariance, strict=True)])
    scored = Scored(layer.name, layer.grid, saliency.reshape(layer.grid.shape), order.gone)
    return select([scored], pattern, order.level, scope="local", reduce="sum")[layer.name]


def _saliency(weight: Matrix, covariance: Matrix) -> Matrix:
    columns = len(covariance)
    level = float(np.trace(covariance)) / max(columns, 1)
    if level <= 0:
        return np.square(weight)
    damped = covariance + 0.01 * level * np.eye(columns)
    return np.asarray(np.square(weight) / np.diagonal(np.linalg.inv(damped)))
