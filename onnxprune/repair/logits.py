"""What makes up for dims that queries and keys lost: a matrix between the others, folded into the weights.

The original's logits are x_t^T z_t, the cut model's x_s^T z_s with fewer dims (x: the factor whose layer is
changed, z: the other one). With x and z taken as independent, least squares of the one and of the other give

    x_t ~ R_x x_s + r        z_t ~ R_z z_s        x_t^T z_t ~ (M^T x_s + c)^T z_s        M = R_x^T R_z   c = R_z^T r

head by head, and the layer that makes x gets `W' = M^T W`, `b' = M^T b + c`. A ridge pulls R_x and R_z toward the
dims as they are, so M toward 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.graph.axes import Index
from onnxprune.repair.fit import RIDGES
from onnxprune.statistics.consumers import Consumer
from onnxprune.statistics.moments import Matrix, Moments


@dataclass(frozen=True, eq=False)
class Rows:
    """Moments of one factor's rows `(left, whole)`: the dims that are left, then all dims of the original.

    Attributes
    ----------
    moments
        The heads are the groups.
    kept
        Shape (left,): which of the original's dims are left.
    centred
        Whether only what lies around the mean matters.
    """

    moments: Moments
    kept: Index
    centred: bool

    @classmethod
    def of_itself(cls, moments: Moments, kept: Index, centred: bool) -> Rows:
        """Of a factor that only loses dims, from the moments of all its dims."""
        columns = np.concatenate([kept, np.arange(moments.total.shape[1])])
        gram = moments.gram[:, columns][:, :, columns]
        return cls(Moments(moments.count, moments.total[:, columns], gram), kept, centred)

    @property
    def mean(self) -> Matrix:
        """Shape (heads, left + whole)."""
        return np.zeros_like(self.moments.total) if self.centred else self.moments.mean

    @property
    def second(self) -> Matrix:
        """Shape (heads, left + whole, left + whole): second moments of what matters."""
        return self.moments.covariance if self.centred else self.moments.gram / max(self.moments.count, 1.0)

    def refit(self, share: float, around: bool) -> Matrix:
        """Shape (heads, left, whole): transposed weights that give the whole from what is left.

        Parameters
        ----------
        share
            Of the mean second moment, as a ridge toward the dims as they are.
        around
            Whether there is an intercept.
        """
        n = len(self.kept)
        second = self.moments.covariance if around else self.second
        level = np.einsum("hii->h", second[:, :n, :n]) / max(n, 1)
        ridge = np.maximum(share * level, 1e-12)[:, None, None]
        toward = np.zeros(second[:, :n, n:].shape)
        toward[:, np.arange(n), self.kept] = 1.0
        left = second[:, :n, :n] + ridge * np.eye(n)
        return np.asarray(np.linalg.solve(left, second[:, :n, n:] + ridge * toward), np.float64)


@dataclass(frozen=True, eq=False)
class Mixing:
    """What is folded into the weights, and how well it does.

    Attributes
    ----------
    matrix, shift
        Shapes (heads, left, left) and (heads, left): M and c.
    error, before
        Mean squared error per logit, summed over the heads, with it and without.
    energy
        Mean square of the original's logits, for scale.
    """

    matrix: Matrix
    shift: Matrix
    error: float
    before: float
    energy: float

    @property
    def helps(self) -> bool:
        """Whether it is better than nothing."""
        return self.error < self.before


def mix(x: Rows, z: Rows, share: float, *, shift: bool) -> tuple[Matrix, Matrix]:
    """M and c at one strength of the ridge.

    Parameters
    ----------
    x, z
        The factor that is mixed, and the other one.
    share
        See `Rows.refit`.
    shift
        Whether the layer can have another bias; else c is zero.
    """
    n = len(x.kept)
    mine, other = x.refit(share, shift), z.refit(share, False)
    matrix = mine @ other.transpose(0, 2, 1)
    if not shift:
        return matrix, np.zeros(matrix.shape[:2])
    intercept = x.mean[:, n:] - np.einsum("hp,hpd->hd", x.mean[:, :n], mine)
    return matrix, np.einsum("hd,hpd->hp", intercept, other)


def best_mixing(x: tuple[Rows, Rows], z: tuple[Rows, Rows], *, shift: bool) -> Mixing:
    """The best of several ridges by the error on held-out rows.

    Parameters
    ----------
    x, z
        Rows to fit on and rows to choose on, of the factor that is mixed and of the other one.
    shift
        Whether the layer can have another bias.
    """
    n, heads = len(x[0].kept), len(x[0].moments.total)
    whole = x[1].second[:, n:, n:] * z[1].second[:, n:, n:]
    energy = max(float(whole.sum()), 0.0)
    same = np.broadcast_to(np.eye(n), (heads, n, n)), np.zeros((heads, n))
    before = max(energy + _rest(x[1], z[1], *same), 0.0)
    best = Mixing(*same, before, before, energy)
    for share in RIDGES:
        try:
            matrix, more = mix(x[0], z[0], share, shift=shift and not x[0].centred)
        except np.linalg.LinAlgError:
            continue
        error = max(energy + _rest(x[1], z[1], matrix, more), 0.0)  # rounding may take it below
        if np.isfinite(matrix).all() and np.isfinite(more).all() and error < best.error:
            best = Mixing(matrix, more, error, before, energy)
    return best


def plain_error(x: Rows, z: Rows) -> float:
    """Mean squared error per logit, summed over the heads, when dims only go."""
    n, heads = len(x.kept), len(x.moments.total)
    energy = float((x.second[:, n:, n:] * z.second[:, n:, n:]).sum())
    same = np.broadcast_to(np.eye(n), (heads, n, n)), np.zeros((heads, n))
    return max(energy + _rest(x, z, *same), 0.0)


def _rest(x: Rows, z: Rows, matrix: Matrix, shift: Matrix) -> float:
    """The mean squared error less the mean square of what is to be reached."""
    n = len(x.kept)
    xx, zz = x.second, z.second
    left, whole = x.mean[:, :n], x.mean[:, n:]
    shared = (matrix * (xx[:, :n, n:] @ zz[:, n:, :n])).sum()
    shared += (shift * np.einsum("hd,hdp->hp", whole, zz[:, n:, :n])).sum()
    moved = np.einsum("hp,hpq->hq", left, matrix)  # mean of M^T x
    made = matrix.transpose(0, 2, 1) @ xx[:, :n, :n] @ matrix
    made = made + moved[:, :, None] * shift[:, None] + shift[:, :, None] * (moved + shift)[:, None]
    return float((made * zz[:, :n, :n]).sum() - 2 * shared)


def fold(
    layer: Consumer, weight: Matrix, bias: Matrix, rows: Index, matrix: Matrix, shift: Matrix
) -> tuple[Matrix, Matrix]:
    """A layer's weight, (1, outputs, features), and bias, (outputs,), with `x' = M^T x + c` in some of its outputs.

    Parameters
    ----------
    layer
        With one group.
    rows
        Shape (heads, left): the outputs.
    matrix, shift
        M and c; c in units of the layer's outputs.
    """
    if layer.groups != 1:
        raise ValueError(f"{layer.label} is divided into groups")
    weight, bias = weight.copy(), bias.copy()
    turned = matrix.transpose(0, 2, 1)
    weight[0, rows] = turned @ weight[0, rows]
    bias[rows] = np.einsum("hqp,hp->hq", turned, bias[rows]) + shift
    return weight, bias
