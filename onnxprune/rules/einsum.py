"""Einsum: a letter of the output passes through, a letter that is missing there is summed over.

`bhid,bhjd->bhij` is a product of matrices: b, h, i and j are tied to the output, d is contracted. A letter
that occurs twice in one operand (a diagonal) is left to the builder, which pins it.

Specification: https://onnx.ai/onnx/operators/onnx__Einsum.html
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxprune.graph.axes import Axis
from onnxprune.rules.rule import Key, Rule, Term, table

if TYPE_CHECKING:
    from onnxprune.graph.relations import Relations
    from onnxprune.rules.op import Op

Label = str | int
"""A letter, or a dim of the ellipsis counted from its end: -1, -2, ..."""


@dataclass(frozen=True)
class _Equation:
    """Labels of every operand's dims and of the output's."""

    operands: tuple[tuple[Label, ...], ...]
    output: tuple[Label, ...]

    @property
    def labels(self) -> list[Label]:
        """Each label once, in the order of the operands."""
        return list(dict.fromkeys(label for operand in self.operands for label in operand))


def _equation(op: Op) -> _Equation | None:
    """The equation of a node, or None where it does not fit its operands."""
    left, arrow, right = op.str("equation", "").replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(op.node.inputs):
        return None
    operands = [_dims(term, op.rank(op.input(slot))) for slot, term in enumerate(terms)]
    result = (
        _dims(right, op.rank(op.output())) if arrow else _implicit([x for x in operands if x is not None])
    )
    known = tuple(x for x in operands if x is not None)
    if result is None or len(known) < len(operands) or len(result) != op.rank(op.output()):
        return None
    if not set(result) <= {label for operand in known for label in operand}:
        return None
    return _Equation(known, result)


def _dims(term: str, rank: int) -> tuple[Label, ...] | None:
    """Labels of a tensor of this rank; an ellipsis stands for the dims that have no letter."""
    before, dots, after = term.partition("...")
    rest = rank - len(before) - len(after)
    if rest < 0 or (rest and not dots):
        return None
    return (*before, *range(-rest, 0), *after)


def _implicit(operands: list[tuple[Label, ...]]) -> tuple[Label, ...] | None:
    """The output where the equation names none: the ellipsis, then letters that occur once, by alphabet."""
    counts = Counter(label for operand in operands for label in operand)
    letters = [label for label in counts if isinstance(label, str)]
    if len({letter.isupper() for letter in letters}) > 1:  # which case comes first is not said
        return None
    dots = sorted(label for label in counts if isinstance(label, int))
    return (*dots, *sorted(letter for letter in letters if counts[letter] == 1))


def _holders(op: Op, equation: _Equation, label: Label) -> list[tuple[int, Axis]]:
    """Operand slots and axes that carry a label; an extent of 1 that is broadcast carries nothing."""
    found = [
        (slot, Axis(op.input(slot), dim))
        for slot, operand in enumerate(equation.operands)
        for dim, other in enumerate(operand)
        if other == label
    ]
    wide = [(slot, axis) for slot, axis in found if op.extent(axis) != 1]
    return wide or found


def _relate(op: Op, relations: Relations) -> None:
    equation = _equation(op)
    if equation is None:
        return
    for label in equation.labels:
        holders = _holders(op, equation, label)
        if any(operand.count(label) > 1 for operand in equation.operands):
            continue
        if label in equation.output:
            for _, axis in holders:
                relations.tie(axis, Axis(op.output(), equation.output.index(label)))
        else:
            _sum(op, relations, holders)


def _sum(op: Op, relations: Relations, holders: list[tuple[int, Axis]]) -> None:
    """Contract the first activation with the others: a zero in one factor is a zero in the product."""
    (slot, a), *others = sorted(holders, key=lambda holder: op.is_constant(holder[0]))
    others.reverse()  # a parameter first: its slices are what a mask zeroes
    relations.contract(a, others[0][1] if others else None, slot)
    for _, other in others[1:]:
        relations.tie(a, other)


def _macs(op: Op) -> list[Term]:
    """One multiply-add for each choice of all letters."""
    equation = _equation(op)
    if equation is None or len(equation.operands) < 2:
        return []
    axes = tuple(_holders(op, equation, label)[0][1] for label in equation.labels)
    return [Term(1.0, axes)] if axes else []


RULES: dict[Key, Rule] = table(Rule(_relate, macs=_macs, weights=(0, 1)), "Einsum")
