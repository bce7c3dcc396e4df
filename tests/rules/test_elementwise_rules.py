from __future__ import annotations

import numpy as np
import pytest
from rule_cases import case, identify

from onnxprune.rules.elementwise import BINARY, UNARY
from onnxprune.testing import Activation, Weight

W, A = Weight, Activation
SAME = "x0[0,1] y0[0,1]"
SHAPE = (3, 6)
SPECIALS = np.array(
    [[1, np.nan, np.inf], [np.inf, 2, np.nan], [-np.inf, np.nan, np.inf]] * 2, np.float32
).T.copy()

RANGES = {
    **dict.fromkeys(("Acos", "Asin", "Atanh"), (-0.9, 0.9)),
    "Acosh": (1.1, 3.0),
    **dict.fromkeys(("Log", "Sqrt", "Reciprocal"), (0.2, 3.0)),
    "Tan": (-1.0, 1.0),
}
SINCE = {
    "Celu": 12,
    "ThresholdedRelu": 10,
    "Gelu": 20,
    "HardSwish": 14,
    "Mish": 18,
    "Swish": 24,
    "BitwiseNot": 18,
    "Round": 11,
}
TYPES = {"Not": "bool", "BitwiseNot": "int32"}
SPECIAL = ("BitCast", "Cast", "Clip", "Dropout", "IsInf", "IsNaN", "Shrink")
TWO = "x0[0,1] x1[0,1] y0[0,1]"
INTEGERS = {
    "BitShift": "uint32",
    "BitwiseAnd": "int32",
    "BitwiseOr": "int32",
    "BitwiseXor": "int32",
    "Mod": "int32",
}
BOOLEANS = ("And", "Or", "Xor")
BINARY_SINCE = {"BitwiseAnd": 18, "BitwiseOr": 18, "BitwiseXor": 18, "GreaterOrEqual": 12, "LessOrEqual": 12}


def unary(op_type):
    low, high = RANGES.get(op_type, (-2.0, 2.0))
    high = 20.0 if op_type == "BitwiseNot" else high
    since = SINCE.get(op_type, 9)
    for opset in sorted({max(9, since), max(21, since)}):
        yield case(
            op_type, A(SHAPE, TYPES.get(op_type, "float32"), low, high), expect=SAME, groups=2, opset=opset
        )


def binary(op_type):
    dtype, low, high, attributes = "float32", 0.5, 2.0, {}
    if op_type in BOOLEANS:
        dtype, low = "bool", -2.0
    elif op_type in INTEGERS:
        dtype, low, high = INTEGERS[op_type], 1.0, 6.0
    elif op_type in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
        dtype, low, high = "int32", 0.0, 3.9  # so that some pairs are equal
    if op_type == "BitShift":
        attributes["direction"] = "LEFT"
    since = BINARY_SINCE.get(op_type, 11)
    for opset in sorted({since, max(18, since)}):
        yield case(
            *(op_type, A(SHAPE, dtype, low, high), A(SHAPE, dtype, low, high)),
            expect=TWO,
            groups=2,
            opset=opset,
            **attributes,
        )
    yield case(
        *(op_type, A((2, 3, 6), dtype, low, high), A((3, 1), dtype, low, high)),
        expect="x0[0,1,2] x1[0] y0[0,1,2]",
        note="broadcast-right",
        **attributes,
    )
    if op_type != "PRelu":  # its slope must fit the input
        yield case(
            *(op_type, A((1, 6), dtype, low, high), A((2, 3, 1), dtype, low, high)),
            expect="x0[1] x1[0,1] y0[0,1,2]",
            note="broadcast-both",
            **attributes,
        )
    yield case(
        *(op_type, A((3, 6), dtype, low, high), A((), dtype, max(low, 0.5), high)),
        expect="x0[0,1] y0[0,1]",
        note="scalar",
        **attributes,
    )


FLOATS = ("Add", "Div", "Max", "Mean", "Min", "Mul", "PRelu", "Pow", "Sub", "Sum")
CASES = [
    *(line for op_type in UNARY if op_type not in SPECIAL for line in unary(op_type)),
    *(line for op_type in BINARY if op_type != "Where" for line in binary(op_type)),
    # constants: one per channel, whole, one in all
    *(
        case(
            op,
            A((2, 6, 4), low=0.5),
            W((6, 1), 0.5, 2.0),
            expect="x0[0,1,2] x1[0] y0[0,1,2]",
            note="per-channel",
        )
        for op in FLOATS
    ),
    *(
        case(
            op,
            A((2, 6, 4), low=0.5),
            W((1, 6, 1), 0.5, 2.0),
            expect="x0[0,1,2] x1[1] y0[0,1,2]",
            note="kept-dims",
        )
        for op in FLOATS
    ),
    *(
        case(op, W((6,), 0.5, 2.0), (2, 6), expect="x0[0] x1[0,1] y0[0,1]", note="constant-first")
        for op in ("Add", "Sub", "Mul", "Div", "Max")
    ),
    *(
        case(op, A((2, 6), low=0.5), np.float32(1.5), expect="x0[0,1] y0[0,1]", note="constant")
        for op in FLOATS
    ),
    *(
        case(op, (2, 6), (6,), W((1, 6)), (2, 1), expect="x0[0,1] x1[0] x2[1] x3[0] y0[0,1]", note="four")
        for op in ("Max", "Min", "Mean", "Sum")
    ),
    case("Max", (2, 6), expect="x0[0,1] y0[0,1]", note="one"),
    case("PRelu", (2, 6, 4), W((6, 1)), expect="x0[0,1,2] x1[0] y0[0,1,2]", note="slope"),
    case("PRelu", (2, 6, 4, 4), W((1,)), expect="x0[0,1,2,3] y0[0,1,2,3]", note="one-slope"),
    case("Mod", (2, 6), W((6,), 0.5, 2.0), expect="x0[0,1] x1[0] y0[0,1]", fmod=1, note="fmod"),
    case("Pow", A((2, 6), low=0.5), np.array(2, np.int64), expect=SAME, note="integer-exponent"),
    # Where: condition, constants and activations in all roles
    case("Where", A((2, 6), "bool"), (2, 6), (2, 6), expect="x0[0,1] x1[0,1] x2[0,1] y0[0,1]", opset=9),
    case("Where", A((2, 6), "bool"), (2, 6), (2, 6), expect="x0[0,1] x1[0,1] x2[0,1] y0[0,1]", opset=16),
    case("Where", A((6,), "bool"), (2, 1), W((1, 6)), expect="x0[0] x1[0] x2[1] y0[0,1]", note="broadcast"),
    case(
        "Where",
        A((3, 1, 6), "bool"),
        (2, 1),
        np.float32(-3),
        expect="x0[0,2] x1[0] y0[0,1,2]",
        note="masked-fill",
    ),
    case(
        "Where",
        np.array([True, False] * 3),
        (2, 6),
        np.float32(0.5),
        expect="x0[0] x1[0,1] y0[0,1]",
        note="constant-mask",
    ),
    # the unary ones with attributes or more inputs
    *(
        case("Cast", (3, 6), expect=SAME, to=t, opset=o, note=str(t))
        for o in (9, 13, 21)
        for t in (1, 6, 7, 9, 10, 11)
    ),
    case("Cast", A((3, 6), "int64", -9, 9), expect=SAME, to=1, note="from-int"),
    case("BitCast", (3, 6), expect=SAME, to=6, opset=26),
    case("BitCast", A((3, 6), "int32", -9, 9), expect=SAME, to=12, opset=26, note="from-int"),
    case("CastLike", (3, 6), W((2,)), expect="x0[0,1] x1[0] y0[0,1]", opset=15),
    case("CastLike", (3, 6), A((2,), "int32"), expect="x0[0,1] x1[0] y0[0,1]", opset=19, note="activation"),
    case("Clip", (3, 6), expect=SAME, min=-1.0, max=0.5, opset=9, note="attributes"),
    *(case("Clip", (3, 6), np.float32(-1), np.float32(0.5), expect=SAME, opset=o) for o in (11, 13)),
    case("Clip", (3, 6), None, np.float32(0.5), expect=SAME, note="no-min"),
    case("Clip", (3, 6), np.float32(-0.5), expect=SAME, note="no-max"),
    case("Clip", (3, 6), (), W(()), expect=SAME, note="computed-bounds"),
    case("Dropout", (3, 6), expect=SAME, opset=9),
    case("Dropout", (3, 6), np.float32(0.5), expect=SAME, opset=13),
    case("Dropout", (3, 6), np.float32(0.5), expect=f"{SAME} y1[0,1]", outputs=2, opset=13, note="mask"),
    *(case("IsNaN", SPECIALS, expect=SAME, opset=o) for o in (9, 13)),
    case("IsInf", SPECIALS, expect=SAME, opset=10),
    case("IsInf", SPECIALS, expect=SAME, detect_negative=0, note="positive"),
    case("Shrink", (3, 6), expect=SAME, lambd=0.7, bias=0.1),
    case("Elu", (3, 6), expect=SAME, alpha=0.3, note="alpha"),
    case("ThresholdedRelu", (3, 6), expect=SAME, alpha=0.4, note="alpha"),
    case("LeakyRelu", (3, 6), expect=SAME, alpha=0.2, note="alpha"),
]


@pytest.mark.parametrize("case", CASES, ids=identify)
def test_elementwise(case):
    case.check()
