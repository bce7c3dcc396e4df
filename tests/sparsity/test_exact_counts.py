"""Exactly so many weights go, by one ranking, per layer or per output; shares and locks are kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.patterns import Grid, parse_pattern
from onnxprune.sparsity.select import Scored, count, level_of, select

ELEMENT = parse_pattern("element")


def layers(rng: np.random.Generator, *grids: Grid, ties: bool = False) -> list[Scored]:
    found = []
    for number, grid in enumerate(grids):
        scores = rng.integers(0, 3, grid.shape).astype(float) if ties else rng.random(grid.shape)
        found.append(Scored(f"w{number}", grid, scores))
    return found


GRIDS = (Grid(8, 12), Grid(4, 4, 9), Grid(16, 8))


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 0.999), st.integers(0, 2**16), st.booleans(), st.sampled_from(["global", "local", "row"]))
def test_exactly_so_many_go(level, seed, ties, scope):
    """Ties neither take more along nor leave some out; at level 0 nothing goes."""
    mine = layers(np.random.default_rng(seed), *GRIDS, ties=ties)
    zeros = select(mine, ELEMENT, level, scope=scope)
    if scope == "global":
        assert sum(int(z.sum()) for z in zeros.values()) == count(level, sum(g.size for g in GRIDS))
    for layer in mine:
        flags = zeros[layer.name]
        if scope == "local":
            assert flags.sum() == count(level, layer.grid.size)
        if scope == "row":
            assert (flags.sum(axis=1) == count(level, layer.grid.columns)).all()
        gone, kept = layer.scores[flags], layer.scores[~flags]
        if scope == "local" and len(gone) and len(kept):
            assert gone.max() <= kept.min()
    if level == 0:
        assert not any(flags.any() for flags in zeros.values())


def test_a_global_ranking_is_one_sort_of_everything():
    mine = layers(np.random.default_rng(1), *GRIDS)
    zeros = select(mine, ELEMENT, 0.37)
    scores = np.concatenate([layer.scores.ravel() for layer in mine])
    flags = np.concatenate([zeros[layer.name].ravel() for layer in mine])
    expected = np.zeros(len(scores), bool)
    expected[np.argsort(scores, kind="stable")[: int(0.37 * len(scores))]] = True
    assert (flags == expected).all()


def test_what_a_layer_may_not_lose_the_others_do():
    """One layer has all low scores: it stops at its largest share, the rest of the budget goes elsewhere."""
    rng = np.random.default_rng(2)
    low = Scored("low", Grid(10, 10), rng.random((10, 10)) * 0.01)
    high = Scored("high", Grid(10, 10), 1 + rng.random((10, 10)))
    free = select([low, high], ELEMENT, 0.5)
    assert free["low"].all() and not free["high"].any()
    capped = select([low, high], ELEMENT, 0.5, max_ratio=0.8)
    assert (capped["low"].sum(), capped["high"].sum()) == (80, 20)
    reserved = select([low, high], ELEMENT, 0.5, min_ratio=0.1)
    assert (reserved["low"].sum(), reserved["high"].sum()) == (90, 10)
    assert level_of(capped) == level_of(reserved) == 0.5


def test_zeros_that_are_there_go_first_and_count():
    rng = np.random.default_rng(3)
    gone = rng.random((8, 12)) < 0.3
    layer = Scored("w", GRIDS[0], rng.random((8, 12)), gone)
    zeros = select([layer], ELEMENT, 0.5)["w"]
    assert zeros[gone].all() and zeros.sum() == 48
    fewer = select([layer], ELEMENT, 0.1)["w"]
    assert (fewer == gone).all()


@pytest.mark.parametrize("how", ["mean", "sum", "max"])
def test_blocks_are_ranked_by_what_their_scores_become(how):
    rng = np.random.default_rng(4)
    pattern, grid = parse_pattern("4x1"), Grid(8, 6)
    scores = rng.random(grid.shape)
    zeros = select([Scored("w", grid, scores)], pattern, 0.5, reduce=how)["w"]
    blocks = getattr(scores.reshape(2, 4, 6), how)(axis=1)
    expected = np.zeros(12, bool)
    expected[np.argsort(blocks.ravel())[:6]] = True
    assert (zeros.reshape(2, 4, 6).all(axis=1).ravel() == expected).all()
    assert zeros.sum() == 24


def test_blocks_of_different_sizes_stop_before_the_budget():
    """Channels of a 3x3 convolution are 9 times as many weights as those of a matrix: never more than asked
    for go."""
    pattern = parse_pattern("1xchannel")
    mine = layers(np.random.default_rng(5), *GRIDS)
    for level in np.linspace(0.05, 0.9, 12):
        zeros = select(mine, pattern, level)
        total = sum(int(flags.sum()) for flags in zeros.values())
        assert total <= level * sum(grid.size for grid in GRIDS) + 1e-9
        assert all((flags.all(axis=1) | ~flags.any(axis=1)).all() for flags in zeros.values())


def test_n_of_m_below_its_level_zeroes_some_tuples_only():
    pattern, grid = parse_pattern("2:4"), Grid(6, 8)
    scores = np.random.default_rng(6).random(grid.shape)
    per_tuple = select([Scored("w", grid, scores)], pattern, 0.25)["w"].reshape(-1, 4).sum(axis=1)
    assert set(per_tuple) == {0, 2} and per_tuple.sum() == 12
    full = select([Scored("w", grid, scores)], pattern, 0.5)["w"].reshape(-1, 4).sum(axis=1)
    assert (full == 2).all()
