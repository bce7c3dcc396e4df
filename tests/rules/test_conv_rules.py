from __future__ import annotations

import pytest
from rule_cases import case, identify

from onnxprune.errors import Reason
from onnxprune.testing import Weight

W = Weight
CONV = "x0[0,1] x1[0,1] x2[0] y0[0,1]"
TRANSPOSED = CONV
DEPTHWISE = "x0[0,1] x1[0] x2[0] y0[0,1]"
S = Reason.SPATIAL

CASES = [
    # one group
    *(case("Conv", (2, 6, 5, 5), W((8, 6, 3, 3)), W((8,)), expect=CONV, opset=o) for o in (9, 11, 17, 22)),
    case("Conv", (2, 6, 9), W((8, 6, 3)), W((8,)), expect=CONV, note="1d"),
    case("Conv", (2, 6, 5, 4, 3), W((8, 6, 3, 2, 1)), W((8,)), expect=CONV + " x0[4] y0[4]", note="3d"),
    case("Conv", (2, 6, 5, 5), W((8, 6, 3, 3)), expect="x0[0,1] x1[0,1] y0[0,1]", groups=3, note="no-bias"),
    case(
        *("Conv", (1, 6, 9, 9), W((8, 6, 3, 3)), W((8,))),
        expect="x0[1] x1[0,1] x2[0] y0[1]",
        groups=2,
        pinned={"x0[2]": S, "x1[3]": S, "y0[3]": S},
        strides=[2, 2],
        pads=[1, 1, 1, 1],
        dilations=[2, 1],
        note="strided",
    ),
    case(
        "Conv",
        (1, 6, 5, 5),
        W((8, 6, 1, 1)),
        expect="x0[1,2,3] x1[0,1] y0[1,2,3]",
        kernel_shape=[1, 1],
        note="1x1",
    ),
    case(
        *("Conv", (1, 6, 8), (4, 6, 3)),
        expect="x0[1] x1[0,1] y0[1]",
        pinned={"x1[2]": S},
        note="weight-is-an-activation",
    ),
    case(
        *("Conv", (1, 6, 8), W((4, 6, 3)), (4,)),
        expect="x0[1] x1[0,1] x2[0] y0[1]",
        note="bias-is-an-activation",
    ),
    # several channels per group on both sides: equally many per group
    *(
        case("Conv", (2, 8, 5, 5), W((6, 4, 3, 3)), W((6,)), expect=CONV, group=2, opset=o, note="grouped")
        for o in (11, 17)
    ),
    case(
        # 3 groups of 4 cannot keep equal numbers and a width of 8: whole groups come first
        *("Conv", (1, 12, 7), W((12, 4, 3))),
        expect="x0[1] x1[0,1] y0[1]",
        groups=1,
        group=3,
        note="grouped-1d",
    ),
    case(
        *("Conv", (1, 8, 4, 4, 4), W((12, 2, 1, 3, 1))),
        expect="x0[1,2,4] x1[0,1] y0[1,2,4]",
        groups=4,
        group=4,
        note="grouped-3d",
    ),
    # a single channel per group on one side: groups go whole
    *(
        case(
            "Conv",
            (2, 6, 5, 5),
            W((6, 1, 3, 3)),
            W((6,)),
            expect=DEPTHWISE,
            group=6,
            opset=o,
            note="depthwise",
        )
        for o in (11, 17)
    ),
    case("Conv", (1, 5, 9), W((5, 1, 3)), expect="x0[1] x1[0] y0[1]", groups=1, group=5, note="depthwise-1d"),
    case(
        *("Conv", (1, 4, 5, 5), W((12, 1, 3, 3)), W((12,))),
        expect="x0[1] x1[0] x2[0] y0[1]",
        groups=1,
        group=4,
        note="multiplier",
    ),
    case(
        *("Conv", (1, 12, 5, 5), W((4, 3, 3, 3)), W((4,))),
        expect="x0[1] x1[0] x2[0] y0[1]",
        groups=1,
        pinned={"x1[1]": Reason.INDIVISIBLE},
        group=4,
        note="one-output-per-group",
    ),
    # ConvTranspose
    *(
        case("ConvTranspose", (2, 6, 5, 5), W((6, 8, 3, 3)), W((8,)), expect=TRANSPOSED, opset=o)
        for o in (9, 11, 17, 22)
    ),
    case("ConvTranspose", (2, 6, 9), W((6, 8, 3)), W((8,)), expect=TRANSPOSED, strides=[2], note="1d"),
    case(
        "ConvTranspose",
        (2, 6, 4, 3, 3),
        W((6, 8, 1, 3, 2)),
        W((8,)),
        expect=TRANSPOSED + " x0[2] y0[2]",
        note="3d",
    ),
    case(
        *("ConvTranspose", (1, 6, 5, 5), W((6, 8, 3, 3))),
        expect="x0[1] x1[0,1] y0[1]",
        output_shape=[11, 11],
        strides=[2, 2],
        note="output-shape",
    ),
    case(
        *("ConvTranspose", (2, 8, 5, 5), W((8, 3, 3, 3)), W((6,))), expect=TRANSPOSED, group=2, note="grouped"
    ),
    case(
        *("ConvTranspose", (1, 12, 5), W((12, 2, 3)), W((6,))),
        expect="x0[1] x1[0,1] x2[0] y0[1]",
        groups=2,
        group=3,
        note="grouped-1d",
    ),
    case(
        *("ConvTranspose", (2, 6, 5, 5), W((6, 1, 3, 3)), W((6,))),
        expect=DEPTHWISE,
        group=6,
        note="depthwise",
    ),
    case(
        *("ConvTranspose", (1, 4, 5, 5), W((4, 3, 3, 3)), W((12,))),
        expect="x0[1] x1[0] x2[0] y0[1]",
        groups=1,
        group=4,
        note="multiplier",
    ),
    case(
        *("ConvTranspose", (1, 12, 5, 5), W((12, 1, 3, 3)), W((4,))),
        expect="x0[1] x1[0] x2[0] y0[1]",
        groups=1,
        group=4,
        note="one-output-per-group",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=identify)
def test_conv(case):
    case.check()
