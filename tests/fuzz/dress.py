"""Ways in which files that compute the same differ: Constant nodes, listed initializers, symbolic dims."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

SIDE = "side"
"""A symbolic dim that constants in the graph fix all the same, as careless exports have it."""


def dress(rng: np.random.Generator, model: ir.Model) -> tuple[dict[str, int], tuple[str, ...]]:
    """Change a model in place.

    Returns
    -------
    tuple
        Sizes of symbolic dims, and what was done.
    """
    traits = []
    bindings: dict[str, int] = {}
    if rng.random() < 0.4:
        unpack(rng, model)
        traits.append("constants")
    if rng.random() < 0.2:
        list_initializers(rng, model)
        traits.append("listed")
    if rng.random() < 0.2:
        bindings = open_side(rng, model)
        traits += ["side"] if bindings else []
    return bindings, tuple(traits)


def unpack(rng: np.random.Generator, model: ir.Model) -> None:
    """Turn some initializers into Constant nodes."""
    for value in list(model.graph.initializers.values()):
        if rng.random() < 0.4:
            node = ir.node("Constant", [], {"value": value.const_value}, name=f"{value.name}_node")
            made = node.outputs[0]
            made.name, made.type, made.shape = f"{value.name}_made", value.type, value.shape
            ir.convenience.replace_all_uses_with(value, made)
            del model.graph.initializers[str(value.name)]
            model.graph.insert_before(model.graph[0], node)


def list_initializers(rng: np.random.Generator, model: ir.Model) -> None:
    """Initializers among the graph's inputs: all of them, as IR version 3 demands, or some."""
    old = model.opset_imports[""] <= 11 and rng.random() < 0.5
    if old:
        model.ir_version = 3
    for value in model.graph.initializers.values():
        if old or rng.random() < 0.5:
            model.graph.inputs.append(value)


def open_side(rng: np.random.Generator, model: ir.Model) -> dict[str, int]:
    """Give one extent of one input a name; a leading one would count samples, and be 1.

    What is declared inside goes: onnxruntime plans its memory by it, whatever sizes it is given.
    """
    places = [
        (value, dim)
        for value in model.graph.inputs
        if value.const_value is None and value.shape is not None
        for dim, extent in enumerate(value.shape)
        if dim and isinstance(extent, int) and extent > 1
    ]
    if not places:
        return {}
    value, dim = places[int(rng.integers(len(places)))]
    assert value.shape is not None
    size = int(value.shape[dim])  # type: ignore[arg-type]
    value.shape = ir.Shape([SIDE if d == dim else extent for d, extent in enumerate(value.shape)])
    inside = [node for node in model.graph if node.op_type != "Constant"]
    for made in {value for node in inside for value in node.outputs} - set(model.graph.outputs):
        made.shape = None
    return {SIDE: size}
