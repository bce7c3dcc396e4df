"""Operators of integer arithmetic, said in operators of floats."""

from __future__ import annotations

import logging
from collections.abc import Callable

import onnx_ir as ir

from onnxprune.model.integer import attention, fused, lstm, nbits, products, qlinear
from onnxprune.model.integer.forms import CONTRIB, FORMS, Key
from onnxprune.model.integer.notes import note_order, note_whole
from onnxprune.model.integer.parts import NotThisForm, Workbench

log = logging.getLogger(__name__)

_SINCE = 10
"""Version of the standard operators that brought QuantizeLinear and DequantizeLinear."""

_LOWER: dict[Key, Callable[[Workbench, ir.Node], None]] = {
    **dict.fromkeys(FORMS, qlinear.lower),
    ("", "MatMulInteger"): products.lower,
    ("", "ConvInteger"): products.lower,
    (CONTRIB, "DynamicQuantizeMatMul"): fused.lower,
    (CONTRIB, "MatMulIntegerToFloat"): fused.lower,
    (CONTRIB, "MatMulNBits"): nbits.lower,
    (CONTRIB, "QAttention"): attention.lower,
    (CONTRIB, "DynamicQuantizeLSTM"): lstm.lower,
}


def lower_integer(model: ir.Model) -> None:
    """Say what works on quantised values as DequantizeLinear, an operator of floats and QuantizeLinear.

    Operators keep their names and outputs theirs, of whatever is in between the names are new. What is not of a
    known form stays; `left_whole` says what and why. Subgraphs are left as they are.

    Parameters
    ----------
    model
        Mutated. Constants are initializers.
    """
    graph = model.graph
    opset = graph.opset_imports.get("", graph.opset_imports.get("ai.onnx", 1))
    bench = Workbench(graph, opset)
    reasons: dict[str, str] = {}
    nodes = [node for node in graph if _key(node) in _LOWER]
    if nodes:
        note_order(graph)
    for node in nodes:
        try:
            if opset < _SINCE:
                raise NotThisForm(f"operators of version {opset} have no QuantizeLinear")
            _LOWER[_key(node)](bench, node)
        except NotThisForm as why:
            reasons[f"{node.op_type} {node.name or node.outputs[0].name!r}"] = str(why)
            log.debug("%s %r stays as it is: %s", node.op_type, node.name, why)
    if reasons:
        note_whole(graph, reasons)


def _key(node: ir.Node) -> Key:
    return ("" if node.domain == "ai.onnx" else node.domain), node.op_type
