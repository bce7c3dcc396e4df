"""Biases that are rounded when the model runs: ConvInteger as onnxruntime 1.2 to 1.5 wrote it.

    Add(ConvInteger(...), Reshape(Cast(Floor(bias / Mul(a_scale, b_scale))), [1, -1, 1, 1])) -> Cast -> Mul

A bias that is floored to the product of the scales is a bias of floats, but for less than one step of the sum's
grid; so the convolution has it as one. Floor(0) is 0: a channel that is masked adds nothing.

Source: `_dynamic_quantize_bias` in https://github.com/microsoft/onnxruntime/blob/v1.3.0/onnxruntime/python/tools/quantization/quantize.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.model.integer.notes import Template
from onnxprune.model.integer.parts import build, is_constant, rank_of, restore
from onnxprune.model.uses import only_user

_STEPS = ("Reshape", "Cast", "Floor", "Div")
"""Operators between the sum and the product of the scales, last first."""


@dataclass(frozen=True)
class IntegerBias:
    """`Add(product, Reshape(Cast(Floor(Div(vector, scales))), shape))`, all integers.

    Attributes
    ----------
    add, steps
        The nodes: Add; Reshape, Cast, Floor and Div.
    scales
        The Mul that makes the divisor.
    slot
        Of the bias, in the Add.
    vector
        The bias, in floats.
    """

    add: ir.Node
    steps: tuple[ir.Node, ...]
    scales: ir.Node
    slot: int
    vector: ir.Value

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """What is taken away, in the order in which `add_back` expects it."""
        return self.add, *self.steps, self.scales

    def remembered(self) -> dict[str, Any]:
        """What `add_back` needs besides."""
        shape = self.steps[0].inputs[1]
        return {"slot": self.slot, "shape": shape and (shape.name, shape.const_value)}


def integer_bias(node: ir.Node, rank: int | None) -> IntegerBias | None:
    """The bias that is added to a product of integers; None where nothing of this form is.

    Parameters
    ----------
    node
        ConvInteger.
    rank
        Of its weight.
    """
    add = only_user(node.outputs[0])
    if add is None or add.op_type != "Add" or add.domain or rank is None:
        return None
    slot = 1 if add.inputs[0] is node.outputs[0] else 0
    steps: list[ir.Node] = []
    value, user = add.inputs[slot], add
    for op_type in _STEPS:
        step = None if value is None or only_user(value) is not user else value.producer()
        if step is None or step.op_type != op_type or step.domain:
            return None
        steps.append(step)
        value, user = step.inputs[0], step
    reshape, cast, _, divide = steps
    scales = divide.inputs[1].producer() if divide.inputs[1] is not None else None
    target = reshape.inputs[1] if len(reshape.inputs) > 1 else None
    if value is None or not is_constant(value) or rank_of(value) != 1 or scales is None:
        return None
    if scales.op_type != "Mul" or scales.domain or cast.attributes["to"].as_int() != ir.DataType.INT32:
        return None
    if target is None or not is_constant(target) or target.const_value is None:
        return None
    if target.const_value.numpy().tolist() != [1, -1, *[1] * (rank - 2)]:
        return None
    return IntegerBias(add, tuple(steps), scales, slot, value)


def add_back(
    graph: ir.Graph,
    core: ir.Node,
    integers: ir.Value,
    bias: ir.Value,
    templates: Sequence[Template],
    more: Mapping[str, Any],
    divisor: Callable[[Template], ir.Value],
    same: bool,
) -> ir.Value:
    """The sum of a product of integers and its bias.

    Parameters
    ----------
    graph
        Mutated.
    core
        The convolution of floats; nodes are put before it.
    integers, bias
        The terms: integers, floats.
    templates, more
        Of `IntegerBias.nodes`; what `remembered` gave.
    divisor
        Makes the product of the scales from its template.
    same
        Whether the shapes that the file declares still hold.
    """
    add, reshape, cast, floor, divide, scales = templates
    name, data = more["shape"]
    shape = graph.initializers.get(name)
    if shape is None or not is_constant(shape):
        shape = restore(graph, name, np.asarray(data.numpy()), ir.DataType.INT64)
    value = build(graph, core, divide, [bias, divisor(scales)], None, same).outputs[0]
    value = build(graph, core, floor, [value], None, same).outputs[0]
    value = build(graph, core, cast, [value], None, same).outputs[0]
    value = build(graph, core, reshape, [value, shape], None, same).outputs[0]
    pair = [integers, value]
    return build(graph, core, add, pair if more["slot"] == 1 else pair[::-1], None, same).outputs[0]
