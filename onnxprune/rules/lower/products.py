"""onnxruntime's products of matrices and convolutions (com.microsoft), with what is fused to them.

Specification: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md; for the weight of
NhwcConv, onnxruntime/transformers/fusion_nhwc_conv.py, which makes it.
"""

from __future__ import annotations

from typing import Any

from onnxprune.rules.expr import Expr
from onnxprune.rules.op import Op
from onnxprune.rules.rule import Key
from onnxprune.rules.site import Lower, Site
from onnxprune.rules.vjp.elementwise import number

_Outputs = list[Expr | None]


def _activated(site: Site, y: Expr, kind: str, parameters: dict[str, float]) -> Expr:
    """An activation with the numbers that it takes."""
    if not kind:
        return y
    if kind in ("Relu", "Tanh", "Sigmoid"):
        return y.op(kind)
    if kind == "LeakyRelu":
        return y.op(kind, alpha=parameters.get("alpha", 0.01))
    if kind == "HardSigmoid":
        given = {"alpha": parameters.get("alpha", 0.2), "beta": parameters.get("beta", 0.5)}
        return y.op(kind, **given)
    if kind == "Clip":
        return y.op("Clip", parameters["alpha"], parameters["beta"])
    raise site.refusal(f"its activation {kind!r} is not covered")


def _matmul(op: Op, site: Site) -> _Outputs:
    """Multiply op(A) by op(B) and alpha; transBatch moves the first axis behind the others but the last."""
    a, b = (_operand(op, site, slot) for slot in (0, 1))
    y, alpha = a @ b, number(op, "alpha", 1.0)
    return [y if alpha == 1.0 else y * alpha]


def _operand(op: Op, site: Site, slot: int) -> Expr:
    rank, name = site.rank(op.input(slot)), "AB"[slot]
    order = list(range(rank))
    if rank > 2 and op.int(f"transBatch{name}", 0):
        order = [*order[1:-1], order[0], order[-1]]
    if rank > 1 and op.int(f"trans{name}", 0):
        order[-2:] = order[:-3:-1]
    return site.x(slot).transpose(order)


def _gemm(op: Op, site: Site) -> _Outputs:
    given = {name: op.int(name, 0) for name in ("transA", "transB")}
    factors = {name: number(op, name, 1.0) for name in ("alpha", "beta")}
    y = site.x().op("Gemm", site.x(1), site.optional(2), **given, **factors)
    names = ("alpha", "beta", "gamma")
    attributes = op.node.attributes
    parameters = {n: number(op, f"activation_{n}", 0.0) for n in names if f"activation_{n}" in attributes}
    return [_activated(site, y, op.str("activation", ""), parameters)]


def _conv(op: Op, site: Site) -> _Outputs:
    """Convolve, add Z, activate."""
    x, w, last = site.x(), site.x(1), op.node.op_type.startswith("Nhwc")
    rank = site.rank(op.input(0))
    if last:
        x = x.transpose([0, rank - 1, *range(1, rank - 1)])
    if op.node.op_type == "NhwcConv":  # (M, kernel, C)
        w = w.transpose([0, rank - 1, *range(1, rank - 1)])
    kept = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    given: dict[str, Any] = {n: a.value for n, a in op.node.attributes.items() if n in kept}
    y = x.op("Conv", w, site.optional(2), **given)
    y = y.transpose([0, *range(2, rank), 1]) if last else y
    added = site.optional(3)
    y = y if added is None else y + added
    numbers = op.node.attributes.get("activation_params")
    parameters = dict(zip(("alpha", "beta"), numbers.as_floats() if numbers else (), strict=False))
    return [_activated(site, y, op.str("activation", ""), parameters)]


_MICROSOFT: dict[str, Lower] = {
    "FusedMatMul": _matmul,
    "TransposeMatMul": _matmul,
    "FusedGemm": _gemm,
    "FusedConv": _conv,
    "NhwcConv": _conv,
    "NhwcFusedConv": _conv,
}

LOWERS: dict[Key, Lower] = {("com.microsoft", op_type): lower for op_type, lower in _MICROSOFT.items()}
