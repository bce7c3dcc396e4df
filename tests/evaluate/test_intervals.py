from __future__ import annotations

import functools
import math
import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.evaluate.intervals import Ratio, student95, student_interval, wilson


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(5, 10, 0.236593, 0.763407), (0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0), (0, 0, 0.0, 1.0)],
)
def test_wilson(correct, total, low, high):
    assert wilson(correct, total) == pytest.approx((low, high), abs=1e-6)


@given(st.integers(1, 10_000), st.data())
def test_wilson_holds_the_share(total, data):
    correct = data.draw(st.integers(0, total))
    low, high = wilson(correct, total)
    assert 0 <= low <= correct / total <= high <= 1


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [
        *((1, 12.7062047), (2, 4.3026527), (3, 3.1824463), (4, 2.7764451), (5, 2.5705818)),
        *((10, 2.2281389), (30, 2.0422725), (1000, 1.9623391)),
    ],
)
def test_student_as_in_the_tables(freedom, quantile):
    assert student95(freedom) == pytest.approx(quantile, rel=2e-3)


def test_an_interval_of_a_mean():
    values = np.array([1.0, 2.0, 4.0, 5.0])
    ratio = Ratio.of(values)
    assert (ratio.units, ratio.value) == (4, 3.0)
    assert ratio.error == pytest.approx(values.std(ddof=1) / 2)
    interval, note = student_interval(ratio.value, ratio.error, 4)
    half = 3.1824463 * values.std(ddof=1) / 2
    assert interval == pytest.approx((3 - half, 3 + half), abs=2e-3 * half)
    assert note == ""


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ([3.0], "a single image has no spread"),
        ([0.1] * 7, "no spread to take it from"),
        ([math.inf, 1.0], "finite"),
    ],
)
def test_where_there_is_no_interval(values, note):
    ratio = Ratio.of(values)
    interval, said = student_interval(ratio.value, ratio.error, ratio.units, unit="image")
    assert interval is None
    assert note in said


def test_the_error_of_a_ratio_is_what_a_jackknife_gives():
    rng = np.random.default_rng(0)
    bottoms = rng.integers(5, 50, 400).astype(float)
    tops = bottoms * rng.gamma(3.0, 1.0, 400)
    ratio = Ratio.of(tops, bottoms)
    assert ratio.value == pytest.approx(tops.sum() / bottoms.sum())
    left_out = (tops.sum() - tops) / (bottoms.sum() - bottoms)
    jackknife = math.sqrt(399 / 400 * np.sum((left_out - left_out.mean()) ** 2))
    assert ratio.error == pytest.approx(jackknife, rel=0.02)


def test_ratios_merge_in_any_order():
    rng = np.random.default_rng(1)
    tops, bottoms = rng.integers(0, 9, (2, 60)).astype(float)
    parts = [Ratio.of(tops[i : i + 7], bottoms[i : i + 7]) for i in range(0, 60, 7)]
    whole = Ratio.of(tops, bottoms)
    assert functools.reduce(operator.add, parts) == functools.reduce(operator.add, parts[::-1]) == whole


def test_nothing_over_nothing_is_not_a_number():
    assert math.isnan(Ratio.of([0.0, 0.0], [0.0, 0.0]).value)
    assert Ratio.of([0.0, 0.0], [0.0, 0.0]).error == 0
