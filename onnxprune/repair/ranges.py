"""Scales of activations, fitted again where the layer before them got other weights.

A quantiser's range is what the original makes there. Queries that were mixed anew (`onnxprune.repair.logits`) have
another range: with the old one they are clipped, or use a part of its steps. So the cut model runs up to there
without the roundings in question, and the scale is the one of several with the least squared error: the old one,
and those that reach from the least to the largest number, or to a share of both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.model import rounding
from onnxprune.model.quantisers import Quantiser
from onnxprune.statistics.piecewise import Piecewise

Array = np.ndarray[Any, Any]

SHARES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Shares of the least and the largest number that a scale may reach to."""

GAIN = 0.98
"""Another scale is taken if it leaves less than this share of the old one's squared error."""

SOME = 1 << 16
"""Numbers per quantiser and batch that scales are compared on."""


@dataclass
class Seen:
    """What a quantiser sees on samples.

    Attributes
    ----------
    low, high
        The least and the largest number, and 0.
    some
        An even choice of the numbers, in parts.
    """

    low: float = 0.0
    high: float = 0.0
    some: list[Array] = field(default_factory=list)

    def add(self, array: Array) -> None:
        """Look at more numbers."""
        flat = np.asarray(array, np.float32).ravel()
        if flat.size:
            self.low, self.high = min(self.low, float(flat.min())), max(self.high, float(flat.max()))
            self.some.append(flat[:: max(1, flat.size // SOME)].copy())

    def __add__(self, other: Seen) -> Seen:
        """What both see together."""
        return Seen(min(self.low, other.low), max(self.high, other.high), [*self.some, *other.some])


def best_range(seen: Seen, quantiser: Quantiser) -> tuple[float, float] | None:
    """Scale and zero point with the least squared error; None where the old ones are as good as any.

    A zero point in the middle or at an end of the range stays there: the first is a matter of the file's scheme,
    the second stands for a Relu.
    """
    if not seen.some or not np.isfinite([seen.low, seen.high]).all():
        return None
    values = np.concatenate(seen.some).astype(np.float64)
    least = _error(values, quantiser.scale, quantiser.zero, quantiser.dtype)
    limit, best = GAIN * least, None
    for share in SHARES:
        scale, zero = _reaching(seen.low * share, seen.high * share, quantiser)
        if scale <= 0:
            continue
        error = _error(values, scale, zero, quantiser.dtype)
        if error < limit:
            limit, best = error, (scale, zero)
    return best


def _reaching(least: float, largest: float, quantiser: Quantiser) -> tuple[float, float]:
    """Scale, in float32, and zero point with which a range just fits."""
    low, high = rounding.limits(quantiser.dtype)
    zero = quantiser.zero
    middle = 0.0 if low < 0 else (high + 1) / 2
    if quantiser.movable and zero not in (low, middle, high):
        scale = float(np.float32((largest - least) / (high - low)))
        return scale, float(np.clip(np.rint(low - least / scale), low, high)) if scale > 0 else zero
    sides = [part / room for part, room in ((largest, high - zero), (-least, zero - low)) if room > 0]
    return float(np.float32(max(sides, default=0.0))), zero


def _error(values: Array, scale: float, zero: float, dtype: ir.DataType) -> float:
    low, high = rounding.limits(dtype)
    stored = np.clip(np.rint(values / scale) + zero, low, high) if scale > 0 else np.full(values.shape, zero)
    return float(np.square((stored - zero) * scale - values).sum())


def refit_ranges(
    student: Piecewise, quantisers: Sequence[Quantiser], again: Collection[ir.Node]
) -> list[Quantiser]:
    """Give quantisers the ranges that go best with what they see in the model as it is now.

    Parameters
    ----------
    student
        Its model is mutated.
    quantisers
        Of that model. What lies behind several of them is looked at as if none of them rounded.
    again
        Nodes that may still be changed: they, and what depends on them, will run again.

    Returns
    -------
    list
        Those that have other scales now.
    """
    if not quantisers:
        return []
    nodes = {str(node.outputs[0].name) for each in quantisers for node in each.nodes}
    wanted = [_seen_by(node) for each in quantisers for node in each.sources]
    seen: dict[str, Seen] = {str(value.name): Seen() for value in wanted}

    def pass_on(graph: ir.Graph, _known: Mapping[str, ir.Value]) -> None:
        for node in graph:
            if str(node.outputs[0].name) in nodes:
                node.op_type, node.domain = "Identity", ""
                node.attributes.clear()
                node.resize_inputs(1)
        for value in (out for node in graph for out in node.outputs if not out.is_graph_output()):
            value.type = None  # what were integers are floats

    first = {node for each in quantisers for node in each.nodes} | set(again)
    for found in student.advance(wanted, pass_on, again=first):
        for name, each in seen.items():
            each.add(found[name])
    changed = []
    for quantiser in quantisers:
        whole = Seen()
        for node in quantiser.sources:
            whole += seen[str(_seen_by(node).name)]
        best = best_range(whole, quantiser)
        if best is not None:
            quantiser.give(*best)
            changed.append(quantiser)
    return changed


def _seen_by(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    if value is None:
        raise ValueError(f"{node.name!r} has no input")
    return value
