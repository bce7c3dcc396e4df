from __future__ import annotations

import numpy as np
import pytest
from rule_cases import case, identify

from onnxprune.errors import Reason
from onnxprune.testing.rule import Activation

SHAPE = (2, 6, 5)
ALL = "x0[0,1,2] y0[0,1,2]"
BYTES = Activation(SHAPE, "uint8", 0.0, 250.0)


def scale(*shape):
    return np.linspace(0.01, 0.03, int(np.prod(shape)), dtype=np.float32).reshape(shape)


def zero(*shape, dtype=np.uint8):
    return np.full(shape, 128 if dtype is np.uint8 else 3, dtype)


CASES = [
    *(
        case("QuantizeLinear", SHAPE, scale(), zero(), expect=ALL, groups=3, opset=o, note="per tensor")
        for o in (10, 13, 19, 21)
    ),
    case("QuantizeLinear", SHAPE, scale(), expect=ALL, note="without a zero point"),
    case("QuantizeLinear", SHAPE, scale(), zero(dtype=np.int8), expect=ALL, note="signed"),
    case("QuantizeLinear", SHAPE, scale(), zero(dtype=np.int16), expect=ALL, opset=21, note="16 bits"),
    case("QuantizeLinear", SHAPE, scale(1), zero(1), expect=ALL, note="[1]"),
    *(
        case(
            "QuantizeLinear",
            SHAPE,
            scale(SHAPE[axis]),
            zero(SHAPE[axis]),
            expect=f"{ALL} x1[0] x2[0]",
            groups=3,
            axis=axis,
            note=f"axis {axis}",
        )
        for axis in (1, 2, -1, -2)
    ),
    case(
        "QuantizeLinear",
        (2, 6, 8),
        scale(2, 6, 2),
        zero(2, 6, 2),
        expect="x0[0,1] x1[0,1] x2[0,1] y0[0,1]",
        pinned={"x0[2]": Reason.QUANTIZED, "x1[2]": Reason.QUANTIZED},
        opset=21,
        axis=2,
        block_size=4,
        note="blocks",
    ),
    *(
        case("DequantizeLinear", BYTES, scale(), zero(), expect=ALL, groups=3, opset=o, note="per tensor")
        for o in (10, 13, 19, 21)
    ),
    case("DequantizeLinear", BYTES, scale(6), zero(6), expect=f"{ALL} x1[0] x2[0]", note="per axis"),
    case("DequantizeLinear", BYTES, scale(), expect=ALL, note="without a zero point"),
    case("DynamicQuantizeLinear", SHAPE, expect=ALL, groups=3, outputs=3),
    *(
        case(op, x, scale(), zero(), expect=ALL, groups=3, domain="com.microsoft")
        for op, x in (("QuantizeLinear", SHAPE), ("DequantizeLinear", BYTES))
    ),
]


@pytest.mark.parametrize("case", CASES, ids=identify)
def test_quantization(case):
    case.check()
