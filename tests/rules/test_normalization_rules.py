from __future__ import annotations

import pytest
from rule_cases import case, identify

from onnxprune.errors import Reason
from onnxprune.testing import Weight

W = Weight
N = Reason.NORMALIZED


def scale(*shape):
    return Weight(shape, 0.5, 1.5)


def batch(shape, **kw):
    c = shape[1]
    return case("BatchNormalization", shape, scale(c), W((c,)), W((c,)), scale(c), **kw)


STATS = "x1[0] x2[0] x3[0] x4[0]"
CASES = [
    *(batch((2, 6, 5, 4), expect=f"x0[0,1,2,3] {STATS} y0[0,1,2,3]", opset=o) for o in (9, 14, 15)),
    batch(
        (4, 6, 5),
        expect=f"x0[1] {STATS} y0[1] y1[0] y2[0]",
        outputs=3,
        training_mode=1,
        pinned={"x0[0]": N, "y0[2]": N},
        note="training",
    ),
    batch((3, 6), expect=f"x0[0,1] {STATS} y0[0,1]", note="2d"),
    batch((2, 6, 5), expect=f"x0[0,1,2] {STATS} y0[0,1,2]", epsilon=0.01, note="1d"),
    batch((2, 6, 3, 4, 2), expect=f"x0[0,1,2,3,4] {STATS} y0[0,1,2,3,4]", note="3d"),
    *(
        case(
            *("InstanceNormalization", (2, 6, 5, 4), scale(6), W((6,))),
            expect="x0[0,1] x1[0] x2[0] y0[0,1]",
            groups=2,
            pinned={"x0[2]": N, "y0[3]": N},
            opset=o,
        )
        for o in (9, 18, 22)
    ),
    case(
        "InstanceNormalization", (2, 6, 9), scale(6), W((6,)), expect="x0[0,1] x1[0] x2[0] y0[0,1]", note="1d"
    ),
    # one value per group in opset 18, one per channel from opset 21; whole groups go
    case(
        *("GroupNormalization", (2, 12, 5), scale(4), W((4,))),
        expect="x0[0,1] x1[0] x2[0] y0[0,1]",
        groups=2,
        num_groups=4,
        pinned={"x0[2]": N},
        checker=False,  # deprecated in the opset that introduced it
    ),
    case(
        *("GroupNormalization", (2, 12, 5, 3), scale(12), W((12,))),
        expect="x0[0,1] x1[0] x2[0] y0[0,1]",
        groups=2,
        num_groups=4,
        opset=21,
    ),
    case(
        *("GroupNormalization", (2, 6, 9), scale(6), W((6,))),
        expect="x0[0,1] x1[0] x2[0] y0[0,1]",
        num_groups=6,
        opset=21,
        note="as-instance",
    ),
    case(
        *("GroupNormalization", (2, 6, 9), scale(6), W((6,))),
        expect="x0[0] y0[0]",
        num_groups=1,
        opset=21,
        note="as-layer",
    ),
    # averages over the axis itself: pinned
    *(
        case(
            *("LayerNormalization", (2, 5, 6), scale(6), W((6,))),
            expect="x0[0,1] y0[0,1]",
            pinned={"x0[2]": N, "y0[2]": N, "x1[0]": N},
            opset=o,
        )
        for o in (17, 21)
    ),
    case(
        *("LayerNormalization", (2, 3, 5, 6), scale(5, 6), W((5, 6))),
        expect="x0[0,1] y0[0,1]",
        axis=2,
        pinned={"x0[2]": N, "x1[0]": N},
        note="two-axes",
    ),
    case("LayerNormalization", (2, 5, 6), scale(6), expect="x0[0,1] y0[0,1]", axis=-1, note="no-bias"),
    case(
        *("LayerNormalization", (2, 5, 6), scale(6), W((6,))),
        expect="x0[0,1] y0[0,1] y1[0,1] y2[0,1]",
        outputs=3,
        note="mean-and-deviation",
    ),
    case(
        *("LayerNormalization", (2, 5, 6), scale(6), W((6,))),
        expect="x0[0,1] y0[0,1] y2[0,1]",
        outputs=("y0", "", "y2"),
        note="no-mean",
    ),
    case("RMSNormalization", (2, 5, 6), scale(6), expect="x0[0,1] y0[0,1]", opset=23, pinned={"x0[2]": N}),
    case("RMSNormalization", (2, 5, 6), scale(5, 6), expect="x0[0] y0[0]", opset=23, axis=1, note="two-axes"),
    case(
        *("SimplifiedLayerNormalization", (2, 5, 6), scale(6)),
        expect="x0[0,1] y0[0,1]",
        pinned={"x0[2]": N},
        checker=False,  # onnxruntime's own, in the default domain
    ),
    *(
        case(
            "MeanVarianceNormalization",
            (2, 6, 5, 4),
            expect="x0[1] y0[1]",
            pinned={"x0[0]": N, "y0[2]": N},
            opset=o,
        )
        for o in (9,)
    ),
    # onnx's checker stumbles over its body from opset 13 on
    case("MeanVarianceNormalization", (2, 6, 5, 4), expect="x0[1] y0[1]", opset=13, checker=False),
    case(
        "MeanVarianceNormalization",
        (2, 6, 5, 4),
        expect="x0[0,1] y0[0,1]",
        axes=[2, 3],
        checker=False,
        note="axes",
    ),
    case("LpNormalization", (2, 6, 5), expect="x0[0,1] y0[0,1]", pinned={"x0[2]": N}, p=2),
    case(
        "LpNormalization", (2, 6, 5), expect="x0[0,2] y0[0,2]", axis=1, p=1, pinned={"y0[1]": N}, note="axis"
    ),
    *(
        case("LRN", (2, 6, 5, 4), expect="x0[0,2,3] y0[0,2,3]", size=3, pinned={"x0[1]": N}, opset=o)
        for o in (9, 13)
    ),
]


@pytest.mark.parametrize("case", CASES, ids=identify)
def test_normalization(case):
    case.check()
