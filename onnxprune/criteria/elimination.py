"""Greedy elimination: which unit costs least to lose when the others make up for it.

For a layer `y = W x` with input covariance C and H = C^-1, losing the features u and refitting the rest costs

    tr(W_u (H_uu)^-1 W_u^T)

exactly, and leaves `W - W_u (H_uu)^-1 H_u:` and `H - H_:u (H_uu)^-1 H_u:`: the structured form of the optimal
brain surgeon (Hassibi and Stork 1993; Kurtic et al. 2023, https://arxiv.org/abs/2302.04089), where a unit is a set
of columns. The costs of successive units add up to the error of the set.

Where the order is known, no inverse is needed. With the features sorted so that those that go first come last, and
C = L L^T (Cholesky), what a last stretch S of them loses is

    tr(W_S (C_SS - C_SP inv(C_PP) C_PS) W_S^T) = ||W_S L_SS||^2

the sum of squares of the columns S of `W L`, and these do not depend on where S begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from onnxprune.graph.axes import Bools, Index
from onnxprune.statistics.moments import Matrix

DAMPING = 1e-3
"""Share of the mean variance that is added to every variance: dead features have none."""


class Part(Protocol):
    """Something that consumes units, while units go: a layer, or a product of queries and keys."""

    def costs(self, units: int) -> Matrix:
        """Shape (units,): what each unit costs to lose now."""
        ...

    def drop(self, member: int) -> float:
        """Let one unit go, and let the others make up for it; what that costs."""
        ...

    def losses(self, order: Index) -> Matrix:
        """Shape (rungs,): what each rung costs when all units go in the order (rungs, units per rung)."""
        ...


@dataclass(eq=False)
class Layer:
    """One consumer of a group's units, while units go. Features that are gone are forgotten from time to time.

    Attributes
    ----------
    weight
        Shape (blocks, outputs per block, features); mutated. The groups of a convolution are blocks.
    damped
        Shape (blocks, features, features): the damped covariance, of all features that there were.
    unit
        Shape (blocks, features): the unit of each feature that is left, -1 for all others; mutated.
    scale
        What an error is divided by: the layer's own output variance.
    """

    weight: Matrix
    damped: Matrix
    unit: Index
    scale: float

    @classmethod
    def of(cls, weight: Matrix, covariance: Matrix, unit: Index) -> Layer:
        """A layer that still has all its units; copies what it is given."""
        return cls(weight.copy(), damp(covariance), unit.copy(), energy(weight, covariance))

    @cached_property
    def inverse(self) -> Matrix:
        """Shape (blocks, features, features): of the damped covariance; mutated when units go."""
        return np.asarray(np.linalg.inv(self.damped), np.float64)

    def costs(self, units: int) -> Matrix:
        """Shape (units,): what each unit costs to lose now, as a share of the layer's output variance."""
        total = np.zeros(units)
        for weight, inverse, unit in zip(self.weight, self.inverse, self.unit, strict=True):
            for members, index in by_size(unit):
                inner = inverse[index[:, :, None], index[:, None, :]]
                columns = weight[:, index].transpose(1, 2, 0)  # (units, features, outputs)
                gram = columns @ columns.transpose(0, 2, 1)
                total[members] += np.einsum("uij,uij->u", np.linalg.inv(inner), gram)
        return total / self.scale

    def drop(self, member: int) -> float:
        """Let one unit go, and refit the others; what that costs, as a share of the layer's output variance."""
        cost = 0.0
        for weight, inverse, unit in zip(self.weight, self.inverse, self.unit, strict=True):
            index = np.flatnonzero(unit == member)
            if len(index):
                columns = weight[:, index]
                both = np.concatenate([inverse[index], columns.T], axis=1)
                solved = np.linalg.solve(inverse[np.ix_(index, index)], both)
                rows = solved[:, : inverse.shape[1]]
                cost += float((columns.T * solved[:, inverse.shape[1] :]).sum())
                weight -= columns @ rows
                inverse -= inverse[:, index] @ rows
                weight[:, index] = 0.0  # exactly, also in all updates to come
                inverse[index] = inverse[:, index] = 0.0
                unit[index] = -1
        self._forget()
        return cost / self.scale

    def _forget(self) -> None:
        """Leave out features that are gone, once they are half of all: updates take the square of what is left."""
        left = np.einsum("gii->gi", self.inverse) != 0
        counts = left.sum(axis=1)
        if counts.min() != counts.max() or 2 * counts[0] > left.shape[1]:
            return
        index = np.nonzero(left)[1].reshape(len(left), -1)
        self.inverse = _picked(self.inverse, index)
        self.weight = np.take_along_axis(self.weight, index[:, None], axis=2)
        self.unit = np.take_along_axis(self.unit, index, axis=1)

    def losses(self, order: Index) -> Matrix:
        """Shape (rungs,): what each rung costs when all units go in an order, as a share of the output variance.

        Parameters
        ----------
        order
            Shape (rungs, units per rung).
        """
        turn = np.full(order.size + 1, len(order))  # features of no unit never go
        turn[order] = np.arange(len(order))[:, None]
        when = turn[self.unit]
        last_first = np.argsort(-when, axis=1, kind="stable")
        try:
            lower = np.linalg.cholesky(_picked(self.damped, last_first))
        except np.linalg.LinAlgError:  # rounding, where means are large
            return one_by_one(self, order)
        columns = np.take_along_axis(self.weight, last_first[:, None], axis=2) @ lower
        when = np.take_along_axis(when, last_first, axis=1)
        lost = np.bincount(when.ravel(), np.square(columns).sum(axis=1).ravel(), len(order) + 1)
        return lost[: len(order)] / self.scale


def _picked(matrices: Matrix, index: Index) -> Matrix:
    """Rows and columns of every block, by `index` (blocks, features)."""
    blocks = np.arange(len(index))[:, None, None]
    return np.asarray(matrices[blocks, index[:, :, None], index[:, None, :]], np.float64)


def one_by_one(part: Part, order: Index) -> Matrix:
    """Shape (rungs,): what each rung costs when units are dropped in an order; the part is mutated."""
    return np.array([sum(part.drop(member) for member in rung) for rung in order.tolist()])


def by_size(unit: Index) -> list[tuple[Index, Index]]:
    """Units and their features, those with equally many together: shapes (units,) and (units, features)."""
    order = np.argsort(unit, kind="stable")
    order = order[unit[order] >= 0]
    members, counts = np.unique(unit[order], return_counts=True)
    starts = np.cumsum(counts) - counts
    found = []
    for count in np.unique(counts):
        chosen = np.flatnonzero(counts == count)
        found.append((members[chosen], order[starts[chosen][:, None] + np.arange(count)]))
    return found


@dataclass(frozen=True, eq=False)
class Elimination:
    """The order in which a group's units go, and what it costs.

    Attributes
    ----------
    rungs
        Shape (rungs, units per rung): what goes together, the first to go first; one unit of every block.
    errors
        Shape (rungs + 1,): the error of losing the first n rungs, as a share of the layers' output variance,
        summed over the layers.
    """

    rungs: Index
    errors: Matrix


def eliminate(
    layers: Sequence[Part], units: int, blocks: Index | None = None, *, order: Index | None = None
) -> Elimination:
    """Let all units go one after the other, the cheapest first; equal ones by index.

    Parameters
    ----------
    layers
        At least one; mutated.
    units
        Of the group.
    blocks
        Block of each unit, where every block keeps equally many; then blocks take turns.
    order
        Rungs in an order that another criterion gives: only their errors are wanted.
    """
    block: Index = np.zeros(units, np.int64) if blocks is None else blocks
    if order is not None:
        sorted_by_block = np.take_along_axis(order, np.argsort(block[order], axis=1, kind="stable"), axis=1)
        lost = np.sum([layer.losses(order) for layer in layers], axis=0)
        return Elimination(sorted_by_block, np.concatenate([[0.0], np.cumsum(np.maximum(lost, 0.0))]))
    width = int(block.max()) + 1
    gone: Bools = np.zeros(units, bool)
    rungs: list[list[int]] = []
    errors = [0.0]
    for _ in range(units // width):
        taken: list[int] = []
        used = np.zeros(width, bool)
        loss = 0.0
        for _ in range(width):
            costs = np.sum([layer.costs(units) for layer in layers], axis=0)
            member = int(np.argmin(np.where(gone | used[block], np.inf, costs)))
            loss += max(sum(layer.drop(member) for layer in layers), 0.0)
            gone[member] = used[block[member]] = True
            taken.append(member)
        rungs.append(sorted(taken, key=lambda u: int(block[u])))
        errors.append(errors[-1] + loss)
    return Elimination(np.asarray(rungs, np.int64), np.asarray(errors))


def refit(weight: Matrix, covariance: Matrix, gone: Bools) -> Matrix:
    """The weights after all flagged features are gone at once, which elimination one by one leaves, too.

    Parameters
    ----------
    weight
        Shape (blocks, outputs per block, features).
    covariance
        Shape (blocks, features, features), not damped.
    gone
        Shape (blocks, features).
    """
    damped = damp(covariance)
    found = np.zeros_like(weight)
    for block, lost in enumerate(gone):
        left = ~lost
        if left.any():
            inner = damped[block][np.ix_(left, left)]
            right = damped[block][left] @ weight[block].T
            found[block][:, left] = np.linalg.solve(inner, right).T
    return found


def energy(weight: Matrix, covariance: Matrix) -> float:
    """A layer's output variance, summed over its outputs; 1 where it has none."""
    found = float((weight * (weight @ covariance)).sum())
    return found if found > 0 else 1.0


def damp(covariance: Matrix) -> Matrix:
    """The covariance with `DAMPING` of the mean variance added to every variance."""
    features = covariance.shape[-1]
    level = np.einsum("gii->g", covariance) / max(features, 1)
    damped = np.array(covariance, np.float64)
    damped[:, np.arange(features), np.arange(features)] += np.maximum(DAMPING * level, 1e-12)[:, None]
    return damped
