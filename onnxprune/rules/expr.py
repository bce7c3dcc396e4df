"""Expressions of a graph that is being built: rules of gradients read like the maths.

>>> import onnx_ir as ir
>>> graph = ir.Graph([], [], nodes=[], opset_imports={"": 18})
>>> builder = Builder(graph, "gradient")
>>> y = builder.of(ir.Value(name="y"))
>>> print((1 - y * y).value.name, [node.op_type for node in graph])
gradient/Sub_1 ['Mul', 'Sub']
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onnxprune.model import edit

Array = np.ndarray[Any, Any]


class Builder:
    """Adds nodes and constants to a graph.

    Parameters
    ----------
    graph
        Mutated: gets nodes, at its end or before one of its nodes, and initializers.
    prefix
        Of the names of what is added.
    before
        The node that nodes are added ahead of.
    """

    def __init__(self, graph: ir.Graph, prefix: str, before: ir.Node | None = None) -> None:
        self.graph = graph
        self._prefix = prefix
        self._before = before
        self._count = 0
        self._constants: dict[tuple[str, tuple[int, ...], bytes], Expr] = {}

    def of(self, value: ir.Value) -> Expr:
        """A value of the graph as an expression."""
        return Expr(self, value)

    def op(self, op_type: str, *inputs: Operand | None, **attributes: Any) -> Expr:
        """Add a node of the standard domain with one output; inputs that are None are left out."""
        return self.ops(op_type, inputs, 1, **attributes)[0]

    def ops(
        self, op_type: str, inputs: Sequence[Operand | None], outputs: int, **attributes: Any
    ) -> list[Expr]:
        """Add a node with several outputs."""
        values = [None if operand is None else self.value(operand) for operand in inputs]
        node = ir.node(op_type, values, attributes, num_outputs=outputs)
        node.name = edit.fresh(self.graph, f"{self._prefix}/{op_type}_{self._count}")
        self._count += 1
        for number, output in enumerate(node.outputs):
            output.name = node.name if outputs == 1 else f"{node.name}.{number}"
        if self._before is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(self._before, node)
        return [Expr(self, output) for output in node.outputs]

    def value(self, operand: Operand) -> ir.Value:
        """The value of an operand; a Python number becomes a float32 scalar."""
        if isinstance(operand, Expr):
            return operand.value
        if isinstance(operand, ir.Value):
            return operand
        return self.constant(np.float32(operand)).value

    def constant(self, array: Any) -> Expr:
        """An initializer; equal ones are shared."""
        array = np.asarray(array)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"{self._prefix}/constant_{len(self._constants)}"
            value = edit.add_initializer(self.graph, name, array, ir.DataType.from_numpy(array.dtype))
            self._constants[key] = Expr(self, value)
        return self._constants[key]

    def ints(self, *numbers: int) -> Expr:
        """A vector of int64."""
        return self.constant(np.array(numbers, np.int64))

    def concat(self, parts: Sequence[Expr], axis: int) -> Expr:
        """All parts behind one another."""
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=axis)

    def zeros(self, shape: Expr) -> Expr:
        """Zeros of a shape that is a vector of int64."""
        return self.op("ConstantOfShape", shape, value=ir.Tensor(np.zeros(1, np.float32)))


class Expr:
    """A value of a graph under construction; arithmetic adds nodes.

    Parameters
    ----------
    builder
        Where nodes go.
    value
        What the expression stands for.
    """

    __slots__ = ("builder", "value")

    def __init__(self, builder: Builder, value: ir.Value) -> None:
        self.builder = builder
        self.value = value

    def op(self, op_type: str, *others: Operand | None, **attributes: Any) -> Expr:
        """Apply an operator whose first input this is."""
        return self.builder.op(op_type, self, *others, **attributes)

    def __add__(self, other: Operand) -> Expr:
        return self.op("Add", other)

    def __radd__(self, other: Operand) -> Expr:
        return self.builder.op("Add", other, self)

    def __sub__(self, other: Operand) -> Expr:
        return self.op("Sub", other)

    def __rsub__(self, other: Operand) -> Expr:
        return self.builder.op("Sub", other, self)

    def __mul__(self, other: Operand) -> Expr:
        return self.op("Mul", other)

    def __rmul__(self, other: Operand) -> Expr:
        return self.builder.op("Mul", other, self)

    def __truediv__(self, other: Operand) -> Expr:
        return self.op("Div", other)

    def __rtruediv__(self, other: Operand) -> Expr:
        return self.builder.op("Div", other, self)

    def __pow__(self, other: Operand) -> Expr:
        return self.op("Pow", other)

    def __matmul__(self, other: Operand) -> Expr:
        return self.op("MatMul", other)

    def __neg__(self) -> Expr:
        return self.op("Neg")

    def where(self, condition: Expr) -> Expr:
        """The same where `condition` holds, 0 elsewhere."""
        return self.builder.op("Where", condition, self, 0.0)

    def float(self) -> Expr:
        """Cast to float32."""
        return self.op("Cast", to=ir.DataType.FLOAT)

    def transpose(self, order: Sequence[int]) -> Expr:
        """Permute the axes; nothing is added where `order` leaves them in place."""
        if list(order) == list(range(len(order))):
            return self
        return self.op("Transpose", perm=list(order))

    def swap_last(self, rank: int) -> Expr:
        """The last two of `rank` axes swapped."""
        return self.transpose([*range(rank - 2), rank - 1, rank - 2])

    def reshape(self, shape: Expr | Sequence[int]) -> Expr:
        """Reshape; in `shape`, a 0 copies an extent and a -1 takes what is left."""
        return self.op("Reshape", self._ints(shape))

    def expand(self, shape: Expr | Sequence[int]) -> Expr:
        """Repeat along axes of extent 1."""
        if not isinstance(shape, Expr) and all(extent == 1 for extent in shape):
            return self
        return self.op("Expand", self._ints(shape))

    def unsqueeze(self, *axes: int) -> Expr:
        """Insert axes of extent 1."""
        return self.op("Unsqueeze", self.builder.ints(*axes)) if axes else self

    def squeeze(self, *axes: int) -> Expr:
        """Drop axes of extent 1."""
        return self.op("Squeeze", self.builder.ints(*axes)) if axes else self

    def sum(self, *axes: int, keep: bool = True) -> Expr:
        """Sum over some axes; over none where none are given."""
        return self.op("ReduceSum", self.builder.ints(*axes), keepdims=int(keep)) if axes else self

    def mean(self, *axes: int, keep: bool = True) -> Expr:
        """Mean over some axes."""
        return self.op("ReduceMean", self.builder.ints(*axes), keepdims=int(keep))

    def slice(self, axis: int, start: Expr | int, end: Expr | int, step: int = 1) -> Expr:
        """Positions of one axis; bounds that are expressions are vectors of one int64."""
        bounds = [self._ints([bound] if isinstance(bound, int) else bound) for bound in (start, end)]
        return self.op("Slice", *bounds, self.builder.ints(axis), self.builder.ints(step))

    def pad(self, before: Sequence[Expr | int], after: Sequence[Expr | int]) -> Expr:
        """Zeros before and after the positions of every axis; a negative number of them cuts."""
        widths = [*before, *after]
        if all(isinstance(width, int) and width == 0 for width in widths):
            return self
        return self.op("Pad", vector(self.builder, widths))

    def _ints(self, numbers: Expr | Sequence[int]) -> Expr:
        return numbers if isinstance(numbers, Expr) else self.builder.ints(*numbers)


Operand: TypeAlias = Expr | ir.Value | float
"""What operators take: an expression, a value of the graph, or a number."""


def vector(builder: Builder, parts: Sequence[Expr | int]) -> Expr:
    """A vector of int64 from numbers and vectors of one entry; a constant where all are numbers."""
    runs: list[Expr] = []
    numbers: list[int] = []
    for part in parts:
        if isinstance(part, int):
            numbers.append(part)
            continue
        if numbers:
            runs.append(builder.ints(*numbers))
            numbers = []
        runs.append(part)
    if numbers or not runs:
        runs.append(builder.ints(*numbers))
    return builder.concat(runs, 0)
