"""What a loss is differentiated with respect to: values of the graph, and masks over units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onnxprune.errors import UsageError
from onnxprune.graph.axes import Index
from onnxprune.model.shapes import Shapes
from onnxprune.rules.expr import Builder, Expr, vector


@dataclass(frozen=True, eq=False)
class UnitMask:
    """One factor per sample and unit, all 1, by which positions of an axis are multiplied.

    The gradient with respect to it, (batch, units), is the sum over a unit's positions of what the value has
    there times its gradient. No gradient of a weight is needed for it.

    Attributes
    ----------
    value
        Name of an activation.
    axis
        Its axis that holds the units.
    index
        Unit of each position, -1 where it belongs to none.
    units
        How many units there are.
    name
        Of the mask; its gradient is the output `gradient_name(mask)`.
    sample_axis
        The axis that holds the samples; it may hold several entries per sample (the windows of an image). None
        where samples are not told apart: the gradient, (1, units), is the sum over all.
    rows
        An axis before `axis` each entry of which has positions of its own, one row behind the other in `index`;
        only where samples are not told apart. None: there is none.
    """

    value: str
    axis: int
    index: Index
    units: int
    name: str = ""
    sample_axis: int | None = 0
    rows: int | None = None


Target: TypeAlias = str | UnitMask
"""The name of an initializer or activation, or a mask."""


def gradient_name(target: Target) -> str:
    """Name of the output that holds the gradient with respect to a target."""
    if isinstance(target, str):
        return f"gradient/{target}"
    return f"gradient/{target.name or f'{target.value}[{target.axis}]'}"


def find_values(graph: ir.Graph, targets: Sequence[Target]) -> list[ir.Value]:
    """The value of each target.

    Raises
    ------
    UsageError
        The graph has no such value, or it is no float tensor.
    """
    names = [target if isinstance(target, str) else target.value for target in targets]
    made = (output for node in graph for output in node.outputs)
    known = {value.name: value for value in (*graph.inputs, *graph.initializers.values(), *made)}
    for name in names:
        if name not in known:
            raise UsageError(
                f"the model has no value {name!r} to differentiate with respect to",
                "Name an initializer, an input or the output of a node.",
            )
        if not is_float(known[name]):
            raise UsageError(f"{name!r} is no float tensor, so it has no gradient", "Name another value.")
    return [known[name] for name in names]


def is_float(value: ir.Value) -> bool:
    """Whether gradients pass a value, as far as its type is known."""
    return value.dtype is None or value.dtype == ir.DataType.FLOAT


def mask_gradient(
    mask: UnitMask, value: ir.Value, gradient: Expr, shapes: Shapes, builder: Builder, batch: ir.Value | None
) -> Expr:
    """Sum gradient times value over all but samples and units.

    Parameters
    ----------
    mask
        What is differentiated with respect to.
    value, gradient
        The activation and the loss's gradient with respect to it.
    shapes
        Of the graph.
    builder
        Where nodes go.
    batch
        An input of the graph, whose leading axis holds the samples.

    Returns
    -------
    Expr
        (batch, units), or (1, units) where samples are not told apart.
    """
    if batch is None:
        raise UsageError("the model has no input, so it has no samples to mask", "Mask another model.")
    dims = shapes.dims.get(value)
    if dims is None:
        raise UsageError(
            f"the shape of {mask.value!r} is not known, so it has no unit masks", "Mask another value."
        )
    rank = len(dims)
    axis = mask.axis % rank
    samples = None if mask.sample_axis is None else mask.sample_axis % rank
    rows = None if mask.rows is None else mask.rows % rank
    positions = (dims[axis] or 0) * (1 if rows is None else dims[rows] or 0)
    if axis == samples or positions != len(mask.index) or (rows is not None and samples is not None):
        raise UsageError(
            f"axis {mask.axis} of {mask.value!r} does not hold {len(mask.index)} positions beside the samples",
            "Check the mask's axis, index, sample_axis and rows.",
        )
    rest = [dim for dim in range(rank) if dim not in (axis, samples, rows)]
    sums = (builder.of(value) * gradient).sum(*rest, keep=False)
    if samples is None:
        return _by_unit(mask, sums.reshape([1, -1]), builder)
    if axis < samples:
        sums = sums.transpose([1, 0])
    units = _by_unit(mask, sums, builder)
    if _one_entry_per_sample(value, samples, batch, shapes):
        return units
    count = builder.op("Shape", batch, start=0, end=1)
    return units.reshape(vector(builder, [count, -1, mask.units])).sum(1, keep=False)


def _by_unit(mask: UnitMask, sums: Expr, builder: Builder) -> Expr:
    if np.array_equal(mask.index, np.arange(mask.units)):
        return sums
    belongs = (mask.index[:, None] == np.arange(mask.units)).astype(np.float32)
    return sums @ builder.constant(belongs)


def _one_entry_per_sample(value: ir.Value, axis: int, batch: ir.Value, shapes: Shapes) -> bool:
    both = [shapes.dims, shapes.other] if shapes.other else [shapes.dims]
    return all(value in dims and batch in dims and dims[value][axis] == dims[batch][0] for dims in both)
