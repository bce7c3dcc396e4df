from __future__ import annotations

import numpy as np
import pytest
from rule_cases import case, identify

from onnxprune.errors import Reason
from onnxprune.rules.reduction import OTHERS, SUMS
from onnxprune.testing import Activation

A = Activation
R = Reason.REDUCED
SHAPE = (2, 6, 5)
AS_INPUT = {"ReduceSum": 13}


def ints(*values):
    return np.array(values, np.int64)


def reduce(op_type):
    """Axes as attribute and as input, kept and dropped, negative, all, none."""
    x = A(SHAPE, low=0.5)
    free = op_type in SUMS
    since = AS_INPUT.get(op_type, 18)
    one = "x0[0,1,2] y0[0,{}]" if free else "x0[0,2] y0[0,{}]"
    pinned = {} if free else {"x0[1]": R}
    for opset in (11, since - 1):
        yield case(op_type, x, expect=one.format(2), axes=[1], opset=opset, pinned=pinned, note="attribute")
    for opset in (since, 18, 21):
        yield case(op_type, x, ints(1), expect=one.format(2), opset=opset, pinned=pinned, note="input")
    yield case(op_type, x, ints(-2), expect=one.format(1), keepdims=0, pinned=pinned, note="negative-dropped")
    yield case(op_type, x, ints(0, 2), expect="x0[0,1,2] y0[1]" if free else "x0[1] y0[1]", note="two")
    yield case(
        op_type,
        x,
        ints(0, 2),
        expect="x0[0,1,2] y0[0]" if free else "x0[1] y0[0]",
        keepdims=0,
        note="two-dropped",
    )
    yield case(op_type, x, expect="x0[0,1,2]" if free else "", note="all")
    yield case(op_type, x, expect="x0[0,1,2]" if free else "", keepdims=0, note="all-dropped")
    yield case(op_type, x, ints(), expect="x0[0,1,2]" if free else "", keepdims=0, note="empty")
    yield case(op_type, x, expect="x0[0,1,2] y0[0,1,2]", noop_with_empty_axes=1, note="noop")


T = Reason.SOFTMAX
SOFT = ("Softmax", "LogSoftmax", "Hardmax")
CASES = [
    *(line for op_type in (*SUMS, *OTHERS) for line in reduce(op_type)),
    case("ReduceSum", A(SHAPE, "int32", -9, 9), ints(1), expect="x0[0,1,2] y0[0,2]", note="integers"),
    # opset 11 and 12 flatten from `axis` on, opset 13 normalises along one axis
    *(case(op, SHAPE, expect="x0[0] y0[0]", opset=11, pinned={"x0[1]": T, "y0[2]": T}) for op in SOFT),
    *(
        case(op, SHAPE, expect="x0[0,1] y0[0,1]", opset=12, axis=2, pinned={"x0[2]": T}, note="last")
        for op in SOFT
    ),
    *(case(op, SHAPE, expect="x0[0,1] y0[0,1]", opset=11, axis=-1, note="negative") for op in SOFT),
    *(case(op, SHAPE, expect="", opset=11, axis=0, note="first") for op in SOFT if op == "Softmax"),
    *(case(op, SHAPE, expect="x0[0,1] y0[0,1]", opset=13, pinned={"x0[2]": T, "y0[2]": T}) for op in SOFT),
    *(
        case(op, SHAPE, expect="x0[0,2] y0[0,2]", opset=13, axis=1, pinned={"x0[1]": T}, note="middle")
        for op in SOFT
    ),
    # which position wins
    *(
        case(op, SHAPE, expect="x0[0,2] y0[0,2]", axis=1, opset=o, pinned={"x0[1]": Reason.SELECTED})
        for op in ("ArgMax", "ArgMin")
        for o in (9, 11, 13)
    ),
    *(
        case(op, SHAPE, expect="x0[0,1] y0[0,1]", axis=-1, keepdims=0, note="dropped")
        for op in ("ArgMax", "ArgMin")
    ),
    case("ArgMax", SHAPE, expect="x0[1,2] y0[1,2]", note="default"),
    case(
        *("TopK", SHAPE, ints(3)),
        expect="x0[0,2] y0[0,2] y1[0,2]",
        outputs=2,
        axis=1,
        opset=10,
        pinned={"x0[1]": Reason.SELECTED, "y0[1]": Reason.SELECTED},
    ),
    *(case("TopK", SHAPE, ints(3), expect="x0[0,1] y0[0,1] y1[0,1]", outputs=2, opset=o) for o in (11, 18)),
    case("TopK", SHAPE, expect="x0[0,1] y0[0,1] y1[0,1]", outputs=2, opset=9, k=2, note="attribute"),
    # in order
    *(
        case(
            "CumSum",
            SHAPE,
            np.array(1, np.int64),
            expect="x0[0,2] y0[0,2]",
            opset=o,
            pinned={"x0[1]": Reason.ORDERED},
        )
        for o in (11, 14)
    ),
    case(
        "CumSum",
        SHAPE,
        np.array([-1], np.int32),
        expect="x0[0,1] y0[0,1]",
        reverse=1,
        exclusive=1,
        note="reverse",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=identify)
def test_reduction(case):
    case.check()
