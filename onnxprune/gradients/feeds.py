"""Initializers that are fed: a graph of gradients whose weights may differ from run to run."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from onnxprune.errors import UsageError


def as_inputs(model: ir.Model, names: Iterable[str]) -> None:
    """Turn initializers into inputs of their type and shape. Mutates `model`.

    Unlike an initializer that may be overridden, nothing is folded into it, and it has to be fed.

    Raises
    ------
    UsageError
        The model has no such initializer.
    """
    graph = model.graph
    for name in names:
        value = graph.initializers.get(name)
        if value is None or value.const_value is None:
            raise UsageError(f"the model has no initializer {name!r} to feed", "Name one of its weights.")
        data = value.const_value
        del graph.initializers[name]
        value.const_value = None
        value.type = value.type or ir.TensorType(data.dtype)
        value.shape = ir.Shape(data.shape.numpy())
        graph.inputs.append(value)
