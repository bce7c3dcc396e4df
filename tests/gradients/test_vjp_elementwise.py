from __future__ import annotations

import numpy as np
import pytest
from vjp_cases import Moving, case, check

SHAPE = (3, 4)
RANGES = {
    **dict.fromkeys(("Acos", "Asin", "Atanh"), (-0.9, 0.9)),
    "Acosh": (1.1, 3.0),
    **dict.fromkeys(("Log", "Sqrt", "Reciprocal"), (0.2, 3.0)),
    "Tan": (-1.0, 1.0),
    "HardSwish": (-5.0, 5.0),
    "HardSigmoid": (-4.0, 4.0),
}
KINKS = {
    "HardSwish": (-3.0, 3.0),
    "HardSigmoid": (-2.5, 2.5),
    "Shrink": (-0.5, 0.5),
    "ThresholdedRelu": (1.0,),
}
SINCE = {"Gelu": 20, "Swish": 24, "Mish": 18}
PLAIN = [
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Cos", "Cosh", "Elu", "Erf"),
    *("Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Mish", "Neg"),
    *("Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus"),
    *("Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu"),
]


def unary(op_type, **attributes):
    low, high = RANGES.get(op_type, (-2.0, 2.0))
    kinks = KINKS.get(op_type, (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5))
    note = ",".join(attributes)
    return case(
        op_type, Moving(SHAPE, low, high, from_=kinks), opset=SINCE.get(op_type, 18), note=note, **attributes
    )


def binary(op_type, low=-2.0, high=2.0, apart=0.0, **attributes):
    for a, b in [((3, 4), (3, 4)), ((2, 3, 4), (3, 1)), ((3, 1), (2, 1, 4)), ((1, 4), (3, 4)), ((), (3, 2))]:
        first = Moving(a, low, high, apart)
        second = Moving(b, 0.6 if op_type in ("Div", "Mod") else low, high + 0.013, apart)
        yield case(op_type, first, second, **attributes)


def scalar(value):
    return np.array(value, np.float32)


CASES = [
    *map(unary, PLAIN),
    unary("Gelu", approximate="tanh"),
    unary("Celu", alpha=0.7),
    unary("Elu", alpha=0.7),
    unary("Selu", alpha=1.2, gamma=0.8),
    unary("LeakyRelu", alpha=0.3),
    unary("ThresholdedRelu", alpha=1.0),
    unary("Shrink", lambd=0.5, bias=0.5),
    unary("HardSigmoid", alpha=0.2, beta=0.5),
    unary("Swish", alpha=1.7),
    unary("Cast", to=1),
    case("CastLike", SHAPE, scalar(1)),
    case("Dropout", SHAPE, opset=13),
    *(case("Dropout", SHAPE, opset=opset) for opset in (7, 10)),
    case("Add", SHAPE, (4,), opset=7),
    case("Pow", Moving(SHAPE, 0.5, 2), (4,), opset=7),
    case("Clip", Moving(SHAPE, from_=(-1.0, 1.0)), scalar(-1), scalar(1)),
    case("Clip", Moving(SHAPE, from_=(0.0,)), scalar(0)),
    case("Clip", Moving(SHAPE, from_=(1.0,)), None, scalar(1)),
    case("Clip", SHAPE),
    case(
        "Clip",
        Moving(SHAPE, from_=(-1.0, 1.0)),
        Moving((), values=-1.0),
        Moving((), values=1.0),
        note="bounds",
    ),
    case("Clip", Moving(SHAPE, from_=(-1.0, 1.0)), min=-1.0, max=1.0, opset=10),
    *binary("Add"),
    *binary("Sub"),
    *binary("Mul"),
    *binary("Div"),
    *binary("Pow", 0.5),
    *binary("Max", apart=0.1),
    *binary("Min", apart=0.1),
    *binary("Mean"),
    *binary("Sum"),
    *binary("Mod", 0.6, 3.0, fmod=1),
    case("Pow", SHAPE, scalar(2)),
    case("Pow", Moving(SHAPE, 0.5, 2), scalar(0.5)),
    case("Pow", SHAPE, np.array(3, np.int64)),
    case("Max", (3, 4), (4,), (2, 3, 4)),
    case("Max", SHAPE),
    case("Mean", (3, 4), (4,), (2, 3, 4)),
    case("Sum", (3, 4), (4,), (2, 3, 4)),
    case("PRelu", Moving((2, 3, 4), from_=(0.0,)), (3, 1)),
    case("PRelu", Moving((2, 3, 4), from_=(0.0,)), (1,)),
    case("Where", np.array([[True], [False]]), (2, 4), (2, 1)),
    case("Where", np.array([True, False, True]), (2, 3), (3,)),
    case("Where", np.array([[[True]], [[False]]]), (3, 3), ()),
]


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_vjp(case, dynamic):
    check(case, dynamic=dynamic and case.dynamic)
