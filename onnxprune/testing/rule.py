"""`check_rule`: a small model around one operator."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.errors import Reason
from onnxprune.graph.axes import Axis
from onnxprune.rules import RuleTable
from onnxprune.testing.builder import ModelBuilder
from onnxprune.testing.feeds import Array, execute, make_feeds
from onnxprune.testing.model import TOLERANCE, Checked, check_model

_PROJECTIONS = 4


@dataclass(frozen=True)
class Activation:
    """An input that other nodes make: every axis of it can lose positions.

    Attributes
    ----------
    shape
        Its extents.
    dtype
        "float32", or another element type, which a Cast makes ("bool": whether a float is positive).
    low, high
        Range of its values before that cast.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    low: float = -2.0
    high: float = 2.0


@dataclass(frozen=True)
class Weight:
    """A float32 initializer with values drawn evenly from [low, high)."""

    shape: tuple[int, ...]
    low: float = -1.0
    high: float = 1.0


@dataclass(frozen=True)
class Feed:
    """A graph input, whose shape is fixed; integers are drawn from [0, high)."""

    shape: tuple[int | str, ...]
    dtype: str = "float32"
    high: int = 2


Input = Activation | Weight | Feed | Array | tuple[int, ...] | None
"""What `check_rule` takes for one input of the operator; a bare tuple is the shape of an `Activation`."""


def check_rule(
    op_type: str,
    *,
    inputs: Sequence[Input],
    attributes: Mapping[str, Any] | None = None,
    outputs: int | Sequence[str] = 1,
    domain: str = "",
    opset: int = 18,
    version: int = 1,
    rules: RuleTable | None = None,
    expect: Collection[str] | None = None,
    groups: int | None = None,
    pinned: Mapping[str, Reason] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    tolerance: float = TOLERANCE,
    checker: bool = True,
) -> Checked:
    """Check the rule of one operator: masked == removed whatever is dropped, and what must be prunable is.

    Parameters
    ----------
    op_type, domain, version
        The operator; `version` is that of a domain of its own.
    inputs
        One entry per input: the shape of an activation, an `Activation`, a `Weight`, a `Feed`, an array (a
        constant) or None (left out). In messages, and in `expect`, input `i` is called `xi`.
    attributes
        The node's attributes.
    outputs
        How many outputs the node has, or their names; the empty string leaves one out. They are called `yi`.
    opset
        Version of the default domain.
    rules
        The table to look the rule up in; `default_rules()` by default.
    expect
        Exactly those axes of the operator that can lose positions, such as `{"x0[1]", "x1[0]", "y0[1]"}`, so
        that a rule that pins too much (or too little) fails. An empty set: nothing can.
    groups
        How many groups there must be.
    pinned
        Axes that must be blocked, and the reason of the nearest barrier.
    seeds
        Of the draws of units to drop.
    tolerance
        Largest difference between masked and removed, as a share of the largest output.
    checker
        Ask onnx's checker; False for operators that it refuses and onnxruntime runs.

    Returns
    -------
    Checked
        The axis graph and the groups.

    Raises
    ------
    AssertionError
        The rule is wrong; the message says in which respect.

    Examples
    --------
    A rule for an operator of one's own is checked in the same way:

    >>> from onnxprune.rules import Rule, default_rules
    >>> from onnxprune.rules.helpers import tie_axes
    >>> from onnxprune.testing import check_rule
    >>> mine = Rule(lambda op, relations: tie_axes(op, relations, op.input(0), op.output()))
    >>> rules = default_rules() | {("com.microsoft", "QuickGelu"): mine}
    >>> checked = check_rule(
    ...     "QuickGelu", domain="com.microsoft", inputs=[(2, 8)], rules=rules,
    ...     expect={"x0[0]", "x0[1]", "y0[0]", "y0[1]"},
    ... )
    >>> len(checked.groups)
    2
    """
    node = _Node(op_type, domain, version, opset, tuple(inputs), dict(attributes or {}), outputs)
    model, own = node.build(node.results())
    highs = {f"x{slot}": entry.high for slot, entry in enumerate(inputs) if isinstance(entry, Feed)}
    checked = check_model(model, rules=rules, seeds=seeds, highs=highs, tolerance=tolerance, checker=checker)
    found = {name for name in checked.prunable() if name.rpartition("[")[0] in own}
    if expect is not None and found != set(expect):
        reasons = {
            name: str(checked.reason(name)) for name in sorted(set(expect) - found) if _has(checked, name)
        }
        raise AssertionError(
            f"{op_type}: prunable are {sorted(found)}, expected {sorted(expect)}"
            f" (missing: {sorted(set(expect) - found)} {reasons}, too many: {sorted(found - set(expect))})"
        )
    if groups is not None and len(checked.groups) != groups:
        raise AssertionError(f"{op_type}: {len(checked.groups)} groups {checked.groups}, expected {groups}")
    for name, reason in (pinned or {}).items():
        if name in found:
            raise AssertionError(f"{op_type}: {name} can lose positions, expected {reason.name}")
        if checked.reason(name) is not reason:
            raise AssertionError(f"{op_type}: {name} is blocked by {checked.reason(name)}, expected {reason}")
    return checked


def _has(checked: Checked, name: str) -> bool:
    return any(isinstance(axis, Axis) and axis.name == name for axis in checked.axis_graph.graph)


@dataclass(frozen=True)
class _Node:
    """The operator of one `check_rule`."""

    op_type: str
    domain: str
    version: int
    opset: int
    inputs: tuple[Input, ...]
    attributes: dict[str, Any]
    outputs: int | Sequence[str]

    def results(self) -> dict[str, Array]:
        """What the operator makes: extents and types of outputs from onnxruntime, whatever its domain."""
        model, _ = self.build({})
        return execute(model, make_feeds(model, {}))

    def build(self, results: Mapping[str, Array]) -> tuple[ir.Model, set[str]]:
        """The model, and the names of the operator's own values; each of `results` is summed over."""
        builder = ModelBuilder(self.opset, {self.domain: self.version} if self.domain else None)
        values = [_input(builder, slot, entry) for slot, entry in enumerate(self.inputs)]
        count = self.outputs
        names = [f"y{i}" for i in range(count)] if isinstance(count, int) else list(count)
        made = builder.ops(
            self.op_type, *values, outputs=names, name="operator", domain=self.domain, **self.attributes
        )
        made = tuple(value for value in made if value.name)
        own = {str(value.name) for value in (*values, *made) if value is not None}
        if not results:
            return builder.model(*made), own
        for value in made:
            found = results[str(value.name)]
            value.type = ir.TensorType(ir.DataType.from_numpy(found.dtype))
            value.shape = ir.Shape(found.shape)
        return builder.model(*(_consume(builder, value) for value in made)), own


def _input(builder: ModelBuilder, slot: int, entry: Input) -> ir.Value | None:
    name = f"x{slot}"
    if entry is None:
        return None
    if isinstance(entry, tuple):
        entry = Activation(entry)
    if isinstance(entry, Activation):
        return _produce(builder, name, entry)
    if isinstance(entry, Weight):
        return builder.weight(entry.shape, name, low=entry.low, high=entry.high)
    if isinstance(entry, Feed):
        return builder.input(name, entry.shape, ir.DataType.from_numpy(np.dtype(entry.dtype)))
    return builder.constant(entry, name)


def _produce(builder: ModelBuilder, name: str, wanted: Activation) -> ir.Value:
    """A weight times a number that is fed: every axis can lose positions, nothing can be folded."""
    number = builder.input(f"{name}/feed", [1] * len(wanted.shape))
    weight = builder.weight(wanted.shape, f"{name}/weight", low=wanted.low, high=wanted.high)
    product = ("Mul", number, weight)
    if wanted.dtype == "float32":
        return builder.ops(*product, outputs=[name])[0]
    value = builder.op(*product, name=f"{name}/product")
    if wanted.dtype == "bool":
        zero = builder.constant(np.zeros((), np.float32), f"{name}/zero")
        return builder.ops("Greater", value, zero, outputs=[name])[0]
    to = ir.DataType.from_numpy(np.dtype(wanted.dtype))
    return builder.ops("Cast", value, outputs=[name], to=to.value)[0]


def _consume(builder: ModelBuilder, value: ir.Value) -> ir.Value:
    """A few numbers that depend on every element: the last axis meets a weight, others are summed over."""
    name, shape = str(value.name), list(value.shape.numpy()) if value.shape is not None else []
    if value.dtype != ir.DataType.FLOAT:
        value = builder.op("Cast", value, name=f"{name}/float", to=ir.DataType.FLOAT.value)
    if not shape:
        shape = [1]
        value = _over(builder, "Unsqueeze", value, [0], f"{name}/vector")
    mix = builder.weight((shape[-1], _PROJECTIONS), f"{name}/mix")
    mixed = builder.op("MatMul", value, mix, name=f"{name}/mixed")
    if len(shape) == 1:
        return mixed
    share = builder.weight((*shape[:-1], _PROJECTIONS), f"{name}/share")
    weighted = builder.op("Mul", mixed, share, name=f"{name}/weighted")
    return _over(builder, "ReduceSum", weighted, list(range(len(shape) - 1)), f"{name}/sum", keepdims=0)


def _over(
    builder: ModelBuilder, op_type: str, value: ir.Value, axes: list[int], name: str, **attributes: Any
) -> ir.Value:
    if builder.opset >= 13:
        return builder.op(op_type, value, builder.constant(axes, f"{name}/axes"), name=name, **attributes)
    return builder.op(op_type, value, name=name, axes=axes, **attributes)
