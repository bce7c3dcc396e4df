"""Which groups are attention heads."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from onnxprune.graph.axes import Axis
from onnxprune.graph.build import AxisGraph
from onnxprune.graph.groups import Group
from onnxprune.rules.op import Op

ATTENTION = ("Attention", "MultiHeadAttention", "GroupQueryAttention", "DecoderMaskedMultiHeadAttention")
"""Operators that hold whole attention."""


def head_groups(axis_graph: AxisGraph, groups: Iterable[Group]) -> list[Group]:
    """Groups whose units are heads.

    The axis of heads is one along which products of two activations are independent: a leading axis of a MatMul, a
    label that all operands and the output of an Einsum bear, or what an attention operator divides into heads.

    Parameters
    ----------
    groups
        Of the axis graph, found with heads before dimensions of heads.
    """
    axes: set[Axis] = set()
    fused: set[Axis] = set()
    for op in axis_graph.ops:
        if op.node.op_type in ATTENTION:
            output = op.node.outputs[0]
            rank = op.rank(output)
            (axes if rank == 4 else fused).add(Axis(output, 1 if rank == 4 else rank - 1))
        elif _multiplies_activations(op):
            axes.update(_independent(op))
    found = []
    for group in groups:
        touched = {use.axis for use in group.axes}
        if touched & axes or (group.width > 1 and touched & fused):
            found.append(group)
    return found


def _multiplies_activations(op: Op) -> bool:
    made = [value for value in op.node.inputs if value is not None]
    return (
        op.node.op_type in ("MatMul", "Einsum")
        and op.node.domain in ("", "ai.onnx")
        and len(made) == 2
        and not any(value.const_value is not None for value in made)
    )


def _independent(op: Op) -> set[Axis]:
    """Axes of the output along which the product is independent."""
    output = op.node.outputs[0]
    rank = op.rank(output)
    if op.node.op_type == "MatMul":
        return {Axis(output, dim) for dim in range(rank - 2)}
    return {Axis(output, dim) for dim in _shared_labels(op.node) if dim < rank}


def _shared_labels(node: ir.Node) -> list[int]:
    """Dims of an Einsum's output whose label every operand bears."""
    equation = node.attributes["equation"].as_string().replace(" ", "")
    if "->" not in equation or "." in equation:
        return []
    operands, result = equation.split("->")
    return [
        dim for dim, label in enumerate(result) if all(label in operand for operand in operands.split(","))
    ]
