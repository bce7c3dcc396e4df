"""VJPs of RotaryEmbedding, and of Attention by its parts: S = scale Q K' + bias, P = softmax(S), Y = P V.

dV = P' dY, dP = dY V', dS = P (dP - sum(dP P)), dQ = scale dS K, dK = scale dS' Q. Heads that
share keys and values add their gradients. P is computed again: the operator does not give it.

Specification: https://onnx.ai/onnx/operators/onnx__Attention.html
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxprune.rules.backward import Backward, Vjp
from onnxprune.rules.expr import Expr
from onnxprune.rules.op import Op
from onnxprune.rules.rule import Key
from onnxprune.rules.vjp.elementwise import number


def _attention(op: Op, back: Backward) -> None:
    if op.has(4) or op.has(5) or op.has(6) or len(back.op.outputs) > 1:
        raise back.refusal("it keeps a cache of keys and values")
    softcap = number(op, "softcap", 0.0)
    flat = back.rank(op.input(0)) == 3
    heads, shared = _head_counts(back, flat)
    q, k, v = (
        _heads(back, slot, count) if flat else back.x(slot)
        for slot, count in ((0, heads), (1, shared), (2, shared))
    )
    g = _apart(back.g, heads) if flat else back.g
    times = heads // shared
    k_all, v_all = _repeated(back, k, times, shared), _repeated(back, v, times, shared)
    scale = _scale(back, heads, flat)
    scores = (q * scale) @ k_all.swap_last(4)
    capped = softcap * (scores / softcap).op("Tanh") if softcap else scores
    p = _masked(back, capped).op("Softmax", axis=-1)
    dp = g @ v_all.swap_last(4)
    product = dp * p
    ds = product - p * product.sum(-1)
    if back.wants(3):
        back.give(3, _mask_gradient(back, ds))
    if softcap:
        ds = ds * (1.0 - (capped / softcap) ** 2.0)
    if back.wants(0):
        back.give(0, _together(back, (ds @ k_all) * scale, 0, flat))
    if back.wants(1):
        made = _added(back, (ds.swap_last(4) @ q) * scale, times, shared)
        back.give(1, _together(back, made, 1, flat))
    if back.wants(2):
        back.give(2, _together(back, _added(back, p.swap_last(4) @ g, times, shared), 2, flat))


def _head_counts(back: Backward, flat: bool) -> tuple[int, int]:
    op = back.op
    if flat:
        return op.int("q_num_heads", 1), op.int("kv_num_heads", 1)
    q, k = back.dims(op.input(0))[1], back.dims(op.input(1))[1]
    if q is None or k is None:
        raise back.refusal("its number of heads is not fixed")
    return q, k


def _scale(back: Backward, heads: int, flat: bool) -> float:
    op = back.op
    if "scale" in op.node.attributes:
        return number(op, "scale", 1.0)
    width = back.dims(op.input(0))[-1]
    if width is None:
        raise back.refusal("the width of its heads is not fixed")
    return 1 / math.sqrt(width // heads if flat else width)


def _heads(back: Backward, slot: int, count: int) -> Expr:
    return _apart(back.x(slot), count)


def _apart(x: Expr, heads: int) -> Expr:
    """(B, S, heads x D) as (B, heads, S, D)."""
    return x.reshape([0, 0, heads, -1]).transpose([0, 2, 1, 3])


def _together(back: Backward, made: Expr, slot: int, flat: bool) -> Expr:
    return back.reshape_like(made.transpose([0, 2, 1, 3]), back.op.input(slot)) if flat else made


def _repeated(back: Backward, x: Expr, times: int, shared: int) -> Expr:
    """Give every head of the queries its own copy."""
    if times == 1:
        return x
    index = np.repeat(np.arange(shared, dtype=np.int64), times)
    return x.op("Gather", back.builder.constant(index), axis=1)


def _added(back: Backward, made: Expr, times: int, shared: int) -> Expr:
    """Add the gradients of the heads that share a key."""
    if times == 1:
        return made
    shape = made.op("Shape", start=2)
    ints = back.builder.ints
    apart = made.reshape(back.builder.concat([ints(0, shared, times), shape], 0))
    return apart.sum(2, keep=False)


def _masked(back: Backward, scores: Expr) -> Expr:
    op = back.op
    if op.has(3):
        mask = back.x(3)
        if op.input(3).dtype == ir.DataType.BOOL:
            mask = mask.op("Where", 0.0, -1e30)
        scores = scores + mask
    if op.int("is_causal", 0):
        size = scores.op("Shape", start=-2)
        allowed = back.builder.op("ConstantOfShape", size, value=ir.Tensor(np.ones(1, np.float32)))
        scores = allowed.op("Trilu", upper=0).op("Greater", 0.0).op("Where", scores, -1e30)
    return scores


def _mask_gradient(back: Backward, ds: Expr) -> Expr:
    """Sum over the axes along which the mask was repeated, from the shapes at run time."""
    mask = back.op.input(3)
    rank = back.rank(mask)
    lead = ds.sum(*range(4 - rank), keep=False)
    differs = back.builder.op("Shape", mask).op("Equal", lead.op("Shape")).op("Not")
    return lead.op("ReduceSum", differs.op("NonZero").reshape([-1]), keepdims=1, noop_with_empty_axes=1)


def _rotary(op: Op, back: Backward) -> None:
    """A rotation by the opposite angles."""
    given = {name: attribute.value for name, attribute in op.node.attributes.items()}
    positions = back.x(3) if op.has(3) else None
    back.give(0, back.g.op("RotaryEmbedding", back.x(1), -back.x(2), positions, **given))


VJPS: dict[Key, Vjp] = {("", "Attention"): _attention, ("", "RotaryEmbedding"): _rotary}
