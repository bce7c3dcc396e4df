"""Masked and removed models in the arithmetic of what is written."""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.graph.axes import Axis, Bools, Kept
from onnxprune.graph.build import AxisGraph
from onnxprune.model.biases import DOMAINS
from onnxprune.model.stored import pending
from onnxprune.model.uses import only_use

_STEPS = 8
"""Nodes between a product and the rounding of it."""

_ONE_BY_ONE = frozenset(
    {"Add", "Clip", "Flatten", "Identity", "LeakyRelu", "Mul", "Relu", "Reshape", "Sigmoid", "Squeeze"}
    | {"HardSigmoid", "HardSwish", "PRelu", "Sub", "Tanh", "Transpose", "Unsqueeze"}
)


def torn_weights(*models: ir.Model) -> tuple[str, ...]:
    """Weights of any of the models that will have to be rounded again.

    After a removal, those whose blocks with a common scale were torn. Their rounding is no matter of removal, so
    masked and removed are compared without it.
    """
    found = {name for model in models for name, exact in pending(model.graph).items() if not exact}
    return tuple(sorted(found))


def stored_probes(axis_graph: AxisGraph, kept: Kept) -> dict[str, dict[int, Bools]]:
    """What is compared inside: where the result of a contraction that lost terms is rounded to integers.

    The sums themselves are no value of a model whose integer kernels make the rounded ones at once.
    """
    probes: dict[str, dict[int, Bools]] = {}
    for sink in axis_graph.sinks:
        value = _rounded(sink.where.output()) if sink.axis in kept else None
        if value is not None and value.type is not None:
            rank = len(axis_graph.shapes.dims.get(value, ()))
            probes[str(value.name)] = {
                dim: kept[Axis(value, dim)] for dim in range(rank) if Axis(value, dim) in kept
            }
    return probes


def _rounded(value: ir.Value) -> ir.Value | None:
    """The stored numbers that a value becomes, where nothing else uses it."""
    for _ in range(_STEPS):
        use = only_use(value)
        if use is None:
            return None
        node = use.node
        if node.op_type == "QuantizeLinear" and node.domain in DOMAINS and use.slot == 0:
            return node.outputs[0]
        if node.op_type not in _ONE_BY_ONE or node.domain:
            return None
        value = node.outputs[0]
    return None
