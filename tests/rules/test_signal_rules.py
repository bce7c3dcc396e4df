from __future__ import annotations

import numpy as np
import pytest
from rule_cases import case, identify

from onnxprune.errors import Reason
from onnxprune.testing import Activation, Weight

W, A = Weight, Activation
ORDERED, AUXILIARY, REDUCED = Reason.ORDERED, Reason.AUXILIARY, Reason.REDUCED


def number(value):
    return np.array(value, np.int64)


CASES = [
    # CumProd
    case(
        "CumProd",
        (2, 6, 5),
        number(1),
        expect="x0[0,2] y0[0,2]",
        opset=26,
        pinned={"x0[1]": ORDERED, "y0[1]": ORDERED},
    ),
    case("CumProd", (2, 6), number(-1), expect="x0[0] y0[0]", reverse=1, exclusive=1, opset=26, note="last"),
    # ReverseSequence
    case(
        "ReverseSequence",
        (5, 3, 4),
        np.array([5, 2, 3]),
        expect="x0[1,2] x1[0] y0[1,2]",
        groups=2,
        opset=10,
        pinned={"x0[0]": ORDERED},
    ),
    case(
        "ReverseSequence",
        (3, 5, 4),
        np.array([5, 2, 3]),
        expect="x0[0,2] x1[0] y0[0,2]",
        batch_axis=0,
        time_axis=1,
        note="batch-first",
    ),
    # Trilu
    case("Trilu", (3, 4, 5), expect="x0[0] y0[0]", pinned={"x0[1]": ORDERED, "y0[2]": ORDERED}, opset=14),
    case("Trilu", (3, 4, 4), number(1), expect="x0[0] y0[0]", upper=0, note="lower"),
    # Det
    *(
        case("Det", (3, 2, 4, 4), expect="x0[0,1] y0[0,1]", groups=2, opset=o, pinned={"x0[2]": REDUCED})
        for o in (11, 22)
    ),
    case("Det", (4, 4), expect="", note="one"),
    # DFT
    case("DFT", (3, 8, 4, 2), expect="x0[0,2] y0[0,2]", axis=1, opset=17, pinned={"x0[1]": ORDERED}),
    case("DFT", (3, 8, 1), expect="x0[0] y0[0]", opset=17, onesided=1, note="real"),
    case("DFT", (3, 4, 8, 2), expect="x0[0,1] y0[0,1]", opset=20, note="default"),
    case("DFT", (3, 8, 4, 2), None, number(-3), expect="x0[0,2] y0[0,2]", opset=20, inverse=1, note="axis"),
    # STFT; onnx takes `onesided` for 0 where it is left out, onnxruntime for 1
    case(
        "STFT",
        (3, 32, 1),
        number(4),
        W((8,)),
        expect="x0[0] y0[0]",
        opset=17,
        onesided=1,
        pinned={"x0[1]": ORDERED, "y0[1]": ORDERED, "y0[2]": ORDERED, "x2[0]": AUXILIARY},
    ),
    case(
        "STFT",
        (3, 32, 1),
        number(4),
        None,
        number(8),
        expect="x0[0] y0[0]",
        opset=17,
        onesided=1,
        note="no-window",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=identify)
def test_signal(case):
    case.check()
