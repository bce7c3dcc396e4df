"""Zeros are spread so that the sum of the losses is least, exactly as many as asked for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.sparsity.allocation import Curve, spread


def at(curve: Curve, zeros: float) -> float:
    return float(np.interp(zeros, curve.zeros, curve.losses))


def convex(rng: np.random.Generator, size: int) -> Curve:
    slopes = np.sort(rng.random(size))
    return Curve(tuple(map(float, range(size + 1))), (0.0, *np.cumsum(slopes).tolist()))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**16), st.integers(0, 15))
def test_no_other_division_costs_less(seed, total):
    rng = np.random.default_rng(seed)
    curves = [convex(rng, size) for size in (4, 5, 6)]
    counts = spread(curves, total, [0, 0, 0])
    assert sum(counts) == total
    loss = sum(at(curve, n) for curve, n in zip(curves, counts, strict=True))
    best = min(
        sum(at(curve, n) for curve, n in zip(curves, other, strict=True))
        for other in itertools.product(range(5), range(6), range(7))
        if sum(other) == total
    )
    assert loss == pytest.approx(best)


def test_what_must_go_goes_first():
    cheap, dear = Curve((0.0, 10.0), (0.0, 1.0)), Curve((0.0, 10.0), (0.0, 100.0))
    assert spread([cheap, dear], 8, [0, 0]) == [8, 0]
    assert spread([cheap, dear], 8, [0, 3]) == [5, 3]
    assert spread([cheap, dear], 12, [0, 0]) == [10, 2]


def test_a_curve_that_falls_behind_a_step_is_taken_as_its_hull():
    """The first zeros are dear and the next ones cheap: the way to the cheap ones counts as a whole."""
    stepped = Curve((0.0, 4.0, 8.0), (0.0, 8.0, 8.0))
    assert stepped.hull() == [(1.0, 0.0, 8.0)]
    assert spread([stepped, Curve((0.0, 8.0), (0.0, 12.0))], 8, [0, 0]) == [8, 0]


def test_parts_of_stretches_are_rounded_to_the_exact_sum():
    curves = [Curve((0.0, 2.4, 7.0), (0.0, 1.0, 9.0)) for _ in range(3)]
    counts = spread(curves, 10, [0, 0, 0])
    assert sum(counts) == 10 and all(isinstance(n, int) for n in counts)
