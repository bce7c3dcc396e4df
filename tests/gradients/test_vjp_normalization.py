from __future__ import annotations

import numpy as np
import pytest
from vjp_cases import Moving, case, check

C = (3,)
POSITIVE = Moving(C, 0.5, 2.0)
CASES = [
    case("BatchNormalization", (2, 3, 4), C, C, C, POSITIVE),
    case("BatchNormalization", (2, 3), C, C, C, POSITIVE, epsilon=1e-2),
    case("BatchNormalization", (2, 3, 2, 2), C, C, C, POSITIVE, opset=9),
    case(
        "BatchNormalization",
        (2, 3, 4),
        C,
        C,
        C,
        POSITIVE,
        opset=15,
        training_mode=1,
        makes=3,
        note="training",
    ),
    case("InstanceNormalization", (2, 3, 4), C, C),
    case("InstanceNormalization", (2, 3, 4, 2), C, C, epsilon=1e-2),
    case("GroupNormalization", (2, 4, 3, 2), (4,), (4,), num_groups=2, opset=21),
    case("GroupNormalization", (2, 4, 3), (2,), (2,), num_groups=2, opset=18, declared=True, dynamic=False),
    case("LayerNormalization", (2, 3, 4), (4,), (4,)),
    case("LayerNormalization", (2, 3, 4), (3, 4), axis=1),
    case("LayerNormalization", (2, 3, 4), (4,), axis=-1, epsilon=1e-2),
    case("RMSNormalization", (2, 3, 4), (4,), opset=23),
    case("SimplifiedLayerNormalization", (2, 3, 4), (4,), axis=-1, declared=True, dynamic=False),
    case("MeanVarianceNormalization", (2, 3, 2, 2)),
    case("MeanVarianceNormalization", (2, 3, 4), axes=[1]),
    case("LpNormalization", (2, 3, 4)),
    case("LpNormalization", Moving((2, 3, 4), from_=(0.0,)), p=1, axis=1),
    case("LRN", (2, 5, 2, 2), size=3),
    case("LRN", (2, 7, 3, 1), size=5, alpha=0.3, beta=0.5, bias=2.0),
    case("Softmax", (2, 3, 4), axis=1),
    case("Softmax", (2, 3, 4)),
    case("Softmax", (2, 3, 2), axis=1, opset=11),
    case("LogSoftmax", (2, 3, 4), axis=1),
    case("LogSoftmax", (2, 3, 2), axis=1, opset=11),
]
REDUCTIONS = [
    *("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2"),
    *("ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"),
]


def axes(*numbers):
    return np.array(numbers, np.int64)


def moving(op_type):
    low = 0.5 if op_type == "ReduceLogSum" else -2.0
    return Moving((2, 3, 4), low, 2.0, apart=0.05, from_=(0.0,) if op_type == "ReduceL1" else ())


for op_type in REDUCTIONS:
    x = moving(op_type)
    CASES += [
        case(op_type, x, axes(1), note="kept"),
        case(op_type, x, axes(0, -1), keepdims=0, note="dropped"),
        case(op_type, x, keepdims=0, note="all"),
        case(op_type, x, axes(), noop_with_empty_axes=1, note="none"),
        case(op_type, x, axes=[2, 1], keepdims=0, opset=11, note="attribute"),
    ]
CASES += [
    case("ReduceProd", Moving((3, 3), values=[[0, 2, 3], [0, 0, 1], [1, 2, 3]]), axes(1), note="zeros"),
    case("CumSum", (2, 4), np.array(1)),
    case("CumSum", (2, 4), np.array(0), reverse=1, exclusive=1),
    case("TopK", Moving((2, 5), apart=0.1), axes(2), makes=2),
    case("TopK", Moving((4, 3), apart=0.1), axes(2), makes=2, axis=0, largest=0, dynamic=False),
]


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_vjp(case, dynamic):
    check(case, dynamic=dynamic and case.dynamic)
