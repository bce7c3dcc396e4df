"""Exchange: units that went are swapped with units that stayed for as long as the error falls.

Greedy elimination never takes a unit back. Afterwards pairs are looked at, one unit that is gone and one that is
left (Kwon et al. 2022, https://arxiv.org/abs/2204.09656, who rearrange masks that way, with second derivatives for
the error; Meng et al. 2024, https://arxiv.org/abs/2403.12983, with the error of the refitted layer, as here).

All errors come from one tableau. For the input covariance C, the weight W, the features P that are left and S that
are gone it holds

    A = [ -M       M C_PS              ]    Y = [ W_P + W_S C_SP M    W_S (C_SS - C_SP M C_PS) ]    M = inv(C_PP)
        [ C_SP M   C_SS - C_SP M C_PS  ]

the refitted weights in Y_P, what is left of the outputs' covariance with the features that are gone in Y_S. Letting
the features u of a unit go or taking them back changes the error by

    -tr(Y_u inv(A_uu) Y_u^T)

either way, and leaves `A - A_:u inv(A_uu) A_u:` and `Y - Y_u inv(A_uu) A_u:` elsewhere: the sweep operator
(Goodnight 1979, https://doi.org/10.1080/00031305.1979.10482685), a block at a time. So with u back, what every v
would cost takes only the small blocks A_uu, A_uv and A_vv and the products of Y_u and Y_v.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.criteria.elimination import by_size, damp, energy
from onnxprune.graph.axes import Bools, Index
from onnxprune.statistics.moments import Matrix

Linear = tuple[Matrix, Matrix, Index]
"""A layer: its weight, the covariance of its input and the unit of every feature, as `Layer.of` takes them."""

SWEEPS = 4
"""How often at most all units that are gone are looked at."""

LEAST = 1e-4
"""A swap that lowers the error by less than this share of it is none."""


@dataclass(frozen=True, eq=False)
class Exchanged:
    """A set of units that is no worse than the one it came from.

    Attributes
    ----------
    gone
        Shape (units,), as many of every block as before.
    swapped
        How many units came back; as many others went.
    before, after
        The error, as a share of the layers' output variance, summed over the layers.
    """

    gone: Bools
    swapped: int
    before: float
    after: float


def exchange(parts: Sequence[Linear], gone: Bools, blocks: Index | None = None) -> Exchanged:
    """Swap units until no swap helps, or all that are gone were looked at `SWEEPS` times.

    Units that are gone come in turn, the one that would help most first; each is swapped with the unit of its block
    that then costs least. At most half as many swaps are made as there are units: no more updates than the
    elimination of all of them takes.

    Parameters
    ----------
    parts
        The layers that consume the units; not mutated.
    gone
        Shape (units,): what elimination took; not mutated.
    blocks
        Shape (units,): block of each unit, where every block keeps equally many.
    """
    before = error(parts, gone)
    if before <= 0 or gone.all():
        return Exchanged(gone, 0, before, before)
    found = _search(_State.of(parts, gone), before, blocks)
    after = error(parts, found)
    if not after < before:  # rounding, where features are almost copies
        return Exchanged(gone, 0, before, before)
    return Exchanged(found, int((gone & ~found).sum()), before, after)


def _search(state: _State, now: float, blocks: Index | None) -> Bools:
    """The flags after all swaps."""
    gone, left = state.gone, len(state.gone) // 2
    for _ in range(SWEEPS):
        before, members = left, np.flatnonzero(gone)
        gains = np.array([state.gain(member) for member in members.tolist()])
        for member in members[np.argsort(-gains, kind="stable")].tolist():
            if not left or state.gain(member) <= LEAST * now:
                continue
            changes = state.changes(member)
            changes[gone if blocks is None else gone | (blocks != blocks[member])] = np.inf
            other = int(np.argmin(changes))
            if changes[other] < -LEAST * now:
                state.swap(member, other)
                now, left = now + float(changes[other]), left - 1
        if left == before:
            break
    return gone


def error(parts: Sequence[Linear], gone: Bools) -> float:
    """What losing the flagged units costs after the refit, as a share of the layers' output variance, summed.

    Computed anew: `tr(W_S (C_SS - C_SP inv(C_PP) C_PS) W_S^T)` over all layers.
    """
    total = 0.0
    for weight, covariance, unit in parts:
        part = 0.0
        for w, c, flags in zip(weight, damp(covariance), _lost(unit, gone), strict=True):
            lost = w[:, flags].T
            cross = c[np.ix_(~flags, flags)] @ lost
            made_up = cross * np.linalg.solve(c[np.ix_(~flags, ~flags)], cross)
            part += float((lost * (c[np.ix_(flags, flags)] @ lost)).sum() - made_up.sum())
        total += max(part, 0.0) / energy(weight, covariance)
    return total


def _lost(unit: Index, gone: Bools) -> Bools:
    """Which features belong to units that are gone."""
    flags: Bools = (unit >= 0) & gone[np.maximum(unit, 0)]
    return flags


@dataclass(frozen=True, eq=False)
class _Kept:
    """The blocks of units that are left and have equally many features each.

    Attributes
    ----------
    members, index
        Shapes (units,) and (units, features per unit): the units and their features.
    inner, gram
        Shape (units, features per unit, features per unit): A_vv, and Y_v^T Y_v.
    """

    members: Index
    index: Index
    inner: Matrix
    gram: Matrix


@dataclass(frozen=True, eq=False)
class _Tableau:
    """A layer, or one group of a convolution, with some units gone.

    Attributes
    ----------
    form, rest
        A and Y: shapes (features, features) and (outputs, features); mutated.
    unit
        Shape (features,): the unit of each feature, -1 for those that always stay.
    scale
        What an error is divided by: the layer's own output variance.
    """

    form: Matrix
    rest: Matrix
    unit: Index
    scale: float

    def kept(self, gone: Bools) -> list[_Kept]:
        """The diagonal blocks of all units that are left."""
        found = []
        for members, index in by_size(np.where(_lost(self.unit, gone), -1, self.unit)):
            inner = self.form[index[:, :, None], index[:, None, :]]
            columns = self.rest[:, index].transpose(1, 2, 0)
            found.append(_Kept(members, index, inner, columns @ columns.transpose(0, 2, 1)))
        return found

    def change(self, member: int) -> float:
        """By how much the error changes when one unit goes, or comes back."""
        index = np.flatnonzero(self.unit == member)
        columns = self.rest[:, index].T
        return (
            -float((columns * np.linalg.solve(self.form[np.ix_(index, index)], columns)).sum()) / self.scale
        )

    def costs(self, kept: Sequence[_Kept], units: int) -> Matrix:
        """Shape (units,): what each unit that is left costs to lose."""
        total = np.zeros(units)
        for left in kept:
            total[left.members] = _traces(left.inner, left.gram) / self.scale
        return total

    def costs_with(self, member: int, kept: Sequence[_Kept], units: int) -> Matrix:
        """The same if one unit were back."""
        total = np.zeros(units)
        own = np.flatnonzero(self.unit == member)
        inverse = np.linalg.inv(self.form[np.ix_(own, own)])
        columns = inverse @ self.rest[:, own].T
        products, form = columns @ self.rest, self.form[own]
        for left in kept:
            rows = form[:, left.index].transpose(
                1, 0, 2
            )  # (units, features of the member, features per unit)
            turned = rows.transpose(0, 2, 1)
            mixed = turned @ products[:, left.index].transpose(1, 0, 2)
            gram = left.gram - mixed - mixed.transpose(0, 2, 1) + turned @ (columns @ columns.T) @ rows
            total[left.members] = _traces(left.inner - turned @ inverse @ rows, gram) / self.scale
        return total

    def toggle(self, member: int) -> None:
        """Take one unit back, or let it go."""
        own = np.flatnonzero(self.unit == member)
        if not len(own):
            return
        inverse = np.linalg.inv(self.form[np.ix_(own, own)])
        sign = np.sign(np.trace(inverse))  # A_PP is negative definite, A_SS positive
        rows, columns = inverse @ self.form[own], self.rest[:, own] @ inverse
        self.rest[:] -= self.rest[:, own] @ rows
        self.form[:] -= self.form[:, own] @ rows
        self.rest[:, own] = sign * columns
        self.form[own], self.form[:, own] = sign * rows, sign * rows.T
        self.form[np.ix_(own, own)] = -inverse


@dataclass(frozen=True, eq=False)
class _State:
    """All layers with some units gone, and what follows from that for each of them.

    Attributes
    ----------
    tableaus
        Mutated.
    holders
        Per unit: the tableaus that have features of it.
    gone
        Shape (units,); mutated.
    kept, costs
        Per tableau: the blocks of the units that are left, and what each unit costs to lose; mutated.
    """

    tableaus: list[_Tableau]
    holders: list[list[int]]
    gone: Bools
    kept: list[list[_Kept]]
    costs: list[Matrix]

    @classmethod
    def of(cls, parts: Sequence[Linear], gone: Bools) -> _State:
        """The state without the flagged units, shape (units,); copies what it is given."""
        tableaus = _tableaus(parts, gone)
        holders: list[list[int]] = [[] for _ in gone]
        for number, tableau in enumerate(tableaus):
            for unit in np.unique(tableau.unit[tableau.unit >= 0]):
                holders[unit].append(number)
        kept = [tableau.kept(gone) for tableau in tableaus]
        costs = [tableau.costs(found, len(gone)) for tableau, found in zip(tableaus, kept, strict=True)]
        return cls(tableaus, holders, gone.copy(), kept, costs)

    def gain(self, member: int) -> float:
        """By how much the error falls when a unit comes back."""
        return -sum(self.tableaus[number].change(member) for number in self.holders[member])

    def changes(self, member: int) -> Matrix:
        """Shape (units,): by how much the error changes when a unit comes back and each other one goes."""
        total: Matrix = np.sum(self.costs, axis=0) - self.gain(member)
        for number in self.holders[member]:
            with_it = self.tableaus[number].costs_with(member, self.kept[number], len(self.gone))
            total += with_it - self.costs[number]
        return total

    def swap(self, member: int, other: int) -> None:
        """Take one unit back, and let another one go."""
        self.gone[member], self.gone[other] = False, True
        for number in {*self.holders[member], *self.holders[other]}:
            tableau = self.tableaus[number]
            tableau.toggle(member)
            tableau.toggle(other)
            self.kept[number] = tableau.kept(self.gone)
            self.costs[number] = tableau.costs(self.kept[number], len(self.gone))


def _traces(inner: Matrix, gram: Matrix) -> Matrix:
    """Shape (units,): `-tr(Y_v inv(A_vv) Y_v^T)`."""
    found: Matrix = -np.einsum("uij,uij->u", np.linalg.inv(inner), gram)
    return found


def _tableaus(parts: Sequence[Linear], gone: Bools) -> list[_Tableau]:
    """Of all layers without the flagged units."""
    found = []
    for weight, covariance, unit in parts:
        scale = energy(weight, covariance)
        for w, c, u, flags in zip(weight, damp(covariance), unit, _lost(unit, gone), strict=True):
            s, p = np.flatnonzero(flags), np.flatnonzero(~flags)
            form, rest = c.copy(), w.astype(np.float64)
            inverse = np.linalg.inv(c[np.ix_(p, p)])
            cross = inverse @ c[np.ix_(p, s)]
            form[np.ix_(p, p)], form[np.ix_(p, s)], form[np.ix_(s, p)] = -inverse, cross, cross.T
            form[np.ix_(s, s)] -= c[np.ix_(s, p)] @ cross
            rest[:, p] += w[:, s] @ cross.T
            rest[:, s] = w[:, s] @ form[np.ix_(s, s)]
            found.append(_Tableau(form, rest, u, scale))
    return found
