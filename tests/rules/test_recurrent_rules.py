from __future__ import annotations

import pytest
from rule_cases import case, identify

from onnxprune.errors import Reason
from onnxprune.testing import Weight

W = Weight
R = Reason.RECURRENT
HIDDEN = 4
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(op_type, *, direction="forward", states=(), peepholes=False, outputs=None, groups=None, **kw):
    """Four hidden units per direction: rows of every gate, columns of R, positions of all states."""
    gates, both = GATES[op_type], direction == "bidirectional"
    d = 2 if both else 1
    count = 3 if op_type == "LSTM" else 2
    outputs = [f"y{i}" for i in range(count)] if outputs is None else outputs
    weights = [W((d, gates * HIDDEN, 6)), W((d, gates * HIDDEN, HIDDEN)), W((d, 2 * gates * HIDDEN))]
    extra = [None, *states] if states else [None, None, None] if peepholes else []
    inputs = [(3, 2, 6), *weights, *extra, *([W((d, 3 * HIDDEN))] if peepholes else [])]
    expect = ["x0[2]", "x1[1,2]", "x2[1,2]", "x3[1]"]
    expect += [f"x{5 + i}[2]" for i, state in enumerate(states) if state is not None]
    expect += ["x7[1]"] if peepholes else []
    expect += [f"{name}[{3 if name == 'y0' else 2}]" for name in outputs if name]
    return case(
        op_type,
        *inputs,
        expect=" ".join(expect),
        outputs=outputs,
        hidden_size=HIDDEN,
        direction=direction,
        pinned={"x0[0]": R, "x0[1]": R, **({"x1[0]": R} if both else {})},
        groups=groups,
        **kw,
    )


ONE, TWO = (1, 2, HIDDEN), (2, 2, HIDDEN)
CASES = [
    *(recurrent("LSTM", opset=o) for o in (11, 14, 22)),
    *(recurrent("GRU", opset=o) for o in (11, 14)),
    *(recurrent("RNN", opset=o) for o in (11, 14)),
    *(recurrent(name, direction=way, note=way) for name in GATES for way in ("reverse", "bidirectional")),
    recurrent("LSTM", outputs=("y0", "", "y2"), note="no-state"),
    recurrent("LSTM", outputs=("", "y1"), note="last-state", groups=2),
    recurrent("GRU", outputs=("", "y1"), direction="bidirectional", note="last-states"),
    recurrent("LSTM", states=(ONE, ONE), note="states"),
    recurrent("LSTM", states=(W(ONE), ONE), note="trained-state"),
    recurrent("LSTM", states=(TWO, W(TWO)), direction="bidirectional", note="states-both"),
    recurrent("GRU", states=(ONE,), direction="reverse", note="states"),
    recurrent("RNN", states=(W(TWO),), direction="bidirectional", note="states-both"),
    recurrent("LSTM", peepholes=True, note="peepholes"),
    recurrent("LSTM", peepholes=True, direction="bidirectional", note="peepholes-both"),
    *(
        recurrent("GRU", linear_before_reset=1, direction=way, note=f"late-{way}")
        for way in ("forward", "bidirectional")
    ),
    recurrent("LSTM", input_forget=1, note="coupled"),
    recurrent("LSTM", clip=0.4, note="clip"),
    recurrent(
        "GRU",
        activations=["HardSigmoid", "Elu"],
        activation_alpha=[0.3, 1.2],
        activation_beta=[0.4],
        note="activations",
    ),
    recurrent("RNN", activations=["Softplus"], note="softplus"),
]


@pytest.mark.parametrize("case", CASES, ids=identify)
def test_recurrent(case):
    case.check()
