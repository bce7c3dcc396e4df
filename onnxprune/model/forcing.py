"""A copy of a model in which some Ifs do not choose, and some Loops run twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxprune.model import edit
from onnxprune.model.branches import splice
from onnxprune.model.iterate import branches_of, is_if, is_loop
from onnxprune.model.nested import bodies_of, every_node

Branch = tuple[str, bool]
"""An If, as `name_of` names it, and whether its condition holds."""

ITERATIONS = 2


@dataclass(frozen=True)
class Forced:
    """What does not depend on the inputs.

    Attributes
    ----------
    taken
        By `name_of`, whether the condition of an If holds. Ifs that are not there choose.
    loops
        Names of Loops that run `ITERATIONS` times, whatever their condition.
    """

    taken: Mapping[str, bool] = field(default_factory=dict)
    loops: frozenset[str] = frozenset()

    def __str__(self) -> str:
        parts = [f"If {name!r} = {str(value).lower()}" for name, value in self.taken.items()]
        return ", ".join([*parts, *(f"Loop {name!r} run twice" for name in sorted(self.loops))])


def name_of(node: ir.Node) -> str:
    """What a node is called here: as its first output."""
    return str(node.outputs[0].name) if node.outputs else ""


def force(model: ir.Model, forced: Forced) -> ir.Model:
    """The copy. Branches come in the place of their Ifs.

    Parameters
    ----------
    model
        Normalised; not mutated.
    """
    model = model.clone()
    for node in list(every_node(model.graph)):
        if is_if(node) and name_of(node) in forced.taken:
            branch = branches_of(node)[0 if forced.taken[name_of(node)] else 1]
            splice(model.graph, node, branch)
        elif is_loop(node) and name_of(node) in forced.loops:
            _run_twice(model.graph, node)
    edit.drop_unused(model.graph)  # onnxruntime cannot be given weights that nothing uses
    return model


def _run_twice(main: ir.Graph, node: ir.Node) -> None:
    (body,) = bodies_of(node)
    known = node.inputs[0]
    rank = 0 if known is None or known.shape is None else len(known.shape)
    count = np.full((1,) * rank, ITERATIONS, np.int64)
    node.replace_input_with(0, edit.add_initializer(main, f"{name_of(node)}/twice", count, ir.DataType.INT64))
    if len(node.inputs) > 1:
        node.replace_input_with(1, None)
    always = ir.Tensor(np.array(True), name="")
    constant = ir.node("Constant", [], {"value": always}, name=edit.fresh(main, f"{name_of(node)}/going"))
    (on,) = constant.outputs
    on.name, on.type, on.shape = (
        edit.fresh(main, f"{name_of(node)}/on"),
        ir.TensorType(ir.DataType.BOOL),
        ir.Shape(()),
    )
    body.append(constant)
    body.outputs[0] = on
