"""What a rule sees of one node: attributes, shapes, known integer inputs; never the rest of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxprune.graph.axes import Axis
from onnxprune.model.nested import bodies_of

if TYPE_CHECKING:
    from onnxprune.model.shapes import Dims, Shapes


class Op:
    """A node together with the shapes of its values.

    Parameters
    ----------
    node
        The node; rules read it and never change it.
    shapes
        Shapes of the model the node belongs to.
    opset
        Version of the node's operator domain.
    """

    __slots__ = ("node", "opset", "shapes")

    def __init__(self, node: ir.Node, shapes: Shapes, opset: int) -> None:
        self.node = node
        self.shapes = shapes
        self.opset = opset

    @property
    def label(self) -> str:
        """`OpType 'name'`, as messages print it."""
        return f"{self.node.op_type} {self.node.name or self.node.outputs[0].name!r}"

    def has(self, slot: int) -> bool:
        """Whether input `slot` is given."""
        return slot < len(self.node.inputs) and self.node.inputs[slot] is not None

    def input(self, slot: int) -> ir.Value:
        """Input `slot`; KeyError where it is missing."""
        value = self.node.inputs[slot] if slot < len(self.node.inputs) else None
        if value is None:
            raise KeyError(f"{self.label} has no input {slot}")
        return value

    def output(self, slot: int = 0) -> ir.Value:
        """Output `slot`."""
        return self.node.outputs[slot]

    @property
    def outputs(self) -> list[ir.Value]:
        """The outputs that the node makes: optional ones that it leaves out have no name."""
        return [value for value in self.node.outputs if value.name]

    @property
    def bodies(self) -> list[ir.Graph]:
        """The graphs that the node holds: the branches of an If, the body of a Loop or a Scan."""
        return bodies_of(self.node)

    def dims(self, value: ir.Value) -> Dims | None:
        """Extents of `value`, or None where its rank is unknown."""
        return self.shapes.dims.get(value)

    def untold(self, value: ir.Value) -> ir.Value:
        """The first value on the way to `value`, whose rank is not known, that nobody could infer the shape of."""
        node = value.producer()
        while node is not None:
            behind = [v for v in node.inputs if v is not None and self.dims(v) is None]
            if not behind or behind[0].producer() is None:
                break
            value, node = behind[0], behind[0].producer()
        return value

    def dims_elsewhere(self, value: ir.Value) -> Dims | None:
        """Extents of `value` at another binding of the symbolic dims, or None where there is none."""
        return self.shapes.other.get(value)

    def rank(self, value: ir.Value) -> int:
        """Rank of `value`, -1 where unknown."""
        dims = self.dims(value)
        return -1 if dims is None else len(dims)

    def extent(self, axis: Axis) -> int | None:
        """Extent of an axis, None where unknown."""
        dims = self.dims(axis.value)
        return None if dims is None else dims[axis.dim]

    def axis(self, value: ir.Value, dim: int) -> Axis:
        """The axis `dim` of `value`; a negative `dim` counts from the end."""
        return Axis(value, dim if dim >= 0 else dim + self.rank(value))

    def axes(self, value: ir.Value) -> list[Axis]:
        """All axes of `value`; empty where its rank is unknown."""
        return [Axis(value, dim) for dim in range(max(self.rank(value), 0))]

    def data(self, slot: int) -> np.ndarray[Any, Any] | None:
        """Value of the small integer input `slot` where it is known, else None."""
        if not self.has(slot):
            return None
        return self.shapes.data.get(self.input(slot))

    def is_constant(self, slot: int) -> bool:
        """Whether input `slot` is an initializer."""
        return self.has(slot) and self.input(slot).const_value is not None

    def varies(self, *slots: int) -> bool:
        """Whether the known value of one of these inputs depends on the symbolic dims."""
        return any(self.has(slot) and self.input(slot) in self.shapes.varying for slot in slots)

    def ints(self, name: str, slot: int | None = None) -> list[int] | None:
        """Integers that older opsets give as attribute `name` and newer ones as input `slot`."""
        if slot is not None and self.has(slot):
            data = self.data(slot)
            return None if data is None else [int(x) for x in np.ravel(data)]
        attr = self.node.attributes.get(name)
        return None if attr is None else [int(x) for x in attr.as_ints()]

    def int(self, name: str, default: int) -> int:
        """Integer attribute `name`."""
        attr = self.node.attributes.get(name)
        return default if attr is None else int(attr.as_int())

    def str(self, name: str, default: str) -> str:
        """String attribute `name`."""
        attr = self.node.attributes.get(name)
        return default if attr is None else str(attr.as_string())

    def dynamic(self, axis: Axis) -> bool:
        """Whether the extent of `axis` depends on the input."""
        return (axis.value, axis.dim) in self.shapes.dynamic


def normalized(axes: Sequence[int], rank: int) -> list[int]:
    """Axes counted from the front."""
    return [a + rank if a < 0 else a for a in axes]
