"""Ladders: the order in which units go, rounding, minima, blocks."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import numpy as np
import pytest

from onnxprune.allocate.ladder import build_ladder
from onnxprune.graph.groups import Group


def group(units: int, *, blocks=None, width: int = 1, name: str = "g0") -> Group:
    cells = None if blocks is None else np.asarray(blocks, np.int64)
    return Group(name, name, units, (), (), (), cells, width, 0)


def ladder(scores, *, round_to=8, min_channels=1, max_ratio=1.0, **options):
    scores = np.asarray(scores, np.float64)
    made = group(len(scores), **options)
    return build_ladder(made, scores, round_to=round_to, min_channels=min_channels, max_ratio=max_ratio)


def nncf(total: int, level: str) -> int:
    return max(total - ceil(total * (1 - Fraction(level)) / 8) * 8, 0)


@pytest.mark.parametrize("width", [8, 15, 16, 20, 24, 32, 64, 100, 128, 200])
@pytest.mark.parametrize("level", ["0.1", "0.25", "0.3", "0.4", "0.5", "0.7", "0.9"])
def test_rounding_is_nncfs(width, level):
    dropped = ladder(np.arange(width)).settle(int(width * Fraction(level)))
    assert dropped == nncf(width, level)


@pytest.mark.parametrize(
    ("width", "level", "lost"), [(32, 0.4, 8), (64, 0.4, 24), (128, 0.4, 48), (16, 0.3, 0)]
)
def test_the_published_examples(width, level, lost):
    assert ladder(np.arange(width)).settle(int(width * level)) == lost


@pytest.mark.parametrize("dropped", range(33))
def test_exactly_k_go(dropped):
    keep = ladder(np.random.default_rng(0).random(32)).keep(dropped)
    assert (~keep).sum() == dropped


def test_the_least_important_go_first():
    scores = [5.0, 1.0, 4.0, 2.0, 3.0]
    order = ladder(scores, round_to=1)
    assert [np.flatnonzero(~order.keep(k)).tolist() for k in range(4)] == [[], [1], [1, 3], [1, 3, 4]]
    assert order.scores.tolist() == [1, 2, 3, 4, 5]


def test_ties_are_broken_by_index():
    """Exactly k of equal units go, and always the same: no threshold takes all of them, no random choice."""
    scores = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    order = ladder(scores, round_to=1)
    assert np.flatnonzero(~order.keep(3)).tolist() == [1, 3, 4]
    assert np.flatnonzero(~order.keep(6)).tolist() == [0, 1, 3, 4, 6, 7]
    assert np.flatnonzero(~ladder(np.zeros(40)).keep(16)).tolist() == list(range(16))


def test_nothing_goes_at_0():
    order = ladder(np.zeros(32))
    assert order.settle(0) == 0
    assert order.keep(0).all()


@pytest.mark.parametrize(
    ("units", "options", "least"),
    [
        (64, {}, 8),
        (64, {"min_channels": 20}, 24),
        (64, {"min_channels": 20, "round_to": 1}, 20),
        (64, {"round_to": 1}, 1),
        (64, {"max_ratio": 0.9}, 8),
        (200, {"max_ratio": 0.9}, 24),
        (200, {"max_ratio": 0.9, "round_to": 1}, 20),
        (10, {"max_ratio": 0.9, "round_to": 1}, 1),
        (8, {}, 8),
        (5, {}, 5),
        (12, {}, 8),
        (7, {"min_channels": 9, "round_to": 1}, 7),
    ],
)
def test_the_minimum(units, options, least):
    order = ladder(np.arange(units), **options)
    assert units - order.most == least
    assert order.keep(order.most).sum() == least


@pytest.mark.parametrize("dropped", range(65))
def test_settling_never_drops_more_than_asked(dropped):
    order = ladder(np.arange(64), min_channels=24, round_to=8)
    settled = order.settle(dropped)
    kept = 64 - settled
    assert settled <= dropped
    assert kept % 8 == 0
    assert kept >= 24
    assert dropped - settled < 8 or kept == 24


@pytest.mark.parametrize(
    ("width", "round_to", "allowed"),
    [
        (64, 8, [1, 2, 3, 4, 5, 6, 7, 8]),  # a head of 64 dimensions is a multiple of 8 by itself
        (12, 8, [2, 4, 6, 8]),
        (4, 8, [2, 4, 6, 8]),
        (6, 4, [2, 4, 6, 8]),
        (3, 8, [8]),
        (1, 1, [1, 2, 3, 4, 5, 6, 7, 8]),
    ],
)
def test_heads_are_rounded_by_their_dimensions(width, round_to, allowed):
    order = ladder(np.arange(8), width=width, round_to=round_to)
    assert sorted({8 - order.settle(k) for k in range(9)}) == allowed


def test_blocks_stay_balanced():
    blocks = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    scores = np.random.default_rng(3).random(12)
    order = ladder(scores, blocks=blocks, round_to=1)
    assert order.height == 4
    for k in range(5):
        keep = order.keep(k)
        assert np.bincount(np.asarray(blocks)[keep], minlength=3).tolist() == [4 - k] * 3
        for block in range(3):  # within a block the least important go
            mine = np.flatnonzero(np.asarray(blocks) == block)
            assert set(mine[~keep[mine]]) == set(mine[np.argsort(scores[mine])][:k])
    assert order.scores.tolist() == sorted(order.scores)
    assert order.scores.sum() == pytest.approx(scores.sum())


def test_blocks_count_all_their_channels_for_rounding():
    """Four blocks lose four channels at a time, so the width is a multiple of 8 at every second rung."""
    order = ladder(np.arange(32), blocks=np.repeat(np.arange(4), 8), round_to=8)
    assert sorted({4 * (8 - order.settle(k)) for k in range(9)}) == [8, 16, 24, 32]
    assert order.keep(order.most).sum() == 8


def test_a_group_that_is_narrower_than_a_step_stays_whole():
    assert ladder(np.arange(8)).most == 0
    assert ladder(np.arange(3), width=3).most == 0
