"""What R sees in a GRU that resets states before it multiplies them (`linear_before_reset` 0).

Two of its gates see `h` of one step ago, the third one `r * h`, with the reset gate

    r = sigmoid(x W_r^T + h R_r^T + b_r)

So R's rows for every gate are a product of their own. `h` is what the layer puts out, a step later; `r` follows
from that.

Specification: https://onnx.ai/onnx/operators/onnx__GRU.html
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.statistics.gates import B, R, W

Array = np.ndarray[Any, Any]

GATES = 3
"""Update, reset, hidden: the order of their rows."""

LENGTHS, START = 4, 5
"""Slots of the samples' lengths and of the first states."""


def resets_first(node: ir.Node) -> bool:
    """Whether a node is a GRU with the reset gate before R."""
    before = node.attributes.get("linear_before_reset")
    return node.op_type == "GRU" and (before is None or not before.as_int())


def why_not(node: ir.Node) -> str:
    """Why what R sees is not known; empty where it is."""
    if len(node.inputs) > LENGTHS and node.inputs[LENGTHS] is not None:
        return "its states are reset before they are multiplied, and samples differ in length"
    kinds = node.attributes.get("activations")
    resetting = [] if kinds is None else [kind.lower() for kind in kinds.as_strings()[::2]]
    if any(kind != "sigmoid" for kind in resetting) or "clip" in node.attributes:
        return "its states are reset before they are multiplied, by a gate that is no plain sigmoid"
    return ""


def start_of(node: ir.Node) -> ir.Value | None:
    """The first states; None: zeros."""
    return node.inputs[START] if len(node.inputs) > START else None


def seen_by_gates(node: ir.Node, x: Array, states: Array, start: Array | None) -> Array:
    """What every gate multiplies by its rows of R, (directions, gates, steps x samples, hidden), float64.

    Parameters
    ----------
    node
        Such a GRU, with constant weights and biases.
    x
        Its input, (steps, samples, features).
    states
        What it puts out, (steps, directions, samples, hidden).
    start
        The first states, (directions, samples, hidden); None: zeros.
    """
    w, r, b = (_array(node, slot) for slot in (W, R, B))
    steps, directions, samples, hidden = states.shape
    direction = node.attributes.get("direction")
    backward = direction is not None and direction.as_string() == "reverse"
    reset = slice(hidden, 2 * hidden)
    found = np.empty((directions, GATES, steps * samples, hidden))
    for d in range(directions):
        first = np.zeros((samples, hidden)) if start is None else start[d]
        own = states[:, d].astype(np.float64)
        shifted = [own[1:], first[None]] if backward or d else [first[None], own[:-1]]
        before = np.concatenate(shifted)
        half = b[d].reshape(2, -1)
        sums = x.astype(np.float64) @ w[d, reset].T + before @ r[d, reset].T + half[:, reset].sum(axis=0)
        kept = before / (1 + np.exp(-sums))
        found[d] = np.stack([before, before, kept]).reshape(GATES, -1, hidden)
    return found


def _array(node: ir.Node, slot: int) -> Array:
    value = node.inputs[slot]
    if value is None or value.const_value is None:
        raise ValueError(f"input {slot} of {node.name!r} is no initializer")
    return np.asarray(value.const_value.numpy()).astype(np.float64)
