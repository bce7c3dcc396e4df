"""VJP of Einsum: the gradient of one operand is an Einsum of the output's gradient and the other operands.

A letter that only this operand has was summed over on its own: the gradient is repeated along it.
"""

from __future__ import annotations

from onnxprune.rules.backward import Backward, Vjp
from onnxprune.rules.expr import Expr
from onnxprune.rules.op import Op
from onnxprune.rules.rule import Key


def _einsum(op: Op, back: Backward) -> None:
    terms, result = _terms(back)
    for slot in range(len(terms)):
        if back.wants(slot):
            others = [number for number in range(len(terms)) if number != slot]
            back.give(slot, _operand(back, slot, terms, result, others))


def _operand(back: Backward, slot: int, terms: list[str], result: str, others: list[int]) -> Expr:
    term, value = terms[slot], back.op.input(slot)
    if len(set(term)) < len(term) or len(set(result)) < len(result):
        raise back.refusal("it takes a diagonal")
    known = set(result).union(*(terms[number] for number in others))
    kept = "".join(letter for letter in term if letter in known)
    equation = ",".join([result, *(terms[number] for number in others)]) + f"->{kept}"
    made = back.builder.op("Einsum", back.g, *(back.x(number) for number in others), equation=equation)
    alone = [dim for dim, letter in enumerate(term) if letter not in known]
    if alone:
        made = back.expand_like(made.unsqueeze(*alone), value, alone)
    return _narrowed(back, made, slot, terms)


def _narrowed(back: Backward, made: Expr, slot: int, terms: list[str]) -> Expr:
    """Sum along axes where this operand has one position and another has more."""
    value = back.op.input(slot)
    axes = []
    for dim, letter in enumerate(terms[slot]):
        if back.dims(value)[dim] != 1:
            continue
        for number, term in enumerate(terms):
            if number != slot and letter in term:
                other = back.dims(back.op.input(number))[term.index(letter)]
                if other != 1:
                    axes.append(dim)
                    break
    return made.sum(*axes)


def _terms(back: Backward) -> tuple[list[str], str]:
    """The letters of every operand and of the output; those of an ellipsis are ones that are free."""
    op = back.op
    equation = op.str("equation", "").replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        letters = sorted(letter for letter in set(left) if letter.isalpha() and left.count(letter) == 1)
        right = ("..." if "..." in left else "") + "".join(letters)
    free = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter not in equation]
    spans = [
        back.rank(op.input(slot)) - len(term.replace("...", "")) if "..." in term else 0
        for slot, term in enumerate(terms)
    ]
    most = max(spans, default=0)
    filled = [
        term.replace("...", "".join(free[most - span : most]))
        for term, span in zip(terms, spans, strict=True)
    ]
    return filled, right.replace("...", "".join(free[:most]))


VJPS: dict[Key, Vjp] = {("", "Einsum"): _einsum}
