"""LOWER, the fifth table of rules: operators said in standard ones, through which gradients pass then.

One file per operator family; `LOWERS` of each is a plain table. It holds what is no standard operator, and what has
a VJP that is easier written as those of its parts. See `onnxprune.rules.site` for what such a function sees.
"""

from __future__ import annotations

from onnxprune.rules.lower import (
    attention,
    fused,
    gated,
    grouped,
    losses,
    movement,
    products,
    sampling,
    signal,
)
from onnxprune.rules.rule import Key
from onnxprune.rules.site import Lower

_FAMILIES = (attention, fused, gated, grouped, losses, movement, products, sampling, signal)

LOWERS: dict[Key, Lower] = {key: lower for family in _FAMILIES for key, lower in family.LOWERS.items()}
