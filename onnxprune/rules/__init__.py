"""What is known about operators: one file per family, one table of rules.

A rule table is a plain value: `default_rules() | {("my.domain", "MyOp"): Rule(...)}` is a new table in which
the right side wins. Third parties publish tables through the entry point group `onnxprune.rules`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib.metadata import entry_points

from onnxprune.rules import (
    attention,
    contrib,
    contrib_attention,
    contrib_conv,
    control,
    conv,
    einsum,
    elementwise,
    gated,
    generating,
    indexing,
    integer,
    layout,
    linear,
    losses,
    movement,
    normalization,
    pooling,
    quantization,
    recurrent,
    reduction,
    resize,
    rotary,
    shape,
    signal,
    slicing,
    vision,
)
from onnxprune.rules.lower import LOWERS
from onnxprune.rules.op import Op
from onnxprune.rules.rule import Rule, RuleTable, Term
from onnxprune.rules.vjp import VJPS

__all__ = ["Op", "Rule", "RuleTable", "Term", "builtin_rules", "default_rules"]

_FAMILIES = (
    attention,
    control,
    conv,
    einsum,
    elementwise,
    gated,
    generating,
    indexing,
    layout,
    linear,
    losses,
    movement,
    normalization,
    pooling,
    quantization,
    recurrent,
    reduction,
    resize,
    rotary,
    shape,
    signal,
    slicing,
    vision,
    contrib,  # after normalization, whose rule it completes
    contrib_attention,
    contrib_conv,
    integer,
)


@cache
def builtin_rules() -> RuleTable:
    """The rules that come with onnxprune."""
    rules = RuleTable()
    for family in _FAMILIES:
        rules = rules | family.RULES
    rules = rules | {key: replace(rules[key], vjp=vjp) for key, vjp in VJPS.items()}
    return rules | {key: replace(rules[key], lower=lower) for key, lower in LOWERS.items()}


@cache
def default_rules() -> RuleTable:
    """The built-in rules and those that installed packages publish as `onnxprune.rules` entry points.

    An entry point names a mapping `{(domain, op_type): Rule}` or a function that returns one.
    """
    rules = builtin_rules()
    for point in entry_points(group="onnxprune.rules"):
        loaded = point.load()
        rules = rules | (loaded() if callable(loaded) else loaded)
    return rules
