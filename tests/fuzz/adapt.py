"""Values of a wanted shape, made from those at hand, and operators applied to them as a template says."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.model.shapes import infer_shapes
from onnxprune.rules import default_rules
from onnxprune.testing import Activation, Feed, Weight
from onnxprune.testing.feeds import execute, make_feeds
from tests.fuzz.templates import extents, templates
from tests.fuzz.walk import At, Walk

_DENSE = 6000


def adapt(w: Walk, shape: tuple[int, ...]) -> At:
    """A value of this shape: one at hand, one reshaped, or a linear map of one."""
    at = w.pick(lambda at: at.shape == shape) if w.chance(0.7) else None
    if at is not None:
        return at
    at = w.pick(lambda at: at.static and at.size == math.prod(shape) and at.rank > 0)
    if at is not None and shape and w.chance(0.7):
        return At(w.reshape(at, shape), shape, at.bound)
    at = w.pick(lambda at: at.rank == len(shape) and at.rank > 0)
    if at is not None and w.chance(0.6):
        return axis_by_axis(w, at, shape)
    at = w.pick(lambda at: at.rank > 0 and at.size * math.prod(shape) < _DENSE)
    if at is not None and len(shape) > 0 and w.chance(0.6):
        at = w.whole(at)
        rows, columns = math.prod(at.shape), math.prod(shape)  # type: ignore[arg-type]
        if rows * columns < _DENSE:
            flat = w.op("Reshape", at.value, w.ints(1, -1))
            return At(w.op("Reshape", w.op("MatMul", flat, w.matrix(rows, columns)), w.ints(*shape)), shape)
    return spread(w, shape)


def axis_by_axis(w: Walk, at: At, shape: tuple[int | str, ...]) -> At:
    """A matrix product along every axis whose extent differs."""
    if not at.static and isinstance(shape[0], int):
        at = w.whole(at)
    value, bound, last = at.value, at.bound, at.rank - 1
    for dim, (have, want) in enumerate(zip(at.shape, shape, strict=True)):
        if have == want or isinstance(want, str):
            continue
        perm = list(range(at.rank))
        perm[dim], perm[last] = last, dim
        turned = value if dim == last else w.op("Transpose", value, perm=perm)
        product = w.op("MatMul", turned, w.matrix(int(have), want))
        value, bound = product if dim == last else w.op("Transpose", product, perm=perm), max(bound, 2.0)
    return At(value, shape, bound)


def spread(w: Walk, shape: tuple[int, ...]) -> At:
    """Weights of this shape times one number of the graph: every axis can lose positions."""
    source = w.pick()
    assert source is not None, "a walk starts with a value"
    mean = w.given("ReduceMean", source.value, axes=list(range(source.rank)), keepdims=0)
    factor = w.op("Add", w.op("Sigmoid", mean), w.number(0.5))
    if shape:
        factor = w.op("Reshape", factor, w.ints(*[1] * len(shape)))
    return At(w.op("Mul", factor, w.weight(*shape)), shape, 1.5)


def operand(w: Walk, entry: Any, at: At | None) -> ir.Value | None:
    """One input as a template says; `at` is the value to use for an activation."""
    if entry is None:
        return None
    if isinstance(entry, Weight):
        return w.weight(*entry.shape, low=entry.low, high=entry.high)
    if isinstance(entry, Feed):
        value = w.b.input("fed", entry.shape, ir.DataType.from_numpy(np.dtype(entry.dtype)))
        w.highs[str(value.name)] = entry.high
        return value
    shape = extents(entry)
    if shape is None:
        return w.b.constant(entry)
    wanted = entry if isinstance(entry, Activation) else Activation(shape)
    value = w.ranged(at or adapt(w, shape), wanted.low, wanted.high).value
    if wanted.dtype == "bool":
        return w.op("Greater", value, w.number(0.0))
    if wanted.dtype == "float32":
        return value
    return w.op("Cast", value, to=ir.DataType.from_numpy(np.dtype(wanted.dtype)).value)


def node(w: Walk, case: Any, ats: dict[int, At]) -> list[ir.Value]:
    """The template's operator; `ats` are the values for its activations, by slot."""
    inputs = [operand(w, entry, ats.get(slot)) for slot, entry in enumerate(case.inputs)]
    count = case.outputs
    wanted = [True] * count if isinstance(count, int) else [bool(name) for name in count]
    names = [f"{case.op_type.lower()}{w.nodes}_y{i}" if shown else "" for i, shown in enumerate(wanted)]
    w.checker &= case.checker
    made = w.ops(case.op_type, *inputs, outputs=names, domain=case.domain, **case.attributes)
    return [value for value in made if value.name]


def apply(w: Walk, number: int) -> None:
    """Apply a template to values of its own shapes and add what it makes to the values at hand."""
    case = templates()[number]
    for value, (shape, dtype, bound) in zip(node(w, case, {}), outcome(number), strict=True):
        take(w, value, shape, dtype, bound)


def apply_to(w: Walk, number: int, at: At, *others: At) -> At:
    """Apply a pointwise template to values of another shape."""
    case, ((_, dtype, bound),) = templates()[number], outcome(number)
    slots = [slot for slot, entry in enumerate(case.inputs) if extents(entry) is not None]
    made = node(w, case, dict(zip(slots, (at, *others), strict=False)))
    return take(w, made[0], at.shape, dtype, bound)


def take(w: Walk, value: ir.Value, shape: Any, dtype: str, bound: float) -> At:
    """Make a result a float again; one whose extents depend on data becomes a number."""
    value.type = ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype)))
    if shape is not None:  # onnx infers none for some operators that it defines as functions
        value.shape = ir.Shape(shape)
    if dtype != "float32":
        value = w.op("Cast", value, to=1)
    if shape is None:
        value = w.given("ReduceSum", value, keepdims=0)
        value, shape, bound = w.op("Reshape", w.op("Tanh", value), w.ints(1)), (1,), 1.0
    return w.push(value, shape, bound)


@cache
def outcome(number: int) -> tuple[tuple[tuple[int, ...] | None, str, float], ...]:
    """Extents, type and largest value of what a template makes; no extents where they depend on data."""
    case = templates()[number]
    w = Walk(np.random.default_rng(number), case.opset, bool(case.domain))
    w.values.append(At(w.b.input("x", (2, 3)), (2, 3)))
    made = node(w, case, {})
    model = w.b.model(*made)
    results = execute(model, make_feeds(model, w.highs))
    dims = infer_shapes(model, None, default_rules().infer).dims
    found = []
    for value in made:
        array = results[str(value.name)]
        largest = np.abs(array.astype(np.float64)).max(initial=0.0)
        known = None not in (dims.get(value) or (None,)) or array.ndim == 0
        found.append((array.shape if known else None, array.dtype.name, float(largest)))
    return tuple(found)
