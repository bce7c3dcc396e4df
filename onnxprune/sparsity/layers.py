"""The weights that can become sparse: those of linear maps, as matrices (outputs, columns)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.graph.build import AxisGraph
from onnxprune.model import edit
from onnxprune.model.nested import every_node
from onnxprune.patterns import Grid
from onnxprune.select import matcher
from onnxprune.statistics.consumers import OPERATORS, Consumer, consumer_of

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class WeightLayer:
    """A layer whose weight can become sparse.

    Attributes
    ----------
    consumer
        The node as a linear map.
    """

    consumer: Consumer

    @property
    def name(self) -> str:
        """Of the weight."""
        return str(self.consumer.weight.name)

    @property
    def label(self) -> str:
        """Of the layer, for people."""
        return self.consumer.label

    @property
    def grid(self) -> Grid:
        """Extents of the weight as a matrix."""
        return Grid(self.consumer.outputs, self.consumer.columns, self.consumer.taps)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the initializer."""
        data = self.consumer.weight.const_value
        return () if data is None else tuple(int(d) for d in data.shape.numpy())

    def matrix(self, array: Array | None = None) -> Array:
        """The weight, or an array of its shape, as (outputs, columns), float64; a fresh one each time."""
        return self.consumer.matrix(array).reshape(self.grid.shape)

    def from_matrix(self, matrix: Array) -> Array:
        """What `matrix` gives, back in the initializer's layout, float64."""
        groups = self.consumer.groups
        return self.consumer.from_matrix(matrix.reshape(groups, -1, matrix.shape[1]))

    def gradient(self, array: Array) -> Array:
        """A gradient with respect to the initializer as one with respect to `matrix`, (outputs, columns)."""
        return np.asarray(self.matrix(array) / self.consumer.factor**2)

    def flags(self, zeros: Array) -> Array:
        """Flags (outputs, columns) in the initializer's layout."""
        return np.asarray(self.from_matrix(zeros.astype(np.float64)) != 0)

    def set(self, matrix: Array) -> None:
        """Give the layer another weight (outputs, columns); the model that it belongs to is mutated."""
        edit.set_array(self.consumer.weight, self.from_matrix(matrix))


@dataclass(frozen=True)
class Found:
    """The layers of a model.

    Attributes
    ----------
    layers
        Those whose weight may become sparse, in the graph's order.
    left
        By the name of a layer, why it stays dense.
    """

    layers: tuple[WeightLayer, ...]
    left: Mapping[str, str]


INSIDE_A_BODY = "it is inside the body of another node (If, Loop, Scan)"
NOT_SELECTED = "no --only pattern names it"
IGNORED = "an --ignore pattern names it"

WEIGHTED = (
    *OPERATORS,
    "RNN",
    "LSTM",
    "GRU",
    "FusedConv",
    "FusedGemm",
    "FusedMatMul",
    "QLinearConv",
    "QLinearMatMul",
)
"""Operators of which one wants to know why their weights stay dense."""


def find_layers(
    axis_graph: AxisGraph, *, only: Sequence[str] = (), ignore: Sequence[str] = (), inside: bool = False
) -> Found:
    """Layers with a weight of their own, and why others stay dense.

    Parameters
    ----------
    only, ignore
        Globs on node or initializer names, or `re:` and a regular expression.
    inside
        Whether layers in bodies are looked for, too.

    Raises
    ------
    UsageError
        A pattern matches no name of the model.
    """
    nodes = [op.node.name for op in axis_graph.ops if op.node.name]
    known = {*nodes, *map(str, axis_graph.model.graph.initializers)}
    chosen = [matcher(pattern, "--only", known) for pattern in only]
    ignored = [matcher(pattern, "--ignore", known) for pattern in ignore]
    layers: list[WeightLayer] = []
    left: dict[str, str] = {}
    for op in axis_graph.ops:
        if not _has_weight(op.node):
            continue
        consumer = consumer_of(op.node)
        label = op.node.name or op.label
        if op in axis_graph.inner_ops and not inside:
            left[label] = INSIDE_A_BODY
            continue
        if isinstance(consumer, str):
            left[label] = consumer
            continue
        names = (op.node.name or "", str(consumer.weight.name))
        if only and not any(test(name) for test in chosen for name in names):
            left[label] = NOT_SELECTED
        elif any(test(name) for test in ignored for name in names):
            left[label] = IGNORED
        else:
            layers.append(WeightLayer(consumer))
    return Found(tuple(layers), left)


def same_layers(model: ir.Model, layers: Sequence[WeightLayer]) -> list[WeightLayer]:
    """The same layers in a copy of the model, found by the name of what they put out."""
    made = {str(out.name): node for node in every_node(model.graph) for out in node.outputs}
    found = []
    for layer in layers:
        consumer = consumer_of(made[str(layer.consumer.node.outputs[0].name)])
        if isinstance(consumer, str):
            raise ValueError(f"{layer.label} is no layer in the copy: {consumer}")
        found.append(WeightLayer(consumer))
    return found


def _has_weight(node: ir.Node) -> bool:
    """Whether a node multiplies by an initializer of more than one dim."""
    return node.op_type in WEIGHTED and any(_is_matrix(value) for value in node.inputs[1:])


def _is_matrix(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and len(value.const_value.shape) > 1
