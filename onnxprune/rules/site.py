"""One node of a graph that gets further nodes: its values as expressions, and their extents.

Extents that do not depend on the input are constants of what is added; others are read with Shape at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onnxprune.errors import GradientError
from onnxprune.rules.expr import Builder, Expr, vector
from onnxprune.rules.op import Op

WITHOUT_GRADIENTS = ("l1", "l2", "wanda", "flap", "obs")
"""Criteria that need no gradient, as messages name them."""


class Site:
    """A node, and where nodes are added for it.

    Parameters
    ----------
    op
        The node with its shapes.
    builder
        Where nodes go.
    """

    def __init__(self, op: Op, builder: Builder) -> None:
        self.op = op
        self.builder = builder

    @property
    def version(self) -> int:
        """Of the standard operators that may be added."""
        return self.builder.graph.opset_imports.get("", 1)

    def x(self, slot: int = 0) -> Expr:
        """Input `slot`."""
        return self.builder.of(self.op.input(slot))

    def optional(self, slot: int) -> Expr | None:
        """Input `slot`, or None where it is left out."""
        return self.x(slot) if self.op.has(slot) else None

    def y(self, slot: int = 0) -> Expr:
        """Output `slot`."""
        return self.builder.of(self.op.output(slot))

    def refusal(self, why: str) -> GradientError:
        """An error that names the node, and why it has no gradient."""
        return no_gradient(self.op, why)

    # --- shapes ------------------------------------------------------------------------------------------

    def rank(self, value: ir.Value) -> int:
        """Rank of a value; an error where it is unknown."""
        rank = self.op.rank(value)
        if rank < 0:
            raise self.refusal(self._unknown(value))
        return rank

    def dims(self, value: ir.Value) -> tuple[int | None, ...]:
        """Extents that do not depend on the input; None for the others."""
        dims = self.op.dims(value)
        if dims is None:
            raise self.refusal(self._unknown(value))
        dynamic = self.op.shapes.dynamic
        return tuple(None if (value, dim) in dynamic else extent for dim, extent in enumerate(dims))

    def _unknown(self, value: ir.Value) -> str:
        """That a shape is not known, and the node on the way to it whose outputs nobody could infer."""
        found = self.op.untold(value)
        node = found.producer()
        why = f"the shape of {value.name!r} is not known"
        if node is None or node is self.op.node:
            return why
        maker = Op(node, self.op.shapes, 1).label
        return f"{why}, because nothing says that of {found.name!r}, which {maker} makes"

    def extent(self, value: ir.Value, dim: int) -> Expr | int:
        """Extent of one axis: a number, or a vector of one int64."""
        known = self.dims(value)[dim]
        return self.builder.op("Shape", value, start=dim, end=dim + 1) if known is None else known

    def extents(self, value: ir.Value) -> list[Expr | int]:
        """Extents of all axes."""
        return [self.extent(value, dim) for dim in range(self.rank(value))]

    def shape(self, value: ir.Value) -> Expr:
        """The shape of a value, as a vector of int64."""
        dims = self.dims(value)
        if None in dims:
            return self.builder.op("Shape", value)
        return self.builder.ints(*(extent or 0 for extent in dims))

    def count_up(self, length: Expr | int) -> Expr:
        """0, 1, ... below `length`, a number or a vector of one int64."""
        if isinstance(length, int):
            return self.builder.constant(np.arange(length, dtype=np.int64))
        zero, one = (self.builder.constant(np.int64(n)) for n in (0, 1))
        return zero.op("Range", length.squeeze(0), one)

    def reshape_like(self, expr: Expr, value: ir.Value) -> Expr:
        """Reshape to the shape of a value with as many elements."""
        dims = self.dims(value)
        if dims.count(None) == 1 and 0 not in dims:
            return expr.reshape([-1 if extent is None else extent for extent in dims])
        return expr.reshape(self.shape(value))

    def expand_like(self, expr: Expr, value: ir.Value, axes: Sequence[int]) -> Expr:
        """Repeat along `axes`, where `expr` has extent 1, as often as `value` has positions."""
        sizes = [self.extent(value, dim) if dim in axes else 1 for dim in range(self.rank(value))]
        return expr.expand(vector(self.builder, sizes)) if any(size != 1 for size in sizes) else expr

    def count(self, value: ir.Value, axes: Sequence[int]) -> Expr | float:
        """How many positions some axes have together, as a float."""
        product: Expr | int = 1
        for dim in axes:
            extent = self.extent(value, dim)
            if isinstance(product, int) and isinstance(extent, int):
                product *= extent
            elif isinstance(product, int):
                product = self.builder.op("Mul", self.builder.ints(product), extent)
            else:
                product = product * (self.builder.ints(extent) if isinstance(extent, int) else extent)
        return float(product) if isinstance(product, int) else product.float()


def no_gradient(op: Op, why: str) -> GradientError:
    """The error of a node that gradients cannot pass."""
    return GradientError(
        f"no gradient through {op.label}: {why}",
        f"Criteria without gradients work on this model: {', '.join(WITHOUT_GRADIENTS)}. "
        "A rule with a `vjp` for the operator makes the others work (docs/extending.md).",
    )


Lower: TypeAlias = Callable[[Op, Site], Sequence[Expr | None] | None]
"""Says a node in standard operators: an expression per output, None for outputs that the node does not make.

None instead of all of them leaves the node as it is, for its VJP.
"""
