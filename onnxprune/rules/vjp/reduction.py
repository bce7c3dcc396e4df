"""VJPs of reductions, softmax and selections along axes.

What a reduction made of many positions goes back to each of them, times the derivative of the reduction with
respect to that position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnxprune.rules.backward import Backward, Vjp
from onnxprune.rules.expr import Expr
from onnxprune.rules.op import Op, normalized
from onnxprune.rules.rule import Key


def _axes(back: Backward) -> list[int]:
    """The axes that are reduced, counted from the front; none where nothing happens."""
    op = back.op
    rank = back.rank(op.input(0))
    axes = op.ints("axes", 1)
    if op.has(1) and axes is None:
        raise back.refusal("its axes are known at run time only")
    if not axes:
        return [] if op.int("noop_with_empty_axes", 0) else list(range(rank))
    return normalized(axes, rank)


def _kept(back: Backward, expr: Expr, axes: Sequence[int]) -> Expr:
    """With an axis of extent 1 for each that was reduced."""
    return expr if back.op.int("keepdims", 1) else expr.unsqueeze(*sorted(axes))


def reducing(slope: Callable[[Backward, Expr, Expr, Sequence[int]], Expr]) -> Vjp:
    """VJP of a reduction from the product of its output's gradient and its derivative.

    `slope` takes the gradient and the output, both with the reduced axes kept, and the axes; what it gives is
    broadcast to the input's shape.
    """

    def vjp(op: Op, back: Backward) -> None:
        axes = _axes(back)
        g, y = _kept(back, back.g, axes), _kept(back, back.y(), axes)
        back.give(0, slope(back, g, y, axes))

    return vjp


def _sum(back: Backward, g: Expr, y: Expr, axes: Sequence[int]) -> Expr:
    return back.expand_like(g, back.op.input(0), axes)


def _mean(back: Backward, g: Expr, y: Expr, axes: Sequence[int]) -> Expr:
    count = back.count(back.op.input(0), axes)
    return back.expand_like(g / count, back.op.input(0), axes)


def _extreme(back: Backward, g: Expr, y: Expr, axes: Sequence[int]) -> Expr:
    """Positions that tie share the gradient."""
    wins = back.x().op("Equal", y).float()
    return wins * (g / wins.sum(*axes))


def _product(back: Backward, g: Expr, y: Expr, axes: Sequence[int]) -> Expr:
    """The product of all others, which is 0 where another is 0."""
    x = back.x()
    zero = x.op("Equal", 0.0)
    zeros = zero.float().sum(*axes)
    ones = zero.op("Where", 1.0, x)
    others = ones
    if axes:
        others = ones.op("ReduceProd", back.builder.ints(*axes), keepdims=1)
    alone = others.where(zeros.op("Less", 1.5))
    return g * zero.op("Where", alone, (others / ones).where(zeros.op("Less", 0.5)))


def _root(back: Backward, g: Expr, y: Expr, axes: Sequence[int]) -> Expr:
    safe = y.op("Greater", 0.0)
    return (g / safe.op("Where", y, 1.0)).where(safe) * back.x()


def _softmax_dims(back: Backward) -> list[int]:
    """One axis; before opset 13 all from one on, as a matrix."""
    op = back.op
    rank = back.rank(op.input(0))
    first = op.int("axis", -1 if op.opset >= 13 else 1) % rank
    return [first] if op.opset >= 13 else list(range(first, rank))


def _softmax(op: Op, back: Backward) -> None:
    product = back.g * back.y()
    back.give(0, product - back.y() * product.sum(*_softmax_dims(back)))


def _log_softmax(op: Op, back: Backward) -> None:
    back.give(0, back.g - back.y().op("Exp") * back.g.sum(*_softmax_dims(back)))


def _cumulative(op: Op, back: Backward) -> None:
    axis = back.x(1)
    given = {"exclusive": op.int("exclusive", 0), "reverse": 1 - op.int("reverse", 0)}
    back.give(0, back.g.op("CumSum", axis, **given))


def _top(op: Op, back: Backward) -> None:
    """The values; gradients do not pass indices."""
    axis = op.int("axis", -1) % back.rank(op.input(0))
    zeros = back.builder.zeros(back.shape(op.input(0)))
    back.give(0, zeros.op("ScatterElements", back.y(1), back.g, axis=axis, reduction="add"))


VJPS: dict[Key, Vjp] = {
    ("", "ReduceSum"): reducing(_sum),
    ("", "ReduceMean"): reducing(_mean),
    ("", "ReduceMax"): reducing(_extreme),
    ("", "ReduceMin"): reducing(_extreme),
    ("", "ReduceProd"): reducing(_product),
    ("", "ReduceL1"): reducing(lambda back, g, y, axes: g * back.x().op("Sign")),
    ("", "ReduceL2"): reducing(_root),
    ("", "ReduceLogSum"): reducing(lambda back, g, y, axes: _sum(back, g * (-y).op("Exp"), y, axes)),
    ("", "ReduceLogSumExp"): reducing(lambda back, g, y, axes: g * (back.x() - y).op("Exp")),
    ("", "ReduceSumSquare"): reducing(lambda back, g, y, axes: 2.0 * g * back.x()),
    ("", "Softmax"): _softmax,
    ("", "LogSoftmax"): _log_softmax,
    ("", "CumSum"): _cumulative,
    ("", "TopK"): _top,
}
