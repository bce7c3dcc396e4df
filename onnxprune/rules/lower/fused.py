"""onnxruntime's activations and normalisations (com.microsoft) with a bias, a sum or an activation inside.

Specification: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.rules.expr import Expr
from onnxprune.rules.op import Op
from onnxprune.rules.rule import Key
from onnxprune.rules.site import Lower, Site
from onnxprune.rules.vjp.elementwise import number

_Outputs = list[Expr | None]
_TANH_SCALE, _TANH_CUBE = math.sqrt(2 / math.pi), 0.044715
_LAST, _FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
"""Orders that put the channels of images last, and back."""


# --- activations, sums -----------------------------------------------------------------------------------


def gelu(x: Expr) -> Expr:
    """X times the normal distribution function."""
    return 0.5 * x * (1.0 + (x * math.sqrt(0.5)).op("Erf"))


def _tanh_gelu(x: Expr) -> Expr:
    return 0.5 * x * (1.0 + (_TANH_SCALE * (x + _TANH_CUBE * x * x * x)).op("Tanh"))


def _plus(x: Expr, *others: Expr | None) -> Expr:
    for other in others:
        x = x if other is None else x + other
    return x


def _gelu(op: Op, site: Site) -> _Outputs:
    return [gelu(_plus(site.x(), site.optional(1)))]


def _fast_gelu(op: Op, site: Site) -> _Outputs:
    return [_tanh_gelu(_plus(site.x(), site.optional(1)))]


def _quick_gelu(op: Op, site: Site) -> _Outputs:
    x = site.x()
    return [x * (number(op, "alpha", 1.702) * x).op("Sigmoid")]


def _bias_split_gelu(op: Op, site: Site) -> _Outputs:
    halves = site.builder.ops("Split", [site.x() + site.x(1)], 2, axis=-1, num_outputs=2)
    return [halves[0] * gelu(halves[1])]


def _bias_add(op: Op, site: Site) -> _Outputs:
    return [site.x() + site.x(1) + site.x(2)]


# --- normalisations --------------------------------------------------------------------------------------


def normalised(
    x: Expr, axes: Sequence[int], epsilon: float, *, centred: bool = True
) -> tuple[Expr, Expr, Expr]:
    """X over its deviation, its mean, and 1 over its deviation."""
    mean = x.mean(*axes)
    rest = x - mean if centred else x
    inverse = 1.0 / ((rest * rest).mean(*axes) + epsilon).op("Sqrt")
    return rest * inverse, mean, inverse


def _skip_layer(op: Op, site: Site) -> _Outputs:
    """Normalise X + skip + bias; mean, 1 / deviation and the sum are outputs, too."""
    simple = op.node.op_type.startswith("SkipSimplified")
    bias, shift = (3, None) if simple else (4, 3)
    total = _plus(site.x(), site.x(1), site.optional(bias))
    default = 1e-5 if simple else 1e-12
    n, mean, inverse = normalised(total, [-1], number(op, "epsilon", default), centred=not simple)
    y = n * site.x(2)
    if shift is not None:
        y = _plus(y, site.optional(shift))
    return [y, mean, inverse, total]


def _embed(op: Op, site: Site) -> _Outputs:
    """Look up words, positions and segments, and normalise their sum. The second output counts tokens."""
    ids = site.x()
    words = site.x(2).op("Gather", ids, axis=0)
    if op.has(7):
        places = site.x(3).op("Gather", site.x(7), axis=0)
    else:
        length = ids.op("Shape", start=1, end=2)
        places = site.x(3).slice(0, 0, length)
    total = words + places
    if op.has(1) and op.has(4):
        total = total + site.x(4).op("Gather", site.x(1), axis=0)
    n, _, _ = normalised(total, [-1], number(op, "epsilon", 1e-12))
    if op.has(8):
        count = site.x(8).op("ReduceSum", site.builder.ints(1), keepdims=0)
    else:
        rows = site.builder.op("Shape", op.input(0), start=0, end=1)
        count = site.builder.op("ConstantOfShape", rows, value=ir.Tensor(np.zeros(1, np.int32)))
    return [n * site.x(5) + site.x(6), count, total]


def _group(op: Op, site: Site) -> _Outputs:
    """Normalise runs of channels; SkipGroupNorm adds a skip and a bias before, and gives the sum."""
    x, last = site.x(), op.int("channels_last", 1)
    rank, groups = site.rank(op.input(0)), op.int("groups", 1)
    if rank != 4:
        raise site.refusal("it has no images of rank 4")
    sums: _Outputs = []
    if op.node.op_type == "SkipGroupNorm":
        skip = site.x(3)
        if site.rank(op.input(3)) == 2:
            skip = skip.unsqueeze(*((1, 2) if last else (2, 3)))
        bias = site.optional(4)
        if bias is not None and not last:
            bias = bias.unsqueeze(1, 2)
        x = _plus(x, skip, bias)
        sums = [x]
    image = x.transpose(_FIRST) if last else x
    n, _, _ = normalised(image.reshape([0, groups, -1]), [-1], number(op, "epsilon", 1e-5))
    n = n.reshape(image.op("Shape"))
    y = n * site.x(1).unsqueeze(1, 2) + site.x(2).unsqueeze(1, 2)
    y = y.transpose(_LAST) if last else y
    return [y * y.op("Sigmoid") if op.int("activation", 0) else y, *sums]


def _simplified(op: Op, site: Site) -> _Outputs | None:
    """Spelled out only where 1 / deviation is used, which the VJP does not cover."""
    second = op.node.outputs[1] if len(op.node.outputs) > 1 else None
    if second is None or not (second.uses() or second.is_graph_output()):
        return None
    rank = site.rank(op.input(0))
    axes = range(op.int("axis", -1) % rank, rank)
    centred = op.node.op_type == "LayerNormalization"
    n, mean, inverse = normalised(site.x(), axes, number(op, "epsilon", 1e-5), centred=centred)
    y = _plus(n * site.x(1), site.optional(2))
    return [y, mean, inverse] if centred else [y, inverse]


_MICROSOFT: dict[str, Lower] = {
    "Gelu": _gelu,
    "BiasGelu": _gelu,
    "FastGelu": _fast_gelu,
    "QuickGelu": _quick_gelu,
    "BiasSplitGelu": _bias_split_gelu,
    "BiasAdd": _bias_add,
    "SkipLayerNormalization": _skip_layer,
    "SkipSimplifiedLayerNormalization": _skip_layer,
    "EmbedLayerNormalization": _embed,
    "GroupNorm": _group,
    "SkipGroupNorm": _group,
}

LOWERS: dict[Key, Lower] = {
    **{("com.microsoft", op_type): lower for op_type, lower in _MICROSOFT.items()},
    ("", "LayerNormalization"): _simplified,
    ("", "SimplifiedLayerNormalization"): _simplified,
}
