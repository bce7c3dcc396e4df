"""A part of a model as a model of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from onnxprune.analysis import Analysis
from onnxprune.model.uses import only_user
from onnxprune.surgery.remove import RefitError

_BEFORE_ROUNDING = frozenset({"Add", "Clip", "Relu"})
"""Operators behind a layer that onnxruntime's integer kernels take in, the Add of a bias among them."""


def part_of(layer: ir.Node) -> tuple[ir.Node, ...]:
    """A layer with what rounds its operands and its result: onnxruntime has one kernel for them together.

    Returns
    -------
    tuple
        In topological order. Only the layer where nothing is rounded.
    """
    before = dict.fromkeys(node for value in layer.inputs for node in _rounding(value, layer))
    after: list[ir.Node] = []
    user = only_user(layer.outputs[0])
    while user is not None and user.op_type in _BEFORE_ROUNDING and _is_alone(user):
        after.append(user)
        user = only_user(user.outputs[0])
    if user is None or user.op_type != "QuantizeLinear":
        return (*before, layer)
    return (*before, layer, *after, user)


def _rounding(value: ir.Value | None, layer: ir.Node) -> Iterator[ir.Node]:
    """DequantizeLinear of an activation, behind the DynamicQuantizeLinear that finds its range."""
    maker = None if value is None else value.producer()
    if maker is None or maker.op_type != "DequantizeLinear" or maker.graph is not layer.graph:
        return
    for read in maker.inputs:
        source = None if read is None else read.producer()
        if source is not None and source.op_type == "DynamicQuantizeLinear":
            yield source
    yield maker


def _is_alone(node: ir.Node) -> bool:
    """Whether a node computes one value with constants."""
    return sum(value is not None and value.const_value is None for value in node.inputs) == 1


def stand_alone(analysis: Analysis, nodes: Sequence[ir.Node]) -> tuple[ir.Model, dict[ir.Value, ir.Value]]:
    """A model of some nodes, and which of its values stand for which of the original's.

    Parameters
    ----------
    nodes
        In topological order. What they read from others become inputs, what nobody of them reads outputs.

    Raises
    ------
    RefitError
        The shape of an input is not known.
    """
    model = analysis.axis_graph.model
    made = {value for node in nodes for value in node.outputs}
    read = dict.fromkeys(value for node in nodes for value in node.inputs if value is not None)
    twin: dict[ir.Value, ir.Value] = {}
    for number, value in enumerate(value for value in read if value not in made):
        twin[value] = _source(analysis, nodes[0], value, f"x{number}")
    copies = [_copy(node, number, twin) for number, node in enumerate(nodes)]
    outputs = [twin[value] for value in made if value.name and value not in read]
    sources = [twin[value] for value in read if value not in made]
    graph = ir.Graph(
        [value for value in sources if value.const_value is None],
        sorted(outputs, key=lambda value: str(value.name)),
        nodes=copies,
        initializers=[value for value in sources if value.const_value is not None],
        opset_imports=dict(model.opset_imports),
        name="layer",
    )
    return ir.Model(graph, ir_version=model.ir_version), twin


def _source(analysis: Analysis, first: ir.Node, value: ir.Value, name: str) -> ir.Value:
    """An input, or an initializer where the contents are known."""
    shapes = analysis.axis_graph.shapes
    data = value.const_value
    if data is None and value in shapes.data:
        data = ir.tensor(shapes.data[value], name=name)
    if any(extent is None for extent in shapes.dims.get(value, (None,))):
        raise RefitError(f"{first.op_type} {first.name!r}", (), shapes.dims.get(value))
    shape = ir.Shape([extent or 0 for extent in shapes.dims[value]])
    return ir.Value(name=name, type=value.type, shape=shape, const_value=data)


def _copy(node: ir.Node, number: int, twin: dict[ir.Value, ir.Value]) -> ir.Node:
    """The same node on the twins of its inputs; its outputs get twins. What was noted of it goes along."""
    copy = ir.Node(
        node.domain,
        node.op_type,
        [None if value is None else twin[value] for value in node.inputs],
        attributes=list(node.attributes.values()),
        num_outputs=len(node.outputs),
        version=node.version,
        name=f"layer{number}",
    )
    copy.meta.update(node.meta)
    for place, (old, new) in enumerate(zip(node.outputs, copy.outputs, strict=True)):
        new.name, new.type = f"y{number}_{place}" if old.name else "", old.type
        twin[old] = new
    return copy
