"""VJPs of operators that treat every position alone.

A unary operator multiplies the gradient by its derivative, written with its input x or its output y,
whichever is cheaper; where a function has a kink, the derivative there is that of one side, as in PyTorch.
Operands that were broadcast get the sum over their copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from onnxprune.rules.backward import Backward, Vjp
from onnxprune.rules.expr import Expr
from onnxprune.rules.op import Op
from onnxprune.rules.rule import Key

_SQRT_HALF, _DENSITY = math.sqrt(0.5), 1 / math.sqrt(2 * math.pi)
_TANH_SCALE, _TANH_CUBE = math.sqrt(2 / math.pi), 0.044715
_SELU_ALPHA, _SELU_GAMMA = 1.6732632423543772848, 1.0507009873554804934


def number(op: Op, name: str, default: float) -> float:
    """Float attribute `name`."""
    attr = op.node.attributes.get(name)
    return default if attr is None else float(attr.as_float())


def unary(derivative: Callable[[Op, Expr, Expr], Expr | float]) -> Vjp:
    """VJP of y = f(x) with f' a function of (op, x, y)."""

    def vjp(op: Op, back: Backward) -> None:
        back.give(0, back.g * derivative(op, back.x(), back.y()))

    return vjp


def gate(passes: Callable[[Op, Expr, Expr], Expr]) -> Vjp:
    """VJP of a function whose derivative is 1 where `passes` and 0 elsewhere."""

    def vjp(op: Op, back: Backward) -> None:
        back.give(0, back.g.where(passes(op, back.x(), back.y())))

    return vjp


def identity(op: Op, back: Backward) -> None:
    """VJP of operators that pass their first input on."""
    back.give(0, back.g)


def nothing(op: Op, back: Backward) -> None:
    """VJP of operators that are constant almost everywhere."""
    back.give(0, None)


def _cast_like(op: Op, back: Backward) -> None:
    back.give(0, back.g)
    back.give(1, None)  # only its type is looked at


def _positive(x: Expr) -> Expr:
    return x.op("Greater", 0.0)


def _choose(condition: Expr, yes: Expr | float, no: Expr | float) -> Expr:
    return condition.op("Where", yes, no)


def _gelu(op: Op, x: Expr, y: Expr) -> Expr:
    if op.str("approximate", "none") == "tanh":
        square = x * x
        t = (x * (_TANH_SCALE + _TANH_SCALE * _TANH_CUBE * square)).op("Tanh")
        slope = _TANH_SCALE + 3 * _TANH_SCALE * _TANH_CUBE * square
        return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope
    return 0.5 + 0.5 * (x * _SQRT_HALF).op("Erf") + _DENSITY * x * (-0.5 * x * x).op("Exp")


def _swish(op: Op, x: Expr, y: Expr) -> Expr:
    alpha = number(op, "alpha", 1.0)
    s = (alpha * x).op("Sigmoid")
    return s + alpha * y * (1.0 - s)


def _mish(op: Op, x: Expr, y: Expr) -> Expr:
    t = x.op("Softplus").op("Tanh")
    return t + x * x.op("Sigmoid") * (1.0 - t * t)


def _celu(op: Op, x: Expr, y: Expr) -> Expr:
    alpha = number(op, "alpha", 1.0)
    return x.op("Min", 0.0).__truediv__(alpha).op("Exp")


def _elu(op: Op, x: Expr, y: Expr) -> Expr:
    return _choose(_positive(x), 1.0, y + number(op, "alpha", 1.0))


def _selu(op: Op, x: Expr, y: Expr) -> Expr:
    alpha, gamma = number(op, "alpha", _SELU_ALPHA), number(op, "gamma", _SELU_GAMMA)
    return _choose(_positive(x), gamma, y + alpha * gamma)


def _hard_sigmoid(op: Op, x: Expr, y: Expr) -> Expr:
    inside = y.op("Greater", 0.0).op("And", y.op("Less", 1.0))
    return _choose(inside, number(op, "alpha", 0.2), 0.0)


def _hard_swish(op: Op, x: Expr, y: Expr) -> Expr:
    return _choose(x.op("Greater", -3.0), _choose(x.op("Less", 3.0), x * (1 / 3) + 0.5, 1.0), 0.0)


def _between(op: Op, x: Expr, y: Expr) -> Expr:
    """Where Clip clips nothing."""
    bounds = [
        y.op(kind, y.builder.of(op.input(slot)))
        for slot, kind in ((1, "Greater"), (2, "Less"))
        if op.has(slot) and not _unbounded(op, slot)
    ]
    if not bounds:
        return y.op("Equal", y)
    return bounds[0] if len(bounds) == 1 else bounds[0].op("And", bounds[1])


def _clip(op: Op, back: Backward) -> None:
    y = back.y()
    if back.wants(0):
        back.give(0, back.g.where(_between(op, back.x(), y)))
    for slot, kind in ((1, "Greater"), (2, "Less")):
        if back.wants(slot):
            clipped = y.op(kind, back.x(slot)).op("Not")
            back.give(slot, back.reshape_like(back.g.where(clipped).op("ReduceSum"), op.input(slot)))


def _unbounded(op: Op, slot: int) -> bool:
    data = op.data(slot)  # onnxruntime takes bounds of shape (1,), too
    return data is not None and data.size == 1 and abs(data.item()) >= float(np.finfo(np.float32).max)


def _shrink(op: Op, x: Expr, y: Expr) -> Expr:
    return x.op("Abs").op("Greater", number(op, "lambd", 0.5))


_UNARY: dict[str, Vjp] = {
    "Abs": unary(lambda op, x, y: x.op("Sign")),
    "Acos": unary(lambda op, x, y: -1.0 / (1.0 - x * x).op("Sqrt")),
    "Acosh": unary(lambda op, x, y: 1.0 / (x * x - 1.0).op("Sqrt")),
    "Asin": unary(lambda op, x, y: 1.0 / (1.0 - x * x).op("Sqrt")),
    "Asinh": unary(lambda op, x, y: 1.0 / (x * x + 1.0).op("Sqrt")),
    "Atan": unary(lambda op, x, y: 1.0 / (x * x + 1.0)),
    "Atanh": unary(lambda op, x, y: 1.0 / (1.0 - x * x)),
    "Cast": identity,
    "CastLike": _cast_like,
    "Ceil": nothing,
    "Celu": unary(_celu),
    "Clip": _clip,
    "Cos": unary(lambda op, x, y: -x.op("Sin")),
    "Cosh": unary(lambda op, x, y: x.op("Sinh")),
    "Dropout": identity,
    "Elu": unary(_elu),
    "Erf": unary(lambda op, x, y: 2 / math.sqrt(math.pi) * (-(x * x)).op("Exp")),
    "Exp": unary(lambda op, x, y: y),
    "Floor": nothing,
    "Gelu": unary(_gelu),
    "HardSigmoid": unary(_hard_sigmoid),
    "HardSwish": unary(_hard_swish),
    "Identity": identity,
    "LeakyRelu": unary(lambda op, x, y: _choose(_positive(x), 1.0, number(op, "alpha", 0.01))),
    "Log": lambda op, back: back.give(0, back.g / back.x()),
    "Mish": unary(_mish),
    "Neg": lambda op, back: back.give(0, -back.g),
    "Reciprocal": unary(lambda op, x, y: -(y * y)),
    "Relu": gate(lambda op, x, y: _positive(y)),
    "Round": nothing,
    "Selu": unary(_selu),
    "Shrink": gate(_shrink),
    "Sigmoid": unary(lambda op, x, y: y * (1.0 - y)),
    "Sign": nothing,
    "Sin": unary(lambda op, x, y: x.op("Cos")),
    "Sinh": unary(lambda op, x, y: x.op("Cosh")),
    "Softplus": unary(lambda op, x, y: x.op("Sigmoid")),
    "Softsign": unary(lambda op, x, y: (1.0 - y.op("Abs")) ** 2.0),
    "Sqrt": unary(lambda op, x, y: 0.5 / y),
    "Swish": unary(_swish),
    "Tan": unary(lambda op, x, y: 1.0 + y * y),
    "Tanh": unary(lambda op, x, y: 1.0 - y * y),
    "ThresholdedRelu": gate(lambda op, x, y: x.op("Greater", number(op, "alpha", 1.0))),
}


# --- several operands --------------------------------------------------------------------------------------


def _add(op: Op, back: Backward) -> None:
    for slot in range(len(op.node.inputs)):
        if back.wants(slot):
            back.give_fitted(slot, back.g)


def _sub(op: Op, back: Backward) -> None:
    if back.wants(0):
        back.give_fitted(0, back.g)
    if back.wants(1):
        back.give(1, -back.fit(back.g, op.input(1)))


def _mul(op: Op, back: Backward) -> None:
    for slot in (0, 1):
        if back.wants(slot):
            back.give_fitted(slot, back.g * back.x(1 - slot))


def _div(op: Op, back: Backward) -> None:
    if back.wants(0):
        back.give_fitted(0, back.g / back.x(1))
    if back.wants(1):
        back.give_fitted(1, -(back.g * back.y()) / back.x(1))


def _pow(op: Op, back: Backward) -> None:
    x, power = back.x(0), back.x(1)
    if back.wants(0):
        known = op.data(1)
        if known is not None and known.size == 1 and float(known.ravel()[0]) == 2.0:
            slope = 2.0 * x
        else:
            floats = power if op.input(1).dtype == op.input(0).dtype else power.float()
            slope = floats * x ** (floats - 1.0)
        back.give_fitted(0, back.g * slope)
    if back.wants(1):
        known_log = x.op("Max", float(np.finfo(np.float32).tiny)).op("Log")
        back.give_fitted(1, back.g * back.y() * known_log)


def _extreme(op: Op, back: Backward) -> None:
    """Max and Min: operands that tie share the gradient."""
    slots = range(len(op.node.inputs))
    if len(slots) == 1:
        back.give(0, back.g)
        return
    wins = [back.x(slot).op("Equal", back.y()).float() for slot in slots]
    total = wins[0]
    for win in wins[1:]:
        total = total + win
    share = back.g / total
    for slot in slots:
        if back.wants(slot):
            back.give_fitted(slot, share * wins[slot])


def _mean(op: Op, back: Backward) -> None:
    share = back.g * (1 / len(op.node.inputs))
    for slot in range(len(op.node.inputs)):
        if back.wants(slot):
            back.give_fitted(slot, share)


def _where(op: Op, back: Backward) -> None:
    condition = back.x(0)
    if back.wants(1):
        back.give_fitted(1, condition.op("Where", back.g, 0.0))
    if back.wants(2):
        back.give_fitted(2, condition.op("Where", 0.0, back.g))


def _prelu(op: Op, back: Backward) -> None:
    x, slope = back.x(0), back.x(1)
    positive = _positive(x)
    if back.wants(0):
        back.give(0, _choose(positive, back.g, back.g * slope))
    if back.wants(1):
        back.give_fitted(1, _choose(positive, 0.0, back.g * x))


def _mod(op: Op, back: Backward) -> None:
    if back.wants(0):
        back.give_fitted(0, back.g)
    if back.wants(1):
        quotient = (back.x(0) - back.y()) / back.x(1)
        back.give_fitted(1, -(back.g * quotient.op("Round")))


VJPS: dict[Key, Vjp] = {
    **{("", op_type): vjp for op_type, vjp in _UNARY.items()},
    ("", "Add"): _add,
    ("", "Sum"): _add,
    ("", "Sub"): _sub,
    ("", "Mul"): _mul,
    ("", "Div"): _div,
    ("", "Pow"): _pow,
    ("", "Max"): _extreme,
    ("", "Min"): _extreme,
    ("", "Mean"): _mean,
    ("", "Where"): _where,
    ("", "PRelu"): _prelu,
    ("", "Mod"): _mod,
}
