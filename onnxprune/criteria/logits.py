"""Greedy elimination of the dims that queries and keys share: which costs least to lose when the others make up.

A logit is q^T k. With queries and keys taken as independent, and second moments S = E[q q^T], T = E[k k^T], the
best that the kept dims P can do is q_P^T M k_P with

    M = inv(S_PP) S_P: T_:P inv(T_PP)        error = tr(S T) - tr(Q K)

where Q = S_:P inv(S_PP) S_P: is what q_P explains of q, and K the same of k. Letting the dims u go takes
G_u inv(H_uu) G_u^T away from Q, with H = inv(S_PP) and G = S_:P H, so every next error is a downdate, as for
layers (`onnxprune.criteria.elimination`). Which dims of queries and keys to keep is chosen by their correlations
in MoDeGPT, too (Lin et al. 2024, https://arxiv.org/abs/2408.09632), without the elimination.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.criteria.elimination import by_size, damp, one_by_one
from onnxprune.graph.axes import Index
from onnxprune.statistics.moments import Matrix

Side = tuple[Matrix, Matrix]
"""Of one factor, shape (heads, dims, dims) each: the second moment that counts, and the one that a refit sees.

They differ where a refit has a bias: then it sees the covariance.
"""


@dataclass(frozen=True, eq=False)
class _Factor:
    """Queries or keys, while units go; everything is mutated.

    Attributes
    ----------
    inverse
        Shape (heads, dims, dims): H, zero for dims that are gone.
    gain
        Shape (heads, dims, dims): G, the weights of the best reconstruction from what is left.
    explained
        Shape (heads, dims, dims): Q, of the second moment that counts.
    """

    inverse: Matrix
    gain: Matrix
    explained: Matrix

    @classmethod
    def of(cls, side: Side) -> _Factor:
        counts, seen = side
        ridge = damp(seen) - seen
        gain = np.broadcast_to(np.eye(seen.shape[-1]), seen.shape).copy()
        return cls(np.asarray(np.linalg.inv(seen + ridge), np.float64), gain, counts + ridge)

    def lost(self, index: Index) -> tuple[Matrix, Matrix]:
        """What reconstructions lose with some dims: columns (heads, ..., dims, k), and inv(H_uu) times their rows.

        `index` has the shape (..., k); the product of both is what Q loses.
        """
        inner = self.inverse[:, index[..., :, None], index[..., None, :]]
        columns = np.moveaxis(self.gain[:, :, index], 1, -2)
        return columns, np.asarray(np.linalg.solve(inner, columns.swapaxes(-1, -2)), np.float64)

    def drop(self, index: Index) -> None:
        columns, rows = self.lost(index)
        inner = self.inverse[:, index[:, None], index[None, :]]
        solved = np.linalg.solve(inner, self.inverse[:, index])
        self.explained[...] -= columns @ rows
        self.gain[...] -= columns @ solved
        self.inverse[...] -= self.inverse[:, :, index] @ solved
        self.gain[:, :, index] = 0.0  # exactly, also in all updates to come
        self.inverse[:, index] = self.inverse[:, :, index] = 0.0


@dataclass(frozen=True, eq=False)
class Logits:
    """A product of queries and keys that loses dims; what `eliminate` takes besides layers.

    Attributes
    ----------
    queries, keys
        The factors; mutated.
    unit
        Shape (dims,): the unit of each dim that is left, -1 for all others; mutated.
    scale
        What an error is divided by: the second moment of the logits.
    """

    queries: _Factor
    keys: _Factor
    unit: Index
    scale: float

    @classmethod
    def of(cls, queries: Side, keys: Side, unit: Index) -> Logits:
        """A product that still has all its dims; copies what it is given."""
        factors = _Factor.of(queries), _Factor.of(keys)
        energy = float((factors[0].explained * factors[1].explained).sum())
        return cls(*factors, unit.copy(), energy if energy > 0 else 1.0)

    def costs(self, units: int) -> Matrix:
        """Shape (units,): what each unit costs to lose now, as a share of the logits' second moment."""
        total = np.zeros(units)
        for members, index in by_size(self.unit):
            total[members] += self._cost(index)
        return total / self.scale

    def drop(self, member: int) -> float:
        """Let one unit go, and let the others make up for it; what that costs, as a share of the second moment."""
        index = np.flatnonzero(self.unit == member)
        if not len(index):
            return 0.0
        cost = float(self._cost(index[None])[0])
        self.queries.drop(index)
        self.keys.drop(index)
        self.unit[index] = -1
        return cost / self.scale

    def losses(self, order: Index) -> Matrix:
        """Shape (rungs,): what each rung costs when all units go in the order (rungs, units per rung); mutated."""
        return one_by_one(self, order)

    def _cost(self, index: Index) -> Matrix:
        """Shape (units,), for dims (units, k): by how much tr(Q K) falls, summed over the heads.

        tr(QK) - tr((Q - A)(K - B)) = tr(A K) + tr(Q B) - tr(A B)
        """
        q, q_rows = self.queries.lost(index)
        k, k_rows = self.keys.lost(index)
        first = np.einsum("huki,huik->u", q_rows, _times(self.keys.explained, q))
        second = np.einsum("huki,huik->u", k_rows, _times(self.queries.explained, k))
        both = np.einsum("huij,huji->u", q_rows @ k, k_rows @ q)
        return np.asarray(first + second - both, np.float64)


def _times(matrix: Matrix, columns: Matrix) -> Matrix:
    """(heads, dims, dims) times (heads, units, dims, k)."""
    return np.asarray(matrix[:, None] @ columns, np.float64)
