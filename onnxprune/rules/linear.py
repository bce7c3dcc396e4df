"""Gemm and MatMul: one contraction, the other axes pass through.

Specification: https://onnx.ai/onnx/operators/onnx__Gemm.html, https://onnx.ai/onnx/operators/onnx__MatMul.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune.graph.axes import Axis
from onnxprune.rules.helpers import tie_broadcast
from onnxprune.rules.rule import Key, Rule, Term, table

if TYPE_CHECKING:
    from onnxprune.graph.relations import Relations
    from onnxprune.rules.op import Op


def _contract(op: Op, relations: Relations, a: Axis, b: Axis) -> None:
    """Contract with the activation first: the sink is masked at a parameter where one operand is one."""
    if op.is_constant(0) and not op.is_constant(1):
        relations.contract(b, a, slot=1)
    else:
        relations.contract(a, b, slot=0)


def _gemm_axes(op: Op) -> tuple[Axis, Axis, Axis, Axis]:
    """(rows of A, inner of A, inner of B, columns of B)."""
    a, b = op.input(0), op.input(1)
    ta, tb = op.int("transA", 0), op.int("transB", 0)
    return Axis(a, 1 if ta else 0), Axis(a, 0 if ta else 1), Axis(b, 1 if tb else 0), Axis(b, 0 if tb else 1)


def _gemm(op: Op, relations: Relations) -> None:
    rows, inner_a, inner_b, columns = _gemm_axes(op)
    y = op.output()
    relations.tie(rows, Axis(y, 0))
    relations.tie(columns, Axis(y, 1))
    _contract(op, relations, inner_a, inner_b)
    if op.has(2):
        tie_broadcast(op, relations, op.input(2), y)


def _gemm_macs(op: Op) -> list[Term]:
    rows, inner, _, columns = _gemm_axes(op)
    return [Term(1.0, (rows, inner, columns))]


def _matmul(op: Op, relations: Relations) -> None:
    a, b, y = op.input(0), op.input(1), op.output()
    ra, rb, ry = op.rank(a), op.rank(b), op.rank(y)
    if ra >= 2:
        relations.tie(Axis(a, ra - 2), Axis(y, ry - (1 if rb == 1 else 2)))
    if rb >= 2:
        relations.tie(Axis(b, rb - 1), Axis(y, ry - 1))
    _contract(op, relations, Axis(a, ra - 1), Axis(b, max(rb - 2, 0)))
    if ra >= 2 and rb >= 2:
        tie_broadcast(op, relations, a, y, last=2)
        tie_broadcast(op, relations, b, y, last=2)
    elif max(ra, rb) > 2:  # a vector has no batch axes; those of the other operand lead the output
        batched = a if ra > rb else b
        for dim in range(max(ra, rb) - 2):
            relations.tie(Axis(batched, dim), Axis(y, dim))


def _matmul_macs(op: Op) -> list[Term]:
    a = op.input(0)
    return [Term(1.0, (*op.axes(op.output()), Axis(a, op.rank(a) - 1)))]


RULES: dict[Key, Rule] = {
    **table(Rule(_gemm, macs=_gemm_macs, weights=(0, 1), kinds={2: "bias"}), "Gemm"),
    **table(Rule(_matmul, macs=_matmul_macs, weights=(0, 1)), "MatMul"),
}
