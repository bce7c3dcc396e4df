from __future__ import annotations

import numpy as np
import pytest
from rule_cases import case, identify

from onnxprune.errors import Reason
from onnxprune.testing import Weight, check_rule

W = Weight
MS = "com.microsoft"
SOFTMAX, ORDERED, ROTATED = Reason.SOFTMAX, Reason.ORDERED, Reason.ROTATED
QKV = "x0[0,1,2] x1[0,2] x2[0,2] y0[0,1,2]"
FOUR = "x0[0,1,2,3] x1[0,1,3] x2[0,1,3] y0[0,1,2,3]"


def ids(batch, tokens):
    return np.tile(np.arange(tokens), (batch, 1))


def standard(*inputs, opset=23, **kw):
    return case("Attention", *inputs, opset=opset, **kw)


def flat(*inputs, q=4, kv=4, **kw):
    return standard(*inputs, q_num_heads=q, kv_num_heads=kv, **kw)


def packed(columns, *inputs, width=7, **kw):
    """onnxruntime's Attention; without a bias its kernel reads a null pointer."""
    weight = W((width, columns))
    return case("Attention", (2, 5, width), weight, W((columns,)), *inputs, domain=MS, **kw)


def multi(*inputs, **kw):
    return case("MultiHeadAttention", *inputs, num_heads=kw.pop("heads", 4), domain=MS, **kw)


def grouped(*inputs, q=4, kv=2, batch=2, tokens=5, **kw):
    """Inputs 0 to 4 and 7 onwards; the lengths of the sequences stand between them."""
    lengths = np.full(batch, tokens - 1, np.int32), np.array(tokens, np.int32)
    inputs = (*inputs[:5], *[None] * (5 - len(inputs[:5])), *lengths, *inputs[5:])
    return case("GroupQueryAttention", *inputs, num_heads=q, kv_num_heads=kv, domain=MS, **kw)


CASES = [
    # (B, heads, S, D): heads, dims of Q and K, dims of V, queries, batch
    *(
        standard(
            *((2, 4, 5, 6), (2, 4, 7, 6), (2, 4, 7, 3)),
            expect=FOUR,
            groups=5,
            pinned={"x1[2]": SOFTMAX, "x2[2]": SOFTMAX},
            opset=o,
            note="4d",
        )
        for o in (23, 24)
    ),
    standard((2, 4, 5, 6), (2, 2, 7, 6), (2, 2, 7, 3), expect=FOUR, groups=5, note="4d-grouped"),
    standard(
        *((2, 4, 5, 6), (2, 1, 7, 6), (2, 1, 7, 3)),
        expect="x0[0,1,2,3] x1[0,3] x2[0,3] y0[0,1,2,3]",
        groups=5,
        note="4d-one-kv-head",
    ),
    standard((2, 4, 5, 6), (2, 4, 7, 6), (2, 4, 7, 3), expect=FOUR, scale=0.3, note="4d-scale"),
    standard(
        *((2, 4, 5, 6), (2, 4, 5, 6), (2, 4, 5, 3)),
        expect="x0[0,1,3] x1[0,1,3] x2[0,1,3] y0[0,1,3]",
        pinned={"x0[2]": ORDERED, "y0[2]": ORDERED},
        is_causal=1,
        softcap=2.0,
        note="4d-causal",
    ),
    standard(
        *((2, 4, 5, 6), (2, 2, 7, 6), (2, 2, 7, 3), (2, 4, 5, 10), (2, 2, 3, 6), (2, 2, 3, 3)),
        expect=f"{FOUR} x3[0,1,2] x4[0,1,3] x5[0,1,3] y1[0,1,3] y2[0,1,3] y3[0,1,2]",
        groups=5,
        outputs=4,
        pinned={"x3[3]": SOFTMAX, "y3[3]": SOFTMAX},
        note="4d-everything",
    ),
    standard(
        *((2, 4, 5, 6), (2, 4, 7, 6), (2, 4, 7, 3), (5, 7)), expect=f"{FOUR} x3[0]", note="4d-mask-of-rank-2"
    ),
    standard(
        *((2, 4, 5, 6), (2, 4, 7, 6), (2, 4, 7, 3), np.random.default_rng(0).random((1, 1, 5, 7)) < 0.7),
        expect=f"{FOUR} x3[2]",
        note="4d-mask-of-bools",
    ),
    standard(
        *((2, 4, 5, 6), (2, 4, 7, 6), (2, 4, 7, 3), None, None, None, np.array([3, 7])),
        expect=f"{FOUR} x6[0]",
        opset=24,
        note="4d-lengths",
    ),
    # (B, S, heads x D): whole heads
    *(
        flat(
            *((2, 5, 24), (2, 7, 24), (2, 7, 12)),
            expect=QKV,
            groups=3,
            pinned={"x1[1]": SOFTMAX, "x2[1]": SOFTMAX},
            opset=o,
            note="flat",
        )
        for o in (23, 24)
    ),
    flat((2, 5, 24), (2, 7, 12), (2, 7, 6), expect=QKV, groups=3, kv=2, note="flat-grouped"),
    flat((2, 5, 24), (2, 7, 24), (2, 7, 12), expect=QKV, groups=3, scale=0.3, note="flat-scale"),
    # the one head of K and V stays, with all its dims
    flat(
        *((2, 5, 24), (2, 7, 6), (2, 7, 3)),
        expect="x0[0,1,2] x1[0] x2[0] y0[0,1,2]",
        pinned={"x1[2]": Reason.INDIVISIBLE},
        kv=1,
        note="flat-one-kv-head",
    ),
    flat((2, 5, 6), (2, 7, 6), (2, 7, 3), expect=QKV, groups=4, q=1, kv=1, note="flat-one-head"),
    flat(
        *((2, 5, 24), (2, 7, 12), (2, 7, 6), (2, 4, 5, 10), (2, 2, 3, 6), (2, 2, 3, 3)),
        expect=f"{QKV} x3[0,1,2] x4[0,1] x5[0,1] y1[0,1] y2[0,1] y3[0,1,2]",
        groups=3,
        kv=2,
        outputs=4,
        note="flat-everything",
    ),
    flat(
        *((2, 5, 24), (2, 5, 24), (2, 5, 12)),
        expect="x0[0,2] x1[0,2] x2[0,2] y0[0,2]",
        pinned={"x0[1]": ORDERED},
        is_causal=1,
        note="flat-causal",
    ),
    # angles
    case(
        *("RotaryEmbedding", (2, 4, 5, 6), W((9, 3)), W((9, 3)), ids(2, 5)),
        expect="x0[0,1,2] x3[0,1] y0[0,1,2]",
        opset=23,
        pinned={"x0[3]": ROTATED, "x1[0]": Reason.INDEXED, "x2[1]": ROTATED},
        note="4d",
    ),
    case(
        *("RotaryEmbedding", (2, 5, 24), W((9, 3)), W((9, 3)), ids(2, 5)),
        expect="x0[0,1,2] x3[0,1] y0[0,1,2]",
        opset=23,
        num_heads=4,
        interleaved=1,
        note="flat",
    ),
    case(
        *("RotaryEmbedding", (2, 5, 24), W((9, 2)), W((9, 2)), ids(2, 5)),
        expect="x0[0,1,2] x3[0,1] y0[0,1,2]",
        opset=23,
        num_heads=4,
        rotary_embedding_dim=4,
        note="flat-partial",
    ),
    case(
        *("RotaryEmbedding", (2, 4, 5, 6), (2, 5, 3), (2, 5, 3)),
        expect="x0[0,1,2] x1[0,1] x2[0,1] y0[0,1,2]",
        opset=23,
        note="angles-in-place",
    ),
    case(
        *("RotaryEmbedding", (2, 5, 24), ids(2, 5), W((9, 3)), W((9, 3))),
        expect="x0[0,1,2] x1[0,1] y0[0,1,2]",
        domain=MS,
        note="flat",
    ),
    case(
        *("RotaryEmbedding", (2, 5, 24), ids(2, 5), W((9, 2)), W((9, 2))),
        expect="x0[0,1,2] x1[0,1] y0[0,1,2]",
        domain=MS,
        num_heads=4,
        rotary_embedding_dim=4,
        note="flat-partial",
    ),
    case(
        *("RotaryEmbedding", (2, 4, 5, 8), np.array([1]), W((9, 4)), W((9, 4))),
        expect="x0[0,1] y0[0,1]",
        domain=MS,
        pinned={"x0[2]": ORDERED},
        note="4d-one-start",
    ),
    # onnxruntime's Attention: one weight
    packed(72, expect="x0[0,2] x1[0,1] x2[0] y0[0,2]", groups=3, num_heads=4, pinned={"x0[1]": SOFTMAX}),
    packed(
        *(60,),
        expect="x0[0,2] x1[0,1] x2[0] y0[0,2]",
        num_heads=4,
        qkv_hidden_sizes=[24, 24, 12],
        scale=0.3,
        note="sizes",
    ),
    packed(
        *(72, np.ones((2, 8), np.int32), (2, 2, 4, 3, 6)),
        expect="x0[0,2] x1[0,1] x2[0] x3[0] x4[1,2] y0[0,2] y1[1,2]",
        outputs=2,
        num_heads=4,
        unidirectional=1,
        note="past",
    ),
    packed(
        72, None, None, (2, 4, 5, 5), expect="x0[0,2] x1[0,1] x2[0] x5[0,1] y0[0,2]", num_heads=4, note="bias"
    ),
    packed(
        72, np.array([3, 5], np.int32), expect="x0[0,2] x1[0,1] x2[0] x3[0] y0[0,2]", num_heads=4, note="ends"
    ),
    packed(
        *(72, np.array([5, 5, 0, 0], np.int32)),
        expect="x0[2] x1[0,1] x2[0] y0[2]",
        num_heads=4,
        pinned={"x0[0]": Reason.AUXILIARY},
        note="ends-and-starts",
    ),
    # MultiHeadAttention
    multi((2, 5, 24), (2, 7, 24), (2, 7, 12), expect=QKV, groups=3),
    multi((2, 5, 24), (2, 7, 24), (2, 7, 12), W((60,)), expect=f"{QKV} x3[0]", groups=3, note="bias"),
    multi((2, 5, 24), (2, 7, 24), (2, 7, 12), expect=QKV, scale=0.3, note="scale"),
    multi((2, 5, 6), (2, 7, 6), (2, 7, 3), W((15,)), expect=f"{QKV} x3[0]", heads=1, note="one-head"),
    multi(
        *((2, 5, 24), (2, 7, 24), (2, 7, 12), W((60,)), None, (2, 4, 5, 7)),
        expect=f"{QKV} x3[0] x5[0,1,2]",
        note="attention-bias",
    ),
    multi(
        *(
            (2, 5, 24),
            (2, 5, 24),
            (2, 5, 24),
            None,
            np.ones((2, 8), np.int32),
            None,
            (2, 4, 3, 6),
            (2, 4, 3, 6),
        ),
        expect="x0[0,2] x1[0,2] x2[0,2] x4[0] x6[0,1] x7[0,1] y0[0,2] y1[0,1] y2[0,1]",
        outputs=3,
        unidirectional=1,
        note="past",
    ),
    multi(
        *((2, 5, 24), (2, 7, 24), (2, 7, 12)),
        expect=f"{QKV} y1[0,1] y2[0,1] y3[0,1,2]",
        outputs=4,
        note="outputs",
    ),
    multi(
        *((2, 5, 24), (2, 4, 7, 6), (2, 4, 7, 6)),
        expect="x0[0,1,2] x1[0,1] x2[0,1] y0[0,1,2]",
        groups=3,
        note="cross",
    ),
    # GroupQueryAttention: head sizes that are multiples of 8, of 16 with angles
    grouped(
        *((2, 5, 32), (2, 5, 16), (2, 5, 16)),
        expect="x0[0,2] x1[0,2] x2[0,2] x5[0] y0[0,2] y1[0,1] y2[0,1]",
        groups=2,
        outputs=3,
        pinned={"x0[1]": ORDERED, "y1[3]": Reason.NOT_MENTIONED},
    ),
    grouped(
        *((2, 5, 64), (2, 5, 32), (2, 5, 32), None, None, W((9, 8)), W((9, 8))),
        expect="x0[0,2] x1[0,2] x2[0,2] x5[0] y0[0,2]",
        do_rotary=1,
        pinned={"x7[1]": ROTATED},
        note="rotary",
    ),
    grouped(
        *((2, 5, 128), None, None, None, None, W((9, 8)), W((9, 8))),
        expect="x0[0,2] x5[0] y0[0,2]",
        do_rotary=1,
        note="packed",
    ),
    grouped(
        *((2, 5, 96), None, None, None, None, W((9, 8)), W((9, 8))),
        expect="x0[0,2] x5[0] y0[0,2]",
        do_rotary=1,
        kv=1,
        note="packed-one-kv-head",
    ),
    grouped(
        *((2, 5, 32), (2, 5, 8), (2, 5, 8), None, None, None, None, None, (1, 4, 5, 5), W((4,))),
        expect="x0[0,2] x1[0] x2[0] x5[0] x10[1] x11[0] y0[0,2] y1[0] y2[0] y3[0,1]",
        outputs=4,
        qk_output=1,
        kv=1,
        pinned={"x1[2]": Reason.INDIVISIBLE},
        note="one-kv-head",
    ),
    grouped(
        *((2, 1, 32), (2, 1, 16), (2, 1, 16), (2, 2, 5, 8), (2, 2, 5, 8)),
        expect="x0[0,2] x1[0,2] x2[0,2] x3[0,1] x4[0,1] x5[0] y0[0,2] y1[0,1] y2[0,1]",
        outputs=3,
        local_window_size=4,
        note="past",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=identify)
def test_attention(case):
    case.check()


@pytest.mark.parametrize(("kv", "units"), [(4, 4), (2, 2), (1, 4)])
def test_units_are_heads(kv, units):
    """A K/V head with all its query heads; query heads where the one K/V head stays."""
    checked = check_rule(
        "Attention",
        inputs=[(2, 5, 24), (2, 7, 6 * kv), (2, 7, 3 * kv)],
        attributes={"q_num_heads": 4, "kv_num_heads": kv},
        opset=23,
        seeds=(0,),
    )
    (heads,) = [group for group in checked.groups if any(use.axis.name == "y0[2]" for use in group.axes)]
    assert heads.units == units
