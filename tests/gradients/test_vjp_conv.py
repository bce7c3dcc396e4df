from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vjp_cases import Moving, case, check

BIAS = (4,)
CASES = [
    case("Conv", (2, 3, 5), (4, 3, 3), BIAS, pads=[1, 1]),
    case("Conv", (2, 3, 6), (4, 3, 2), strides=[2]),
    case("Conv", (2, 5, 5, 4), (4, 5, 3, 3), BIAS, pads=[1, 1, 1, 1]),
    case("Conv", (2, 2, 5, 4), (4, 2, 3, 3), BIAS, pads=[1, 1, 1, 1]),
    case("Conv", (2, 5, 5, 4), (4, 5, 1, 1)),
    case("Conv", (2, 5, 5, 4), (4, 5, 1, 1), strides=[2, 2]),
    case("Conv", (1, 5, 6, 7), (2, 5, 3, 2), strides=[2, 3], pads=[1, 0, 2, 1]),
    case("Conv", (1, 2, 8, 7), (2, 2, 3, 2), strides=[2, 1], dilations=[2, 3], pads=[2, 1, 0, 3]),
    case("Conv", (1, 2, 6, 6), (2, 2, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER"),
    case("Conv", (1, 2, 5, 6), (2, 2, 3, 2), strides=[2, 2], auto_pad="SAME_LOWER"),
    case("Conv", (1, 2, 5, 6), (2, 2, 2, 2), auto_pad="SAME_LOWER"),
    case("Conv", (1, 2, 5, 6), (2, 2, 3, 2), auto_pad="VALID"),
    case("Conv", (2, 4, 5, 4), (4, 1, 3, 3), BIAS, pads=[1, 1, 1, 1], group=4, note="depthwise"),
    case("Conv", (2, 4, 5, 5), (4, 1, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2], group=4, note="depthwise"),
    case("Conv", (1, 4, 6, 5), (4, 1, 2, 3), dilations=[2, 1], pads=[1, 2, 0, 1], group=4, note="depthwise"),
    case("Conv", (2, 3, 4, 9), (3, 1, 3, 3), (3,), pads=[1, 1, 1, 1], group=3, note="depthwise-rows"),
    case("Conv", (2, 3, 7, 9), (3, 1, 7, 7), pads=[3, 3, 3, 3], group=3, note="depthwise-large"),
    case(
        "Conv",
        (2, 3, 7, 8),
        (3, 1, 3, 3),
        pads=[0, 1, 2, 1],
        strides=[2, 1],
        group=3,
        note="depthwise-stride",
    ),
    case("Conv", (2, 3, 9), (3, 1, 3), pads=[1, 1], group=3, note="depthwise-1d"),
    case("Conv", (1, 2, 5, 4), (4, 1, 3, 3), pads=[1, 1, 1, 1], group=2, note="multiplier"),
    case("Conv", (2, 4, 5, 4), (6, 2, 3, 3), pads=[1, 1, 1, 1], group=2, note="grouped"),
    case("Conv", (2, 4, 5, 4), (6, 2, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2], group=2, note="grouped"),
    case("Conv", (2, 4, 3, 3), (6, 2, 1, 1), group=2, note="grouped"),
    case("Conv", (1, 2, 3, 4, 3), (2, 2, 2, 2, 2), pads=[1, 0, 1, 0, 1, 0], strides=[2, 1, 1]),
    case("Conv", (1, 2, 3, 3), (2, 2, 2, 2), pads=[3, 3, 3, 3], note="wide-pads"),
    case("Conv", (1, 2, 3, 3), (2, 1, 2, 2), pads=[3, 3, 3, 3], group=2, note="wide-pads"),
    case("ConvTranspose", (2, 3, 4), (3, 4, 3), BIAS, pads=[1, 1]),
    case("ConvTranspose", (2, 3, 4), (3, 4, 3), strides=[2]),
    case(
        "ConvTranspose", (1, 3, 3, 4), (3, 2, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]
    ),
    case("ConvTranspose", (1, 3, 3, 4), (3, 2, 3, 2), strides=[2, 3], pads=[0, 1, 1, 0], dilations=[2, 1]),
    case("ConvTranspose", (1, 4, 3, 4), (4, 2, 2, 2), strides=[2, 2], group=2),
    case("ConvTranspose", (1, 4, 3, 4), (4, 1, 2, 2), strides=[2, 2], group=4),
    case("ConvTranspose", (1, 3, 3, 3), (3, 2, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER"),
    case("ConvTranspose", (1, 3, 3, 3), (3, 2, 3, 3), strides=[2, 2], output_shape=[6, 6]),
    case("ConvTranspose", (1, 2, 2, 3, 2), (2, 2, 2, 2, 2), strides=[2, 1, 2]),
]


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_vjp(case, dynamic):
    check(case, dynamic=dynamic and case.dynamic)


@st.composite
def convolutions(draw):
    rank = draw(st.integers(1, 2))
    groups = draw(st.integers(1, 2))
    channels = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
    dilations = [draw(st.integers(1, 2)) for _ in range(rank)]
    pads = [draw(st.integers(0, 3)) for _ in range(2 * rank)]
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    image = [max(draw(st.integers(1, 5)), span - pads[i] - pads[i + rank]) for i, span in enumerate(spans)]
    strides = [draw(st.integers(1, 3)) for _ in range(rank)]
    return case(
        "Conv",
        Moving((draw(st.integers(1, 2)), channels[0], *image)),
        Moving((channels[1], channels[0] // groups, *kernel)),
        **{"group": groups, "dilations": dilations, "pads": pads, "strides": strides},
    )


@settings(max_examples=40)
@given(case=convolutions(), dynamic=st.booleans())
def test_any_convolution(case, dynamic):
    check(case, dynamic=dynamic)


def pool(op_type, shape, **attributes):
    apart = 0.01 if "Max" in op_type else 0.0
    low = 0.2 if "Lp" in op_type else -2.0
    opset = attributes.pop("opset", 19)
    return case(op_type, Moving(shape, low, 2.0, apart), opset=opset, **attributes)


POOLS = [
    pool("MaxPool", (2, 3, 5, 5), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    pool("MaxPool", (2, 3, 6), kernel_shape=[2], strides=[2]),
    pool("MaxPool", (1, 2, 5, 6), kernel_shape=[3, 2], ceil_mode=1, strides=[2, 2]),
    pool("MaxPool", (1, 2, 5, 6), kernel_shape=[2, 2], dilations=[2, 3]),
    pool("MaxPool", (1, 2, 5, 5), kernel_shape=[3, 3], auto_pad="SAME_UPPER", strides=[2, 2]),
    pool("MaxPool", (1, 2, 5, 5), kernel_shape=[3, 3], storage_order=1, makes=2),
    pool("MaxPool", (1, 2, 3, 4, 3), kernel_shape=[2, 2, 2]),
    pool("AveragePool", (2, 3, 6, 4), kernel_shape=[2, 2], strides=[2, 2]),
    pool("AveragePool", (2, 3, 5, 5), kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    pool(
        "AveragePool",
        (2, 3, 5, 5),
        kernel_shape=[3, 3],
        pads=[1, 0, 1, 1],
        count_include_pad=1,
        strides=[2, 1],
    ),
    pool("AveragePool", (1, 2, 6, 6), kernel_shape=[3, 3], pads=[0, 1, 1, 0], ceil_mode=1, strides=[2, 2]),
    pool(
        "AveragePool",
        (1, 2, 6, 6),
        kernel_shape=[3, 3],
        pads=[1, 1, 1, 1],
        ceil_mode=1,
        strides=[2, 2],
        count_include_pad=1,
    ),
    pool("AveragePool", (1, 2, 6, 5), kernel_shape=[2, 2], dilations=[2, 1], pads=[1, 0, 0, 1]),
    pool("AveragePool", (1, 2, 5, 5), kernel_shape=[3, 2], auto_pad="SAME_LOWER", strides=[2, 2]),
    pool("AveragePool", (1, 2, 7), kernel_shape=[3], strides=[2]),
    pool("AveragePool", (1, 2, 3, 4, 3), kernel_shape=[2, 2, 2], pads=[1, 0, 0, 0, 1, 1]),
    pool("LpPool", (1, 2, 5, 5), kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 0, 1]),
    pool("LpPool", (1, 2, 5, 5), kernel_shape=[2, 2], p=3),
    pool("GlobalAveragePool", (2, 3, 4, 2)),
    pool("GlobalAveragePool", (2, 3, 4)),
    pool("GlobalMaxPool", (2, 3, 4, 2)),
    pool("GlobalLpPool", (2, 3, 4, 2), p=3),
    pool("GlobalLpPool", (2, 3, 4, 2)),
]


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("case", POOLS, ids=lambda case: case.id)
def test_vjp_of_pools(case, dynamic):
    check(case, dynamic=dynamic and case.dynamic)
