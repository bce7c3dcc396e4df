"""Quantised values: weights behind a DequantizeLinear, activations through a QuantizeLinear and back.

The steps join the others as soon as both operators have a rule (`AVAILABLE`).
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxprune.rules import builtin_rules
from tests.fuzz.walk import Walk

AVAILABLE = {("", "QuantizeLinear"), ("", "DequantizeLinear")} <= set(builtin_rules())
_PER_AXIS = 13
"""The opset from which scales may be given per channel."""


def stored_matrix(w: Walk, rows: int, columns: int) -> ir.Value:
    """Weights of a product in int8, with one scale or one per column."""
    limit = 1.7 / math.sqrt(rows)
    stored = w.b.constant(w.b.rng.integers(-127, 128, (rows, columns)).astype(np.int8))
    if w.opset >= _PER_AXIS and w.chance(0.6):
        scale = w.b.rng.uniform(0.5, 1.0, columns).astype(np.float32) * np.float32(limit / 127)
        zero = w.b.constant(np.zeros(columns, np.int8))
        return w.op("DequantizeLinear", stored, w.b.constant(scale), zero, axis=1)
    return w.op("DequantizeLinear", stored, w.number(limit / 127))


def stored_dense(w: Walk) -> None:
    """A linear layer whose weights are stored in int8."""
    at = w.pick(lambda at: at.rank > 1 and at.rank - 1 in at.free)
    if at is not None and w.opset >= 10:
        columns = w.integer(2, 10)
        value = w.op("MatMul", at.value, stored_matrix(w, int(at.shape[-1]), columns))
        w.push(value, (*at.shape[:-1], columns), 2.5)


def rounded(w: Walk) -> None:
    """An activation that goes through eight bits, with one scale or one per channel."""
    at = w.pick(lambda at: at.rank > 1 and at.rank - 1 in at.free)
    if at is None or w.opset < 10:
        return
    kind = np.uint8 if w.chance(0.5) else np.int8
    step, middle = 2 * at.bound / 255, 128 if kind == np.uint8 else 0
    options = {}
    scale: ir.Value
    if w.opset >= _PER_AXIS and w.chance(0.3):
        axis = w.choose(at.free)
        options = {"axis": axis}
        steps = w.b.rng.uniform(1.0, 1.2, int(at.shape[axis])).astype(np.float32) * np.float32(step)
        scale, zero = w.b.constant(steps), w.b.constant(np.full(len(steps), middle, kind))
    else:
        scale, zero = w.number(step), w.b.constant(np.array(middle, kind))
    stored = w.op("QuantizeLinear", at.value, scale, zero, **options)
    w.push(w.op("DequantizeLinear", stored, scale, zero, **options), at.shape, 1.2 * at.bound)


STEPS = (stored_dense, rounded) if AVAILABLE else ()
"""Empty where an operator is a barrier: everything around it would be whole."""
