from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vjp_cases import Moving, case, check

CASES = [
    case("Gemm", (3, 4), (4, 2)),
    case("Gemm", (3, 4), (4, 2), (2,)),
    case("Gemm", (3, 4), (4, 2), (3, 1), alpha=0.5, beta=0.7),
    case("Gemm", (4, 3), (4, 2), (1, 2), transA=1, dynamic=False),
    case("Gemm", (3, 4), (2, 4), (3, 2), transB=1),
    case("Gemm", (4, 3), (2, 4), (), transA=1, transB=1, alpha=2.0, dynamic=False),
    case("MatMul", (3, 4), (4, 2)),
    case("MatMul", (2, 3, 4), (4, 2)),
    case("MatMul", (3, 4), (2, 4, 2), dynamic=False),
    case("MatMul", (2, 1, 3, 4), (5, 4, 2)),
    case("MatMul", (1, 3, 4), (5, 4, 2)),
    case("MatMul", (2, 3, 4), (1, 4, 2)),
    case("MatMul", (4,), (4,), dynamic=False),
    case("MatMul", (2, 3, 4), (4,)),
    case("MatMul", (3, 4), (4,)),
    case("MatMul", (4,), (4, 2), dynamic=False),
    case("MatMul", (4,), (2, 4, 3), dynamic=False),
]


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_vjp(case, dynamic):
    check(case, dynamic=dynamic and case.dynamic)


@st.composite
def broadcast_shapes(draw):
    """Two shapes that broadcast against each other."""
    whole = draw(st.lists(st.integers(1, 3), min_size=0, max_size=4))
    shapes = []
    for _ in range(2):
        rank = draw(st.integers(0, len(whole)))
        kept = whole[len(whole) - rank :]
        shapes.append(tuple(1 if draw(st.booleans()) else extent for extent in kept))
    return shapes


@settings(max_examples=30)
@given(
    shapes=broadcast_shapes(), op_type=st.sampled_from(["Add", "Mul", "Sub", "Where"]), dynamic=st.booleans()
)
def test_broadcasting_is_undone(shapes, op_type, dynamic):
    operands = [Moving(shape) for shape in shapes]
    condition = [np.array(True)] if op_type == "Where" else []
    check(case(op_type, *condition, *operands), dynamic=dynamic)


@settings(max_examples=20)
@given(shapes=broadcast_shapes(), dynamic=st.booleans())
def test_batches_of_matrices_broadcast(shapes, dynamic):
    a, b = shapes
    check(case("MatMul", Moving((*a, 2, 3)), Moving((*b, 3, 2))), dynamic=dynamic)
