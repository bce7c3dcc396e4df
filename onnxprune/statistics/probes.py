"""Nodes that turn tensors into rows and rows into moments, so that only small arrays leave a session."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir import tape

from onnxprune.statistics.norms import LinearMap, Norm

Array = np.ndarray[Any, Any]
Feed = dict[str, Array]


@dataclass(frozen=True)
class Geometry:
    """How many rows a layer has, and where its input's rows are.

    Parameters
    ----------
    consumer
        The layer.
    x_dims, y_dims
        Shapes of its input and of its output.
    unit
        For how many samples these shapes hold.
    flat
        Whether tensors come without a shape (see `onnxprune.model.taps`).
    """

    consumer: LinearMap
    x_dims: tuple[int, ...]
    y_dims: tuple[int, ...]
    unit: int = 1
    flat: bool = False

    @property
    def images(self) -> int:
        """What a convolution sees of one sample along its leading axis; 1 for matrices."""
        return max(self.x_dims[0] // self.unit, 1) if self.consumer.convolves else 1

    @property
    def places(self) -> int:
        """Positions per image from which rows are drawn."""
        if self.consumer.convolves:
            return int(np.prod(self.y_dims[2:], dtype=np.int64))
        rows = int(np.prod(self.x_dims[:-1], dtype=np.int64)) // self.consumer.groups
        return max(rows // self.unit, 1)

    @property
    def rows(self) -> int:
        """Rows of one sample."""
        return self.images * self.places

    @cached_property
    def _windows(self) -> tuple[Array, Array]:
        """Which input positions each output position of a convolution sees."""
        return self.consumer.windows(self.x_dims[2:], self.y_dims[2:])

    def drawn_rows(self, drawn: Drawn, samples: int) -> int:
        """How many rows a batch of `samples` samples gives at the drawn positions."""
        return len(drawn.places) * (self.images * samples if self.consumer.convolves else 1)

    def count(self, share: float) -> int:
        """Positions per image that are about `share` of all; at least one."""
        return min(max(1, round(share * self.places)), self.places)

    def draw(self, rng: np.random.Generator, share: float, samples: int) -> Drawn:
        """Choose about `share` of the positions at random, for a batch of `samples` samples."""
        if self.consumer.convolves:
            places = choose(rng, self.places, self.count(share))
            index, inside = self._windows
            return Drawn(places, index[places].ravel(), inside[places].ravel().astype(np.float32))
        total = self.places * samples
        places = choose(rng, total, min(max(1, round(share * total)), total))
        return Drawn(places, places, np.zeros(0, np.float32))


def choose(rng: np.random.Generator, total: int, count: int) -> Array:
    """So many of `total` positions at random, in order; all of them where as many are wanted."""
    if count >= total:
        return np.arange(total)
    return np.sort(rng.choice(total, count, replace=False))


@dataclass(frozen=True)
class Drawn:
    """Positions of one batch: those of the output, and the input positions that they see."""

    places: Array
    index: Array
    inside: Array


LEAST_OPSET = 9
"""What is added needs Where and ConstantOfShape."""


class Added:
    """Nodes, inputs and outputs that are added to a graph under one prefix.

    Parameters
    ----------
    graph
        Mutated.
    name
        Prefix of the names of what is added.
    half
        Whether what is looked at has to be cast to float32 first.
    """

    def __init__(self, graph: ir.Graph, name: str, half: bool) -> None:
        self.graph, self.name = graph, name
        self._tape = tape.Tape(graph)
        self._inputs: dict[str, ir.Value] = {}
        self._half = half

    def given(self, key: str, dtype: ir.DataType, rank: int) -> ir.Value:
        """A graph input under this probe's name."""
        if key not in self._inputs:
            shape = ir.Shape([None] * rank)
            value = ir.Value(name=f"{self.name}/{key}", type=ir.TensorType(dtype), shape=shape)
            self.graph.inputs.append(value)
            self._inputs[key] = value
        return self._inputs[key]

    def moments(self, rows: ir.Value, others: ir.Value | None = None) -> tuple[str, str]:
        """Names of two outputs: the sum (groups, 1, columns) of rows, and their Gram matrix, or part of it.

        Parameters
        ----------
        others
            Columns against which all columns are multiplied; None: all.
        """
        ones = self.given("ones", ir.DataType.FLOAT, 3)
        total = self.op("MatMul", ones, rows)
        gram = self.op(
            "MatMul", self.op("Transpose", rows, perm=[0, 2, 1]), rows if others is None else others
        )
        return self.show(total, "total"), self.show(gram, "gram")

    def show(self, value: ir.Value, key: str) -> str:
        """Make a value an output of the graph under this probe's name."""
        shown = self.op("Identity", value)
        shown.name = f"{self.name}/{key}"
        shown.type = ir.TensorType(ir.DataType.FLOAT)
        self.graph.outputs.append(shown)
        return shown.name

    def op(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """Add a node; its output."""
        value = self._tape.op(op_type, list(inputs), attributes)
        value.name = f"{self.name}/{len(self._tape.nodes)}"
        return value

    def _ints(self, *numbers: int) -> ir.Value:
        name = f"{self.name}/shape{len(self.graph.initializers)}"
        data = ir.Tensor(np.asarray(numbers, np.int64), name=name)
        return self._register(data)

    def _register(self, data: ir.TensorProtocol) -> ir.Value:
        kind, shape = ir.TensorType(data.dtype), ir.Shape(data.shape.numpy())
        value = ir.Value(name=data.name, type=kind, shape=shape, const_value=data)
        self.graph.register_initializer(value)
        return value

    def constant(self, key: str, array: Array) -> ir.Value:
        """An initializer, float32, under this probe's name."""
        return self._register(ir.Tensor(array.astype(np.float32), name=f"{self.name}/{key}"))

    def _float(self, value: ir.Value) -> ir.Value:
        return self.op("Cast", value, to=ir.DataType.FLOAT) if self._half else value


class Probe(Added):
    """Adds nodes to a graph that collect the rows of one layer.

    Parameters
    ----------
    graph
        Mutated: gets nodes, inputs and outputs.
    consumer
        The layer; its values may belong to another graph with the same names.
    name
        Prefix of the names of what is added.
    count
        Positions that are drawn per image (see `Geometry.draw`): a Reshape takes one unknown extent only.
    flat
        Where the rows are, if tensors come without a shape.
    """

    def __init__(
        self,
        graph: ir.Graph,
        consumer: LinearMap,
        name: str,
        count: int,
        flat: Geometry | None = None,
    ) -> None:
        dtypes = {consumer.weight.dtype, consumer.x.dtype} - {None}  # of a norm, they may differ
        super().__init__(graph, name, dtypes != {ir.DataType.FLOAT})
        self.consumer, self.count, self._flat = consumer, count, flat

    def feed(self, drawn: Drawn, rows: int = 0) -> Feed:
        """What the inputs that were added have to be for one batch of `rows` rows."""
        every = {
            "places": drawn.places,
            "index": drawn.index,
            "inside": drawn.inside[:, None],
            "ones": np.ones((1, 1, rows), np.float32),
        }
        return {f"{self.name}/{key}": every[key] for key in self._inputs if key in every}

    def input_rows(self, x: ir.Value) -> ir.Value:
        """Rows of the layer's input: (groups, rows, taps x columns), float32; those of a norm are normalised."""
        c = self.consumer
        x = self._at_least(x, c.groups * c.columns, () if self._flat is None else self._flat.x_dims[2:])
        if (
            not c.convolves and c.groups > 1
        ):  # directions of a recurrent layer: (steps, directions, samples, ...)
            if self._flat is not None:  # (rows, directions, ...) in one
                whole = self.op("Reshape", x, self._ints(-1, c.groups, c.columns))
                apart = self.op("Transpose", whole, perm=[1, 0, 2])
            else:
                apart = self.op("Transpose", x, perm=[1, 0, 2, 3])
            flat = self.op("Reshape", apart, self._ints(c.groups, -1, c.columns))
            return self._float(self.op("Gather", flat, self._places(), axis=1))
        if not c.convolves:
            flat = self.op("Reshape", x, self._ints(-1, c.columns))
            picked = self.op("Gather", flat, self._places(), axis=0)
            return self._float(self.op("Reshape", picked, self._ints(1, -1, c.columns)))
        index = self.given("index", ir.DataType.INT64, 1)
        inside = self.given("inside", ir.DataType.FLOAT, 2)
        places = None if self._flat is None else self._flat.x_dims[2:]
        seen = self.op("Gather", self._channels_last(x, c.columns * c.groups, places), index, axis=1)
        whole = self.op("Mul", self._float(seen), inside)
        apart = self.op("Reshape", whole, self._ints(-1, c.taps, c.groups, c.columns))
        turned = self.op("Transpose", apart, perm=[2, 0, 1, 3])
        rows = self.op("Reshape", turned, self._ints(c.groups, -1, c.taps * c.columns))
        if isinstance(c, Norm):
            centred = self.op("Sub", rows, self._per_group("centre", c.centre))
            return self.op("Mul", centred, self._per_group("factor", c.variance**-0.5))
        return rows

    def output_rows(self, y: ir.Value, channels: int) -> ir.Value:
        """Rows of a tensor that lies like the layer's output: (rows, channels), float32."""
        y = self._at_least(y, channels, () if self._flat is None else self._flat.y_dims[2:])
        if not self.consumer.convolves:
            flat = self.op("Reshape", y, self._ints(-1, channels))
            return self._float(self.op("Gather", flat, self._places(), axis=0))
        places = None if self._flat is None else self._flat.y_dims[2:]
        picked = self.op("Gather", self._channels_last(y, channels, places), self._places(), axis=1)
        return self._float(self.op("Reshape", picked, self._ints(-1, channels)))

    def product_rows(self, x: ir.Value) -> ir.Value:
        """What the layer, which has one group, makes of rows of its input: (rows, outputs), float32."""
        c = self.consumer
        made = self.op("MatMul", self.input_rows(x), self.constant("weight", c.matrix().transpose(0, 2, 1)))
        made = self.op("Add", made, self.constant("bias", c.bias_vector()))
        return self.op("Reshape", made, self._ints(-1, c.outputs))

    def _at_least(self, value: ir.Value, channels: int, dims: tuple[int, ...]) -> ir.Value:
        """The value; where it comes without a shape and has no elements, zeros for one row or image.

        onnxruntime 1.31 ends the process where it multiplies some empty matrices.
        """
        if self._flat is None:
            return value
        dtype = value.dtype or ir.DataType.FLOAT
        zero = ir.Tensor(np.zeros(1, dtype.numpy()), dtype=dtype)
        missing = self.op("Equal", self.op("Size", value), self._ints(0))
        unit = channels * (math.prod(dims) if self.consumer.convolves else 1)
        length = self.op("Mul", self.op("Cast", missing, to=ir.DataType.INT64), self._ints(unit))
        return self.op("Concat", value, self.op("ConstantOfShape", length, value=zero), axis=0)

    def _channels_last(self, value: ir.Value, channels: int, dims: tuple[int, ...] | None = None) -> ir.Value:
        """As (images, positions, channels): gathering positions then copies whole rows.

        `dims` are the extents of the positions, where the value has none.
        """
        shape = (0, channels, -1) if dims is None else (-1, channels, math.prod(dims))
        flat = self.op("Reshape", value, self._ints(*shape))
        return self.op("Transpose", flat, perm=[0, 2, 1])

    def in_groups(self, rows: ir.Value, channels: int) -> ir.Value:
        """Rows of outputs (rows, channels) as (groups, rows, channels per group)."""
        groups = self.consumer.groups
        apart = self.op("Reshape", rows, self._ints(-1, groups, channels // groups))
        return self.op("Transpose", apart, perm=[1, 0, 2])

    def picked(self, rows: ir.Value, index: Array) -> ir.Value:
        """Some features of rows (groups, rows, features), by their places (groups left, features left)."""
        c = self.consumer
        flat = self.op("Transpose", rows, perm=[1, 0, 2])
        flat = self.op("Reshape", flat, self._ints(-1, c.groups * c.taps * c.columns))
        left = self.op("Gather", flat, self._ints(*index.ravel().tolist()), axis=1)
        apart = self.op("Reshape", left, self._ints(-1, *index.shape))
        return self.op("Transpose", apart, perm=[1, 0, 2])

    def positive(self, rows: ir.Value) -> str:
        """Name of an output: how many rows (groups, 1, columns) are above zero."""
        ones = self.given("ones", ir.DataType.FLOAT, 3)
        above = self.op("Cast", self.op("Greater", rows, self._zero()), to=ir.DataType.FLOAT)
        return self.show(self.op("MatMul", ones, above), "positive")

    def _per_group(self, key: str, vector: Array) -> ir.Value:
        array = vector.astype(np.float32).reshape(-1, 1, 1)
        return self._register(ir.Tensor(array, name=f"{self.name}/{key}"))

    def _zero(self) -> ir.Value:
        data = ir.Tensor(np.zeros((), np.float32), name=f"{self.name}/zero")
        return self._register(data)

    def _places(self) -> ir.Value:
        return self.given("places", ir.DataType.INT64, 1)
