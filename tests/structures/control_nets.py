"""Networks with If, Loop and Scan, as text, with drawn weights."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
from onnx import numpy_helper

HEADER = '<ir_version: 8, opset_import: ["" : {opset}]>\n'


def network(text, weights, *, opset=17, seed=0):
    """The same as `proto_of` makes, as onnx-ir has it."""
    return ir.from_proto(proto_of(text, weights, opset=opset, seed=seed))


def proto_of(text, weights, *, opset=17, seed=0):
    """A model from onnx's text format.

    Parameters
    ----------
    text
        The graph and its bodies.
    weights
        Shapes by name: drawn initializers of the main graph. A name like `body:w` is one of the body called so.
    """
    proto = onnx.parser.parse_model(HEADER.format(opset=opset) + text)
    rng = np.random.default_rng(seed)
    graphs = {graph.name: graph for graph in graphs_of(proto.graph)}
    for name, shape in weights.items():
        where, _, own = name.rpartition(":")
        array = (rng.standard_normal(shape) / max(1.0, np.sqrt(shape[-1] if shape else 1))).astype(np.float32)
        graphs[where or proto.graph.name].initializer.append(numpy_helper.from_array(array, own))
    for graph in graphs.values():
        for number, node in enumerate(graph.node):
            node.name = node.name or f"{graph.name}.{node.op_type.lower()}{number}"
    onnx.checker.check_model(proto)
    return proto


def graphs_of(graph):
    """A graph and all bodies in it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs_of(attribute.g)


def units(groups):
    """Numbers of units by the first layer of each group."""
    return {re.sub(r"^main\.", "", group.name): group.units for group in groups}
