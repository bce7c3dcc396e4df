from __future__ import annotations

import pytest
from rule_cases import case, identify

from onnxprune.errors import Reason
from onnxprune.testing import Weight

W = Weight
R = Reason.RECURRENT


def recurrent(op_type, gates, outputs, **kw):
    """Four hidden units, which stay; what comes in is summed over."""
    return case(
        *(op_type, (3, 2, 6), W((1, gates * 4, 6)), W((1, gates * 4, 4)), W((1, gates * 8))),
        expect="x0[2] x1[2]",
        outputs=outputs,
        hidden_size=4,
        pinned={"x0[0]": R, "x1[1]": R, "x2[2]": R, "y0[3]": R},
        **kw,
    )


CASES = [
    *(recurrent("LSTM", 4, 3, opset=o) for o in (11, 14, 22)),
    *(recurrent("GRU", 3, 2, opset=o) for o in (11, 14)),
    *(recurrent("RNN", 1, 2, opset=o) for o in (11, 14)),
    recurrent("LSTM", 4, ("y0", "", "y2"), note="no-state"),
]


@pytest.mark.parametrize("case", CASES, ids=identify)
def test_recurrent(case):
    case.check()
