from __future__ import annotations

import pytest
from rule_cases import case, identify

from onnxprune.errors import Reason

S = Reason.SPATIAL
PASS = "x0[0,1] y0[0,1]"
IMAGE = (2, 6, 7, 8)

CASES = [
    *(
        case(
            op,
            IMAGE,
            expect=PASS,
            groups=2,
            kernel_shape=[3, 2],
            strides=[2, 2],
            opset=o,
            pinned={"x0[2]": S, "y0[3]": S},
        )
        for op in ("MaxPool", "AveragePool")
        for o in (9, 11, 12, 19, 22)
    ),
    *(case("LpPool", IMAGE, expect=PASS, kernel_shape=[3, 3], p=2, opset=o) for o in (11, 18, 22)),
    *(
        case(op, (2, 6, 9), expect=PASS, kernel_shape=[3], note="1d")
        for op in ("MaxPool", "AveragePool", "LpPool")
    ),
    *(
        case(op, (2, 6, 4, 4, 4), expect=PASS, kernel_shape=[2, 2, 2], note="3d")
        for op in ("MaxPool", "AveragePool", "LpPool")
    ),
    case("MaxPool", IMAGE, expect=PASS, kernel_shape=[3, 3], ceil_mode=1, dilations=[2, 2], note="dilated"),
    case(
        "AveragePool",
        IMAGE,
        expect=PASS,
        kernel_shape=[3, 3],
        pads=[1] * 4,
        count_include_pad=1,
        note="padded",
    ),
    # Indices count through all channels of a sample, and through all samples
    case(
        *("MaxPool", IMAGE),
        expect="",
        kernel_shape=[2, 2],
        outputs=2,
        pinned={"x0[0]": Reason.INDEXED, "x0[1]": Reason.INDEXED, "y1[1]": Reason.INDEXED},
        note="indices",
    ),
    *(
        case(f"Global{kind}Pool", IMAGE, expect=PASS, groups=2, opset=o)
        for kind in ("Average", "Max", "Lp")
        for o in (9, 18)
    ),
    *(case(f"Global{kind}Pool", (2, 6, 9), expect=PASS, note="1d") for kind in ("Average", "Max", "Lp")),
]


@pytest.mark.parametrize("case", CASES, ids=identify)
def test_pooling(case):
    case.check()
