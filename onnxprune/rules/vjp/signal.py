"""VJPs of DFT and Det.

A Fourier transform is a product with a matrix F, whose transposed conjugate is n times the inverse transform. The
derivative of a determinant is the adjugate, transposed.

Specification: https://onnx.ai/onnx/operators/onnx__DFT.html, https://onnx.ai/onnx/operators/onnx__Det.html
"""

from __future__ import annotations

import numpy as np

from onnxprune.rules.backward import Backward, Vjp
from onnxprune.rules.expr import Expr
from onnxprune.rules.op import Op
from onnxprune.rules.rule import Key

_LARGEST = 6
"""Rows of a matrix up to which powers of it are exact enough in float32."""


def transform(x: Expr, axis: int, version: int, **attributes: int) -> Expr:
    """Add a DFT, whose axis was an attribute before opset 20."""
    if version < 20:
        return x.op("DFT", axis=axis, **attributes)
    return x.op("DFT", None, x.builder.constant(np.int64(axis)), **attributes)


def _fourier(op: Op, back: Backward) -> None:
    x, y = op.input(0), op.output()
    rank, inverse = back.rank(x), op.int("inverse", 0)
    axes = [op.int("axis", 1)] if op.opset < 20 else op.ints("axis", 2) if op.has(2) else [-2]
    if axes is None:
        raise back.refusal("its axis is not fixed")
    axis = axes[0] % rank
    parts = back.dims(x)[-1]
    one_sided = bool(op.int("onesided", 0))
    if parts not in (1, 2) or (one_sided and inverse):
        raise back.refusal("it gives real numbers, or the parts of its numbers are not known")
    before = back.extent(x, axis)
    length = _length(op, back, axis)
    g = back.g
    if one_sided:  # the half that was left out has no part in the loss
        g = g.pad([0] * rank, _at(back, rank, axis, length, back.extent(y, axis)))
    made = transform(g, axis, back.version, inverse=1 - inverse)
    many = float(length) if isinstance(length, int) else length.float()
    made = made / many if inverse else made * many
    if parts == 1:
        made = made.slice(rank - 1, 0, 1)
    give_all = isinstance(length, int) and isinstance(before, int) and length == before
    if op.has(1) and not give_all:  # the input was cut, or zeros were added
        made = made.pad([0] * rank, _at(back, rank, axis, before, length))
    back.give(0, made)


def _length(op: Op, back: Backward, axis: int) -> Expr | int:
    if not op.has(1):
        return back.extent(op.input(0), axis)
    given = op.data(1)
    return back.x(1).reshape([1]) if given is None or op.varies(1) else int(np.ravel(given)[0])


def _at(back: Backward, rank: int, axis: int, long: Expr | int, short: Expr | int) -> list[Expr | int]:
    """Zeros behind the positions of one axis, up to `long` of them."""
    ints = back.builder.ints
    if isinstance(long, int) and isinstance(short, int):
        more: Expr | int = long - short
    else:
        ends = [ints(side) if isinstance(side, int) else side for side in (long, short)]
        more = ends[0] - ends[1]
    return [more if dim == axis else 0 for dim in range(rank)]


def _determinant(op: Op, back: Backward) -> None:
    """The adjugate by Faddeev and LeVerrier: M' = A M + c I with c = -trace(A M) / k."""
    x = op.input(0)
    rank, size = back.rank(x), back.dims(x)[-1]
    if size is None or size > _LARGEST:
        raise back.refusal(f"its matrices have more than {_LARGEST} rows, or as many as the input says")
    one = back.builder.constant(np.eye(size, dtype=np.float32))
    a, m = back.x(), one
    for step in range(1, size):
        product = a @ m
        trace = (product * one).sum(-2, -1)
        m = product - one * (trace / float(step))
    adjugate = m if size % 2 else -m
    g = back.g.unsqueeze(-2, -1)
    made = g * adjugate.swap_last(rank) if size > 1 else g * one
    back.give(0, made)


VJPS: dict[Key, Vjp] = {("", "DFT"): _fourier, ("", "Det"): _determinant}
