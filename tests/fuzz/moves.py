"""Steps for values of any rank: element-wise operators, movement, reductions, products."""

from __future__ import annotations

import math

from onnxprune.rules import builtin_rules
from tests.fuzz.adapt import adapt, apply_to, axis_by_axis
from tests.fuzz.templates import usable
from tests.fuzz.walk import At, Walk

MOST = 24
"""Extents do not grow beyond this."""


def ranked(w: Walk, least: int = 1) -> At | None:
    return w.pick(lambda at: at.rank >= least and bool(at.free))


def like(w: Walk, at: At) -> At:
    """Another value of the same shape: at hand, made by products along axes, or adapted."""
    found = w.pick(lambda other: other.shape == at.shape and other is not at)
    if found is not None and w.chance(0.6):
        return found
    found = w.pick(lambda other: other.rank == at.rank and (other.shape[0] == at.shape[0] or at.static))
    if at.static and w.chance(0.3):
        return adapt(w, at.shape)  # type: ignore[arg-type]
    return axis_by_axis(w, found or at, at.shape)


def pointwise(w: Walk) -> None:
    """An element-wise operator of the tables."""
    at = ranked(w)
    table = usable(w.opset, False, pointwise=True)
    if at is not None:
        key = w.choose(list(table))
        apply_to(w, w.choose(table[key]), at, *(like(w, at) for _ in range(2)))


def residual(w: Walk) -> None:
    at = ranked(w)
    if at is not None:
        other = at if w.chance(0.1) else like(w, at)
        op_type = w.choose(["Add", "Add", "Sub", "Mul", "Max", "Sum"])
        bound = at.bound * other.bound if op_type == "Mul" else at.bound + other.bound
        w.push(w.op(op_type, at.value, other.value), at.shape, bound)


def broadcast(w: Walk) -> None:
    """A weight of fewer axes, or with extents of 1."""
    at = ranked(w)
    if at is None:
        return
    shape = [d if isinstance(d, int) and w.chance(0.7) else 1 for d in at.shape]
    shape = shape[w.integer(0, at.rank - 1) :]
    op_type = w.choose(["Add", "Mul", "Div", "Sub"])
    pair = [at.value, w.weight(*shape, low=0.5, high=1.5)]
    if w.chance(0.3) and op_type != "Div":
        pair.reverse()
    w.push(w.op(op_type, *pair), at.shape, 2 * at.bound)


def concat(w: Walk) -> None:
    at = ranked(w)
    if at is None:
        return
    axis = w.choose(at.free)
    parts = [at]
    for _ in range(w.integer(1, 2)):
        shape = list(at.shape)
        shape[axis] = w.integer(1, 6)
        near = w.pick(
            lambda o: (
                o.rank == at.rank and all(o.shape[d] == at.shape[d] for d in range(at.rank) if d != axis)
            )
        )
        parts.append(near if near and w.chance(0.6) else axis_by_axis(w, at, tuple(shape)))
    total = sum(int(part.shape[axis]) for part in parts)
    if total <= MOST:
        shape = [*at.shape[:axis], total, *at.shape[axis + 1 :]]
        axis -= at.rank if w.chance(0.3) else 0
        w.push(w.op("Concat", *(p.value for p in parts), axis=axis), shape, max(p.bound for p in parts))


def split(w: Walk) -> None:
    at = w.pick(lambda at: any(int(at.shape[d]) > 1 for d in at.free))
    if at is None:
        return
    axis = w.choose([d for d in at.free if int(at.shape[d]) > 1])
    n = int(at.shape[axis])
    middle = w.integer(1, n - 1)
    sizes = [n // 2, n // 2] if n % 2 == 0 and w.chance(0.5) else [middle, n - middle]
    made = w.given("Split", at.value, outputs=2, split=sizes, axis=axis)
    halves = [
        At(v, (*at.shape[:axis], m, *at.shape[axis + 1 :]), at.bound)
        for v, m in zip(made, sizes, strict=True)
    ]
    if sizes[0] == sizes[1] and w.chance(0.5):  # a gated unit
        gate = w.op("Sigmoid", halves[1].value)
        w.push(w.op("Mul", halves[0].value, gate), halves[0].shape, at.bound)
    else:
        w.values += halves


def cut(w: Walk) -> None:
    """A Slice, now and then with a step or with a computed end."""
    at = ranked(w)
    if at is None:
        return
    axis = w.choose(at.free)
    n = int(at.shape[axis])
    start = w.integer(0, n - 1)
    end, step = w.integer(start + 1, n), w.integer(1, 2) if w.opset >= 10 else 1
    shape = (*at.shape[:axis], -(-(end - start) // step), *at.shape[axis + 1 :])
    if w.opset >= 10 and w.chance(0.2):
        length = w.extent(at.value, axis)
        last = length if end == n else w.op("Sub", length, w.ints(n - end))
        made = w.op("Slice", at.value, w.ints(start), last, w.ints(axis), w.ints(step))
    else:
        last = w.choose([end, end - n if end < n else 2**31])
        steps = {"steps": [step]} if w.opset >= 10 else {}
        made = w.given("Slice", at.value, starts=[start], ends=[last], axes=[axis], **steps)
    w.push(made, shape, at.bound)


def gather(w: Walk) -> None:
    at = ranked(w)
    if at is None:
        return
    axis = w.choose(at.free)
    n = int(at.shape[axis])
    if at.rank > 1 and w.chance(0.2):
        made, middle = w.op("Gather", at.value, w.b.constant(w.integer(0, n - 1)), axis=axis), ()
    else:
        index = [w.integer(-n if w.opset >= 11 else 0, n - 1) for _ in range(w.integer(1, 8))]
        made, middle = w.op("Gather", at.value, w.ints(*index), axis=axis), (len(index),)
    w.push(made, (*at.shape[:axis], *middle, *at.shape[axis + 1 :]), at.bound)


def pad(w: Walk) -> None:
    at = ranked(w)
    if at is None:
        return
    axis = w.choose(at.free)
    n = int(at.shape[axis])
    before, after = w.integer(-1 if n > 2 else 0, 2), w.integer(0, 2)
    pads = [0] * (2 * at.rank)
    pads[axis], pads[at.rank + axis] = before, after
    if n + before + after <= MOST:
        w.push(
            w.given("Pad", at.value, pads=pads),
            (*at.shape[:axis], n + before + after, *at.shape[axis + 1 :]),
            at.bound,
        )


def tile(w: Walk) -> None:
    at = w.pick(lambda at: any(int(at.shape[d]) <= MOST // 2 for d in at.free))
    if at is None:
        return
    axis = w.choose([d for d in at.free if int(at.shape[d]) <= MOST // 2])
    n = int(at.shape[axis])
    shape = [1] * at.rank
    if n == 1:
        shape[axis] = times = w.integer(2, 6)
        made = w.op("Expand", at.value, w.ints(*shape))
    else:
        shape[axis] = times = 2
        made = w.op("Tile", at.value, w.ints(*shape))
    w.push(made, (*at.shape[:axis], n * times, *at.shape[axis + 1 :]), at.bound)


def transpose(w: Walk) -> None:
    at = w.pick(lambda at: len(at.free) > 1)
    if at is None:
        return
    held = [d for d in range(at.rank) if d not in at.free]
    perm = [*held, *(int(d) for d in w.rng.permutation(at.free))]
    w.push(w.op("Transpose", at.value, perm=perm), [at.shape[d] for d in perm], at.bound)


def regroup(w: Walk) -> None:
    """A Reshape that splits an axis, or merges two."""
    at = w.pick(lambda at: 1 < at.rank < 6 and bool(at.free))
    if at is None:
        return
    axis = w.choose(at.free)
    shape = list(at.shape)
    if axis + 1 < at.rank and w.chance(0.5):
        merged = int(shape[axis]) * int(shape[axis + 1])
        if merged > 4 * MOST:
            return
        shape[axis : axis + 2] = [merged]
    elif at.rank < 5:
        n = int(shape[axis])
        part = w.divisor(n, 2 if n > 1 else 1)
        shape[axis : axis + 1] = [n // part, part]
    w.push(w.reshape(at, shape), shape, at.bound)


def shuffle(w: Walk) -> None:
    """A channel shuffle along any axis, and something in between now and then."""
    at = w.pick(lambda at: 1 < at.rank < 5 and bool(at.free))
    if at is None:
        return
    axis = w.choose(at.free)
    n, value = int(at.shape[axis]), at.value
    part = w.divisor(n)
    shape = (*at.shape[:axis], part, n // part, *at.shape[axis + 1 :])
    value = w.reshape(at, shape)
    if w.chance(0.3):
        value = w.op("Sigmoid", value)
    perm = list(range(at.rank + 1))
    perm[axis], perm[axis + 1] = axis + 1, axis
    turned = At(w.op("Transpose", value, perm=perm), tuple(shape[d] for d in perm), at.bound)
    back = (
        w.op("Reshape", turned.value, w.op("Shape", at.value))
        if w.chance(0.2)
        else w.reshape(turned, at.shape)
    )
    w.push(back, at.shape, at.bound)


def flatten(w: Walk) -> None:
    at = w.pick(lambda at: at.rank > 2 and math.prod(int(at.shape[d]) for d in range(1, at.rank)) <= 8 * MOST)
    if at is not None:
        width = math.prod(int(d) for d in at.shape[1:])
        made = w.op("Flatten", at.value, axis=1) if w.chance(0.5) else w.reshape(at, (at.shape[0], width))
        columns = w.integer(2, 10)
        if w.chance(0.5):
            made = w.op("Gemm", made, w.matrix(width, columns), w.weight(columns))
        else:
            made = w.op("MatMul", made, w.matrix(width, columns))
        w.push(made, (at.shape[0], columns), 3.0)


def reduce(w: Walk) -> None:
    at = w.pick(lambda at: at.rank > 1 and bool(at.free))
    if at is None:
        return
    names = [op_type for domain, op_type in builtin_rules() if op_type.startswith("Reduce") and not domain]
    name, axes = w.choose(names), sorted({w.choose(at.free) for _ in range(2)})
    number = math.prod(int(at.shape[d]) for d in axes)
    keep = w.integer(0, 1)
    if name in ("ReduceLogSum", "ReduceProd"):
        at = w.ranged(at, 0.5, 1.5)
    made = w.given(
        name,
        at.value,
        axes=[d - at.rank if w.chance(0.2) and w.opset >= 11 else d for d in axes],
        keepdims=keep,
    )
    shape = [1 if d in axes else n for d, n in enumerate(at.shape) if keep or d not in axes]
    bound = {"ReduceProd": 1.5 ** min(number, 20), "ReduceSumSquare": number * at.bound**2}.get(
        name, number * at.bound
    )
    if shape:
        w.push(made, shape, bound)


def squeeze(w: Walk) -> None:
    at = ranked(w)
    if at is None:
        return
    ones = [d for d in at.free if at.shape[d] == 1]
    if ones and at.rank > 2:
        axis = w.choose(ones)
        w.push(w.given("Squeeze", at.value, axes=[axis]), (*at.shape[:axis], *at.shape[axis + 1 :]), at.bound)
    elif at.rank < 5:
        axis = w.integer(1, at.rank)
        w.push(w.given("Unsqueeze", at.value, axes=[axis]), (*at.shape[:axis], 1, *at.shape[axis:]), at.bound)


def normalise(w: Walk) -> None:
    """Softmax or a norm over one axis, written out or as an operator."""
    at = w.pick(lambda at: at.rank > 1 and bool(at.free))
    if at is None:
        return
    axis = w.choose(at.free)
    how = w.choose(["softmax", "l2", "layer", "written"])
    if how == "softmax" and (w.opset >= 13 or axis == at.rank - 1):
        w.push(w.op("Softmax", at.value, axis=axis), at.shape, 1.0)
    elif how == "l2":
        size = w.given("ReduceL2", at.value, axes=[axis], keepdims=1)
        w.push(w.op("Div", at.value, w.op("Add", size, w.number(1.0))), at.shape, 1.0)
    elif how == "layer" and w.knows("LayerNormalization") and axis == at.rank - 1:
        width = int(at.shape[axis])
        parts = (w.weight(width, low=0.5, high=1.5), w.weight(width))
        w.push(w.op("LayerNormalization", at.value, *parts, axis=-1, epsilon=0.1), at.shape, 3.0)
    else:
        centred = w.op("Sub", at.value, w.given("ReduceMean", at.value, axes=[axis], keepdims=1))
        square = w.op("Mul", centred, centred)
        spread = w.given("ReduceMean", square, axes=[axis], keepdims=1)
        w.push(w.op("Div", centred, w.op("Sqrt", w.op("Add", spread, w.number(0.1)))), at.shape, 3.0)


def scaled(w: Walk) -> None:
    """A number computed from an extent: it stays what it was."""
    at = ranked(w)
    if at is not None:
        root = w.op("Sqrt", w.op("Cast", w.extent(at.value, w.choose(at.free)), to=1))
        w.push(w.op("Div", at.value, root), at.shape, at.bound)


def other_type(w: Walk) -> None:
    """A segment in float16 or float64."""
    at = ranked(w)
    if at is None:
        return
    dtype = w.choose(["float16", "float64"])
    w.half |= dtype == "float16"
    to = {"float16": 10, "float64": 11}[dtype]
    value, shape = w.op("Cast", at.value, to=to), at.shape
    for _ in range(w.integer(1, 3)):
        what = w.choose(["act", "add", "product"])
        if what == "act":
            value = w.op(w.choose(["Relu", "Sigmoid", "Tanh"]), value)
        elif what == "add" and at.rank - 1 in at.free:
            row = w.b.rng.uniform(-1, 1, int(shape[-1])).astype(dtype)
            value = w.op("Add", value, w.b.constant(row))
        elif what == "product" and at.rank > 1:
            columns = w.integer(2, 8)
            size = (int(shape[-1]), columns)
            array = (w.b.rng.uniform(-1.7, 1.7, size) / math.sqrt(size[0])).astype(dtype)
            value, shape = w.op("MatMul", value, w.b.constant(array)), (*shape[:-1], columns)
    w.push(w.op("Cast", value, to=1), shape, at.bound + 3)
