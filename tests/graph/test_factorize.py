"""Reshape as a factorisation: every factor names the same digit of the flat position on both sides."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from onnxprune.rules.layout import factorize


@st.composite
def regrouped(draw):
    """Two shapes of the same size that mostly have a common refinement."""
    digits = draw(st.lists(st.sampled_from([1, 2, 2, 3, 4, 5]), min_size=1, max_size=6))

    def group(values):
        shape, current = [], 1
        for digit in values:
            if draw(st.booleans()):
                shape.append(current)
                current = 1
            current *= digit
        return (*shape, current)

    a = group(digits)
    b = group(draw(st.permutations(digits)) if draw(st.integers(0, 4)) == 0 else digits)
    return a, b


@given(regrouped())
@example(((6, 4), (4, 6)))
@example(((5, 6, 4, 7), (5, 4, 6, 7)))
@example(((1, 12, 1), (3, 1, 4)))
@example(((2, 1), (1, 2)))
def test_digits_agree(shapes):
    a, b = shapes
    factors, stuck_a, stuck_b = factorize(a, b)
    positions = np.arange(math.prod(a))
    index_a, index_b = np.unravel_index(positions, a), np.unravel_index(positions, b)
    for factor in factors:
        left = index_a[factor.a_dim] // factor.a_stride % factor.size
        right = index_b[factor.b_dim] // factor.b_stride % factor.size
        assert np.array_equal(left, right)
        assert factor.size > 1
    for shape, stuck, dims in ((a, stuck_a, "a_dim"), (b, stuck_b, "b_dim")):
        for dim, extent in enumerate(shape):
            if dim not in stuck:  # then its factors make up the whole axis
                assert math.prod(f.size for f in factors if getattr(f, dims) == dim) == extent


@given(regrouped())
def test_both_directions_agree(shapes):
    a, b = shapes
    forward, stuck_a, stuck_b = factorize(a, b)
    backward, back_b, back_a = factorize(b, a)
    assert [(f.size, f.b_dim, f.a_dim) for f in forward] == [(f.size, f.a_dim, f.b_dim) for f in backward]
    assert {d for d in stuck_a if a[d] > 1} == {d for d in back_a if a[d] > 1}
    assert {d for d in stuck_b if b[d] > 1} == {d for d in back_b if b[d] > 1}


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_same_shape_is_one_factor_per_axis(shape):
    factors, stuck_a, stuck_b = factorize(tuple(shape), tuple(shape))
    assert [(f.size, f.a_dim, f.b_dim) for f in factors] == [(d, i, i) for i, d in enumerate(shape) if d > 1]
    assert not stuck_a and not stuck_b
