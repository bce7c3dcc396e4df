"""The tables of tests/rules as templates: every line is a way to apply an operator."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import onnx

from onnxprune.rules import elementwise
from onnxprune.rules.rule import Key
from onnxprune.testing import Activation

RULES = Path(__file__).parents[1] / "rules"
NO_KERNEL = {("Swish", 26)}
"""Operators that onnxruntime runs in some opsets only, though their definition is the same."""


@cache
def every_case() -> tuple[Any, ...]:
    """Every line of the tables that says how an operator is applied, in their order."""
    return tuple(case for module in _tables() for case in module.CASES if hasattr(case, "inputs"))


@cache
def templates() -> tuple[Any, ...]:
    """Every case that onnxruntime has a kernel for, in the order of the tables."""
    without = {id(case) for module in _tables() for case in getattr(module, "WITHOUT_KERNEL", ())}
    return tuple(case for case in every_case() if id(case) not in without)


@cache
def _tables() -> tuple[Any, ...]:
    if str(RULES) not in sys.path:
        sys.path.append(str(RULES))
    return tuple(importlib.import_module(file.stem) for file in sorted(RULES.glob("test_*_rules.py")))


@cache
def since(op_type: str, opset: int, domain: str = "") -> int:
    """The version in which an operator got the form that it has in an opset; 0 before its first."""
    if domain or op_type == "SimplifiedLayerNormalization":  # onnxruntime's own
        return 1
    if (op_type, opset) in NO_KERNEL:
        return 0
    try:
        return int(onnx.defs.get_schema(op_type, opset, "").since_version)
    except onnx.defs.SchemaError:
        return 0


@cache
def usable(opset: int, contrib: bool, pointwise: bool = False) -> dict[Key, tuple[int, ...]]:
    """Numbers of the templates that fit an opset, by operator; `pointwise` fit values of any shape."""
    found: dict[Key, list[int]] = {}
    for number, case in enumerate(templates()):
        version = since(case.op_type, opset, case.domain)
        fits = version > 0 and version == since(case.op_type, case.opset, case.domain)
        if fits and (contrib or not case.domain) and (not pointwise or is_pointwise(case)):
            found.setdefault((case.domain, case.op_type), []).append(number)
    return {key: tuple(numbers) for key, numbers in found.items()}


def extents(entry: Any) -> tuple[int, ...] | None:
    """The shape of an activation; None for anything else."""
    if isinstance(entry, Activation):
        return entry.shape
    return entry if isinstance(entry, tuple) else None


def is_pointwise(case: Any) -> bool:
    """Whether an element-wise operator has inputs of one shape, and no attribute names an axis."""
    shapes = {extents(entry) for entry in case.inputs if getattr(entry, "size", 0) != 1 and entry is not None}
    shape = next(iter(shapes), None)
    if (
        (case.domain, case.op_type) not in elementwise.RULES
        or case.outputs != 1
        or len(shapes) != 1
        or not shape
    ):
        return False
    if any(isinstance(value, list | tuple) or "ax" in name for name, value in case.attributes.items()):
        return False
    names = {f"x{slot}" for slot, entry in enumerate(case.inputs) if extents(entry)} | {"y0"}
    every = {f"{name}[{dim}]" for name in names for dim in range(len(shape)) if shape[dim] > 1}
    return case.expect == every and not case.pinned


def covered() -> Iterator[Key]:
    """Operators that have a template."""
    yield from dict.fromkeys((case.domain, case.op_type) for case in templates())
