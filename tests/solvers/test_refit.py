"""The refit against least squares row by row."""

from __future__ import annotations

import numpy as np
import pytest
import slow_solvers as slow
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.solvers import layer_error, refit

seeds = st.integers(0, 2**32 - 1)


@given(
    seeds,
    st.tuples(st.integers(1, 10), st.integers(1, 30)),
    st.floats(0, 1),
    st.sampled_from([0.0, 0.01, 0.5]),
)
def test_it_is_the_least_squares_solution(seed, size, level, dampening):
    weight, hessian = slow.layer(seed, *size)
    mask = np.random.default_rng(seed).random(size) < level
    found = refit(weight, mask, hessian, dampening=dampening)
    np.testing.assert_array_equal(found.mask, mask)
    assert not found.weight[mask].any()
    expected = slow.least_squares(weight, mask, hessian, dampening)
    np.testing.assert_allclose(found.weight, expected, rtol=1e-5, atol=1e-6)
    assert found.error == pytest.approx(slow.error(weight, found.weight, hessian), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("level", [0.2, 0.8])
@pytest.mark.parametrize("dampening", [0.0, 0.01])
def test_the_gradient_vanishes(level, dampening):
    weight, hessian = slow.layer(1, 20, 60)
    mask = np.random.default_rng(1).random(weight.shape) < level
    found = refit(weight, mask, hessian, dampening=dampening)
    gradient = (weight - found.weight) @ slow.damped(hessian, dampening)
    assert np.abs(gradient[~mask]).max() < 1e-9
    assert np.abs(gradient[mask]).max() > 0.1


def test_without_dampening_no_update_has_a_smaller_error():
    weight, hessian = slow.layer(2, 10, 40)
    mask = np.random.default_rng(2).random(weight.shape) < 0.5
    least = refit(weight, mask, hessian, dampening=0.0).error
    rng = np.random.default_rng(3)
    for dampening in (1e-4, 1e-2, 1.0):
        assert refit(weight, mask, hessian, dampening=dampening).error > least
    best = refit(weight, mask, hessian, dampening=0.0).weight
    for _ in range(10):
        moved = np.where(mask, 0, best + 0.01 * rng.standard_normal(best.shape))
        assert layer_error(weight, moved, hessian) > least


def test_rows_with_the_same_zeros():
    """Whole columns: one system for all rows, in closed form."""
    weight, hessian = slow.layer(3, 12, 20)
    gone = np.arange(20) % 3 == 0
    found = refit(weight, np.repeat(gone[None], 12, axis=0), hessian, dampening=0.0)
    kept = ~gone
    expected = weight @ hessian[:, kept] @ np.linalg.inv(hessian[np.ix_(kept, kept)])
    np.testing.assert_allclose(found.weight[:, kept], expected, rtol=1e-8, atol=1e-9)


def test_singular_and_empty():
    weight, hessian = slow.layer(4, 5, 16, samples=6, rectified=False)
    mask = np.random.default_rng(4).random(weight.shape) < 0.5
    found = refit(weight, mask, hessian, dampening=0.0)
    assert found.dampening > 0
    assert np.isfinite(found.weight).all()
    masked = layer_error(weight, np.where(mask, 0, weight), hessian)
    assert found.error < 1e-6 * masked  # eight weights reach what six samples ask for, but for the ridge
    nothing = refit(weight, mask, np.zeros((16, 16)))
    np.testing.assert_array_equal(nothing.weight, np.where(mask, 0, weight))
    assert nothing.error == 0.0
    np.testing.assert_array_equal(refit(weight, np.zeros_like(mask), hessian).weight, weight)
    assert not refit(weight, np.ones_like(mask), hessian).weight.any()


def test_refused():
    weight, hessian = slow.layer(5, 4, 6)
    with pytest.raises(ValueError, match="NaN"):
        refit(weight * np.nan, np.zeros((4, 6), bool), hessian)
    with pytest.raises(ValueError, match="the mask needs booleans"):
        refit(weight, np.zeros((4, 5), bool), hessian)
