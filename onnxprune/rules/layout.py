"""Operators that only rename positions: Transpose, Squeeze, Unsqueeze, Reshape, Flatten, DepthToSpace.

Reshape is read as a factorisation. Both shapes are cut into the finest common factors; `C -> (H, D)` has the
factors H and D, both on C's axis. A factor that fills its axis on both sides is a tie. Otherwise it is one of
several choices for the axis that holds more than one factor: cutting C along H removes whole heads, cutting
it along D the same position of every head.

Specification: https://onnx.ai/onnx/operators/onnx__Reshape.html and its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.errors import Reason
from onnxprune.graph.axes import Axis, Index
from onnxprune.rules.divided import blocks_of, carry, merged
from onnxprune.rules.helpers import arange
from onnxprune.rules.op import normalized
from onnxprune.rules.pins import pin_dims
from onnxprune.rules.rule import Key, Rule, table

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxprune.graph.relations import Relations
    from onnxprune.rules.op import Op
    from onnxprune.rules.refit import Refit


@dataclass(frozen=True)
class Factor:
    """A common factor of two shapes.

    Attributes
    ----------
    size
        Its number of values.
    a_dim, b_dim
        The axes that hold it.
    a_stride, b_stride
        Its stride within those axes.
    """

    size: int
    a_dim: int
    b_dim: int
    a_stride: int
    b_stride: int


def factorize(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[list[Factor], set[int], set[int]]:
    """Finest common factors of two shapes with equal products; and the dims that have none.

    Where two dims have no common refinement, they and what lies left of them up to where the products agree
    again have none.

    Examples
    --------
    >>> [(f.size, f.a_dim, f.b_dim) for f in factorize((2, 12), (2, 3, 4))[0]]
    [(2, 0, 0), (3, 1, 1), (4, 1, 2)]
    >>> factorize((6, 4), (4, 6))[1:]
    ({0, 1}, {0, 1})
    >>> factorize((5, 6, 4), (5, 4, 6))
    ([Factor(size=5, a_dim=0, b_dim=0, a_stride=1, b_stride=1)], {1, 2}, {1, 2})
    """
    factors: list[Factor] = []
    stuck_a: set[int] = set()
    stuck_b: set[int] = set()
    i, j = len(a) - 1, len(b) - 1
    rest_a, rest_b, stride_a, stride_b = 1, 1, 1, 1
    while i >= 0 or j >= 0 or rest_a > 1 or rest_b > 1:
        if rest_a == 1 and i >= 0:
            rest_a, stride_a, i = a[i], 1, i - 1
            continue
        if rest_b == 1 and j >= 0:
            rest_b, stride_b, j = b[j], 1, j - 1
            continue
        low, high = sorted((rest_a, rest_b))
        if high % low:
            stuck_a.add(i + 1)
            stuck_b.add(j + 1)
            while rest_a != rest_b:
                if rest_a < rest_b:
                    rest_a, i = rest_a * a[i], i - 1
                    stuck_a.add(i + 1)
                else:
                    rest_b, j = rest_b * b[j], j - 1
                    stuck_b.add(j + 1)
            rest_a = rest_b = 1
            continue
        factors.append(Factor(low, i + 1, j + 1, stride_a, stride_b))
        rest_a, rest_b = rest_a // low, rest_b // low
        stride_a, stride_b = stride_a * low, stride_b * low
    return factors[::-1], stuck_a, stuck_b


def relate_reshape(op: Op, relations: Relations) -> None:
    """State the ties and choices of an operator whose only effect is to regroup axes."""
    x, y = op.input(0), op.output()
    a, b = op.dims(x), op.dims(y)
    if a is None or b is None or None in a or None in b:
        return
    shape_a, shape_b = tuple(d or 0 for d in a), tuple(d or 0 for d in b)
    if 0 in shape_a or math.prod(shape_a) != math.prod(shape_b):
        return
    factors, stuck_a, stuck_b = factorize(shape_a, shape_b)
    elsewhere = _elsewhere(op)
    if elsewhere is not None and not _agree(op, factors, elsewhere):
        for axis in (*op.axes(x), *op.axes(y)):
            relations.pin(axis, Reason.DYNAMIC)
        return
    for dim in stuck_a:
        relations.pin(Axis(x, dim), Reason.INCOMPATIBLE_BLOCKS)
    for dim in stuck_b:
        relations.pin(Axis(y, dim), Reason.INCOMPATIBLE_BLOCKS)
    _tie_factors(op, relations, factors, shape_a, shape_b)
    if op.has(1):
        relations.auxiliary(op.input(1))


def _tie_factors(
    op: Op,
    relations: Relations,
    factors: list[Factor],
    shape_a: tuple[int, ...],
    shape_b: tuple[int, ...],
) -> None:
    """A factor that fills its axis on both sides is a tie, any other a choice; blocks in a row are one axis."""
    x, y = op.input(0), op.output()
    whole = {f.a_dim: f.b_dim for f in factors if f.size == shape_a[f.a_dim] == shape_b[f.b_dim]}
    joined = _blocks_in_a_row(op, relations, factors, shape_a)
    for number, factor in enumerate(factors):
        left, right = Axis(x, factor.a_dim), Axis(y, factor.b_dim)
        for axis in (left, right):
            if op.dynamic(axis) and not (op.dynamic(left) and op.dynamic(right)):
                relations.compose(axis)
        m, n = shape_a[factor.a_dim], shape_b[factor.b_dim]
        if left in joined.values():
            relations.follow(left, right)
        elif left in joined:
            relations.pin(left, Reason.RECURRENT)
        elif factor.size == m == n:
            blocked = blocks_of(relations, left)
            carry(relations, left, right, None if blocked is None else whole.get(blocked.rows))
        else:
            left_index, right_index = _pairs(factor, m, n)
            relations.choice(left, right, left_index, right_index, number)


def _blocks_in_a_row(
    op: Op, relations: Relations, factors: list[Factor], shape: tuple[int, ...]
) -> dict[Axis, Axis]:
    """Axes of blocks, and the divided axes that they become one axis with: (..., 2, H) to (..., 2 H)."""
    x, found = op.input(0), {}
    held = {dim: [f for f in factors if f.a_dim == dim] for dim in range(len(shape))}
    for axis in op.axes(x):
        blocked = blocks_of(relations, axis)
        if blocked is None or not merged(relations, axis, shape):
            continue
        mine = held[blocked.rows] + held[axis.dim]
        target = {f.b_dim for f in mine}
        if len(mine) == 2 and len(target) == 1 and all(f in mine for f in factors if f.b_dim in target):
            found[Axis(x, blocked.rows)] = axis
    return found


def _elsewhere(op: Op) -> list[Factor] | None:
    """The factors at another binding of the symbolic dims; None where there is none."""
    a, b = op.dims_elsewhere(op.input(0)), op.dims_elsewhere(op.output())
    if a is None or b is None or None in a or None in b:
        return None
    shape_a, shape_b = tuple(d or 0 for d in a), tuple(d or 0 for d in b)
    if math.prod(shape_a) != math.prod(shape_b) or 0 in shape_a:
        return []
    return factorize(shape_a, shape_b)[0]


def _agree(op: Op, factors: list[Factor], elsewhere: list[Factor]) -> bool:
    """Whether factors at two bindings are the same, but for those of dynamic axes that only one has."""
    left = list(factors)
    for factor in elsewhere:
        a, b = Axis(op.input(0), factor.a_dim), Axis(op.output(), factor.b_dim)
        free = op.dynamic(a) and op.dynamic(b)
        if left and (left[0].a_dim, left[0].b_dim) == (factor.a_dim, factor.b_dim):
            if left.pop(0).size != factor.size and not free:
                return False
        elif not free:
            return False
    return not left


def _pairs(factor: Factor, m: int, n: int) -> tuple[Index, Index]:
    """Edges that join all positions of both axes with the same digit of `factor`."""
    digit_a = arange(m) // factor.a_stride % factor.size
    digit_b = arange(n) // factor.b_stride % factor.size
    return np.concatenate([arange(m), digit_b * factor.a_stride]), np.concatenate(
        [digit_a * factor.b_stride, arange(n)]
    )


def _refit_reshape(op: Op, refit: Refit) -> None:
    x, y = op.input(0), op.output()
    asked = op.ints("shape", 1)
    wanted: dict[int, int] = {}
    moving: dict[int, int] = {}
    for axis in op.axes(y):
        entry = None if asked is None else asked[axis.dim]
        if entry == -1 or (entry is None and not refit.changed(axis)):
            continue  # a -1 takes what is left
        if op.dynamic(axis):
            if refit.changed(axis) or (entry != 0 and not op.is_constant(1)):  # what computes it may be cut
                moving[axis.dim] = refit.extent(axis)
            continue
        copied = Axis(x, axis.dim)
        if entry == 0 and axis.dim < op.rank(x) and refit.extent(copied) == refit.extent(axis):
            continue  # a 0 copies the input's dim of the same index
        wanted[axis.dim] = refit.extent(axis)
    if op.has(1):
        refit.entries(1, wanted)
        if moving:
            refit.moving[1] = moving
    else:
        refit.set_ints("shape", [wanted.get(i, v) for i, v in enumerate(asked or [])])


def _transpose(op: Op, relations: Relations) -> None:
    x, y = op.input(0), op.output()
    order = op.ints("perm") or list(range(op.rank(x)))[::-1]
    _rename(relations, x, y, {source: target for target, source in enumerate(order)})


def _squeeze(op: Op, relations: Relations) -> None:
    x, y = op.input(0), op.output()
    axes = op.ints("axes", 1)
    if axes is None:
        if op.has(1):
            return
        gone = {a.dim for a in op.axes(x) if op.extent(a) == 1}
    else:
        gone = set(normalized(axes, op.rank(x)))
    kept = [dim for dim in range(op.rank(x)) if dim not in gone]
    _rename(relations, x, y, dict(zip(kept, range(len(kept)), strict=True)))


def _rename(relations: Relations, x: ir.Value, y: ir.Value, targets: Mapping[int, int]) -> None:
    """Tie the axes of `x` to those of `y` that they become."""
    for source, target in targets.items():
        blocked = blocks_of(relations, Axis(x, source))
        rows = None if blocked is None else targets.get(blocked.rows)
        carry(relations, Axis(x, source), Axis(y, target), rows)


def _refit_squeeze(op: Op, refit: Refit) -> None:
    """Name the axes where they are implied: an axis that is cut down to one position stays."""
    x = op.input(0)
    if op.has(1) or op.ints("axes") is not None or not any(refit.changed(axis) for axis in op.axes(x)):
        return
    gone = [axis.dim for axis in op.axes(x) if op.extent(axis) == 1]
    if op.opset >= 13:
        refit.set_input(1, np.array(gone, np.int64))
    else:
        refit.set_ints("axes", gone)


def _unsqueeze(op: Op, relations: Relations) -> None:
    x, y = op.input(0), op.output()
    axes = op.ints("axes", 1)
    if axes is None:
        return
    new = set(normalized(axes, op.rank(y)))
    kept = [dim for dim in range(op.rank(y)) if dim not in new]
    _rename(relations, x, y, dict(enumerate(kept)))
    pin_dims(relations, y, new, Reason.STACKED)


def _depth_to_space(op: Op, relations: Relations) -> None:
    """DCR orders channels as (block, block, c), CRD as (c, block, block)."""
    deep, wide = Axis(op.input(0), 1), Axis(op.output(), 1)
    m, n = op.extent(deep) or 0, op.extent(wide) or 1
    depth_first = op.str("mode", "DCR") == "DCR"
    _blocks(op, relations, deep, wide, arange(m) % n if depth_first else arange(m) // (m // n))


def _space_to_depth(op: Op, relations: Relations) -> None:
    deep, wide = Axis(op.output(), 1), Axis(op.input(0), 1)
    _blocks(op, relations, deep, wide, arange(op.extent(deep) or 0) % (op.extent(wide) or 1))


def _blocks(op: Op, relations: Relations, deep: Axis, wide: Axis, channel: Index) -> None:
    relations.tie(deep, wide, arange(len(channel)), channel)
    x, y = op.input(0), op.output()
    relations.tie(Axis(x, 0), Axis(y, 0))
    for value in (x, y):
        for dim in range(2, op.rank(value)):
            relations.pin(Axis(value, dim), Reason.SPATIAL)


RULES: dict[Key, Rule] = {
    **table(Rule(relate_reshape, _refit_reshape), "Reshape"),
    **table(Rule(relate_reshape), "Flatten"),
    **table(Rule(_transpose), "Transpose"),
    **table(Rule(_squeeze, _refit_squeeze), "Squeeze"),
    **table(Rule(_unsqueeze), "Unsqueeze"),
    **table(Rule(_depth_to_space), "DepthToSpace"),
    **table(Rule(_space_to_depth), "SpaceToDepth"),
}
