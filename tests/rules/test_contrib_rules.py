from __future__ import annotations

from dataclasses import replace

import lowering
import numpy as np
import pytest
from rule_cases import case, identify

from onnxprune.errors import Reason
from onnxprune.testing import Feed, Weight

W = Weight
N, ORDERED, SPATIAL = Reason.NORMALIZED, Reason.ORDERED, Reason.SPATIAL
BOTH = "x0[0,1] x1[0,1] y0[0,1]"


def scale(*shape):
    return Weight(shape, 0.5, 1.5)


def ms(op_type, *inputs, **kw):
    return case(op_type, *inputs, domain="com.microsoft", **kw)


def group_norm(op_type, *inputs, **kw):
    """The attribute `groups` says how many groups of channels there are."""
    made = ms(op_type, *inputs, opset=21, **kw)
    return replace(made, attributes={**made.attributes, "groups": 4})


def embed(*more, **kw):
    return ms(
        "EmbedLayerNormalization",
        *(Feed((2, 5), "int32", 4), np.zeros((2, 5), np.int32), W((9, 6)), W((9, 6)), W((2, 6))),
        *(scale(6), W((6,)), *more),
        outputs=kw.pop("outputs", ["y0", "y1"]),
        **kw,
    )


WITH_KERNEL = [
    # activations and sums
    *(ms(op_type, (2, 5, 6), expect="x0[0,1,2] y0[0,1,2]", groups=3) for op_type in ("Gelu", "QuickGelu")),
    *(
        ms(op_type, (2, 5, 6), W((6,)), expect="x0[0,1,2] x1[0] y0[0,1,2]", groups=3)
        for op_type in ("BiasGelu", "FastGelu")
    ),
    ms("FastGelu", (2, 5, 6), expect="x0[0,1,2] y0[0,1,2]", note="no-bias"),
    # normalisations
    ms(
        *("SkipLayerNormalization", (2, 5, 6), (2, 5, 6), scale(6), W((6,)), W((6,))),
        expect="x0[0,1] x1[0,1] y0[0,1] y3[0,1]",
        outputs=["y0", "", "", "y3"],
        pinned={"x0[2]": N, "x1[2]": N, "x2[0]": N, "x4[0]": N, "y3[2]": N},
    ),
    ms(
        *("SkipLayerNormalization", (2, 5, 6), (1, 5, 6), scale(6), W((6,))),
        expect="x0[0,1] x1[1] y0[0,1] y1[0,1] y2[0,1]",
        outputs=3,
        note="broadcast",
    ),
    ms(
        *("SkipLayerNormalization", (2, 5, 6), (5, 6), scale(6)),
        expect="x0[0,1] x1[0] y0[0,1]",
        note="broadcast-rank-2",
    ),
    ms("SkipLayerNormalization", (5, 6), (5, 6), scale(6), expect="x0[0] x1[0] y0[0]", note="rank-2"),
    ms(
        *("SkipSimplifiedLayerNormalization", (2, 5, 6), (2, 5, 6), scale(6), W((6,))),
        expect="x0[0,1] x1[0,1] y0[0,1] y3[0,1]",
        outputs=["y0", "", "", "y3"],
        pinned={"x0[2]": N, "x3[0]": N},
    ),
    case(
        *("SimplifiedLayerNormalization", (2, 5, 6), scale(6)),
        expect="x0[0,1] y0[0,1] y1[0,1]",
        outputs=2,
        checker=False,  # onnxruntime's own, in the default domain
        note="deviation",
    ),
    embed(
        np.ones((2, 5), np.int32), expect="", pinned={"x2[0]": Reason.INDEXED, "x2[1]": N, "y0[1]": ORDERED}
    ),
    embed(
        *(None, np.tile(np.arange(5, dtype=np.int32), (2, 1))),
        expect="",
        outputs=["y0", "", "y2"],
        pinned={"x2[1]": N, "y2[2]": N},
        note="positions",
    ),
    # products
    ms("FusedMatMul", (3, 6), W((6, 8)), expect=BOTH, groups=3, alpha=0.5),
    ms("FusedMatMul", (6, 3), W((6, 8)), expect=BOTH, groups=3, transA=1, note="transA"),
    ms("FusedMatMul", (3, 6), W((8, 6)), expect=BOTH, groups=3, transB=1, note="transB"),
    ms("FusedMatMul", W((5, 6)), (8, 6), expect=BOTH, transB=1, note="weight-first"),
    ms(
        *("FusedMatMul", (2, 3, 6, 4), (2, 3, 6, 5)),
        expect="x0[0,1,2,3] x1[0,1,2,3] y0[0,1,2,3]",
        transA=1,
        groups=5,
        note="two-activations",
    ),
    ms(
        *("FusedMatMul", (2, 1, 4, 6), (3, 5, 6)),
        expect="x0[0,2,3] x1[0,1,2] y0[0,1,2,3]",
        transB=1,
        note="broadcast",
    ),
    ms("FusedMatMul", (6,), W((6, 4)), expect="x0[0] x1[0,1] y0[0]", note="1x2"),
    ms("FusedMatMul", (2, 3, 6), W((6,)), expect="x0[0,1,2] x1[0] y0[0,1]", note="3x1"),
    ms(
        *("FusedMatMul", (4, 2, 3, 5), (2, 3, 5, 6)),
        expect="x0[0,1,2,3] x1[0,1,2,3] y0[0,1,2,3]",
        groups=5,
        transBatchA=1,
        note="transBatchA",
    ),
    ms(
        *("FusedMatMul", (4, 2, 3, 5), (6, 2, 3, 4)),
        expect="x0[0,1,2,3] x1[0,1,2,3] y0[0,1,2,3]",
        groups=5,
        transBatchA=1,
        transA=1,
        transBatchB=1,
        transB=1,
        note="all",
    ),
    ms("TransposeMatMul", (6, 3), W((6, 8)), expect=BOTH, groups=3, transA=1),
    ms("FusedGemm", (3, 6), W((6, 8)), W((8,)), expect=f"{BOTH} x2[0]", activation="Relu"),
    ms(
        *("FusedGemm", (6, 3), W((8, 6)), W((3, 8))),
        expect=f"{BOTH} x2[0,1]",
        transA=1,
        transB=1,
        activation="LeakyRelu",
        activation_alpha=0.1,
        note="all",
    ),
    # convolutions
    *(
        ms(
            *("FusedConv", (2, 4, 6, 6), W((8, 4, 3, 3)), W((8,))),
            expect="x0[0,1] x1[0,1] x2[0] y0[0,1]",
            groups=3,
            activation=activation,
            pinned={"x0[2]": SPATIAL},
            note=activation,
            **({"activation_params": params} if params else {}),
        )
        for activation, params in (
            ("Relu", []),
            ("Sigmoid", []),
            ("LeakyRelu", [0.1]),
            ("HardSigmoid", [0.2, 0.5]),
        )
    ),
    ms(
        *("FusedConv", (2, 4, 7, 6), W((8, 4, 3, 3)), W((8,)), (2, 8, 4, 3)),
        expect="x0[0,1] x1[0,1] x2[0] x3[0,1] y0[0,1]",
        activation="Relu",
        pads=[1, 1, 1, 1],
        strides=[2, 2],
        note="sum",
    ),
    ms(
        *("FusedConv", (2, 4, 9, 6), W((4, 1, 3, 3))),
        expect="x0[0,1] x1[0] y0[0,1]",
        activation="Relu",
        group=4,
        auto_pad="SAME_UPPER",
        strides=[2, 1],
        note="depthwise",
    ),
    ms(
        *("FusedConv", (2, 4, 9, 9), W((8, 2, 3, 3))),
        expect="x0[0,1] x1[0,1] y0[0,1]",
        activation="Relu",
        group=2,
        dilations=[2, 2],
        note="groups",
    ),
]

# onnxruntime's CPU provider has no kernel for these: proven on their definitions (see `lowering`)
WITHOUT_KERNEL = [
    ms("BiasAdd", (2, 5, 6), W((6,)), (2, 5, 6), expect="x0[0,1,2] x1[0] x2[0,1,2] y0[0,1,2]", groups=3),
    ms("BiasSplitGelu", (2, 5, 12), W((12,)), expect="x0[0,1,2] x1[0] y0[0,1,2]", groups=3, opset=21),
    *(
        group_norm(
            *("GroupNorm", shape, scale(12), W((12,))),
            expect=f"x0[0,{place}] x1[0] x2[0] y0[0,{place}]",
            groups=2,
            activation=1,
            channels_last=last,
            pinned={"x0[2]": N},
            note=f"last-{last}",
        )
        for last, place, shape in ((1, 3, (2, 3, 4, 12)), (0, 1, (2, 12, 3, 4)))
    ),
    *(
        group_norm(
            *("SkipGroupNorm", (2, 3, 4, 12), scale(12), W((12,)), skip, W((12,))),
            expect=f"x0[0,3] x1[0] x2[0] x3[0,{len(skip) - 1}] x4[0] y0[0,3] y1[0,3]",
            outputs=2,
            note=f"skip-{len(skip)}",
        )
        for skip in ((2, 12), (2, 3, 4, 12), (2, 1, 1, 12))
    ),
    ms(
        *("NhwcConv", (2, 7, 6, 4), W((8, 3, 2, 4)), W((8,))),
        expect="x0[0,3] x1[0,3] x2[0] y0[0,3]",
        kernel_shape=[3, 2],
        strides=[2, 2],
        pads=[1, 1, 1, 1],
        pinned={"x0[1]": SPATIAL},
    ),
    ms("NhwcConv", (2, 6, 6, 4), W((8, 3, 3, 4)), expect="x0[0,3] x1[0,3] y0[0,3]", note="no-bias"),
    ms(
        *("NhwcFusedConv", (2, 6, 6, 4), W((8, 4, 3, 3)), W((8,)), (2, 4, 4, 8)),
        expect="x0[0,3] x1[0,1] x2[0] x3[0,3] y0[0,3]",
        activation="Relu",
        groups=3,
    ),
    ms(
        *("MultiHeadAttention", (2, 5, 4, 3, 6)),
        expect="x0[0,2] y0[0,2]",
        groups=2,
        opset=23,
        num_heads=4,
        pinned={"x0[1]": Reason.SOFTMAX, "x0[4]": Reason.NOT_MENTIONED},
        note="packed-qkv",
    ),
    ms(
        *("MultiHeadAttention", (2, 5, 24), (2, 7, 4, 2, 6)),
        expect="x0[0,1,2] x1[0,2] y0[0,1,2]",
        groups=3,
        opset=23,
        num_heads=4,
        note="packed-kv",
    ),
]
CASES = [*WITH_KERNEL, *WITHOUT_KERNEL]


@pytest.mark.parametrize("case", WITH_KERNEL, ids=identify)
def test_contrib(case):
    case.check()


@pytest.mark.parametrize("case", WITHOUT_KERNEL, ids=identify)
def test_by_definition(case, monkeypatch):
    for module in ("model", "rule"):
        monkeypatch.setattr(f"onnxprune.testing.{module}.execute", lowering.execute)
    case.check()
