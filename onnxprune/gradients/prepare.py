"""The form of a model that gradients are built on: float32, flat, and at an opset that they can use."""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.gradients.branches import move_weights_out
from onnxprune.model.convert import to_float32
from onnxprune.model.inline import inline_functions
from onnxprune.model.normalize import lift_constants
from onnxprune.model.opset import raise_opset

OPSET = 18
"""The least version of the standard operators that gradients are written in."""


def prepare(model: ir.Model) -> ir.Model:
    """A float32 copy without functions and Constant nodes, at opset 18 or newer; names stay.

    Initializers of branches become those of the graph.

    Parameters
    ----------
    model
        Not mutated.
    """
    model = to_float32(model)
    if "ai.onnx" in model.graph.opset_imports:
        model.graph.opset_imports.setdefault("", model.graph.opset_imports.pop("ai.onnx"))
    inline_functions(model)
    model = raise_opset(model, OPSET)
    lift_constants(model.graph)
    move_weights_out(model.graph)
    for node in model.graph:  # whose default onnx's shape inference takes for 0
        if node.op_type == "STFT" and not node.domain and "onesided" not in node.attributes:
            node.attributes["onesided"] = ir.AttrInt64("onesided", 1)
    for value in [value for value in model.graph.inputs if value.is_initializer()]:
        model.graph.inputs.remove(value)
    return model


def settle_types(graph: ir.Graph) -> None:
    """Turn each CastLike into a Cast: it does not depend on the value whose type it takes. Mutates `graph`.

    Parameters
    ----------
    graph
        One whose values have element types.
    """
    for node in graph:
        like = node.inputs[1] if node.op_type == "CastLike" and not node.domain else None
        if like is not None and like.dtype is not None:
            node.op_type = "Cast"
            node.resize_inputs(1)
            node.attributes["to"] = ir.AttrInt64("to", like.dtype.value)
            node.attributes.pop("saturate", None)
