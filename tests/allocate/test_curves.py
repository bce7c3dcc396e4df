"""Spending a budget along measured losses, against an exhaustive search."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.allocate.curves import spend
from onnxprune.allocate.ladder import Ladder


def ladder(losses, step=1, floor=1, name="g"):
    height = len(losses) - 1
    rungs = np.arange(height)[:, None]
    return Ladder(
        SimpleNamespace(id=name, units=height), rungs, np.diff(losses), step, floor, np.asarray(losses)
    )


def linear(weights):
    """What remains where each rung of ladder i costs `weights[i]`."""
    return lambda drops: 1000.0 - sum(w * n for w, n in zip(weights, drops, strict=True))


def best(ladders, size, goal):
    """The least loss that meets the goal, by trying everything."""
    stops = [sorted({lad.settle(n) for n in range(lad.height + 1)}) for lad in ladders]
    meets = [drops for drops in itertools.product(*stops) if size(drops) <= goal]
    losses = [sum(lad.loss[n] for lad, n in zip(ladders, drops, strict=True)) for drops in meets]
    return min(losses, default=None)


def loss_of(ladders, drops):
    return sum(lad.loss[n] for lad, n in zip(ladders, drops, strict=True))


convex = st.lists(st.floats(0.01, 1), min_size=4, max_size=7).map(
    lambda steps: np.concatenate([[0.0], np.cumsum(np.sort(steps))])
)


@given(st.lists(convex, min_size=1, max_size=3), st.floats(0.0, 1.0), st.data())
def test_meets_the_goal_and_is_within_one_rung_of_the_best(losses, share, draw):
    ladders = [ladder(each) for each in losses]
    weights = [draw.draw(st.integers(1, 5)) for _ in ladders]
    size = linear(weights)
    least = size([lad.most for lad in ladders])
    goal = 1000.0 - share * (1000.0 - least)
    drops = spend(ladders, size, goal)
    assert size(drops) <= goal
    gap = max(float(np.diff(each).max()) for each in losses)
    assert loss_of(ladders, drops) <= best(ladders, size, goal) + gap + 1e-9


def test_convex_losses_of_equal_cost_are_solved_exactly():
    rng = np.random.default_rng(0)
    ladders = [ladder(np.concatenate([[0], np.cumsum(np.sort(rng.random(6)))])) for _ in range(3)]
    size = linear([1, 1, 1])
    for goal in range(985, 1001):
        assert loss_of(ladders, spend(ladders, size, goal)) == pytest.approx(best(ladders, size, goal))


def test_a_cheap_stretch_behind_a_dear_rung_is_found():
    """A loss that is not convex: all of the second half for the price of one rung."""
    ladders = [ladder([0, 5, 5, 5, 5, 50]), ladder([0, 2, 4, 6, 8, 10])]
    assert spend(ladders, linear([1, 1]), 996) == [4, 0]


def test_what_the_last_stretch_overshoots_is_given_back():
    ladders = [ladder([0, 1, 2, 3, 4, 5, 6, 7, 8], step=4, floor=4), ladder([0, 0.9, 1.8, 2.7])]
    drops = spend(ladders, linear([1, 1]), 996)
    assert drops == [4, 0]


def test_rounding_and_floors_hold():
    ladders = [ladder(np.arange(17), step=8, floor=8), ladder(np.arange(17) * 2.0, step=4, floor=4)]
    for goal in (1000, 999, 995, 985, 900):
        drops = spend(ladders, linear([1, 1]), goal)
        assert (16 - drops[0]) % 8 == 0 and 16 - drops[0] >= 8
        assert (16 - drops[1]) % 4 == 0 and 16 - drops[1] >= 4


def test_out_of_reach_takes_everything():
    ladders = [ladder([0, 1, 2, 3]), ladder([0, 1, 2])]
    assert spend(ladders, linear([1, 1]), 0) == [2, 1]


def test_nothing_to_do():
    assert spend([ladder([0, 1, 2, 3])], linear([1]), 1000) == [0]
    assert spend([], linear([]), 0) == []
