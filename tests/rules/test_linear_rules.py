from __future__ import annotations

import numpy as np
import pytest
from rule_cases import case, identify

from onnxprune.testing import Weight

W = Weight
BOTH = "x0[0,1] x1[0,1] y0[0,1]"

CASES = [
    *(case("Gemm", (3, 6), W((6, 8)), W((8,)), expect=f"{BOTH} x2[0]", opset=o) for o in (9, 11, 13, 18)),
    case("Gemm", (3, 6), W((6, 8)), expect=BOTH, groups=3, note="no-bias"),
    case("Gemm", (6, 3), W((6, 8)), W((8,)), expect=f"{BOTH} x2[0]", transA=1, note="transA"),
    case("Gemm", (3, 6), W((8, 6)), W((8,)), expect=f"{BOTH} x2[0]", transB=1, note="transB"),
    case(
        *("Gemm", (6, 3), W((8, 6)), W((8,))),
        expect=f"{BOTH} x2[0]",
        transA=1,
        transB=1,
        alpha=0.5,
        beta=2.0,
        note="all",
    ),
    case("Gemm", (3, 6), W((6, 8)), W((3, 8)), expect=f"{BOTH} x2[0,1]", note="C-matrix"),
    case("Gemm", (3, 6), W((6, 8)), W((1, 8)), expect=f"{BOTH} x2[1]", note="C-row"),
    case("Gemm", (3, 6), W((6, 8)), W((3, 1)), expect=f"{BOTH} x2[0]", note="C-column"),
    case("Gemm", (3, 6), W((6, 8)), W(()), expect=BOTH, note="C-scalar"),
    case("Gemm", (3, 6), W((6, 8)), W((1,)), expect=BOTH, note="C-one"),
    case("Gemm", (3, 6), W((6, 8)), (8,), expect=f"{BOTH} x2[0]", note="C-activation"),
    case("Gemm", W((5, 6)), (6, 8), expect=BOTH, note="weight-first"),
    case("Gemm", (5, 6), (8, 6), expect=BOTH, groups=3, transB=1, note="two-activations"),
    # MatMul: ranks 1 to 4, broadcast batch axes
    *(case("MatMul", (3, 6), W((6, 8)), expect=BOTH, groups=3, opset=o) for o in (9, 11, 13, 18)),
    case("MatMul", (6,), W((6, 8)), expect="x0[0] x1[0,1] y0[0]", note="1x2"),
    case("MatMul", (3, 6), W((6,)), expect="x0[0,1] x1[0] y0[0]", note="2x1"),
    case("MatMul", (6,), W((6,)), expect="x0[0] x1[0]", note="1x1"),
    case("MatMul", (2, 3, 6), W((6,)), expect="x0[0,1,2] x1[0] y0[0,1]", note="3x1"),
    case("MatMul", (6,), W((2, 6, 4)), expect="x0[0] x1[0,1,2] y0[0,1]", note="1x3"),
    case("MatMul", (2, 3, 4, 6), W((6,)), expect="x0[0,1,2,3] x1[0] y0[0,1,2]", note="4x1"),
    case("MatMul", (2, 3, 6), W((6, 8)), expect="x0[0,1,2] x1[0,1] y0[0,1,2]", note="3x2"),
    case("MatMul", (3, 6), W((2, 6, 4)), expect="x0[0,1] x1[0,1,2] y0[0,1,2]", note="2x3"),
    case("MatMul", (2, 3, 6), W((2, 6, 8)), expect="x0[0,1,2] x1[0,1,2] y0[0,1,2]", note="3x3"),
    case("MatMul", (2, 3, 6), W((1, 6, 8)), expect="x0[0,1,2] x1[1,2] y0[0,1,2]", note="3x3-broadcast"),
    case("MatMul", (1, 3, 6), W((2, 6, 8)), expect="x0[1,2] x1[0,1,2] y0[0,1,2]", note="3x3-broadcast-left"),
    case("MatMul", (2, 3, 4, 6), W((6, 5)), expect="x0[0,1,2,3] x1[0,1] y0[0,1,2,3]", note="4x2"),
    case("MatMul", (2, 3, 4, 6), W((3, 6, 5)), expect="x0[0,1,2,3] x1[0,1,2] y0[0,1,2,3]", note="4x3"),
    case("MatMul", W((4, 6)), (2, 6, 3), expect="x0[0,1] x1[0,1,2] y0[0,1,2]", note="weight-first"),
    case("MatMul", W((2, 4, 6)), (6,), expect="x0[0,1,2] x1[0] y0[0,1]", note="weight-first-3x1"),
    # two activations: masked by a 0/1 vector
    case("MatMul", (2, 3, 4, 6), (2, 3, 6, 4), expect="x0[0,1,2,3] x1[0,1,2,3] y0[0,1,2,3]", note="scores"),
    case(
        "MatMul",
        (2, 1, 4, 6),
        (1, 3, 6, 4),
        expect="x0[0,2,3] x1[1,2,3] y0[0,1,2,3]",
        note="scores-broadcast",
    ),
    case("MatMul", (6,), (6, 4), expect="x0[0] x1[0,1] y0[0]", note="activations-1x2"),
    case(
        *("MatMul", (3, 6), np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)),
        expect=BOTH,
        note="array",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=identify)
def test_linear(case):
    case.check()
