from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vjp_cases import Moving, case, check


def ints(*numbers):
    return np.array(numbers, np.int64)


X = (2, 3, 4)
CASES = [
    case("Reshape", X, ints(0, -1)),
    case("Reshape", X, ints(-1, 2, 6), dynamic=False),
    case("Flatten", X, axis=2),
    case("Flatten", X, axis=0, dynamic=False),
    case("Transpose", X),
    case("Transpose", X, perm=[0, 2, 1]),
    case("Transpose", X, perm=[1, 2, 0]),
    case("Squeeze", (2, 1, 3, 1), ints(1, -1)),
    case("Squeeze", (2, 1, 3, 1), ints(1), note="one"),
    case("Squeeze", (2, 1, 3, 1), axes=[1], opset=11),
    case("Unsqueeze", X, ints(0, -1)),
    case("Unsqueeze", X, axes=[1, 3], opset=11),
    case("DepthToSpace", (1, 8, 2, 3), blocksize=2),
    case("DepthToSpace", (2, 8, 2, 3), blocksize=2, mode="CRD"),
    case("SpaceToDepth", (2, 2, 4, 6), blocksize=2),
    case("Concat", (2, 3), (2, 1), (2, 2), axis=1, symbolic=(0, 1, 2)),
    case("Concat", (2, 3), (2, 3), axis=-1, symbolic=(0, 1)),
    case("Concat", (2, 3), (4, 3), axis=0),
    case("Concat", X, axis=2),
    case("Split", X, ints(1, 2), axis=1, makes=2, outputs=(0, 1)),
    case("Split", X, ints(1, 2), axis=1, makes=2, outputs=(1,), note="second"),
    case("Split", X, axis=-1, makes=2, outputs=(0, 1), split=[3, 1], opset=11),
    case("Split", X, axis=-1, makes=2, outputs=(0,), num_outputs=2),
    case("Slice", X, ints(1), ints(3), ints(1)),
    case("Slice", X, ints(0, -3), ints(1, -1), ints(0, 2), dynamic=False),
    case("Slice", X, ints(1), ints(2**62), ints(0), dynamic=False, note="far"),
    case("Slice", X, ints(0), ints(-1), ints(2)),
    case("Slice", X, ints(0), ints(1), ints(0), note="first"),
    case("Slice", X, ints(-1), ints(2**62), ints(0), note="last"),
    case("Slice", (2, 6, 5), ints(0, 1), ints(6, 5), ints(1, 2), ints(2, 2)),
    case("Slice", (2, 6, 5), ints(5, -1), ints(0, -6), ints(1, 2), ints(-2, -1)),
    case("Slice", (4, 3), ints(1), ints(2**62), ints(0), ints(2), dynamic=False),
    case("Slice", (4, 3), ints(0), ints(2**62), ints(0), ints(2), dynamic=False, note="every-other"),
    case("Slice", (4, 3), ints(-1), ints(-(2**62)), ints(0), ints(-1), note="reversed"),
    case("Slice", X, axes=[1], starts=[1], ends=[3], opset=9),
    case("Pad", X, ints(0, 1, 2, 0, 0, 3), np.float32(1.5)),
    case("Pad", X, ints(1, 2), None, ints(2)),
    case("Pad", X, ints(0, 2, 1, 0, 1, 3), mode="reflect"),
    case("Pad", X, ints(0, 2, 1, 0, 1, 3), mode="edge"),
    case("Pad", X, ints(0, 2, 1, 0, 1, 3), mode="wrap", opset=19),
    case("Pad", (2, 3, 4, 3), ints(0, 0, 2, 1, 0, 0, 1, 2), mode="reflect"),
    case("Pad", X, pads=[0, 1, 2, 0, 0, 3], opset=10),
    case("Expand", (3, 1), ints(2, 3, 4)),
    case("Expand", (1, 3, 1), ints(1, 1, 4)),
    case("Tile", (2, 3), ints(2, 3)),
    case("Tile", (2, 3, 1), ints(1, 1, 4)),
    case("Trilu", X),
    case("Trilu", X, np.array(-1), upper=0),
    case("ReverseSequence", X, ints(2, 1, 2), batch_axis=1, time_axis=0, dynamic=False),
    case("ReverseSequence", X, ints(2, 3), batch_axis=0, time_axis=1),
    case("Gather", X, np.array(1), axis=1),
    case("Gather", X, np.array(-1), axis=2),
    case("Gather", X, ints(2, 0), axis=1),
    case("Gather", X, ints(2, 0, -1), axis=1, note="repeated"),
    case("Gather", X, ints(2, 1, 3, 0), axis=2, note="permuted"),
    case("Gather", X, np.array([[1, 0], [2, 2], [0, -1]]), axis=1),
    case("Gather", (5, 3), np.array([[1, 0], [4, 4]]), dynamic=False),
    case("GatherElements", (2, 3), np.array([[1, 1], [0, 2]]), axis=1),
    case("GatherND", X, np.array([[0, 1], [1, 2], [0, 1]])),
    case("GatherND", X, np.array([[[0], [1]], [[0], [0]]])),
    case("ScatterElements", (2, 4), np.array([[1, 3], [0, 2]]), (2, 2), axis=1),
    case("ScatterElements", (2, 4), np.array([[1, 1], [0, 2]]), (2, 2), axis=1, reduction="add"),
    case("ScatterND", X, np.array([[0, 1], [1, 2]]), (2, 4)),
    case("ScatterND", X, np.array([[0, 1], [0, 1]]), (2, 4), reduction="add"),
]


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_vjp(case, dynamic):
    check(case, dynamic=dynamic and case.dynamic)


@st.composite
def slices(draw):
    """Any Slice of a matrix that takes something."""
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 5)))
    axes = draw(st.permutations([0, 1]))[: draw(st.integers(1, 2))]
    starts, ends, steps = [], [], []
    for axis in axes:
        extent, step = shape[axis], draw(st.sampled_from([-2, -1, 1, 2, 3]))
        first = draw(st.integers(0, extent - 1))
        last = draw(st.integers(0, first) if step < 0 else st.integers(first, extent - 1))
        end = last + (1 if step > 0 else -1)
        starts.append(first - draw(st.sampled_from([0, extent])))
        ends.append(-extent - 1 if end < 0 else end)
        steps.append(step)
    return case("Slice", Moving(shape), ints(*starts), ints(*ends), ints(*axes), ints(*steps))


@settings(max_examples=60)
@given(case=slices())
def test_any_slice(case):
    check(case, dynamic=False)
