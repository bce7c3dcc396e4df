"""What a model's graph tells about the inputs that it was made for: tables they index, how they are normalised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.calibrate.checks import kind
from onnxprune.calibrate.dataset import Array, InputSpec
from onnxprune.calibrate.drawing import Drawing

COLOURS = (1, 3)
"""Channels of pictures."""

SMALLEST = 4
"""Pixels along each side of what may be a picture."""

BRIGHTNESS, CONTRAST = 0.45, 0.25
"""Mean and standard deviation of photographs, as shares of the range of their values."""

_PASSING = ("Cast", "Identity", "Unsqueeze", "Reshape", "Flatten")
_ARITHMETIC = ("Add", "Sub", "Mul", "Div")


def drawings(
    model: ir.Model,
    specs: Sequence[InputSpec],
    sizes: Mapping[str, tuple[int, ...]],
    ranges: Mapping[str, int] | None = None,
) -> dict[str, Drawing]:
    """What calibration samples for a model should look like, input by input.

    Floats and 8-bit integers of rank 4 with 1 or 3 channels are pictures, floats of rank 3 that are convolved
    signals, other floats noise (spectra over time, too: on a speech transformer smooth ones were no better). Masks
    are ones, padding masks and types of tokens zeros, positions count; other integers are drawn from the table that
    they index. Units are those that a normalisation at the head of the graph expects.

    Parameters
    ----------
    specs
        What the model takes.
    sizes
        Shape of one sample by name of the input.
    ranges
        The number of values of integer inputs by name; by default `index_ranges`.
    """
    ranges = ranges or index_ranges(model)
    values = {value.name: value for value in model.graph.inputs}
    found = {}
    for spec in specs:
        value, shape = values[spec.name], sizes[spec.name]
        if kind(spec.dtype) in ("int", "bool") and not _is_picture(spec, shape):
            found[spec.name] = _of_integers(spec.name.lower(), ranges.get(spec.name, 2))
        elif kind(spec.dtype) in ("float", "int"):
            found[spec.name] = _of_numbers(value, spec, shape)
    return {**found, **lengths(specs, sizes)}


def lengths(specs: Sequence[InputSpec], sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Drawing]:
    """Inputs that say how long the sequences of the others are, which is as long as they can be.

    They are integers, one per sample, whose name says so; the length is the longest second axis of the others.

    Parameters
    ----------
    specs, sizes
        As for `drawings`.
    """
    named = [
        spec.name
        for spec in specs
        if kind(spec.dtype) == "int" and len(spec.shape) <= 1 and "len" in spec.name.lower()
    ]
    longest = max(
        (shape[1] for name, shape in sizes.items() if name not in named and len(shape) > 1), default=0
    )
    return {name: Drawing("length", count=longest) for name in named if longest}


def index_ranges(model: ir.Model) -> dict[str, int]:
    """For integer inputs that index an embedding: how many rows it has."""
    ranges: dict[str, int] = {}
    for value in model.graph.inputs:
        for node in _through(value, _PASSING):
            if node.op_type != "Gather" or node.inputs[0] is None or node.inputs[0] is value:
                continue
            table = node.inputs[0].const_value
            if table is not None:
                axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
                dims = table.shape.numpy()
                rows = dims[axis] if dims else 1
                ranges[str(value.name)] = min(rows, ranges.get(str(value.name), rows))
    return ranges


def _through(value: ir.Value, passing: Sequence[str]) -> Iterator[ir.Node]:
    for node in value.consumers():
        if node.op_type in passing:
            yield from _through(node.outputs[0], passing)
        else:
            yield node


def _of_integers(name: str, count: int) -> Drawing:
    if "mask" in name:
        return Drawing("zeros" if "pad" in name and "attention" not in name else "ones")
    if "token_type" in name or "segment" in name:
        return Drawing("zeros")
    return Drawing("positions" if "position" in name else "integers", count=count)


def _is_picture(spec: InputSpec, shape: tuple[int, ...]) -> bool:
    fits = spec.dtype == np.uint8 or kind(spec.dtype) == "float"
    return fits and _colours(shape) is not None


def _colours(shape: tuple[int, ...]) -> int | None:
    """The axis of a picture's channels, where there is one: the first or the last behind the batch."""
    if len(shape) != 4:
        return None
    for axis, sides in ((1, shape[2:]), (3, shape[1:3])):
        if shape[axis] in COLOURS and min(sides) >= SMALLEST:
            return axis
    return None


def _of_numbers(value: ir.Value, spec: InputSpec, shape: tuple[int, ...]) -> Drawing:
    channel = _colours(shape)
    if channel is not None:
        plain = Drawing("picture", channel=channel)
        if kind(spec.dtype) == "int":
            return _within(plain, 255.0)
    elif len(shape) == 3:
        convolved = any(
            node.op_type == "Conv" for node in _through(value, ("Cast", "Identity", *_ARITHMETIC))
        )
        plain = Drawing("signal", (2,), 1) if convolved else Drawing(channel=2)
    else:
        plain = Drawing(channel=1 if len(shape) > 1 else None)
    expected = _normalisation(value, shape, plain.channel)
    return plain if expected is None else expected.applied(plain)


def _within(plain: Drawing, most: float) -> Drawing:
    """Values from 0 to `most`."""
    return replace(plain, mean=(BRIGHTNESS * most,), std=(CONTRAST * most,), low=0.0, high=most)


@dataclass(frozen=True)
class Normalisation:
    """A graph's first steps: ``factor * x + offset``, one entry per channel or one for all.

    Attributes
    ----------
    measured
        Whether they undo a mean and a deviation that were measured (BatchNormalization).
    """

    factor: Array
    offset: Array
    measured: bool = False

    def applied(self, plain: Drawing) -> Drawing:
        """The same drawing in the units of the model's input.

        Where the steps only scale, or map 0 to -1, values reach from 0 to where the result is 1; else the result
        has mean 0 and deviation 1.
        """
        mean, std = -self.offset / self.factor, 1 / np.abs(self.factor)
        if not self.measured and plain.likeness == "picture" and _equal(self.factor):
            if not self.offset.any():
                return _within(plain, float(1 / self.factor.flat[0]))
            if np.allclose(mean, 1 / self.factor, rtol=0.05):
                return _within(plain, float(2 * mean.flat[0]))
        return replace(plain, mean=tuple(map(float, mean)), std=tuple(map(float, std)))


def _equal(figures: Array) -> bool:
    return bool(np.all(figures == figures.flat[0]))


def _normalisation(value: ir.Value, shape: tuple[int, ...], channel: int | None) -> Normalisation | None:
    """The arithmetic with constants, or the BatchNormalization, that an input goes through first."""
    factor, offset = np.ones(1), np.zeros(1)
    found = False
    while len(nodes := list(_through(value, ("Cast", "Identity")))) == 1:
        node = nodes[0]
        if node.op_type == "BatchNormalization" and not node.domain and channel == 1:
            return _undone(node, factor, offset)
        step = _step(node, shape, channel)
        if step is None or not all(np.isfinite(figures).all() for figures in step):
            break
        factor, offset = factor * step[0], offset * step[0] + step[1]
        value, found = node.outputs[0], True
    factor, offset = np.broadcast_arrays(factor, offset)
    if not found or not np.all(np.isfinite(factor) & np.isfinite(offset) & (factor != 0)):
        return None
    return Normalisation(factor, offset)


def _undone(node: ir.Node, factor: Array, offset: Array) -> Normalisation | None:
    """A BatchNormalization behind ``factor * x + offset``: what was measured, in units of x."""
    constants = [_constant(value) for value in node.inputs[3:5]]
    if len(constants) < 2 or constants[0] is None or constants[1] is None or not factor.all():
        return None
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    mean, deviation = constants[0].astype(np.float64), np.sqrt(constants[1].astype(np.float64) + epsilon)
    factor, offset = np.broadcast_arrays(factor / deviation, (offset - mean) / deviation)
    return Normalisation(factor, offset, measured=True)


def _step(node: ir.Node, shape: tuple[int, ...], channel: int | None) -> tuple[Array, Array] | None:
    """Factor and offset of one node; None where it is something else, or its constant no figure per channel."""
    if node.op_type not in _ARITHMETIC or node.domain or len(node.inputs) != 2:
        return None
    arrays = [_constant(value) for value in node.inputs]
    first = arrays[0] is not None
    figures = _per_channel(arrays[0] if first else arrays[1], shape, channel)
    if figures is None or (first and node.op_type == "Div"):
        return None
    one, zero = np.ones(1), np.zeros(1)
    if node.op_type == "Add":
        return one, figures
    if node.op_type == "Sub":
        return (-one, figures) if first else (one, -figures)
    return (figures if node.op_type == "Mul" else 1 / np.where(figures == 0, np.nan, figures)), zero


def _constant(value: ir.Value | None) -> Array | None:
    """What is known about a value without running the model."""
    if value is None:
        return None
    if value.const_value is not None:
        return np.asarray(value.const_value.numpy())
    node = value.producer()
    if node is not None and node.op_type == "Constant" and "value" in node.attributes:
        return np.asarray(node.attributes["value"].as_tensor().numpy())
    return None


def _per_channel(array: Any, shape: tuple[int, ...], channel: int | None) -> Array | None:
    """A constant that is one number, or one per channel, as (1,) or (channels,)."""
    if array is None or array.dtype.kind != "f":
        return None
    if array.size == 1:
        return np.asarray(array, np.float64).reshape(1)
    dims = (1,) * (len(shape) - array.ndim) + array.shape
    if channel is None or len(dims) != len(shape):
        return None
    elsewhere = [extent for axis, extent in enumerate(dims) if axis != channel]
    if any(extent != 1 for extent in elsewhere) or dims[channel] != shape[channel]:
        return None
    return np.asarray(array, np.float64).reshape(-1)
