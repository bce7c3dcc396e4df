"""Which channels of activations are the same up to a positive factor, whatever the input is.

Two output channels of a layer are proportional where their rows of weights and biases are. Operators hand this
on: Relu and pooling keep a positive factor, other element-wise operators need equal channels, a per-channel scale
changes the factor, a per-channel shift has to be proportional, too. An operator that is not listed makes all
channels distinct, so a missing one costs opportunity only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.graph.axes import Index
from onnxprune.graph.build import AxisGraph
from onnxprune.model.batchnorm import in_inference_form
from onnxprune.rules.elementwise import UNARY
from onnxprune.rules.op import Op, normalized
from onnxprune.slimming.classes import joined, proportional
from onnxprune.slimming.known import LIMIT, Array, Constants
from onnxprune.statistics.paths import MOVES


@dataclass(frozen=True, eq=False)
class Alike:
    """Slices of a tensor that are multiples of each other.

    Attributes
    ----------
    label, scale
        Of one shape with the tensor's rank, extent 1 along axes that a slice contains whole. Slices with one label
        are their `scale` times the same.
    """

    label: Index
    scale: Array


Step = Callable[[Op, "Likeness"], "list[Alike | None]"]


class Likeness:
    """What is alike in a model.

    Parameters
    ----------
    constants
        Initializers that nobody can feed.
    """

    def __init__(self, constants: Constants) -> None:
        self.constants = constants
        self.found: dict[ir.Value, Alike] = {}

    def of(self, value: ir.Value | None) -> Alike | None:
        """What is alike in a value; None: all is distinct, or not known."""
        if value in self.found:
            return self.found[value]
        array = self.constants.array(value)
        if array is not None:  # multiples of the number 1
            return Alike(np.zeros(array.shape, np.int64), array.astype(np.float64))
        dims = None if value is None else self.constants.dims(value)
        if dims is None:
            return None
        ones = (1,) * len(dims)  # one slice: it tells channels apart only where it has several
        return Alike(np.zeros(ones, np.int64), np.ones(ones))

    def spread(self, value: ir.Value, alike: Alike, shape: tuple[int, ...]) -> Alike:
        """The same in smaller slices: extent `shape[d]` where that is more than 1."""
        dims = self.constants.dims(value) or ()
        label, scale = alike.label, alike.scale
        lead = len(shape) - len(dims)
        label, scale = (a.reshape((1,) * lead + a.shape) for a in (label, scale))
        for d, extent in enumerate(dims, lead):
            if label.shape[d] == 1 and extent > 1 and shape[d] > 1:
                index = np.arange(extent).reshape([-1 if i == d else 1 for i in range(len(shape))])
                label = label * extent + index
        return Alike(np.broadcast_to(label, shape), np.broadcast_to(scale, shape))

    def note(self, value: ir.Value, alike: Alike | None) -> None:
        """Keep what is alike in a node's output, unless all is distinct."""
        dims = self.constants.dims(value)
        if alike is not None and dims is not None and alike.label.ndim == len(dims):
            label = alike.label
            if label.size > 1 and label.size <= LIMIT and len(np.unique(label)) < label.size:
                self.found[value] = alike


def find_likeness(axis_graph: AxisGraph, constants: Constants) -> Likeness:
    """Follow what is alike through the main graph.

    Parameters
    ----------
    axis_graph
        Of the model; not mutated.
    constants
        Of the same model.
    """
    likeness = Likeness(constants)
    for op in axis_graph.main_ops:
        step = _STEPS.get(op.node.op_type) if op.node.domain in ("", "ai.onnx") else None
        if step is None or any(constants.dims(value) is None for value in op.outputs):
            continue
        for value, alike in zip(op.node.outputs, step(op, likeness), strict=False):
            likeness.note(value, alike)
    return likeness


# --- layers ----------------------------------------------------------------------------------------------


def _conv(op: Op, likeness: Likeness) -> list[Alike | None]:
    constants = likeness.constants
    weight = constants.array(op.input(1))
    bias = constants.array(op.input(2)) if op.has(2) else np.zeros(1)
    if weight is None or bias is None:
        return [None]
    groups, transposed = op.int("group", 1), op.node.op_type == "ConvTranspose"
    if transposed and groups > 1:
        return [None]
    rows = weight.swapaxes(0, 1) if transposed else weight
    rows = rows.reshape(len(rows), -1)
    block = np.arange(len(rows)) // max(len(rows) // groups, 1)
    factor = np.ones(len(rows))
    if groups > 1 and weight.shape[1] == 1:  # depthwise: the channels that it reads may be alike
        before = likeness.found.get(op.input(0))
        if before is not None and before.label.shape[1] == before.label.size == groups:
            block, factor = before.label.ravel()[block], before.scale.ravel()[block]
    return [_rows(rows, np.broadcast_to(bias, len(rows)), block, factor, 1, op.rank(op.output()))]


def _rows(rows: Array, bias: Array, block: Index, factor: Array, dim: int, rank: int) -> Alike:
    """Classes of output channels by their rows of weights, and a bias where there is one."""
    if (factor != 1).any():
        rows = rows * factor[:, None]
    if bias.any():
        rows = np.concatenate([rows, bias.astype(rows.dtype)[:, None]], axis=1)
    label, scale = proportional(rows, block[:, None])
    shape = [-1 if d == dim else 1 for d in range(rank)]
    return Alike(label.reshape(shape), scale.reshape(shape))


def _product(op: Op, likeness: Likeness) -> list[Alike | None]:
    weight = likeness.constants.array(op.input(1))
    bias = likeness.constants.array(op.input(2)) if op.has(2) else np.zeros(1)
    if weight is None or bias is None or weight.ndim != 2 or op.rank(op.input(0)) < 2 or op.int("transA", 0):
        return [None]
    flags = op.node.attributes
    alpha, beta = flags.get_float("alpha", 1.0), flags.get_float("beta", 1.0)
    rows = weight if op.int("transB", 0) else weight.T
    if bias.size not in (1, len(rows)) or alpha == 0:
        return [None]
    rank = op.rank(op.output())
    vector = np.broadcast_to(bias.ravel() * (beta / alpha), len(rows))
    none = np.zeros(len(rows), np.int64)
    made = _rows(rows, vector, none, np.ones(len(rows)), rank - 1, rank)
    return [Alike(made.label, made.scale * alpha)]


# --- element by element ----------------------------------------------------------------------------------


def _homogeneous(op: Op, likeness: Likeness) -> list[Alike | None]:
    x = likeness.found.get(op.input(0))
    if x is None:
        return [None]
    return [Alike(joined(x.label, np.sign(x.scale).astype(np.int64)), np.abs(x.scale))]


def _linear(op: Op, likeness: Likeness) -> list[Alike | None]:
    return [likeness.found.get(op.input(0))]


def _unary(op: Op, likeness: Likeness) -> list[Alike | None]:
    x = likeness.found.get(op.input(0))
    one_more = any(
        value is not None and likeness.constants.array(value) is None for value in op.node.inputs[1:]
    )
    sizes = [likeness.constants.dims(value) for value in op.node.inputs[1:] if value is not None]
    if x is None or one_more or any(size is None or np.prod(size) > 1 for size in sizes):
        return [None]
    return [Alike(joined(x.label, numbers=x.scale), np.ones(x.scale.shape))]


def _operands(op: Op, likeness: Likeness) -> tuple[Alike, Alike] | None:
    """Both operands in slices of one size; None where nothing is alike in an activation that has channels."""
    if "broadcast" in op.node.attributes:  # before opset 7, aligned by an attribute
        return None
    values = [op.input(0), op.input(1)]
    if len(op.node.inputs) != 2 or not any(value in likeness.found for value in values):
        return None
    pairs = [(value, alike) for value in values if (alike := likeness.of(value)) is not None]
    if len(pairs) < 2:
        return None
    rank = op.rank(op.output())
    shapes = [(1,) * (rank - alike.label.ndim) + alike.label.shape for _, alike in pairs]
    shape = np.broadcast_shapes(*shapes)
    if np.prod(shape) > LIMIT:
        return None
    first, second = (likeness.spread(value, alike, shape) for value, alike in pairs)
    return first, second


def _sum(op: Op, likeness: Likeness) -> list[Alike | None]:
    pair = _operands(op, likeness)
    if pair is None:
        return [None]
    a, b = pair
    sign = -1.0 if op.node.op_type == "Sub" else 1.0
    empty = a.scale == 0
    ratio = np.where(empty, 0.0, sign * b.scale / np.where(empty, 1.0, a.scale))
    gone = ratio == 0
    label = joined(
        np.where(empty, -1, a.label), np.where(gone & ~empty, -1, b.label), empty.astype(int), numbers=ratio
    )
    return [Alike(label, np.where(empty, sign * b.scale, a.scale))]


def _times(op: Op, likeness: Likeness) -> list[Alike | None]:
    pair = _operands(op, likeness)
    if pair is None or (op.node.op_type == "Div" and (pair[1].scale == 0).any()):
        return [None]
    a, b = pair
    scale = a.scale / b.scale if op.node.op_type == "Div" else a.scale * b.scale
    return [Alike(joined(a.label, b.label), scale)]


def _slope(op: Op, likeness: Likeness) -> list[Alike | None]:
    pair = _operands(op, likeness)
    if pair is None or likeness.constants.array(op.input(1)) is None:
        return [None]
    x, slope = pair
    label = joined(x.label, np.sign(x.scale).astype(np.int64), numbers=slope.scale)
    return [Alike(label, np.abs(x.scale))]


def _batch_norm(op: Op, likeness: Likeness) -> list[Alike | None]:
    x = likeness.found.get(op.input(0))
    arrays = [
        array for slot in range(1, 5) if (array := likeness.constants.array(op.input(slot))) is not None
    ]
    if x is None or len(arrays) < 4 or not in_inference_form(op.node, op.opset) or x.label.shape[1] == 1:
        return [None]
    channels = (1, -1, *(1,) * (x.label.ndim - 2))
    scale, shift, mean, variance = (array.astype(np.float64).reshape(channels) for array in arrays)
    factor = scale / np.sqrt(variance + op.node.attributes.get_float("epsilon", 1e-5))
    total = x.scale * factor
    rest = shift - mean * factor
    empty = total == 0
    ratio = np.where(empty, 0.0, rest / np.where(empty, 1.0, total))
    label = joined(np.where(empty, -1, x.label), empty.astype(int), numbers=ratio)
    return [Alike(label, np.where(empty, rest, total))]


# --- over space, and from place to place -----------------------------------------------------------------


def _pool(op: Op, likeness: Likeness) -> list[Alike | None]:
    x = likeness.found.get(op.input(0))
    if x is None or x.label.shape[1] != x.label.size:
        return [None]
    return _homogeneous(op, likeness)[:1]


def _reduce(op: Op, likeness: Likeness) -> list[Alike | None]:
    x = likeness.found.get(op.input(0))
    axes = op.ints("axes", 1)
    if x is None or not axes or any(x.label.shape[axis] > 1 for axis in axes):
        return [None]
    if op.int("keepdims", 1):
        return [x]
    gone = tuple(normalized(axes, x.label.ndim))
    return [Alike(np.squeeze(x.label, gone), np.squeeze(x.scale, gone))]


def _resize(op: Op, likeness: Likeness) -> list[Alike | None]:
    x = likeness.found.get(op.input(0))
    before, after = likeness.constants.dims(op.input(0)), likeness.constants.dims(op.output())
    beyond = op.str("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
    if x is None or before is None or after is None or beyond:
        return [None]
    even = all(s == 1 or b == a for s, b, a in zip(x.label.shape, before, after, strict=True))
    return [x if even else None]


def _pad(op: Op, likeness: Likeness) -> list[Alike | None]:
    x, pads = likeness.found.get(op.input(0)), op.ints("pads", 1)
    fill = likeness.constants.array(op.input(2)) if op.has(2) else np.zeros(1)
    if x is None or pads is None or op.has(3) or fill is None or fill.any():
        return [None]
    if op.str("mode", "constant") != "constant" or op.node.attributes.get_float("value", 0.0) != 0:
        return [None]
    rank = x.label.ndim
    clean = all(x.label.shape[d] == 1 or not (pads[d] or pads[d + rank]) for d in range(rank))
    return [x if clean else None]


def _concat(op: Op, likeness: Likeness) -> list[Alike | None]:
    axis = op.axis(op.output(), op.int("axis", 0)).dim
    values = [value for value in op.node.inputs if value is not None]
    if not any(value in likeness.found for value in values):
        return [None]
    given = [likeness.of(value) for value in values]
    pairs = [(v, a) for v, a in zip(values, given, strict=True) if a is not None]
    shapes = [list(a.label.shape) for _, a in pairs]
    for shape in shapes:
        shape[axis] = 1
    common = list(np.broadcast_shapes(*(tuple(shape) for shape in shapes)))
    labels, scales, first = [], [], 0
    for value, alike in pairs if len(pairs) == len(values) else ():
        common[axis] = (likeness.constants.dims(value) or ())[axis]
        part = likeness.spread(value, alike, tuple(common))
        label = joined(part.label)
        labels.append(label + first)
        scales.append(part.scale)
        first += int(label.max()) + 1
    return [Alike(np.concatenate(labels, axis), np.concatenate(scales, axis)) if labels else None]


def _move(op: Op, likeness: Likeness) -> list[Alike | None]:
    x = likeness.found.get(op.input(0))
    if x is None:
        return [None]

    def spread(dims: tuple[int, ...]) -> tuple[Array, Array]:
        full = likeness.spread(op.input(0), x, dims)
        return full.label, full.scale

    made = likeness.constants.rearranged(op, spread)
    return [None] if made is None else [Alike(label, scale) for label, scale in made]


_STEPS: Mapping[str, Step] = {
    **dict.fromkeys(UNARY, _unary),
    **dict.fromkeys(MOVES, _move),
    **dict.fromkeys(("Relu", "LeakyRelu"), _homogeneous),
    **dict.fromkeys(("Conv", "ConvTranspose"), _conv),
    **dict.fromkeys(("Gemm", "MatMul"), _product),
    **dict.fromkeys(("Add", "Sub"), _sum),
    **dict.fromkeys(("Mul", "Div"), _times),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"), _pool),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "BatchNormalization": _batch_norm,
    "Concat": _concat,
    "Identity": _linear,
    "Pad": _pad,
    "PRelu": _slope,
    "ReduceMean": _reduce,
}
