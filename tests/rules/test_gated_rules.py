from __future__ import annotations

import lowering
import numpy as np
import pytest
from rule_cases import case, identify

from onnxprune.errors import Reason
from onnxprune.testing import Activation, Weight

W = Weight
ORDERED, SPATIAL = Reason.ORDERED, Reason.SPATIAL
INDEXED, REDUCED = Reason.INDEXED, Reason.REDUCED
CAUSAL = "x0[0,1] x1[0] x2[0] x3[0,1] y0[0,1] y1[0,1]"
LAST = "x0[0,2] x1[0] x2[0] x3[0,2] y0[0,2] y1[0,2]"


def ms(op_type, *inputs, **kw):
    return case(op_type, *inputs, domain="com.microsoft", **kw)


def linear(*inputs, make=ms, heads=(4, 2), rule="gated_delta", **kw):
    return make(
        *("LinearAttention", *inputs),
        outputs=2,
        q_num_heads=heads[0],
        kv_num_heads=heads[1],
        update_rule=rule,
        **kw,
    )


DECAY = Activation((2, 5, 2), "float32", -1.0, 0.0)
TOKENS = ((2, 5, 8), (2, 5, 4), (2, 5, 6))
HEADS = "x0[0,2] x1[0,2] x2[0,2] x3[0,1] x4[0,2] x5[0,2] y0[0,2] y1[0,1]"
CLASSES = np.array([[1, 0], [2, 4], [3, 3]])


def loss(op_type, *more, reduction="none", outputs=1, expect, classes=None, **kw):
    kw.setdefault("pinned", {"x0[1]": INDEXED if op_type.startswith("Neg") else Reason.SOFTMAX})
    classes = CLASSES if classes is None else classes
    return case(op_type, (3, 5, 2), classes, *more, reduction=reduction, outputs=outputs, expect=expect, **kw)


NLL, SCE = "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"
WITH_KERNEL = [
    # gates
    ms("GatedAdd", (2, 5, 6), (2, 5, 6), (2, 5, 1), expect="x0[0,1,2] x1[0,1,2] x2[0,1] y0[0,1,2]"),
    ms("ScaledSiLU", (2, 5, 6), expect="x0[0,1,2] y0[0,1,2]", alpha=1.5),
    ms("ScaledSiLU", (2, 5), np.float32(1.5), expect="x0[0,1] y0[0,1]", note="scale"),
    ms(
        *("LinearAttentionGate", (2, 5, 6), W((6,)), W((6,)), (2, 5, 6)),
        expect="x0[0,1,2] x1[0] x2[0] x3[0,1,2] y0[0,1,2] y1[0,1,2]",
        outputs=2,
    ),
    ms(
        "LinearAttentionGate", (2, 5, 6), W((6,)), W((6,)), expect="x0[0,1,2] x1[0] x2[0] y0[0,1,2]", note="a"
    ),
    # causal convolutions
    ms(
        *("CausalConvWithState", (2, 6, 7), W((6, 1, 4)), W((6,)), (2, 6, 3)),
        expect=CAUSAL,
        outputs=2,
        activation="silu",
        pinned={"x0[2]": ORDERED, "x1[2]": SPATIAL, "y1[2]": ORDERED},
    ),
    ms(
        *("CausalConvWithState", (2, 6, 7), W((6, 1, 3))),
        expect="x0[0,1] x1[0] y0[0,1] y1[0,1]",
        outputs=2,
        dilation=2,
        note="dilated",
    ),
    ms(
        *("CausalConvWithState", (2, 7, 6), W((6, 1, 4)), W((6,)), (2, 3, 6)),
        expect=LAST,
        outputs=2,
        channels_last=1,
        note="channels-last",
    ),
    # linear attention: a K/V head goes with its query heads
    linear(*TOKENS, (2, 2, 2, 3), DECAY, (2, 5, 2), expect=HEADS, pinned={"x0[1]": ORDERED}),
    linear(
        *(*TOKENS, (2, 2, 2, 3), DECAY, (2, 5, 1)),
        expect=HEADS.replace("x5[0,2]", "x5[0]"),
        note="one-rate",
    ),
    linear(*TOKENS, expect="x0[0,2] x1[0,2] x2[0,2] y0[0,2] y1[0,1]", rule="linear", note="plain"),
    linear(
        *(*TOKENS, None, Activation((2, 5, 4), "float32", -1.0, 0.0)),
        expect="x0[0,2] x1[0,2] x2[0,2] x4[0,2] y0[0,2] y1[0,1]",
        rule="gated",
        note="decay-per-dim",
    ),
    linear(
        *((2, 5, 8), (2, 5, 2), (2, 5, 3)),
        expect="x0[0,2] x1[0] x2[0] y0[0,2] y1[0]",
        rule="linear",
        heads=(4, 1),
        pinned={"x1[2]": Reason.INDIVISIBLE},
        note="one-kv-head",
    ),
    # losses
    *(loss(NLL, expect="x0[0,2] x1[0,1] y0[0,1]", opset=o) for o in (12, 13, 22)),
    loss(NLL, W((5,)), expect="x0[0,2] x1[0,1] y0[0,1]", note="weights"),
    loss(NLL, expect="", reduction="mean", pinned={"x0[0]": REDUCED}, note="mean"),
    *(loss(SCE, expect="x0[0,2] x1[0,1] y0[0,1] y1[0,2]", outputs=2, opset=o) for o in (12, 13)),
    loss(SCE, W((5,)), expect="x0[0,2] x1[0,1] y0[0,1]", ignore_index=4, note="weights"),
    loss(SCE, expect="", reduction="sum", pinned={"x0[2]": REDUCED}, note="sum"),
    case(NLL, (3, 5), np.array([1, 0, 4]), expect="x0[0] x1[0] y0[0]", reduction="none", note="rows"),
]

# onnxruntime runs no opset after 26 yet: proven on their definitions (see `lowering`)
WITHOUT_KERNEL = [
    case("SwiGLU", (2, 5, 6), (2, 5, 6), expect="x0[0,1,2] x1[0,1,2] y0[0,1,2]", opset=28, alpha=1.5),
    case(
        *("CausalConvWithState", (2, 6, 7), W((6, 1, 4)), W((6,)), (2, 6, 3)),
        expect=CAUSAL,
        outputs=2,
        opset=27,
        activation="silu",
        pinned={"x0[2]": ORDERED},
    ),
    linear(
        *(*TOKENS, (2, 2, 2, 3), DECAY, (2, 5, 2)),
        make=case,
        opset=27,
        expect=HEADS,
        pinned={"x0[1]": ORDERED},
    ),
]
CASES = [*WITH_KERNEL, *WITHOUT_KERNEL]


@pytest.mark.parametrize("case", WITH_KERNEL, ids=identify)
def test_gated(case):
    case.check()


@pytest.mark.parametrize("case", WITHOUT_KERNEL, ids=identify)
def test_by_definition(case, monkeypatch):
    for module in ("model", "rule"):
        monkeypatch.setattr(f"onnxprune.testing.{module}.execute", lowering.execute)
    case.check()
