"""Operators of gated and recurrent token mixers: SwiGLU, CausalConvWithState, LinearAttention, and their gates.

Linear attention carries a matrix per K/V head from token to token, so tokens stay and heads go whole, as in
attention proper. A causal convolution treats every channel alone.

Specification: https://onnx.ai/onnx/operators/onnx__SwiGLU.html and its neighbours; for com.microsoft,
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune.errors import Reason
from onnxprune.graph.axes import Axis
from onnxprune.rules.heads import Heads, kept_heads, queries, shared, tie_equal, tie_heads
from onnxprune.rules.helpers import tie_axes, tie_broadcast
from onnxprune.rules.rule import Key, Rule, Term, table

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxprune.graph.relations import Relations
    from onnxprune.model.shapes import Inferred
    from onnxprune.rules.op import Op
    from onnxprune.rules.refit import Refit

_MICROSOFT = "com.microsoft"


def _given(op: Op, *slots: int) -> list[ir.Value]:
    return [op.input(slot) for slot in slots if op.has(slot)]


def _made(op: Op, slot: int) -> list[ir.Value]:
    return [op.output(slot)] if slot < len(op.node.outputs) and op.output(slot).name else []


# --- gates -----------------------------------------------------------------------------------------------


def _alike(op: Op, relations: Relations) -> None:
    """All inputs have the shape of the output."""
    for value in op.node.inputs:
        if value is not None:
            tie_axes(op, relations, value, op.output())


def _added(op: Op, relations: Relations) -> None:
    """X + Y * gate, where the gate has one column."""
    for value in op.node.inputs:
        if value is not None:
            tie_broadcast(op, relations, value, op.output())


def _scaled(op: Op, relations: Relations) -> None:
    """The scale, if there is one, is a number."""
    tie_axes(op, relations, op.input(0), op.output())


def _decays(op: Op, relations: Relations) -> None:
    """Decays of (a + bias) times a factor per head, and rates of b."""
    a = op.input(0)
    tie_axes(op, relations, a, op.output())
    for value in _given(op, 1, 2):
        tie_broadcast(op, relations, value, op.output())
    for value in (*_given(op, 3), *_made(op, 1)):  # of the same shape
        tie_axes(op, relations, a, value)


def _like_input(op: Op) -> list[Inferred]:
    return [(op.dims(op.input(0)), op.input(0).dtype)]


def _like_both(op: Op) -> list[Inferred]:
    return [(op.dims(value), value.dtype) for value in _given(op, 0, 3)]


# --- causal convolution ----------------------------------------------------------------------------------


def _layout(op: Op) -> tuple[int, int] | None:
    """Dims of channels and tokens; None for the variants that stay whole (a window of states, several dims)."""
    if op.rank(op.input(0)) != 3 or op.int("state_window", 0) or op.int("ndim", 1) != 1:
        return None
    return (2, 1) if op.int("channels_last", 0) else (1, 2)


def _causal(op: Op, relations: Relations) -> None:
    layout = _layout(op)
    if layout is None:
        return
    (channel, token), weight = layout, op.input(1)
    states = [*_given(op, 3), *_made(op, 1)]
    hub = op.input(0)
    for value in (op.output(), *states):
        relations.tie(Axis(hub, 0), Axis(value, 0))
        relations.tie(Axis(hub, channel), Axis(value, channel))
    for value in (hub, op.output(), *states):
        relations.pin(Axis(value, token), Reason.ORDERED)
    relations.tie(Axis(hub, channel), Axis(weight, 0))
    for value in _given(op, 2):
        relations.tie(Axis(hub, channel), Axis(value, 0))
    relations.pin(Axis(weight, 2), Reason.SPATIAL)


def _causal_macs(op: Op) -> list[Term]:
    kernel = op.extent(Axis(op.input(1), op.rank(op.input(1)) - 1))
    return [Term(float(kernel or 0), tuple(op.axes(op.output())))]


def _causal_extents(op: Op) -> list[Inferred]:
    dims, weight, dtype = op.dims(op.input(0)), op.dims(op.input(1)), op.input(0).dtype
    layout = _layout(op)
    if dims is None:
        return []
    if weight is None or weight[-1] is None or layout is None:
        return [(dims, dtype)]
    state = list(dims)
    state[layout[1]] = (weight[-1] - 1) * op.int("dilation", 1)
    return [(dims, dtype), (tuple(state), dtype)]


# --- linear attention ------------------------------------------------------------------------------------


def _heads(op: Op) -> Heads | None:
    """None where several K/V heads share a query head, or the states of several tokens are kept."""
    query, keys = op.int("q_num_heads", 0), op.int("kv_num_heads", 0)
    if op.int("state_window", 0) or not keys or query % keys:
        return None
    return Heads(query, keys)


def _linear(op: Op, relations: Relations) -> None:
    heads = _heads(op)
    if heads is None:
        return
    q, k, v, y = op.input(0), op.input(1), op.input(2), op.output()
    states, gates = [*_given(op, 3), *_made(op, 1)], _given(op, 4, 5)
    batch = Axis(q, 0)
    for value in (k, v, y, *states, *gates):
        tie_equal(op, relations, batch, Axis(value, 0))
    for value in (q, k, v, y, *gates):
        relations.pin(Axis(value, 1), Reason.ORDERED)
    parts = queries(op, heads, Axis(q, 2), Axis(y, 2))
    parts += shared(op, heads, Axis(k, 2), Axis(v, 2), *(Axis(value, 1) for value in states))
    for value in gates:
        if (op.extent(Axis(value, 2)) or 0) >= heads.shared > 1:
            parts += shared(op, heads, Axis(value, 2))
    tie_heads(relations, parts)


def _refit_linear(op: Op, refit: Refit) -> None:
    heads = _heads(op)
    if heads is None:
        return
    refit.set_int("q_num_heads", kept_heads(refit, Axis(op.input(0), 2), heads.query))
    refit.set_int("kv_num_heads", kept_heads(refit, Axis(op.input(1), 2), heads.shared))


def _linear_macs(op: Op) -> list[Term]:
    """Each token adds k x v to its head's matrix (less what k finds there, with `delta`) and reads q from it."""
    dims, heads = op.dims(op.input(0)), op.int("q_num_heads", 0)
    if dims is None or None in dims or not heads:
        return []
    places = float((dims[0] or 0) * (dims[1] or 0)) * ((dims[2] or 0) // heads)
    updates = 2.0 if op.str("update_rule", "gated_delta") in ("delta", "gated_delta") else 1.0
    return [
        Term(places, (Axis(op.output(), 2),)),
        Term(places * updates, (Axis(op.input(2), 2),)),
    ]


def _linear_extents(op: Op) -> list[Inferred]:
    q, k, v = (op.dims(op.input(slot)) for slot in (0, 1, 2))
    heads = _heads(op)
    if heads is None or q is None or k is None or v is None or None in (k[2], v[2]):
        return []
    keys, values = (k[2] or 0) // heads.shared, (v[2] or 0) // heads.shared
    state = op.input(3).dtype if op.has(3) else op.input(0).dtype
    return [
        ((q[0], q[1], heads.query * values), op.input(0).dtype),
        ((q[0], heads.shared, keys, values), state),
    ]


_CAUSAL = Rule(_causal, macs=_causal_macs, weights=(1,), kinds={2: "bias"}, extents=_causal_extents)
_LINEAR = Rule(_linear, _refit_linear, _linear_macs, extents=_linear_extents)

RULES: dict[Key, Rule] = {
    **table(Rule(_alike, extents=_like_input), "SwiGLU"),
    **{(domain, "CausalConvWithState"): _CAUSAL for domain in ("", _MICROSOFT)},
    **{(domain, "LinearAttention"): _LINEAR for domain in ("", _MICROSOFT)},
    **table(Rule(_added, extents=_like_input), "GatedAdd", domain=_MICROSOFT),
    **table(Rule(_scaled, extents=_like_input), "ScaledSiLU", domain=_MICROSOFT),
    **table(
        Rule(_decays, kinds={1: "bias", 2: "scale"}, extents=_like_both),
        "LinearAttentionGate",
        domain=_MICROSOFT,
    ),
}
