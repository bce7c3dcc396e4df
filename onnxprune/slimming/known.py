"""What activations hold whatever the input is: positions that always have the same number.

A filter of zeros makes its bias everywhere, a BatchNormalization with scale 0 its shift, a product with zero
makes zero. Such numbers are followed through the operators by `follow`, in the form that broadcasts: extent 1
along axes on which nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.graph.axes import Bools
from onnxprune.graph.build import AxisGraph
from onnxprune.model.origin import remember
from onnxprune.rules.op import Op
from onnxprune.statistics.paths import rearranged

Array = np.ndarray[Any, Any]

LIMIT = 1 << 24
"""Elements of a tensor up to which it is looked at position by position."""

_INPUTS_ARE_CHOSEN = 4
"""IR version from which on an initializer that is listed as an input is meant to be fed, unless all are."""


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of a tensor.

    Attributes
    ----------
    value
        The numbers, finite, of a shape that broadcasts to the tensor's; meaningless where nothing is known.
    known
        The same shape: where the tensor has that number for every input.
    """

    value: Array
    known: Bools

    def spread(self, shape: Sequence[int]) -> Known:
        """The same for another shape that it broadcasts to."""
        return Known(np.broadcast_to(self.value, shape), np.broadcast_to(self.known, shape))

    def along(self, dim: int, extent: int) -> tuple[Array, Bools]:
        """Per position of one axis: the number that the tensor has there everywhere, and whether it has one."""
        value, known = (np.moveaxis(a, dim, 0).reshape(a.shape[dim], -1) for a in (self.value, self.known))
        same = known.all(axis=1) & (value == value[:, :1]).all(axis=1)
        return np.broadcast_to(value[:, 0], extent), np.broadcast_to(same, extent)


class Constants:
    """Initializers that nobody can feed, and what follows from them.

    Parameters
    ----------
    axis_graph
        Of the model; not mutated.
    """

    def __init__(self, axis_graph: AxisGraph) -> None:
        model = axis_graph.model
        listed = (
            frozenset(remember(model.graph).inputs) if model.ir_version >= _INPUTS_ARE_CHOSEN else frozenset()
        )
        weights = [v.name for v, parameter in axis_graph.parameters.items() if parameter.kind == "weight"]
        every = all(name in listed for name in weights)  # an old exporter's habit, not a choice
        self._listed = frozenset() if every else listed
        self._shapes = axis_graph.shapes
        self.model = model
        self.states: dict[ir.Value, Known] = {}

    def array(self, value: ir.Value | None) -> Array | None:
        """A float initializer's data; None for anything else, and for what callers may feed."""
        if value is None or value.const_value is None or value.name in self._listed:
            return None
        if value.dtype is None or not value.dtype.is_floating_point():
            return None
        return np.asarray(value.const_value.numpy())

    def state(self, value: ir.Value | None) -> Known | None:
        """What is known of a value; None: nothing."""
        if value in self.states:
            return self.states[value]
        array = self.array(value)
        return None if array is None else Known(array.astype(np.float64), np.ones(array.shape, bool))

    def along(self, value: ir.Value, dim: int) -> tuple[Array, Bools] | None:
        """As `Known.along`, for an axis of known extent; None where nothing is known."""
        state, dims = self.states.get(value), self.dims(value)
        return None if state is None or dims is None else state.along(dim, dims[dim])

    def dims(self, value: ir.Value) -> tuple[int, ...] | None:
        """Extents, where all are known."""
        dims = self._shapes.dims.get(value)
        return None if dims is None or None in dims else tuple(int(d or 0) for d in dims)

    def rearranged(
        self, op: Op, spread: Callable[[tuple[int, ...]], tuple[Array, Array]]
    ) -> list[tuple[Array, Array]] | None:
        """What an operator of `MOVES` makes of two arrays, output by output; None where that is not known.

        Parameters
        ----------
        spread
            Makes the arrays of the shape of the operator's first input.
        """
        dims = self.dims(op.input(0))
        after = [each for value in op.outputs if (each := self.dims(value)) is not None]
        if dims is None or len(after) < len(op.node.outputs) or np.prod(dims) > LIMIT:
            return None
        first, second = (rearranged(op, array, after) for array in spread(dims))
        if first is None or second is None or [array.shape for array in first] != after:
            return None
        return list(zip(first, second, strict=True))

    def note(self, value: ir.Value, state: Known | None) -> None:
        """Keep what is known of a node's output, in the form that broadcasts."""
        dims = self.dims(value)
        if state is None or dims is None or state.known.ndim != len(dims) or not state.known.any():
            return
        finite = np.isfinite(state.value)
        array, known = np.where(finite, state.value, 0.0), state.known & finite
        for dim in range(array.ndim):
            if array.shape[dim] == 1:
                continue
            first, also = array.take([0], dim), known.take([0], dim)
            if (array == first).all() and (known == also).all():
                array, known = first, also
            elif (value, dim) in self._shapes.dynamic:  # how many there are is not known
                known = known.all(axis=dim, keepdims=True) & (array == first).all(axis=dim, keepdims=True)
                array = first
        if known.any():
            self.states[value] = Known(array, known)
