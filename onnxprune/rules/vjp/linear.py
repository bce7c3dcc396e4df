"""VJPs of Gemm and MatMul: the gradient of one factor is the output's gradient times the other factor.

Y = A B gives dA = dY B' and dB = A' dY (' transposes the last two axes), summed over broadcast batch axes. Where
B is a matrix and A has batch axes, both are one product of matrices with all batch axes folded into the rows: Gemm
reads B transposed where it lies, and no transposed copy of a weight has to be kept.
"""

from __future__ import annotations

from onnxprune.rules.backward import Backward, Vjp
from onnxprune.rules.expr import Expr
from onnxprune.rules.op import Op
from onnxprune.rules.rule import Key
from onnxprune.rules.vjp.elementwise import number


def _gemm(op: Op, back: Backward) -> None:
    alpha, beta = number(op, "alpha", 1.0), number(op, "beta", 1.0)
    ta, tb = op.int("transA", 0), op.int("transB", 0)
    g, a, b = back.g, back.x(0), back.x(1)
    if back.wants(0):
        made = _product(b, g, alpha, tb, 1) if ta else _product(g, b, alpha, 0, 1 - tb)
        back.give(0, made)
    if back.wants(1):
        made = _product(g, a, alpha, 1, ta) if tb else _product(a, g, alpha, 1 - ta, 0)
        back.give(1, made)
    if back.wants(2):
        scaled = g if beta == 1.0 else g * beta
        back.give_fitted(2, scaled)


def _product(a: Expr, b: Expr, alpha: float, ta: int, tb: int) -> Expr:
    return a.op("Gemm", b, alpha=alpha, transA=ta, transB=tb)


def _matmul(op: Op, back: Backward) -> None:
    a, b = op.input(0), op.input(1)
    rank_a, rank_b = back.rank(a), back.rank(b)
    if rank_a == 1 or rank_b == 1:
        _with_vectors(back, rank_a, rank_b)
        return
    inner, columns = back.dims(a)[-1], back.dims(op.output())[-1]
    if rank_b == 2 and inner is not None and columns is not None:
        _with_matrix(back, rank_a, inner, columns)
        return
    if back.wants(0):
        back.give(0, back.fit(back.g @ back.x(1).swap_last(rank_b), a, last=2))
    if back.wants(1):
        back.give(1, back.fit(back.x(0).swap_last(rank_a) @ back.g, b, last=2))


def _with_matrix(back: Backward, rank_a: int, inner: int, columns: int) -> None:
    """The right factor is a matrix, (inner, columns): all other axes are rows."""
    g, a = back.g, back.x(0)
    if rank_a > 2:
        g = g.reshape([-1, columns])
    if back.wants(0):
        rows = _product(g, back.x(1), 1.0, 0, 1)
        back.give(0, back.reshape_like(rows, back.op.input(0)) if rank_a > 2 else rows)
    if back.wants(1):
        rows = a.reshape([-1, inner]) if rank_a > 2 else a
        back.give(1, _product(rows, g, 1.0, 1, 0))


def _with_vectors(back: Backward, rank_a: int, rank_b: int) -> None:
    """A vector on the left is a row, one on the right a column; the output lacks that axis."""
    g, a, b = back.g, back.x(0), back.x(1)
    if rank_a == 1 and rank_b == 1:
        if back.wants(0):
            back.give(0, g * b)
        if back.wants(1):
            back.give(1, g * a)
    elif rank_b == 1:  # (..., m, k) by (k): (..., m)
        if back.wants(0):
            back.give(0, g.unsqueeze(-1) * b)
        if back.wants(1):
            every = list(range(rank_a - 1))
            back.give(1, (g.unsqueeze(-1) * a).sum(*every, keep=False))
    else:  # (k) by (..., k, n): (..., n)
        if back.wants(0):
            every = [dim for dim in range(rank_b) if dim != rank_b - 2]
            back.give(0, (g.unsqueeze(-2) * b).sum(*every, keep=False))
        if back.wants(1):
            back.give(1, g.unsqueeze(-2) * a.unsqueeze(-1))


VJPS: dict[Key, Vjp] = {("", "Gemm"): _gemm, ("", "MatMul"): _matmul}
