from __future__ import annotations

import numpy as np
import pytest
from rule_cases import case, identify

from onnxprune.errors import Reason
from onnxprune.testing import Weight

IMAGE = (1, 6, 4, 5)
SAME = "x0[1] y0[1]"
S = Reason.SPATIAL


def floats(*values):
    return np.array(values, np.float32)


def ints(*values):
    return np.array(values, np.int64)


NONE = floats()
CASES = [
    case(
        "Upsample", IMAGE, expect=SAME, scales=[1.0, 1.0, 2.0, 2.0], mode="nearest", opset=8, note="attribute"
    ),
    case("Upsample", IMAGE, floats(1, 1, 2, 2), expect=SAME, opset=9, pinned={"x0[2]": S, "y0[3]": S}),
    case("Resize", IMAGE, floats(1, 1, 2, 2), expect=SAME, opset=10),
    *(
        case(
            "Resize",
            IMAGE,
            NONE,
            floats(1, 1, 2, 3),
            expect=SAME,
            groups=1,
            opset=o,
            pinned={"x0[2]": S, "y0[3]": S},
        )
        for o in (11, 13, 18, 19)
    ),
    case("Resize", IMAGE, None, floats(1, 1, 0.5, 2), expect=SAME, opset=13, note="no-roi"),
    *(
        case("Resize", IMAGE, NONE, NONE, ints(1, 6, 8, 10), expect=SAME, groups=1, opset=o, note="sizes")
        for o in (11, 13, 18)
    ),
    case("Resize", IMAGE, None, None, ints(1, 6, 7, 9), expect=SAME, mode="linear", note="sizes-linear"),
    case("Resize", IMAGE, None, None, ints(1, 6, 4, 5), expect="x0[1,2,3] y0[1,2,3]", note="same-sizes"),
    case("Resize", IMAGE, None, floats(1, 1, 2, 2), expect=SAME, mode="cubic", note="cubic"),
    case("Resize", IMAGE, None, floats(2, 2), expect=SAME, axes=[2, 3], note="axes"),
    case("Resize", IMAGE, None, None, ints(7, 7), expect=SAME, axes=[2, 3], note="axes-sizes"),
    case(
        "Resize",
        IMAGE,
        None,
        None,
        ints(9, 6),
        expect="x0[1,2] y0[1,2]",
        axes=[3, 1],
        note="axes-sizes-channels",
    ),
    case(
        "Resize",
        IMAGE,
        None,
        None,
        ints(8, 9),
        expect=SAME,
        axes=[2, 3],
        keep_aspect_ratio_policy="not_larger",
        note="aspect",
    ),
    case(
        *("Resize", IMAGE, floats(0, 0, 0.1, 0.1, 1, 1, 0.8, 0.8), None, ints(1, 6, 4, 5)),
        expect="",
        coordinate_transformation_mode="tf_crop_and_resize",
        mode="linear",
        pinned={"x0[1]": S},
        note="crop",
    ),
    case(
        "Resize",
        IMAGE,
        None,
        floats(1, 2, 1, 1),
        expect="x0[2,3] y0[2,3]",
        pinned={"x0[1]": S, "y0[1]": S},
        note="channels",
    ),
    case("Resize", (2, 6, 4), None, floats(1, 1, 2), expect="x0[0,1] y0[0,1]", note="1d"),
    case("Resize", Weight(IMAGE), None, floats(1, 1, 2, 2), expect=SAME, note="weight"),
]


@pytest.mark.parametrize("case", CASES, ids=identify)
def test_resize(case):
    case.check()
