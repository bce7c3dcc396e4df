"""Queries and keys turned, head by head, so that few dims carry the logits; the model stays what it was.

A logit q^T k does not change when q becomes T q and k becomes inv(T)^T k. With the second moments
E[q q^T] = A A^T and E[k k^T] = B B^T, and A^T B = U D V^T, the turn

    T = D^(-1/2) V^T B^T        inv(T)^T = D^(-1/2) U^T A^T

makes both second moments D. Leaving out some dims then costs the sum of their squared entries of D (with queries
and keys taken as independent); with the least entries, that is the least that any lower rank can do (Eckart and
Young 1936, in the weighted norm), and there is nothing left to make up for. The same turn balances the states of
linear systems (Moore 1981, https://doi.org/10.1109/TAC.1981.1102568). The dims that stay get the largest entries,
whichever they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.graph.axes import Bools, Index
from onnxprune.model import edit
from onnxprune.repair.logits import Rows, best_mixing, fold, plain_error
from onnxprune.repair.stored import named, read
from onnxprune.statistics.factors import Seen
from onnxprune.statistics.moments import Matrix, Moments
from onnxprune.statistics.paths import Route
from onnxprune.statistics.products import Product

Array = np.ndarray[Any, Any]

Spectrum = tuple[Matrix, Matrix, Matrix]
"""D, shape (heads, dims), descending; and T and inv(T)^T, shape (heads, dims, dims)."""

RIDGE = 1e-6
"""Share of the mean second moment that is added to every one: no more than float32 can tell from zero."""


@dataclass(frozen=True, eq=False)
class Turn:
    """How a product is turned for the dims that stay.

    Attributes
    ----------
    product
        With two layers that can be changed.
    matrices
        Per factor, shape (heads, dims, dims): what rows are multiplied by.
    before, after
        Mean squared error of the logits on held-out samples, as a share of their mean square: when dims only go,
        and when they go after the turn.
    """

    product: Product
    matrices: tuple[Matrix, Matrix]
    before: float = float("nan")
    after: float = float("nan")


def spectrum(product: Product, seen: Seen) -> Spectrum:
    """D, shape (heads, dims), descending; and T and inv(T)^T, shape (heads, dims, dims)."""
    a, b = (_root(each) for each in _seconds(product, seen))
    u, d, v = np.linalg.svd(a.transpose(0, 2, 1) @ b)
    root = np.sqrt(np.maximum(d, 1e-30))[:, :, None]
    return d, v @ b.transpose(0, 2, 1) / root, u.transpose(0, 2, 1) @ a.transpose(0, 2, 1) / root


def _root(second: Matrix) -> Matrix:
    """A with A A^T = the matrix, (heads, dims, dims), with a ridge so that it can be inverted."""
    values, vectors = np.linalg.eigh(second)
    ridge = np.maximum(RIDGE * np.einsum("hii->h", second) / max(second.shape[-1], 1), 1e-12)[:, None]
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0) + ridge)[:, None], np.float64)


def _seconds(product: Product, seen: Seen) -> list[Matrix]:
    return [
        Rows.of_itself(m, np.arange(0), flag).second for m, flag in zip(seen, product.around, strict=True)
    ]


def tails(known: Spectrum, lost: Index) -> Matrix:
    """The least error of the logits when so many dims of every head are gone, as a share of their mean square."""
    squares = np.square(known[0])[:, ::-1].sum(axis=0)
    errors = np.concatenate([[0.0], np.cumsum(squares)]) / (squares.sum() or 1.0)
    return np.asarray(errors[lost], np.float64)


def turn(product: Product, known: Spectrum, gone: Bools) -> Turn:
    """The turn that leaves least in the dims that go.

    Parameters
    ----------
    known
        The `spectrum` of the product, with all dims.
    gone
        Shape (dims,).
    """
    _, left, right = known
    order = np.argsort(np.argsort(gone, kind="stable"), kind="stable")  # what stays first
    return Turn(product, (left[:, order], right[:, order]))


def checked(product: Product, known: Spectrum, seen: Seen, held: Seen, gone: Bools) -> Turn | None:
    """The same, or None where it does worse on held-out moments than the best mixture of what stays."""
    found, left = turn(product, known, gone), np.flatnonzero(~gone)
    if not len(left):
        return None
    fitted, kept, moved = (
        [Rows.of_itself(m, left, flag) for m, flag in zip(each, product.around, strict=True)]
        for each in (seen, held, _turned(held, found.matrices))
    )
    m = product.mixed
    mixed = best_mixing((fitted[m], kept[m]), (fitted[1 - m], kept[1 - m]), shift=True)
    after, scale = plain_error(moved[0], moved[1]), mixed.energy or 1.0
    if after > mixed.error:
        return None
    return Turn(product, found.matrices, mixed.before / scale, after / scale)


def _turned(seen: Seen, matrices: tuple[Matrix, Matrix]) -> Seen:
    """Moments of the turned rows."""
    left, right = (
        Moments(m.count, np.einsum("hij,hj->hi", t, m.total), t @ m.gram @ t.transpose(0, 2, 1))
        for m, t in zip(seen, matrices, strict=True)
    )
    return left, right


def turned_weights(found: Turn, feed: Mapping[str, Array]) -> dict[str, Array]:
    """Weights and biases, by name, of both layers.

    Parameters
    ----------
    feed
        Weights and biases that the layers have for other reasons, by name.
    """
    weights: dict[str, Array] = dict(feed)
    for route, channels, matrix in zip(
        found.product.routes, found.product.channels, found.matrices, strict=True
    ):
        if not isinstance(route, Route) or channels is None:
            raise ValueError(f"{found.product.label} cannot be turned")
        weight, bias = read(route.layer, weights)
        mixed = matrix.transpose(0, 2, 1), np.zeros(channels.shape)
        weights |= named(route.layer, *fold(route.layer, weight, bias, channels, *mixed))
    return {name: array for name, array in weights.items() if array is not feed.get(name)}


@contextmanager
def turned_model(model: ir.Model, turns: Sequence[Turn]) -> Iterator[None]:
    """The same function in other weights, for as long as the context lasts."""
    weights: dict[str, Array] = {}
    for found in turns:
        weights |= turned_weights(found, weights)
    values = {name: model.graph.initializers[name] for name in weights}
    before = {name: value.const_value for name, value in values.items()}
    try:
        for name, value in values.items():
            edit.set_array(value, weights[name])
        yield
    finally:
        for name, tensor in before.items():
            if tensor is not None:
                edit.set_tensor(values[name], tensor)
