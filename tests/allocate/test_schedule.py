"""Schedules: the values of NNCF and Neural Compressor, and what holds for all of them."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.allocate.schedule import SCHEDULES, Schedule, find_schedule, levels, polynomial
from onnxprune.errors import UsageError

NAMES = ("oneshot", "linear", "cos", "exp", "cube", "exponential", "exponential_with_bias", "polynomial")
SHARES = st.floats(0, 1, exclude_max=True)


def test_the_table():
    assert tuple(SCHEDULES) == NAMES
    assert all(find_schedule(name) is SCHEDULES[name] for name in NAMES)
    assert all(schedule.name == name for name, schedule in SCHEDULES.items())


def test_the_published_values_of_exp():
    assert [round(level, 3) for level in levels("exp", 4, 0.0, 0.9)] == [0.438, 0.684, 0.822, 0.9]


FORMULAS = {
    "oneshot": lambda i, n, r0, R: R,
    "linear": lambda i, n, r0, R: r0 + (R - r0) * i / n,
    "cos": lambda i, n, r0, R: r0 + (R - r0) * (1 - math.cos(math.pi / 2 * i / n)),
    "exp": lambda i, n, r0, R: 1 - (1 - r0) * ((1 - R) / (1 - r0)) ** (i / n),
    "cube": lambda i, n, r0, R: r0 + (R - r0) * (i / n) ** 3,
    "exponential": lambda e, T, init, target: min(
        target, 1 - (1 - init) * ((1 - target) / (1 - init)) ** (e / T)
    ),
    "polynomial": lambda e, T, init, target: target - (target - init) * (1 - e / T) ** 0.9,
}


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize(("start", "target"), [(0.0, 0.5), (0.0, 0.98), (0.2, 0.9), (0.3, 0.31)])
@pytest.mark.parametrize("rounds", [1, 2, 5, 40])
def test_formulas(name, start, target, rounds):
    expected = [FORMULAS[name](i, rounds, start, target) for i in range(1, rounds + 1)]
    np.testing.assert_allclose(levels(name, rounds, start, target), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("oneshot", [0.8, 0.8, 0.8, 0.8]),
        ("linear", [0.2, 0.4, 0.6, 0.8]),
        ("cos", [0.0609, 0.2343, 0.4939, 0.8]),
        ("cube", [0.0125, 0.1, 0.3375, 0.8]),
        ("polynomial", [0.1825, 0.3713, 0.5703, 0.8]),
    ],
)
def test_values_worked_out_by_hand(name, expected):
    np.testing.assert_allclose(levels(name, 4, 0.0, 0.8), expected, atol=5e-5)


@given(st.floats(1e-3, 0.999), st.floats(0, 0.99))
def test_exponential_with_bias_goes_through_its_three_points(target, part):
    """init at 0, 3/4 of the target after an eighth, the target at the end; and it is a exp(-k p) + b."""
    start = 0.75 * target * part
    found = (start, *levels("exponential_with_bias", 64, start, target))
    assert found[8] == pytest.approx(0.75 * target, rel=1e-6)
    assert found[64] == target
    early, middle, late = found[1] - found[0], found[9] - found[8], found[17] - found[16]
    assert middle**2 == pytest.approx(early * late, rel=1e-3, abs=1e-9)  # steps shrink by one factor


def test_exponential_with_bias_against_its_equations():
    """With q = exp(-k / 8), what a (1 - q) = -0.45 and a (1 - q^8) = -0.6 leave of a: 1 + q + ... + q^7 = 4 / 3."""
    roots = np.roots([1, 1, 1, 1, 1, 1, 1, 1 - 4 / 3])
    (q,) = (root.real for root in roots if abs(root.imag) < 1e-9 and root.real > 0)
    expected = [0.6 * (1 - q ** (i / 2)) / (1 - q**8) for i in range(1, 17)]
    found = levels("exponential_with_bias", 16, 0.0, 0.6)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert found[1] == pytest.approx(0.45, rel=1e-12)


@pytest.mark.parametrize("share", [0.72, 0.7499])
def test_exponential_with_bias_from_late_starts(share):
    """From 5/7 of the target on the curve bends the other way."""
    found = np.array(levels("exponential_with_bias", 32, share * 0.8, 0.8))
    assert found[3] == pytest.approx(0.6, rel=1e-6)
    assert (np.diff(found, 2) > -1e-12).all()


@pytest.mark.parametrize("target", [0.875, 0.7, 0.35])
def test_exponential_with_bias_is_a_line_from_five_sevenths(target):
    found = levels("exponential_with_bias", 32, target / 7 * 5, target)
    np.testing.assert_allclose(found, levels("linear", 32, target / 7 * 5, target), rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@given(st.integers(1, 50), SHARES, SHARES)
def test_levels_rise_to_the_target(name, rounds, one, other):
    start, target = sorted((one, other))
    if name == "exponential_with_bias" and 0.75 * target <= start < target and rounds > 1:
        with pytest.raises(UsageError, match="cannot start from"):
            levels(name, rounds, start, target)
        return
    found = levels(name, rounds, start, target)
    assert len(found) == rounds
    assert found[-1] == target
    assert all(isinstance(level, float) and start <= level <= target for level in found)
    assert list(found) == sorted(found)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_nothing_left_to_do(name, share):
    assert levels(name, 3, share, share) == (share,) * 3


@pytest.mark.parametrize("name", NAMES)
def test_one_round_is_the_target(name):
    assert levels(name, 1, 0.1, 0.7) == (0.7,)


def test_powers_and_schedules_of_ones_own():
    table = SCHEDULES | {"square": Schedule("square", partial(polynomial, power=2, concave=False))}
    assert levels("square", 4, 0.0, 0.8, schedules=table) == pytest.approx([0.05, 0.2, 0.45, 0.8])
    falling = {"falling": Schedule("falling", lambda progress, start, target: 2 - progress)}
    assert levels("falling", 3, 0.0, 0.5, schedules=falling) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("linaer", 4, 0.0, 0.5), r"no schedule 'linaer' \(did you mean 'linear'\?\)"),
        (("adaptive", 4, 0.0, 0.5), "no schedule 'adaptive'"),
        (("exp", 0, 0.0, 0.5), "0 rounds"),
        (("exp", -1, 0.0, 0.5), "-1 rounds"),
        (("exp", 4, -0.1, 0.5), "the start of the schedule, -0.1, is not in"),
        (("exp", 4, 0.0, 1.0), "the target of the schedule, 1, is not in"),
        (("exp", 4, 0.0, math.nan), "the target of the schedule, nan, is not in"),
        (("exp", 4, math.inf, 0.5), "the start of the schedule, inf, is not in"),
        (("exp", 4, 0.6, 0.5), "starts from 0.6, beyond its target 0.5"),
        (("exponential_with_bias", 4, 0.45, 0.6), "cannot start from 0.45"),
    ],
)
def test_what_means_nothing(arguments, message):
    with pytest.raises(UsageError, match=message) as error:
        levels(*arguments)
    assert error.value.hint
