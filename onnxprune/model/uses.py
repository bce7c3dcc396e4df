"""Who reads a value."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import onnx_ir as ir

READS_SHAPE = ("Shape", "Size")

KEEPS_SHAPE = frozenset(
    (
        *("Add", "Sub", "Mul", "Div", "MatMul", "Gemm", "Relu", "LeakyRelu", "Clip", "Tanh", "Sigmoid"),
        *("HardSigmoid", "Identity", "Cast", "Concat", "Split", "Transpose"),
    )
)
"""Operators of which the shape of what they make does not depend on numbers; of Split not on those of its input."""

FAR = 64
"""Nodes behind another one that are looked at."""


class Use(NamedTuple):
    """A node, and as which input it reads a value."""

    node: ir.Node
    slot: int


def only_use(value: ir.Value) -> Use | None:
    """The one place where a value is read; None for any other number of them, and for outputs of the graph."""
    uses = list(itertools.islice(value.uses(), 2))
    return Use(uses[0].node, uses[0].idx) if len(uses) == 1 and not value.is_graph_output() else None


def only_user(value: ir.Value) -> ir.Node | None:
    """The node that alone reads a value, once."""
    use = only_use(value)
    return None if use is None else use.node


def gives_shapes_only(node: ir.Node) -> bool:
    """Whether only shapes of what a node makes are used, some nodes further on: its numbers do not matter.

    What nothing uses, and what goes into or out of bodies, is not said to be so.
    """
    queue, seen = [node], {node}
    while queue:
        each = queue.pop()
        used = False
        for value in each.outputs:
            if value.is_graph_output():
                return False
            for use in value.uses():
                used, user = True, use.node
                if user in seen or (user.op_type in READS_SHAPE and not user.domain):
                    continue
                if user.op_type not in KEEPS_SHAPE or user.domain or use.idx and user.op_type == "Split":
                    return False
                if user.graph is not node.graph or len(seen) == FAR:
                    return False
                seen.add(user)
                queue.append(user)
        if not used:
            return False
    return True
