"""What is known of activations, operator by operator, from the inputs of the graph to its outputs.

An operator that is not listed makes nothing known, so a missing one costs opportunity only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.calibrate.sessions import open_session, run
from onnxprune.errors import ModelError
from onnxprune.graph.axes import Bools
from onnxprune.graph.build import AxisGraph
from onnxprune.model.batchnorm import in_inference_form
from onnxprune.model.rounding import limits
from onnxprune.rules.elementwise import BINARY, UNARY
from onnxprune.rules.op import Op, normalized
from onnxprune.slimming.known import LIMIT, Array, Constants, Known
from onnxprune.statistics.paths import MOVES

Step = Callable[[Op, Constants], "list[Known | None]"]


def find_constants(axis_graph: AxisGraph) -> Constants:
    """Follow what is known through the main graph; in bodies, see the zeros of masks.

    Parameters
    ----------
    axis_graph
        Of the model; not mutated.
    """
    found = Constants(axis_graph)
    for op in axis_graph.main_ops:
        step = _STEPS.get(op.node.op_type) if op.node.domain in ("", "ai.onnx") else None
        if step is None or any(found.dims(value) is None for value in op.outputs):
            continue
        for value, state in zip(op.node.outputs, step(op, found), strict=False):
            found.note(value, state)
    for op in axis_graph.ops:
        if op.node.graph is not axis_graph.model.graph:
            slot = mask_slot(op.node, found)
            if slot is not None and found.dims(op.output()) is not None:
                found.note(op.output(), _masked(op, slot, found))
    return found


def mask_slot(node: ir.Node, constants: Constants) -> int | None:
    """The input of a product that is a vector of zeros and ones, at least one of them 0."""
    if node.op_type != "Mul" or node.domain or len(node.inputs) != 2:
        return None
    for slot in (0, 1):
        value, other = node.inputs[slot], node.inputs[1 - slot]
        array = constants.array(value)
        if array is None or other is None or constants.dims(other) != constants.dims(node.outputs[0]):
            continue
        if (
            sum(extent > 1 for extent in array.shape) == 1
            and np.isin(array, (0, 1)).all()
            and (array == 0).any()
        ):
            return slot
    return None


def _masked(op: Op, slot: int, constants: Constants) -> Known:
    """The zeros that a mask makes, whatever it multiplies."""
    off = np.asarray(constants.array(op.input(slot))) == 0
    off = off.reshape((1,) * (op.rank(op.output()) - off.ndim) + off.shape)
    return Known(np.zeros(off.shape), off)


def _nothing(rank: int) -> Known:
    return Known(np.zeros((1,) * rank), np.zeros((1,) * rank, bool))


# --- element by element ----------------------------------------------------------------------------------


def _elementwise(op: Op, constants: Constants) -> list[Known | None]:
    values = [value for value in op.node.inputs if value is not None]
    if not all(v.dtype is not None and v.dtype.is_floating_point() for v in (*values, op.output())):
        return [None]
    if "broadcast" in op.node.attributes:  # before opset 7, aligned by an attribute
        return [None]
    multiplies = op.node.op_type == "Mul"
    if not multiplies and not any(value in constants.states for value in values):
        return [None]
    states = [constants.state(value) or _nothing(op.rank(value)) for value in values]
    known = np.asarray(states[0].known)
    for state in states[1:]:
        known = known & state.known
    zero = np.zeros(known.shape, bool)
    for state in states if multiplies else ():
        zero = zero | (state.known & (state.value == 0))
    if not (known.any() or zero.any()):
        return [None]
    made = _evaluate(op, [state.value for state in states], constants.model)
    if made is None:
        return [None]
    return [Known(np.where(zero, 0.0, made), known | zero)]


def _evaluate(op: Op, arrays: Sequence[Array], model: ir.Model) -> Array | None:
    """What onnxruntime makes of the numbers alone; None where it has no kernel for them."""
    feed: dict[str, Array] = {}
    inputs: list[ir.Value | None] = []
    given = iter(arrays)
    for slot, value in enumerate(op.node.inputs):
        if value is None:
            inputs.append(None)
            continue
        array, dtype = next(given), value.dtype or ir.DataType.FLOAT
        inputs.append(ir.Value(name=f"x{slot}", type=ir.TensorType(dtype), shape=ir.Shape(np.shape(array))))
        feed[f"x{slot}"] = np.asarray(array).astype(dtype.numpy())
    out = ir.Value(name="y", type=ir.TensorType(op.output().dtype or ir.DataType.FLOAT))
    node = ir.Node(
        op.node.domain, op.node.op_type, inputs, list(op.node.attributes.values()), outputs=[out], name="node"
    )
    graph = ir.Graph(
        [value for value in inputs if value is not None],
        [out],
        nodes=[node],
        opset_imports=dict(model.graph.opset_imports),
        name="one",
    )
    try:
        with np.errstate(all="ignore"):
            made = run(open_session(ir.Model(graph, ir_version=model.ir_version), threads=1), feed)["y"]
    except ModelError:
        return None
    return np.asarray(made).astype(np.float64)


def _rounded(op: Op, constants: Constants) -> list[Known | None]:
    """What QuantizeLinear stores for a number, or what DequantizeLinear makes of a stored one; one scale only."""
    state, dtype = constants.states.get(op.input(0)), op.output().dtype
    scale, zero = (op.input(slot).const_value if op.has(slot) else None for slot in (1, 2))
    if state is None or dtype is None or scale is None or scale.size != 1 or (op.has(2) and zero is None):
        return [None]
    step = np.float32(scale.numpy().ravel()[0])
    center = np.zeros((), np.float32) if zero is None else zero.numpy().ravel()[0].astype(np.float32)
    value = state.value.astype(np.float32)
    if op.node.op_type == "DequantizeLinear":
        made = (value - center) * step
    elif dtype.is_integer():
        made = np.clip(np.rint(value / step) + center, *limits(dtype))
    else:
        return [None]
    return [Known(np.where(state.known, made, 0.0), state.known)]


def _dropout(op: Op, constants: Constants) -> list[Known | None]:
    still = op.opset >= 7 and not op.has(2)
    return [constants.state(op.input(0)) if still else None]


def _batch_norm(op: Op, constants: Constants) -> list[Known | None]:
    if not in_inference_form(op.node, op.opset):
        return [None]
    arrays = [constants.array(op.input(slot)) for slot in range(1, 5)]
    rank, (scale, shift, mean, variance) = op.rank(op.input(0)), arrays
    if scale is None or shift is None or mean is None or variance is None:
        return [None]
    x = constants.states.get(op.input(0))
    off = scale == 0
    if x is None and not off.any():
        return [None]
    x = x or _nothing(rank)
    epsilon = op.node.attributes.get_float("epsilon", 1e-5)
    channels = (1, -1, *(1,) * (rank - 2))
    scale, shift, mean, variance = (
        a.astype(np.float64).reshape(channels) for a in (scale, shift, mean, variance)
    )
    value = (x.value - mean) * (scale / np.sqrt(variance + epsilon)) + shift
    off = off.reshape(channels)
    return [Known(np.where(off, shift, value), x.known | off)]


# --- layers ----------------------------------------------------------------------------------------------


def is_padded(op: Op) -> bool:
    """Whether a convolution or pooling sees zeros (or nothing) beyond the border."""
    return op.str("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or any(op.ints("pads") or ())


def blocks_of(op: Op, weight: Array) -> Array:
    """A convolution's weight as (groups, outputs per group, inputs per group, taps)."""
    groups = op.int("group", 1)
    parts = weight.reshape(groups, -1, weight.shape[1], int(np.prod(weight.shape[2:])))
    return parts.swapaxes(1, 2) if op.node.op_type == "ConvTranspose" else parts


def _conv(op: Op, constants: Constants) -> list[Known | None]:
    weight = constants.array(op.input(1))
    bias = constants.array(op.input(2)) if op.has(2) else np.zeros(1)
    dims = constants.dims(op.input(0))
    if weight is None or bias is None or dims is None:
        return [None]
    parts = blocks_of(op, weight)
    live = (parts != 0).any(axis=3)
    value, same = constants.along(op.input(0), 1) or (np.zeros(dims[1]), np.zeros(dims[1], bool))
    if is_padded(op) or op.node.op_type == "ConvTranspose":  # the outputs at the border differ
        same = same & (value == 0)
    open_ = ~same.reshape(live.shape[0], 1, -1)
    known = ~(live & open_).any(axis=2).ravel()
    if not known.any():
        return [None]
    sums = parts.astype(np.float64).sum(axis=3)
    made = (sums * np.where(same, value, 0.0).reshape(live.shape[0], 1, -1)).sum(axis=2).ravel()
    shape = (1, -1, *(1,) * (len(dims) - 2))
    return [Known((made + bias.astype(np.float64)).reshape(shape), known.reshape(shape))]


def _product(
    x: ir.Value, columns: Array, constants: Constants, scale: float = 1.0
) -> tuple[Array, Bools] | None:
    """What is known of x times a matrix; None: nothing."""
    rank = len(constants.dims(x) or ())
    state = constants.states.get(x) or (_nothing(rank) if rank > 1 else None)
    if state is None:
        return None
    live = columns != 0
    state = state.spread((*state.known.shape[:-1], columns.shape[0]))
    known: Bools = (~state.known).astype(np.float32) @ live.astype(np.float32) == 0
    if not known.any():
        return None
    made = np.where(state.known, state.value, 0.0) @ columns.astype(np.float64)
    return scale * made, known


def _matmul(op: Op, constants: Constants) -> list[Known | None]:
    columns = constants.array(op.input(1))
    if columns is None or columns.ndim != 2:
        return [None]
    made = _product(op.input(0), columns, constants)
    return [None if made is None else Known(*made)]


def _gemm(op: Op, constants: Constants) -> list[Known | None]:
    columns = constants.array(op.input(1))
    bias = constants.array(op.input(2)) if op.has(2) else np.zeros(1)
    if columns is None or bias is None or op.int("transA", 0):
        return [None]
    if op.int("transB", 0):
        columns = columns.T
    flags = op.node.attributes
    made = _product(op.input(0), columns, constants, flags.get_float("alpha", 1.0))
    if made is None:
        return [None]
    total = made[0] + flags.get_float("beta", 1.0) * bias.astype(np.float64)
    return [Known(total, np.broadcast_to(made[1], total.shape))]


# --- over space, and from place to place -----------------------------------------------------------------


def _pool(op: Op, constants: Constants) -> list[Known | None]:
    x, found = op.input(0), constants.along(op.input(0), 1)
    if found is None:
        return [None]
    value, same = found
    if op.int("count_include_pad", 0) and (is_padded(op) or op.int("ceil_mode", 0)):
        same = same & (value == 0)
    shape = (1, -1, *(1,) * (op.rank(x) - 2))
    return [Known(value.reshape(shape), same.reshape(shape))]


def _reduce(op: Op, constants: Constants) -> list[Known | None]:
    state = constants.states.get(op.input(0))
    axes = op.ints("axes", 1)
    if state is None or (axes is None and op.has(1)):
        return [None]
    rank = state.known.ndim
    axes = normalized(axes, rank) if axes else list(range(rank))
    if op.int("noop_with_empty_axes", 0) or any(state.known.shape[axis] > 1 for axis in axes):
        return [None]
    known = state.known & (state.value == 0) if op.node.op_type == "ReduceSum" else state.known
    if op.int("keepdims", 1):
        return [Known(state.value, known)]
    return [Known(np.squeeze(state.value, tuple(axes)), np.squeeze(known, tuple(axes)))]


def _resize(op: Op, constants: Constants) -> list[Known | None]:
    state = constants.states.get(op.input(0))
    before, after = constants.dims(op.input(0)), constants.dims(op.output())
    beyond = op.str("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
    if state is None or before is None or after is None or beyond:
        return [None]
    even = all(s == 1 or b == a for s, b, a in zip(state.known.shape, before, after, strict=True))
    return [state if even else None]


def _pad(op: Op, constants: Constants) -> list[Known | None]:
    state, dims = constants.states.get(op.input(0)), constants.dims(op.input(0))
    pads, mode = op.ints("pads", 1), op.str("mode", "constant")
    if state is None or dims is None or pads is None or min(pads) < 0:
        return [None]
    axes = op.ints("axes", 3) if op.has(3) else list(range(len(dims)))
    if axes is None or mode not in ("constant", "edge", "reflect"):
        return [None]
    width = [(0, 0)] * len(dims)
    for i, axis in enumerate(normalized(axes, len(dims))):
        width[axis] = (pads[i], pads[i + len(axes)])
    fill = np.float64(op.node.attributes.get_float("value", 0.0))
    if op.has(2):
        given = constants.array(op.input(2))
        if given is None:
            return [None]
        fill = np.float64(given.ravel()[0])
    shape = [d if any(w) else s for d, w, s in zip(dims, width, state.known.shape, strict=True)]
    if np.prod(shape) > LIMIT:
        return [None]
    full = state.spread(shape)
    if mode != "constant":
        return [Known(np.pad(full.value, width, mode=mode), np.pad(full.known, width, mode=mode))]  # type: ignore[call-overload]
    return [
        Known(
            np.pad(full.value, width, constant_values=fill), np.pad(full.known, width, constant_values=True)
        )
    ]


def _concat(op: Op, constants: Constants) -> list[Known | None]:
    axis = op.axis(op.output(), op.int("axis", 0)).dim
    values = [value for value in op.node.inputs if value is not None]
    if not any(value in constants.states for value in values):
        return [None]
    states = [constants.state(value) or _nothing(op.rank(value)) for value in values]
    shape = list(np.broadcast_shapes(*(_without(s.known.shape, axis) for s in states)))
    parts = []
    for value, state in zip(values, states, strict=True):
        shape[axis] = (constants.dims(value) or ())[axis]
        parts.append(state.spread(shape))
    return [
        Known(
            np.concatenate([p.value for p in parts], axis=axis),
            np.concatenate([p.known for p in parts], axis=axis),
        )
    ]


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], 1, *shape[axis + 1 :])


def _expand(op: Op, constants: Constants) -> list[Known | None]:
    state = constants.states.get(op.input(0))
    if state is None:
        return [None]
    more = (1,) * (op.rank(op.output()) - state.known.ndim)
    return [state.spread((*more, *state.known.shape))]


def _move(op: Op, constants: Constants) -> list[Known | None]:
    state = constants.states.get(op.input(0))
    if state is None:
        return [None]

    def spread(dims: tuple[int, ...]) -> tuple[Array, Array]:
        full = state.spread(dims)
        return full.value, full.known

    made = constants.rearranged(op, spread)
    return [None] if made is None else [Known(value, flag) for value, flag in made]


_STEPS: Mapping[str, Step] = {
    **dict.fromkeys((*UNARY, *BINARY), _elementwise),
    **dict.fromkeys(MOVES, _move),
    **dict.fromkeys(("Conv", "ConvTranspose"), _conv),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"), _pool),
    **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"), _reduce),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    **dict.fromkeys(("DequantizeLinear", "QuantizeLinear"), _rounded),
    "BatchNormalization": _batch_norm,
    "Concat": _concat,
    "Dropout": _dropout,
    "Expand": _expand,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Pad": _pad,
}
