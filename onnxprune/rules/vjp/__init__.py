"""VJP, the fourth table of rules: for each operator, the nodes that take a gradient through it.

One file per operator family; `VJPS` of each is a plain table. See `onnxprune.rules.backward` for what such a
function sees and says.
"""

from __future__ import annotations

from onnxprune.rules.backward import Vjp
from onnxprune.rules.rule import Key
from onnxprune.rules.vjp import (
    attention,
    conv,
    einsum,
    elementwise,
    indexing,
    layout,
    linear,
    movement,
    normalization,
    pooling,
    quantization,
    recurrent,
    reduction,
    resize,
    signal,
    vision,
)

_FAMILIES = (
    attention,
    conv,
    einsum,
    elementwise,
    indexing,
    layout,
    linear,
    movement,
    normalization,
    pooling,
    quantization,
    recurrent,
    reduction,
    resize,
    signal,
    vision,
)

VJPS: dict[Key, Vjp] = {key: vjp for family in _FAMILIES for key, vjp in family.VJPS.items()}
