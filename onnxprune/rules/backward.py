"""What the VJP of an operator sees and says: gradients of outputs in, gradients of inputs out.

A vector-Jacobian product takes the gradient of a scalar with respect to a node's outputs and gives it with
respect to the inputs, as further nodes. Extents that do not depend on the input are constants of these nodes;
others are read with Shape at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onnxprune.rules.expr import Builder, Expr
from onnxprune.rules.op import Op
from onnxprune.rules.site import Site


class Backward(Site):
    """One node on the way back.

    Parameters
    ----------
    op
        The node with its shapes.
    builder
        Where the nodes of gradients go.
    gradients
        Of the node's outputs, by slot; outputs that the loss does not depend on are missing.
    wanted
        Values whose gradient somebody needs.
    """

    def __init__(
        self, op: Op, builder: Builder, gradients: Mapping[int, Expr], wanted: Set[ir.Value]
    ) -> None:
        super().__init__(op, builder)
        self.given: dict[int, Expr | None] = {}
        self._gradients = gradients
        self._wanted = wanted

    # --- what comes in -----------------------------------------------------------------------------------

    def wants(self, slot: int) -> bool:
        """Whether somebody needs the gradient of input `slot`."""
        return self.op.has(slot) and self.op.input(slot) in self._wanted

    def gradient(self, slot: int = 0) -> Expr | None:
        """The gradient of output `slot`; None where the loss does not depend on it."""
        return self._gradients.get(slot)

    @property
    def g(self) -> Expr:
        """The gradient of the first output, which for all but a few operators is the only one."""
        found = self._gradients.get(0)
        if found is None or len(self._gradients) > 1:
            others = ", ".join(str(slot) for slot in self._gradients if slot)
            raise self.refusal(f"output {others} takes part in the loss")
        return found

    # --- what goes out -----------------------------------------------------------------------------------

    def give(self, slot: int, gradient: Expr | None) -> None:
        """Say the gradient of input `slot`, of the input's shape; None where it is zero."""
        self.given[slot] = gradient

    def give_fitted(self, slot: int, gradient: Expr) -> None:
        """Say the gradient of an input that is broadcast to the first output's shape."""
        self.give(slot, self.fit(gradient, self.op.input(slot)))

    # --- shapes ------------------------------------------------------------------------------------------

    def fit(self, gradient: Expr, value: ir.Value, *, made: ir.Value | None = None, last: int = 0) -> Expr:
        """Undo numpy's broadcasting: sum over the axes along which `value` was repeated.

        Parameters
        ----------
        gradient
            Of the shape of `made`.
        value
            What was broadcast.
        made
            What it was broadcast to; the node's first output by default.
        last
            So many trailing axes are left alone.
        """
        made = self.op.output() if made is None else made
        rank, lead = self.rank(made), self.rank(made) - self.rank(value)
        axes, unsure = list(range(lead)), False
        small, large = self.dims(value), self.dims(made)
        for dim in range(lead, rank - last):
            a, b = small[dim - lead], large[dim]
            if a == 1 and b != 1:
                axes.append(dim)
            elif a is None and not self._alike(value, made, dim - lead, dim):
                unsure = True
        summed = gradient.sum(*axes).squeeze(*range(lead))
        return self._fit_at_run_time(summed, value, last) if unsure else summed

    def _alike(self, a: ir.Value, b: ir.Value, i: int, j: int) -> bool:
        """Whether two dynamic extents agree at both bindings of the symbolic dims."""
        pairs = (
            (self.op.dims(a), self.op.dims(b)),
            (self.op.dims_elsewhere(a), self.op.dims_elsewhere(b)),
        )
        known = [(x[i], y[j]) for x, y in pairs if x is not None and y is not None]
        return bool(known) and all(x == y for x, y in known)

    def _fit_at_run_time(self, gradient: Expr, value: ir.Value, last: int) -> Expr:
        small, large = self.builder.op("Shape", value), gradient.op("Shape")
        differs = small.op("Equal", large).op("Not")
        axes = differs.op("NonZero").reshape([-1])
        if last:
            axes = axes.op(
                "Compress", axes.op("Less", self.builder.constant(np.int64(self.rank(value) - last)))
            )
        return gradient.op("ReduceSum", axes, keepdims=1, noop_with_empty_axes=1)


Vjp: TypeAlias = Callable[[Op, Backward], None]
"""Says the gradients of a node's inputs: for each slot that `back.wants`, one `back.give`.

A slot that is wanted and that it says nothing about is an error, not a gradient of zeros.
"""
