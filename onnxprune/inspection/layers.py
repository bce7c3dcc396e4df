"""The layers whose zeros are looked at one by one, and why the others are not.

A handled layer multiplies an activation by a float initializer: Conv, ConvTranspose, Gemm and MatMul. Its weight
counts once, however many nodes use it. All other float initializers count in the whole model only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.allocate.cost import inner_values
from onnxprune.graph.build import AxisGraph
from onnxprune.model.origin import twins
from onnxprune.rules import Op
from onnxprune.rules.rule import domain_of
from onnxprune.statistics.consumers import OPERATORS, Consumer

_IS_QUANTISED = "its weight is quantised"
_IS_COMPUTED = "its weight is computed from other weights"
_WITHOUT_FLOATS = frozenset({_IS_QUANTISED, _IS_COMPUTED})
"""Reasons of layers that may have no float initializer of their own."""

_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_LOOKED_UP = frozenset({"Gather", "GatherElements", "GatherND", "EmbedLayerNormalization"})
_ELEMENTWISE = frozenset({"Add", "Div", "Mul", "Pow", "PRelu", "Sub", "Where"})
_QUANTISED = frozenset(
    {
        *("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"),
        *("DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "GatherBlockQuantized", "MatMulBnb4"),
        *("MatMulIntegerToFloat", "MatMulNBits", "QAttention", "QEmbedLayerNormalization", "QGemm", "QMoE"),
    }
)
"""Operators that take quantised weights as they are."""


@dataclass(frozen=True)
class WeightLayer:
    """A handled layer.

    Attributes
    ----------
    name
        Of the node, or of its weight where the node has none.
    place
        The node as a linear map; its bias is left out.
    shared
        Names of the other nodes that use the same weight.
    """

    name: str
    place: Consumer
    shared: tuple[str, ...] = ()

    @property
    def weight(self) -> ir.Value:
        """The initializer."""
        return self.place.weight

    @property
    def op_type(self) -> str:
        """Of the node."""
        return self.place.node.op_type

    @property
    def shape(self) -> tuple[int, ...]:
        """As the file holds the weight."""
        data = self.weight.const_value
        return () if data is None else tuple(int(d) for d in data.shape.numpy())

    @property
    def outputs(self) -> int:
        """Output channels (filters) of all groups."""
        return self.place.outputs

    @property
    def inputs(self) -> int:
        """Input channels of all groups."""
        return self.place.columns * self.place.groups


@dataclass(frozen=True)
class OtherLayer:
    """A layer with a weight that is not handled.

    Attributes
    ----------
    name, op_type
        Of the node.
    reason
        Why, as a clause.
    values
        Its float initializers that no layer before it has; they count in the whole model.
    """

    name: str
    op_type: str
    reason: str
    values: tuple[ir.Value, ...] = ()


@dataclass(frozen=True)
class Layers:
    """All float initializers of a model, each in exactly one place.

    Attributes
    ----------
    handled, others
        Layers in the order of the graph.
    vectors
        What is left: biases, norms, scales.
    """

    handled: tuple[WeightLayer, ...]
    others: tuple[OtherLayer, ...]
    vectors: tuple[ir.Value, ...]


def find_layers(axis_graph: AxisGraph) -> Layers:
    """Sort the float initializers of a model by the layers that use them.

    Parameters
    ----------
    axis_graph
        Of the normalised model.
    """
    constant = _constants(op.node for op in axis_graph.main_ops)
    inner = inner_values(axis_graph)
    root = twins(axis_graph.model.graph)
    places: dict[str, list[Consumer]] = {}  # by the name under which the file holds the weight
    refused: list[tuple[ir.Node, str]] = []
    for op in axis_graph.main_ops:
        verdict = _verdict(op.node, constant)
        if isinstance(verdict, Consumer):
            places.setdefault(_stored(verdict.weight, root), []).append(verdict)
        elif verdict is not None:
            refused.append((op.node, verdict))
    handled = [_layer(same) for same in places.values()]
    left: dict[str, ir.Value] = {}
    for value in axis_graph.parameters:
        if value not in inner and _stored(value, root) not in places:
            left.setdefault(_stored(value, root), value)
    others = []
    for node, why in refused:
        names = [_stored(value, root) for value in _weights_of(node, constant)]
        values = tuple(left.pop(name) for name in names if name in left)
        if values or why in _WITHOUT_FLOATS:  # else another layer has its weight already
            others.append(OtherLayer(_label(node), node.op_type, why, values))
    inside, vectors = _inside_bodies(inner)
    return Layers(tuple(handled), (*others, *inside), (*left.values(), *vectors))


def _stored(value: ir.Value, root: Mapping[str, str]) -> str:
    """Name of an initializer in the file: `normalize` gives every use of a shared vector one of its own."""
    return root.get(str(value.name), str(value.name))


def _layer(places: Sequence[Consumer]) -> WeightLayer:
    first = places[0]
    users = (node for place in places for node, _ in place.weight.uses())
    shared = dict.fromkeys(node for node in users if node is not first.node)
    return WeightLayer(first.label, first, tuple(_label(node) for node in shared))


def _inside_bodies(inner: Mapping[ir.Value, Op]) -> tuple[list[OtherLayer], list[ir.Value]]:
    """One layer per node whose body holds matrices, and the vectors inside bodies."""
    matrices: dict[ir.Node, list[ir.Value]] = {}
    vectors = []
    for value, op in inner.items():
        if _is_matrix(value):
            matrices.setdefault(op.node, []).append(value)
        else:
            vectors.append(value)
    why = "its weights lie inside its body"
    layers = [OtherLayer(_label(node), node.op_type, why, tuple(own)) for node, own in matrices.items()]
    return layers, vectors


def _constants(nodes: Iterable[ir.Node]) -> Mapping[ir.Value, ir.Node]:
    """Values that depend on no graph input, and the nodes that make them."""
    known: dict[ir.Value, ir.Node] = {}
    for node in nodes:
        given = [value for value in node.inputs if value is not None]
        body = any(
            a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()
        )
        if given and not body and all(v.const_value is not None or v in known for v in given):
            known.update(dict.fromkeys(node.outputs, node))
    return known


def _verdict(node: ir.Node, constant: Mapping[ir.Value, ir.Node]) -> Consumer | str | None:
    """The node as a handled layer, why it is none, or None where it is no layer with a weight."""
    if node.outputs[0] in constant:
        return None  # it makes a weight, and the layer that uses it has the verdict
    if node.op_type in OPERATORS and domain_of(node) == "":
        return _product(node, constant)
    if node.op_type in _QUANTISED:
        return _IS_QUANTISED
    if not any(_is_matrix(value) for value in _weights_of(node, constant)):
        return None
    if node.op_type in _RECURRENT:
        return "it is recurrent: its gates share rows and columns"
    if node.op_type in _LOOKED_UP:
        return "its weight is a table that is looked up"
    if node.op_type in _ELEMENTWISE:
        return "its weight goes in element by element"
    return f"{node.op_type} is none of {', '.join(OPERATORS[:-1])} and {OPERATORS[-1]}"


def _product(node: ir.Node, constant: Mapping[ir.Value, ir.Node]) -> Consumer | str | None:
    x, weight = node.inputs[0], node.inputs[1]
    if x is None or weight is None:
        return None
    if weight in constant:
        makers = {source.op_type for source in _makers(weight, constant)}
        quantised = any("Dequantize" in maker for maker in makers)
        return _IS_QUANTISED if quantised else _IS_COMPUTED
    if weight.const_value is None:
        return "its weight is on the left" if x.const_value is not None or x in constant else None
    if weight.dtype is None or not weight.dtype.is_floating_point():
        return "its weight holds integers"
    rank = len(weight.const_value.shape)
    if node.op_type in ("Gemm", "MatMul") and rank != 2:
        return "its weight is a vector" if rank < 2 else "its weight is a stack of matrices"
    group = node.attributes.get("group")
    groups = 1 if group is None or not node.op_type.startswith("Conv") else group.as_int()
    return Consumer(node, x, weight, node.outputs[0], None, groups)


def _makers(value: ir.Value, constant: Mapping[ir.Value, ir.Node]) -> list[ir.Node]:
    """The nodes that a constant comes from."""
    found: dict[ir.Node, None] = {}
    waiting = [value]
    while waiting:
        node = constant.get(waiting.pop())
        if node is not None and node not in found:
            found[node] = None
            waiting += [given for given in node.inputs if given is not None]
    return list(found)


def _weights_of(node: ir.Node, constant: Mapping[ir.Value, ir.Node]) -> list[ir.Value]:
    """Float initializers of more than one long axis that a node reads, or that its inputs are computed from."""
    given = [value for value in node.inputs if value is not None]
    nodes = [node, *(maker for value in given if value in constant for maker in _makers(value, constant))]
    values = dict.fromkeys(v for n in nodes for v in n.inputs if v is not None and v.const_value is not None)
    return [v for v in values if v.dtype is not None and v.dtype.is_floating_point() and _is_matrix(v)]


def _is_matrix(value: ir.Value) -> bool:
    data = value.const_value
    return data is not None and sum(int(extent) > 1 for extent in data.shape.numpy()) > 1


def _label(node: ir.Node) -> str:
    return node.name or str(node.outputs[0].name)
