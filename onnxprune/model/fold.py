"""Evaluation of the small integer tensors with which a graph computes shapes.

`evaluate` returns the value of a node's only output where all that it needs is known: `Shape` and `Size` of a
value with known extents, and data-independent operators on tensors whose values are known. numpy has the
same semantics as ONNX for nearly all of them; what differs (`Div` and `Mod` of negative integers, `Gather`
with negative indices) is spelled out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

Array = np.ndarray[Any, Any]


def evaluate(
    node: ir.Node,
    dims: Mapping[ir.Value, tuple[int | None, ...]],
    data: Mapping[ir.Value, Array],
) -> Array | None:
    """Value of the only output of `node`, or None where it is not known.

    Parameters
    ----------
    node
        Any node of the default domain.
    dims, data
        Extents and values known so far.
    """
    if node.domain not in ("", "ai.onnx") or len(node.outputs) != 1:
        return None
    if node.op_type in ("Shape", "Size"):
        extents = dims.get(node.inputs[0]) if node.inputs[0] is not None else None
        return None if extents is None else _of_shape(node, extents)
    function = _FUNCTIONS.get(node.op_type)
    if function is None:
        return None
    inputs: list[Array | None] = []
    for value in node.inputs:
        if value is not None and value not in data:
            return None
        inputs.append(None if value is None else data[value])
    if not inputs:
        return None
    try:
        with np.errstate(all="ignore"):
            result = function(node, inputs)
    except (ValueError, IndexError, TypeError, ZeroDivisionError, MemoryError):
        return None  # an ill-formed chain: onnx's own inference or onnxruntime will say what is wrong
    return None if result is None else np.asarray(result)


def _of_shape(node: ir.Node, extents: tuple[int | None, ...]) -> Array | None:
    if node.op_type == "Size":
        return None if None in extents else np.asarray(np.prod([d or 0 for d in extents]), np.int64)
    start, end = _int(node, "start", 0), _int(node, "end", None)
    part = extents[slice(start, end)]
    return None if None in part else np.array(part, np.int64)


def _int(node: ir.Node, name: str, default: int | None) -> int | None:
    attr = node.attributes.get(name)
    return default if attr is None else int(attr.as_int())


def _ints(node: ir.Node, inputs: Sequence[Array | None], name: str, slot: int) -> list[int] | None:
    if len(inputs) > slot and inputs[slot] is not None:
        return [int(x) for x in np.ravel(np.asarray(inputs[slot]))]
    attr = node.attributes.get(name)
    return None if attr is None else [int(x) for x in attr.as_ints()]


def _cast(node: ir.Node, inputs: Sequence[Array | None]) -> Array | None:
    dtype = ir.DataType(_int(node, "to", 0) or 0)
    return None if dtype == ir.DataType.STRING else np.asarray(inputs[0]).astype(dtype.numpy())


def _concat(node: ir.Node, inputs: Sequence[Array | None]) -> Array:
    return np.concatenate([np.asarray(x) for x in inputs], axis=_int(node, "axis", 0))


def _gather(node: ir.Node, inputs: Sequence[Array | None]) -> Array:
    source, index = np.asarray(inputs[0]), np.asarray(inputs[1])
    return np.take(source, index, axis=_int(node, "axis", 0))


def _slice(node: ir.Node, inputs: Sequence[Array | None]) -> Array | None:
    source = np.asarray(inputs[0])
    starts, ends = _ints(node, inputs, "starts", 1), _ints(node, inputs, "ends", 2)
    if starts is None or ends is None:
        return None
    axes = _ints(node, inputs, "axes", 3) or list(range(len(starts)))
    steps = _ints(node, inputs, "steps", 4) or [1] * len(starts)
    index = [slice(None)] * source.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        stop: int | None = end
        if step < 0 and end < -source.shape[axis]:
            stop = None
        index[axis] = slice(start, stop, step)
    return source[tuple(index)]


def _squeeze(node: ir.Node, inputs: Sequence[Array | None]) -> Array:
    axes = _ints(node, inputs, "axes", 1)
    return np.squeeze(np.asarray(inputs[0]), None if axes is None else tuple(axes))


def _unsqueeze(node: ir.Node, inputs: Sequence[Array | None]) -> Array:
    return np.expand_dims(np.asarray(inputs[0]), tuple(_ints(node, inputs, "axes", 1) or ()))


def _reshape(node: ir.Node, inputs: Sequence[Array | None]) -> Array:
    source = np.asarray(inputs[0])
    target = _ints(node, inputs, "shape", 1) or []
    if not _int(node, "allowzero", 0):
        target = [source.shape[i] if d == 0 else d for i, d in enumerate(target)]
    return source.reshape(target)


def _constant_of_shape(node: ir.Node, inputs: Sequence[Array | None]) -> Array | None:
    shape = [int(x) for x in np.ravel(np.asarray(inputs[0]))]
    if np.prod(shape) > 4096:
        return None
    attr = node.attributes.get("value")
    fill = np.zeros(1, np.float32) if attr is None else attr.as_tensor().numpy()
    return np.full(shape, fill.ravel()[0], fill.dtype)


def _expand(_: ir.Node, inputs: Sequence[Array | None]) -> Array | None:
    source, shape = np.asarray(inputs[0]), [int(x) for x in np.ravel(np.asarray(inputs[1]))]
    out = np.broadcast_shapes(source.shape, tuple(shape))
    return None if np.prod(out) > 4096 else np.broadcast_to(source, out)


def _divide(_: ir.Node, inputs: Sequence[Array | None]) -> Array:
    a, b = np.asarray(inputs[0]), np.asarray(inputs[1])
    if np.issubdtype(a.dtype, np.integer):
        return np.asarray(np.trunc(a / b)).astype(a.dtype)
    return np.asarray(a / b)


def _mod(node: ir.Node, inputs: Sequence[Array | None]) -> Array:
    a, b = np.asarray(inputs[0]), np.asarray(inputs[1])
    return np.asarray(np.fmod(a, b) if _int(node, "fmod", 0) else np.mod(a, b))


def _range(_: ir.Node, inputs: Sequence[Array | None]) -> Array | None:
    start, limit, delta = (np.asarray(x).item() for x in inputs)
    if delta == 0 or abs((limit - start) / delta) > 4096:
        return None
    return np.arange(start, limit, delta, dtype=np.asarray(inputs[0]).dtype)


def _reduce(function: Callable[..., Any]) -> Callable[[ir.Node, Sequence[Array | None]], Array]:
    def apply(node: ir.Node, inputs: Sequence[Array | None]) -> Array:
        axes = _ints(node, inputs, "axes", 1)
        keep = bool(_int(node, "keepdims", 1))
        source = np.asarray(inputs[0])
        return np.asarray(
            function(source, axis=None if axes is None else tuple(axes), keepdims=keep), source.dtype
        )

    return apply


def _clip(node: ir.Node, inputs: Sequence[Array | None]) -> Array:
    source = np.asarray(inputs[0])
    for slot, name, bound in ((1, "min", np.maximum), (2, "max", np.minimum)):
        limit = inputs[slot] if len(inputs) > slot else None
        attr = node.attributes.get(name)
        if limit is None and attr is not None:
            limit = np.asarray(attr.as_float())
        if limit is not None:
            source = bound(source, limit).astype(source.dtype)
    return source


def _cum_sum(node: ir.Node, inputs: Sequence[Array | None]) -> Array | None:
    if _int(node, "exclusive", 0) or _int(node, "reverse", 0):
        return None
    source = np.asarray(inputs[0])
    return np.cumsum(source, axis=int(np.ravel(np.asarray(inputs[1]))[0]), dtype=source.dtype)


def _numpy(function: Callable[..., Any]) -> Callable[[ir.Node, Sequence[Array | None]], Array]:
    def apply(_: ir.Node, inputs: Sequence[Array | None]) -> Array:
        return np.asarray(function(*inputs))

    return apply


def _transpose(node: ir.Node, inputs: Sequence[Array | None]) -> Array:
    attr = node.attributes.get("perm")
    return np.transpose(np.asarray(inputs[0]), None if attr is None else list(attr.as_ints()))


_FUNCTIONS: dict[str, Callable[[ir.Node, Sequence[Array | None]], Array | None]] = {
    "Identity": _numpy(lambda x: x),
    "Cast": _cast,
    "Concat": _concat,
    "Gather": _gather,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Tile": _numpy(lambda x, n: np.tile(x, [int(i) for i in n])),
    "Range": _range,
    "Add": _numpy(np.add),
    "Sub": _numpy(np.subtract),
    "Mul": _numpy(np.multiply),
    "Div": _divide,
    "Mod": _mod,
    "Pow": _numpy(lambda a, b: np.power(a, b).astype(a.dtype)),
    "Neg": _numpy(np.negative),
    "Abs": _numpy(np.abs),
    "Clip": _clip,
    "CumSum": _cum_sum,
    "NonZero": _numpy(lambda x: np.array(np.nonzero(x), np.int64)),
    "Relu": _numpy(lambda x: np.maximum(x, 0).astype(x.dtype)),
    "Sign": _numpy(np.sign),
    "Floor": _numpy(np.floor),
    "Ceil": _numpy(np.ceil),
    "Round": _numpy(np.round),
    "Sqrt": _numpy(lambda x: np.sqrt(x).astype(x.dtype)),
    "Where": _numpy(np.where),
    "Equal": _numpy(np.equal),
    "Greater": _numpy(np.greater),
    "GreaterOrEqual": _numpy(np.greater_equal),
    "Less": _numpy(np.less),
    "LessOrEqual": _numpy(np.less_equal),
    "Not": _numpy(np.logical_not),
    "And": _numpy(np.logical_and),
    "Or": _numpy(np.logical_or),
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
    "Min": _numpy(lambda *xs: np.minimum.reduce(np.broadcast_arrays(*xs))),
    "Max": _numpy(lambda *xs: np.maximum.reduce(np.broadcast_arrays(*xs))),
}
