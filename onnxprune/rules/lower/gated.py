"""SwiGLU, CausalConvWithState, gates of linear attention, and losses, in standard operators.

Specification: see `onnxprune.rules.gated` and `onnxprune.rules.losses`.
"""

from __future__ import annotations

from onnxprune.rules.expr import Expr
from onnxprune.rules.op import Op
from onnxprune.rules.rule import Key
from onnxprune.rules.site import Lower, Site
from onnxprune.rules.vjp.elementwise import number

_Outputs = list[Expr | None]
_MICROSOFT = "com.microsoft"


def _swish(x: Expr, alpha: float = 1.0) -> Expr:
    return x * (x if alpha == 1.0 else alpha * x).op("Sigmoid")


def _swiglu(op: Op, site: Site) -> _Outputs:
    return [_swish(site.x(), number(op, "alpha", 1.0)) * site.x(1)]


def _scaled(op: Op, site: Site) -> _Outputs:
    scale = site.optional(1)
    return [_swish(site.x() * (number(op, "alpha", 1.0) if scale is None else scale))]


def _added(op: Op, site: Site) -> _Outputs:
    return [site.x() + site.x(1) * site.x(2)]


def _decays(op: Op, site: Site) -> _Outputs:
    decay = site.x(2) * (site.x() + site.x(1)).op("Softplus")
    return [decay, site.x(3).op("Sigmoid") if op.has(3) else None]


def _causal(op: Op, site: Site) -> _Outputs:
    """The state, or zeros, in front of the tokens; then a convolution of every channel alone."""
    weight = site.dims(op.input(1))
    channels, kernel = weight[0], weight[-1]
    if len(weight) != 3 or channels is None or kernel is None or op.int("state_window", 0):
        raise site.refusal("only one dim of tokens and the last state are covered")
    last, step = op.int("channels_last", 0), op.int("dilation", 1)
    if last and site.rank(op.input(0)) != 3:
        raise site.refusal("its channels lie on several axes")
    state = (kernel - 1) * step
    x, past = site.x(), site.optional(3)
    if last:
        x, past = x.transpose([0, 2, 1]), None if past is None else past.transpose([0, 2, 1])
    x = x.pad([0, 0, state], [0, 0, 0]) if past is None else site.builder.concat([past, x], 2)
    y = x.op("Conv", site.x(1), site.optional(2), group=channels, dilations=[step])
    if op.str("activation", "none") in ("silu", "swish"):
        y = _swish(y)
    present = x.slice(2, -state, 2**31 - 1) if state else x.slice(2, 0, 0)
    return [part.transpose([0, 2, 1]) if last else part for part in (y, present)]


LOWERS: dict[Key, Lower] = {
    ("", "SwiGLU"): _swiglu,
    (_MICROSOFT, "ScaledSiLU"): _scaled,
    (_MICROSOFT, "GatedAdd"): _added,
    (_MICROSOFT, "LinearAttentionGate"): _decays,
    **{(domain, "CausalConvWithState"): _causal for domain in ("", _MICROSOFT)},
}
