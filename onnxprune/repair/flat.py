"""Activations that are flat: where a Relu, a Clip or a QuantizeLinear makes the same of different numbers.

What such an activation hides need not be right. Where the target lies in a flat part, any output in that part
will do, and one outside is at best moved to its edge. So with `y` what a layer gives now and `t` its target,

    z = min(y, low) where t <= low,    z = max(y, high) where t >= high,    z = t elsewhere

is the number closest to `y` that the activation cannot tell from `t`. `||z - W x||^2` bounds the error behind the
activation from above for all weights, and for those that gave `y` no other such `z` bounds it closer: whatever
lowers it in a fit lowers the bound (Zhang et al. 2015, *Accelerating very deep convolutional networks for
classification and detection*, https://arxiv.org/abs/1505.06798, section 3.1, where ReLU alone is looked at).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.model.biases import DOMAINS
from onnxprune.model.rounding import limits


@dataclass(frozen=True)
class Flat:
    """The ends of what an activation tells apart.

    Attributes
    ----------
    low, high
        Numbers below and above are to the activation what these are; infinite where there is no such end.
    """

    low: float
    high: float


def flat_behind(value: ir.Value) -> Flat | None:
    """The flat parts of what alone sees a value; None where something else does, or there are none."""
    users = {node for node, _ in value.uses()}
    found = {_flat(node, value) for node in users}
    if value.is_graph_output() or len(found) != 1:
        return None
    return found.pop()


def _flat(node: ir.Node, value: ir.Value) -> Flat | None:
    if node.inputs[0] is not value:
        return None
    if node.op_type == "QuantizeLinear" and node.domain in DOMAINS:
        return _range(node)
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Relu":
        return Flat(0.0, math.inf)
    if node.op_type != "Clip":
        return None
    low, high = _bound(node, 1, "min", -math.inf), _bound(node, 2, "max", math.inf)
    if low is None or high is None or not low < high:
        return None
    return None if (low, high) == (-math.inf, math.inf) else Flat(low, high)


def _range(node: ir.Node) -> Flat | None:
    """What a QuantizeLinear can tell apart: often it stands for the Relu that the quantiser took out."""
    scale, zero = (v.const_value if v is not None else None for v in (*node.inputs[1:], None)[:2])
    dtype = node.outputs[0].dtype
    missing = len(node.inputs) < 3 or node.inputs[2] is None
    if scale is None or scale.size != 1 or dtype is None or (zero is None and not missing):
        return None
    step = float(scale.numpy().ravel()[0])
    center = 0.0 if zero is None else float(zero.numpy().ravel()[0])
    low, high = limits(dtype)
    return Flat((low - center) * step, (high - center) * step) if step > 0 else None


def _bound(node: ir.Node, slot: int, name: str, missing: float) -> float | None:
    """A bound of a Clip: an attribute before opset 11, an input since then; None where it is computed."""
    attribute = node.attributes.get(name)
    if attribute is not None:
        return attribute.as_float()
    given = node.inputs[slot] if slot < len(node.inputs) else None
    if given is None:
        return missing
    return None if given.const_value is None else float(given.const_value.numpy().item())
