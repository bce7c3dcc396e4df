"""VJPs of normalisations. All that divide by a deviation share one formula.

With n = (x - mean) / deviation over some axes, y = n * scale + bias and h = dy * scale,

    dx = (h - mean(h) - n * mean(h * n)) / deviation,

where the first mean is missing where no mean is subtracted (RMSNormalization).
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxprune.rules.backward import Backward, Vjp
from onnxprune.rules.expr import Expr, vector
from onnxprune.rules.op import Op
from onnxprune.rules.rule import Key
from onnxprune.rules.vjp.elementwise import number


def _normalised(x: Expr, axes: Sequence[int], epsilon: float, centred: bool = True) -> tuple[Expr, Expr]:
    """(x - mean) / deviation, and 1 / deviation."""
    if centred:
        x = x - x.mean(*axes)
    inverse = 1.0 / ((x * x).mean(*axes) + epsilon).op("Sqrt")
    return x * inverse, inverse


def _input(h: Expr, n: Expr, inverse: Expr, axes: Sequence[int], centred: bool = True) -> Expr:
    rest = h - h.mean(*axes) if centred else h
    return (rest - n * (h * n).mean(*axes)) * inverse


def _per_channel(back: Backward, slot: int, rank: int) -> Expr:
    """A vector over channels, aligned with (N, C, ...)."""
    return back.x(slot).unsqueeze(*range(1, rank - 1)) if rank > 2 else back.x(slot)


def _batch(op: Op, back: Backward) -> None:
    if op.int("training_mode", 0):
        _batch_statistics(op, back)
        return
    rank, g = back.rank(op.input(0)), back.g
    scale, mean, variance = (_per_channel(back, slot, rank) for slot in (1, 3, 4))
    inverse = 1.0 / (variance + number(op, "epsilon", 1e-5)).op("Sqrt")
    rest = [dim for dim in range(rank) if dim != 1]
    if back.wants(0):
        back.give(0, g * (scale * inverse))
    if back.wants(2):
        back.give(2, g.sum(*rest, keep=False))
    if back.wants(1) or back.wants(4):
        centred = (g * (back.x() - mean)).sum(*rest, keep=False)
        flat = _flat(inverse, rank)
        if back.wants(1):
            back.give(1, centred * flat)
        if back.wants(4):
            back.give(4, -0.5 * centred * back.x(1) * flat * flat * flat)
    if back.wants(3):
        back.give(3, -(g.sum(*rest, keep=False) * back.x(1) * _flat(inverse, rank)))


def _batch_statistics(op: Op, back: Backward) -> None:
    """In training mode, mean and variance are those of the input (what weight standardisation is exported as)."""
    rank = back.rank(op.input(0))
    axes = [dim for dim in range(rank) if dim != 1]
    n, inverse = _normalised(back.x(), axes, number(op, "epsilon", 1e-5))
    _channels(back, n, rank)
    for slot in (3, 4):  # the running statistics have no part in the output
        back.give(slot, None)
    if back.wants(0):
        back.give(0, _input(back.g * _per_channel(back, 1, rank), n, inverse, axes))


def _flat(per_channel: Expr, rank: int) -> Expr:
    return per_channel.squeeze(*range(1, rank - 1)) if rank > 2 else per_channel


def _instance(op: Op, back: Backward) -> None:
    rank = back.rank(op.input(0))
    axes = range(2, rank)
    n, inverse = _normalised(back.x(), axes, number(op, "epsilon", 1e-5))
    _channels(back, n, rank)
    if back.wants(0):
        back.give(0, _input(back.g * _per_channel(back, 1, rank), n, inverse, axes))


def _channels(back: Backward, n: Expr, rank: int) -> None:
    """Gradients of a scale and a bias per channel."""
    rest = [dim for dim in range(rank) if dim != 1]
    if back.wants(1):
        back.give(1, (back.g * n).sum(*rest, keep=False))
    if back.wants(2):
        back.give(2, back.g.sum(*rest, keep=False))


def _group(op: Op, back: Backward) -> None:
    """Groups are rows of (N, groups, channels of a group and positions)."""
    x = op.input(0)
    rank, groups = back.rank(x), op.int("num_groups", 1)
    channels = back.dims(x)[1]
    if channels is None:
        raise back.refusal("its number of channels is not known")
    shape = [0, groups, -1]
    n, inverse = _normalised(back.x().reshape(shape), [2], number(op, "epsilon", 1e-5))
    per_group = back.dims(op.input(1)) == (groups,) and channels != groups  # opset 18
    whole = back.reshape_like(n, x)
    rest = [dim for dim in range(rank) if dim != 1]
    for slot in (1, 2):
        if back.wants(slot):
            product = back.g * whole if slot == 1 else back.g
            made = product.sum(*rest, keep=False)
            back.give(slot, made.reshape([groups, -1]).sum(1, keep=False) if per_group else made)
    if back.wants(0):
        scale = back.x(1)
        if per_group:
            scale = scale.unsqueeze(1).expand([groups, channels // groups]).reshape([-1])
        scaled = back.g * (scale.unsqueeze(*range(1, rank - 1)) if rank > 2 else scale)
        back.give(0, back.reshape_like(_input(scaled.reshape(shape), n, inverse, [2]), x))


def _layer(op: Op, back: Backward) -> None:
    x = op.input(0)
    centred = op.node.op_type == "LayerNormalization"
    rank = back.rank(x)
    axes = range(op.int("axis", -1) % rank, rank)
    if any(slot for slot in (1, 2) if back.gradient(slot) is not None):
        raise back.refusal("its mean or deviation takes part in the loss")
    n, inverse = _normalised(back.x(), axes, number(op, "epsilon", 1e-5), centred)
    if back.wants(1):
        back.give_fitted(1, back.g * n)
    if back.wants(2):
        back.give_fitted(2, back.g)
    if back.wants(0):
        back.give(0, _input(back.g * back.x(1), n, inverse, axes, centred))


def _mean_variance(op: Op, back: Backward) -> None:
    axes = [axis % back.rank(op.input(0)) for axis in op.ints("axes") or [0, 2, 3]]
    n, inverse = _normalised(back.x(), axes, 1e-9)
    back.give(0, _input(back.g, n, inverse, axes))


def _lp(op: Op, back: Backward) -> None:
    """Y = x / |x|: dx = (dy - slope sum(dy y)) / |x|, with slope the norm's derivative."""
    axis, p = op.int("axis", -1) % back.rank(op.input(0)), op.int("p", 2)
    x, y = back.x(), back.y()
    size = x.op("ReduceL1" if p == 1 else "ReduceL2", back.builder.ints(axis), keepdims=1)
    safe = size.op("Greater", 0.0)
    slope = x.op("Sign") if p == 1 else y
    made = (back.g - slope * (back.g * y).sum(axis)) / safe.op("Where", size, 1.0)
    back.give(0, made.where(safe))


def _local_response(op: Op, back: Backward) -> None:
    """Y = x s^-b with s = bias + alpha / size * (sum of squares over neighbouring channels).

    dx = dy s^-b - 2 alpha b / size * x * (sum over the channels that neighbour it of dy y / s).
    """
    x = op.input(0)
    size = op.int("size", 1)
    alpha, beta, bias = number(op, "alpha", 1e-4), number(op, "beta", 0.75), number(op, "bias", 1.0)
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    squares = _neighbours(back, back.x() * back.x(), x, size, before, after)
    s = squares * (alpha / size) + bias
    back_sum = _neighbours(back, back.g * back.y() / s, x, size, after, before)
    back.give(0, back.g * s ** (-beta) - (2 * alpha * beta / size) * back.x() * back_sum)


def _neighbours(back: Backward, expr: Expr, x: ir.Value, size: int, before: int, after: int) -> Expr:
    """Sums over `size` neighbouring channels."""
    rank = back.rank(x)
    flat = expr.reshape(vector(back.builder, [0, 1, 0 if rank == 2 else back.extent(x, 1), -1]))
    sums = flat.op(
        "AveragePool", kernel_shape=[size, 1], pads=[before, 0, after, 0], count_include_pad=1, strides=[1, 1]
    )
    return back.reshape_like(sums * float(size), x)


VJPS: dict[Key, Vjp] = {
    ("", "BatchNormalization"): _batch,
    ("", "InstanceNormalization"): _instance,
    ("", "GroupNormalization"): _group,
    ("", "LayerNormalization"): _layer,
    ("", "RMSNormalization"): _layer,
    ("", "SimplifiedLayerNormalization"): _layer,
    ("", "MeanVarianceNormalization"): _mean_variance,
    ("", "LpNormalization"): _lp,
    ("", "LRN"): _local_response,
}
