"""The form of a model that gradients are built on: float32, flat, and at an opset that they can use."""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.model.convert import to_float32
from onnxprune.model.inline import inline_functions
from onnxprune.model.normalize import lift_constants
from onnxprune.model.opset import raise_opset

OPSET = 18
"""The least version of the standard operators that gradients are written in."""


def prepare(model: ir.Model) -> ir.Model:
    """A float32 copy without functions and Constant nodes, at opset 18 or newer; names stay.

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
    for value in [value for value in model.graph.inputs if value.is_initializer()]:
        model.graph.inputs.remove(value)
    return model
