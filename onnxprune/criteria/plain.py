"""Losing units that nothing makes up for: what a layer's output changes by when its weights stay as they are.

Without the units S a layer's output changes by the sum of what they contribute, whose mean square is

    sum over i, j in S of (W^T W)_ij E[x_i x_j]

(`1_S^T [(W^T W) o (X X^T)] 1_S`), with covariances in place of `E[x x^T]` where a bias makes up for the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.criteria.elimination import energy, one_by_one
from onnxprune.graph.axes import Index
from onnxprune.statistics.moments import Matrix, Moments


@dataclass(eq=False)
class Plain:
    """One consumer of a group's units that keeps its weights, while units go.

    Attributes
    ----------
    form
        Shape (units, units): the mean product of what two units contribute to the outputs, summed over these.
    now
        Shape (units,): what each unit costs to lose now; mutated.
    scale
        What an error is divided by: the layer's own output variance.
    """

    form: Matrix
    now: Matrix
    scale: float

    @classmethod
    def of(cls, weight: Matrix, seen: Moments, unit: Index, units: int, *, shifted: bool) -> Plain:
        """A layer that still has all its units.

        Parameters
        ----------
        weight
            Shape (blocks, outputs per block, features).
        seen
            Moments of its input.
        unit
            Shape (blocks, features): the unit of each feature, -1 for those that always stay.
        units
            Of the group.
        shifted
            Whether its bias makes up for the mean of what is lost.
        """
        covariance = seen.covariance
        second = covariance if shifted else seen.gram / max(seen.count, 1.0)
        form = np.zeros((units, units))
        for w, s, u in zip(weight, second, unit, strict=True):
            member = (u[None] == np.arange(units)[:, None]).astype(np.float64)
            form += member @ ((w.T @ w) * s) @ member.T
        return cls(form, np.diag(form).copy(), energy(weight, covariance))

    def costs(self, units: int) -> Matrix:
        """Shape (units,): what each unit costs to lose now, as a share of the layer's output variance."""
        return self.now / self.scale

    def drop(self, member: int) -> float:
        """Let one unit go; what that costs. Below zero where it undoes what went before."""
        cost = float(self.now[member])
        self.now += 2 * self.form[member]
        return cost / self.scale

    def losses(self, order: Index) -> Matrix:
        """Shape (rungs,): what each rung costs when all units go in the order (rungs, units per rung)."""
        return one_by_one(self, order)
