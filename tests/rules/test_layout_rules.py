from __future__ import annotations

import numpy as np
import pytest
from rule_cases import case, identify

from onnxprune.errors import Reason
from onnxprune.testing import Activation

SAME3 = "x0[0,1,2] y0[0,1,2]"


def ints(*values):
    return np.array(values, np.int64)


def reshape(shape, target, expect, **kw):
    return case("Reshape", shape, ints(*target), expect=expect, **kw)


CASES = [
    *(case("Transpose", (2, 3, 4), expect=SAME3, groups=3, opset=o) for o in (9, 13, 21)),
    case("Transpose", (2, 3, 4), expect=SAME3, perm=[1, 2, 0], note="perm"),
    case("Transpose", (2, 3, 4), expect=SAME3, perm=[0, 1, 2], note="identity"),
    # Squeeze and Unsqueeze: axes as attribute, as input, negative, implied
    case("Squeeze", (1, 3, 1, 4), expect="x0[1,3] y0[0,1]", axes=[0, 2], opset=11),
    case("Squeeze", (1, 3, 1, 4), expect="x0[1,3] y0[0,1]", axes=[-2, 0], opset=11, note="negative"),
    case("Squeeze", (1, 3, 1, 4), expect="x0[1,3] y0[0,1]", opset=11, note="implied"),
    *(case("Squeeze", (1, 3, 1, 4), ints(2), expect="x0[1,3] y0[1,2]", opset=o) for o in (13, 21)),
    case("Squeeze", (1, 3, 1, 4), ints(-2, 0), expect="x0[1,3] y0[0,1]", note="negative"),
    case("Squeeze", (1, 3, 1, 4), expect="x0[1,3] y0[0,1]", note="implied"),
    case("Unsqueeze", (3, 4), expect="x0[0,1] y0[1,3]", axes=[0, 2], opset=11),
    *(case("Unsqueeze", (3, 4), ints(0, 2), expect="x0[0,1] y0[1,3]", opset=o) for o in (13, 21)),
    case("Unsqueeze", (3, 4), ints(-1), expect="x0[0,1] y0[0,1]", note="negative"),
    case("Unsqueeze", (3, 4), ints(-1, 1), expect="x0[0,1] y0[0,2]", note="negative-two"),
    # Flatten
    *(case("Flatten", (3, 6, 1, 1), expect="x0[0,1] y0[0,1]", groups=2, opset=o) for o in (9, 11, 13, 21)),
    case("Flatten", (2, 6, 3), expect="x0[0,1,2] y0[0,1]", note="choice"),
    case("Flatten", (2, 6, 3), expect="x0[0,1,2] y0[0,1]", axis=2, note="axis-2"),
    case("Flatten", (2, 6, 3), expect="x0[0,1,2] y0[0,1]", axis=-1, note="negative"),
    case("Flatten", (2, 6), expect="x0[0,1] y0[1]", axis=0, note="axis-0"),
    # Reshape: 0 copies, -1 takes the rest
    *(reshape((2, 6, 1, 1), (2, 6), "x0[0,1] y0[0,1]", groups=2, opset=o) for o in (9, 13, 14, 21)),
    reshape((2, 6, 1, 1), (0, -1), "x0[0,1] y0[0,1]", note="copy-rest"),
    reshape((2, 6, 1, 1), (-1, 6), "x0[0,1] y0[0,1]", note="rest-first"),
    reshape((2, 3, 8), (0, 0, 4, 2), "x0[0,1,2] y0[0,1,2,3]", note="heads"),
    reshape((2, 3, 8), (0, 0, 4, -1), "x0[0,1,2] y0[0,1,2,3]", note="heads-rest"),
    reshape((2, 3, 8), (0, 0, -1, 2), "x0[0,1,2] y0[0,1,2,3]", note="rest-heads"),
    reshape((2, 3, 4, 2), (0, 0, 8), "x0[0,1,2,3] y0[0,1,2]", note="merge-heads"),
    reshape((2, 3, 4, 2), (2, 3, -1), "x0[0,1,2,3] y0[0,1,2]", note="merge-heads-rest"),
    reshape((4, 6), (24,), "x0[0,1] y0[0]", note="flat"),
    reshape((24,), (2, 3, 4), "x0[0] y0[0,1,2]", note="three-factors"),
    reshape((24,), (-1, 4), "x0[0] y0[0,1]", note="one-to-two"),
    reshape((6, 8), (3, 2, 2, 4), "x0[0,1] y0[0,1,2,3]", note="both-split"),
    reshape((2, 3, 4), (2, 3, 4), SAME3, note="identity"),
    reshape((2, 3, 4), (-1, 0, 4), SAME3, note="identity-rest"),
    reshape((1, 6), (6,), "x0[1] y0[0]", note="drop-one"),
    reshape((6, 2), (3, 4), "x0[0,1] y0[0,1]", note="across"),
    reshape(
        (6, 4),
        (4, 6),
        "",
        pinned={"x0[0]": Reason.INCOMPATIBLE_BLOCKS, "y0[1]": Reason.INCOMPATIBLE_BLOCKS},
        note="no-common-factor",
    ),
    reshape((5, 6, 4), (5, 4, 6), "x0[0] y0[0]", note="no-common-factor-inside"),
    reshape((6, 4, 5), (4, 6, 5), "x0[2] y0[2]", note="no-common-factor-outside"),
    case("Reshape", (2, 6), ints(2, 6), expect="x0[0,1] y0[0,1]", allowzero=1, note="allowzero"),
    # DepthToSpace and back
    *(
        case("DepthToSpace", (2, 12, 3, 5), expect="x0[0,1] y0[0,1]", groups=2, blocksize=2, opset=o)
        for o in (9, 11, 13)
    ),
    case("DepthToSpace", (2, 12, 3, 5), expect="x0[0,1] y0[0,1]", blocksize=2, mode="CRD", note="CRD"),
    case("DepthToSpace", (2, 18, 3, 5), expect="x0[0,1] y0[0,1]", blocksize=3, mode="DCR", note="DCR-3"),
    case(
        *("DepthToSpace", (2, 4, 3, 5)),
        expect="x0[0] y0[0]",
        blocksize=2,
        note="one-channel",
    ),
    *(
        case("SpaceToDepth", (2, 3, 4, 6), expect="x0[0,1] y0[0,1]", groups=2, blocksize=2, opset=o)
        for o in (9, 13)
    ),
    case("Transpose", Activation((3, 4), "int64", -9, 9), expect="x0[0,1] y0[0,1]", note="integers"),
]


@pytest.mark.parametrize("case", CASES, ids=identify)
def test_layout(case):
    case.check()
