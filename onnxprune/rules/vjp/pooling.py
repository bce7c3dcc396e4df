"""VJPs of poolings: the gradient of a window goes to the positions that it reads.

A maximum sends it to the position that won, an average in equal parts to all; a p-norm in the ratio of their
powers. Windows of one channel know nothing of others, so channels are folded into the batch axis.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxprune.rules.backward import Backward, Vjp
from onnxprune.rules.expr import Array, Expr, vector
from onnxprune.rules.op import Op
from onnxprune.rules.rule import Key
from onnxprune.rules.windows import Windows, spread, windows


def _kernel(op: Op) -> tuple[int, ...]:
    return tuple(op.ints("kernel_shape") or ())


def _folded(back: Backward, expr: Expr, value: ir.Value) -> Expr:
    """(N, C, ...) as (N C, 1, ...)."""
    return expr.reshape(_fold_shape(back, value))


def _fold_shape(back: Backward, value: ir.Value) -> Expr:
    return vector(back.builder, [-1, 1, *back.extents(value)[2:]])


def _spread(back: Backward, shares: Expr, w: Windows) -> Expr:
    """Give every position the shares of all windows that read it."""
    op = back.op
    x, y = op.input(0), op.output()
    if w.kernel == w.strides and set(w.dilations) == {1} and w.fixed and w.reach == w.image:
        return _repeated(back, shares, w)
    ones = back.builder.constant(np.ones((1, 1, *w.kernel), np.float32))
    whole = spread(back, _folded(back, shares, y), ones, w, x)
    return back.reshape_like(whole, x)


def _repeated(back: Backward, shares: Expr, w: Windows) -> Expr:
    """Windows side by side: every position has one."""
    count = len(w.kernel)
    apart = shares.unsqueeze(*(3 + 2 * axis for axis in range(count)))
    sizes = [1, 1, *(size for k in w.kernel for size in (1, k))]
    return back.reshape_like(apart.expand(sizes), back.op.input(0))


def _average(op: Op, back: Backward) -> None:
    w = windows(back, op.input(0), op.output(), _kernel(op))
    back.give(0, _spread(back, back.g / _counts(back, w), w))


def _counts(back: Backward, w: Windows) -> Expr | float:
    """How many positions each window averages over."""
    op = back.op
    plain = not any((*w.begins, *w.ends)) or op.int("count_include_pad", 0)
    if plain and not op.int("ceil_mode", 0) and None not in w.begins:
        return float(math.prod(w.kernel))
    if w.fixed:
        return back.builder.constant(_count(w, bool(op.int("count_include_pad", 0))))
    image = back.x().slice(0, 0, 1).slice(1, 0, 1)
    attributes = {k: v for k, v in op.node.attributes.items() if k != "count_include_pad"}
    if op.int("count_include_pad", 0):
        raise back.refusal("ceil_mode with padding that counts, on an image without fixed extents")
    ones = image * 0.0 + 1.0
    given = {name: attribute.value for name, attribute in attributes.items()}
    share = ones.op("AveragePool", **{**given, "count_include_pad": 1})
    return share * float(math.prod(w.kernel))


def _count(w: Windows, with_pads: bool) -> Array:
    """(1, 1, map): positions of each window inside the image, or inside the image and its pads."""
    counts = np.ones((), np.float32)
    for axis, kernel in enumerate(w.kernel):
        begin, end, image = w.begins[axis] or 0, w.ends[axis] or 0, w.image[axis] or 0
        starts = np.arange(w.map[axis] or 0)[:, None] * w.strides[axis] - begin
        positions = starts + np.arange(kernel) * w.dilations[axis]
        low, high = (-begin, image + end) if with_pads else (0, image)
        inside = ((positions >= low) & (positions < high)).sum(axis=1)
        counts = counts[..., None] * inside.astype(np.float32)
    return counts[None, None]


def _lp(op: Op, back: Backward) -> None:
    w = windows(back, op.input(0), op.output(), _kernel(op))
    back.give(0, _spread(back, _root_slope(back, number_p(op)), w) * _power_slope(back, number_p(op)))


def number_p(op: Op) -> float:
    """The attribute `p`, which is an integer."""
    return float(op.int("p", 2))


def _root_slope(back: Backward, p: float) -> Expr:
    """G y^(1-p), 0 where all that is read is 0."""
    y = back.y()
    safe = y.op("Greater", 0.0)
    return (back.g * safe.op("Where", y, 1.0) ** (1.0 - p)).where(safe)


def _power_slope(back: Backward, p: float) -> Expr:
    """sign(x) |x|^(p-1)."""
    x = back.x()
    if p == 2.0:
        return x
    return x.op("Sign") if p == 1.0 else x.op("Sign") * x.op("Abs") ** (p - 1.0)


def _global_lp(op: Op, back: Backward) -> None:
    p = number_p(op)
    back.give(0, _root_slope(back, p) * _power_slope(back, p))


def _global_average(op: Op, back: Backward) -> None:
    x = op.input(0)
    axes = range(2, back.rank(x))
    back.give(0, back.expand_like(back.g / back.count(x, axes), x, axes))


def _global_max(op: Op, back: Backward) -> None:
    axes = range(2, back.rank(op.input(0)))
    wins = back.x().op("Equal", back.y()).float()
    back.give(0, wins * (back.g / wins.sum(*axes)))


def _max(op: Op, back: Backward) -> None:
    """The indices count through all positions of all samples and channels."""
    x = op.input(0)
    flat = _indices(back).reshape([-1])
    size = back.builder.op("Size", x).reshape([1])
    zeros = back.builder.zeros(size)
    whole = zeros.op("ScatterElements", flat, back.g.reshape([-1]), axis=0, reduction="add")
    back.give(0, back.reshape_like(whole, x))


def _indices(back: Backward) -> Expr:
    """The node's own indices, made an output where they are none; those in column order are made again."""
    node = back.op.node
    if back.op.int("storage_order", 0):
        given = {k: v.value for k, v in node.attributes.items() if k != "storage_order"}
        return back.builder.ops("MaxPool", [back.x()], 2, **given)[1]
    if len(node.outputs) < 2:
        node.resize_outputs(2)
    if not node.outputs[1].name:
        node.outputs[1].name = f"{node.outputs[0].name}/indices"
    return back.builder.of(node.outputs[1])


VJPS: dict[Key, Vjp] = {
    ("", "MaxPool"): _max,
    ("", "AveragePool"): _average,
    ("", "LpPool"): _lp,
    ("", "GlobalAveragePool"): _global_average,
    ("", "GlobalMaxPool"): _global_max,
    ("", "GlobalLpPool"): _global_lp,
}
