"""Exchange against all subsets, with errors from least squares on the data."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.criteria import elimination
from onnxprune.criteria.elimination import Layer, eliminate
from onnxprune.criteria.exchange import LEAST, error, exchange


def correlated(rng, rows, features):
    """Sums of few sources, so that features stand in for each other."""
    sources = rng.standard_normal((rows, max(features // 2, 2)))
    return sources @ rng.standard_normal((sources.shape[1], features)) + 0.5 * rng.standard_normal(
        (rows, features)
    )


def covariance_of(x):
    around = x - x.mean(axis=0)
    return (around.T @ around / len(x))[None]


def part_of(x, w, unit):
    return w[None], covariance_of(x), np.asarray(unit)[None]


def least_error(x, w, kept):
    """Variance of `W x` that the kept columns and a bias cannot explain, as a share of all of it."""
    y = x @ w.T
    columns = np.column_stack([x[:, kept], np.ones(len(x))])
    rest = y - columns @ np.linalg.lstsq(columns, y, rcond=None)[0]
    return np.square(rest).sum() / np.square(y - y.mean(axis=0)).sum()


def flags(units, members):
    return np.isin(np.arange(units), members)


def sets(units, count):
    return [flags(units, chosen) for chosen in itertools.combinations(range(units), count)]


def greedy(parts, units, count, blocks=None):
    return flags(units, eliminate([Layer.of(*part) for part in parts], units, blocks).rungs[:count])


@pytest.fixture(autouse=True)
def undamped(monkeypatch):
    monkeypatch.setattr(elimination, "DAMPING", 1e-10)


@pytest.fixture
def misled():
    """Unit 2 has no weight and goes first, although it nearly is the sum of the others, the output."""
    rng = np.random.default_rng(0)
    a, b, noise = rng.standard_normal((3, 1000))
    return np.column_stack([a, b, a + b + 0.1 * noise]), np.array([[1.0, 1.0, 0.0]])


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 3]), st.integers(1, 5))
def test_between_greedy_and_the_best_of_all_subsets(seed, taps, count):
    """From any set the error is exact and never rises; behind the greedy order no swap is left that helps."""
    rng = np.random.default_rng(seed)
    units, unit = 6, np.repeat(np.arange(6), taps)
    data = [(correlated(rng, 200, 6 * taps), rng.standard_normal((3, 6 * taps))) for _ in range(2)]
    parts = [part_of(x, w, unit) for x, w in data]

    def by_lstsq(gone):
        return sum(least_error(x, w, ~gone[unit]) for x, w in data)

    best = min(by_lstsq(gone) for gone in sets(units, count))
    first = greedy(parts, units, count)
    for start in (first, rng.permutation(flags(units, range(count)))):
        found = exchange(parts, start)
        assert found.gone.sum() == count
        assert found.swapped == (found.gone & ~start).sum()
        assert found.before == pytest.approx(by_lstsq(start), rel=1e-5, abs=1e-7)
        assert found.after == pytest.approx(by_lstsq(found.gone), rel=1e-5, abs=1e-7)
        assert best * (1 - 1e-5) - 1e-7 <= found.after <= found.before
        if start is not first:  # from far away the swaps may be used up before none is left that helps
            continue
        near = [by_lstsq(gone) for gone in sets(units, count) if (gone & ~found.gone).sum() == 1]
        assert found.after <= min(near) / (1 - LEAST) * (1 + 1e-5) + 1e-7


def test_greedy_misled_by_a_weight_of_zero(misled):
    x, w = misled
    parts = [part_of(x, w, np.arange(3))]
    start = greedy(parts, 3, 2)
    assert start[2] and error(parts, start) > 0.4
    found = exchange(parts, start)
    assert found.gone.tolist() == [True, True, False] and found.swapped == 1
    assert found.after == pytest.approx(min(error(parts, gone) for gone in sets(3, 2))) and found.after < 0.01


def test_what_greedy_got_right_stays():
    """Of uncorrelated features the weakest go; there is nothing to swap, and equal ones are not swapped either."""
    weight = np.array([[[3.0, 1.0, 1.0, 1.0, 2.0, 5.0]]])
    parts = [(weight, np.eye(6)[None], np.arange(6)[None])]
    for count in range(1, 6):
        start = greedy(parts, 6, count)
        found = exchange(parts, start)
        assert found.swapped == 0 and found.gone.tolist() == start.tolist()
        assert found.after == found.before == pytest.approx(np.square(weight)[0, :, start].sum() / 41)


def test_blocks_keep_their_sizes(misled):
    """Two groups of a convolution; in the second one there is nothing that could be better."""
    x, w = misled
    covariance = np.concatenate([covariance_of(x), np.eye(3)[None]])
    parts = [(np.stack([w, [[1.0, 3.0, 2.0]]]), covariance, np.arange(6).reshape(2, 3))]
    blocks = np.repeat([0, 1], 3)
    start = greedy(parts, 6, 2, blocks)
    assert start[2] and start[3:].tolist() == [True, False, True]
    found = exchange(parts, start, blocks)
    assert found.gone.tolist() == [True, True, False, True, False, True]


def test_no_swap_across_blocks(misled):
    """Across them the swap would help, as it does without blocks."""
    x, w = misled
    parts = [part_of(x, w, np.arange(3))]
    start = flags(3, [0, 2])
    assert exchange(parts, start, np.array([0, 0, 0])).swapped == 1
    found = exchange(parts, start, np.array([0, 1, 2]))
    assert found.swapped == 0 and found.gone.tolist() == start.tolist()


def test_features_of_nobody_and_units_of_several_sizes():
    """A layer behind a Concat: some features are of other groups, and one unit has more features than others."""
    rng = np.random.default_rng(4)
    x, w = correlated(rng, 400, 9), rng.standard_normal((3, 9))
    unit = np.array([-1, 0, 0, 1, 2, 3, -1, 4, 4])
    parts = [part_of(x, w, unit), part_of(x[:, :2], w[:, :2], [0, 3])]
    scores = [
        least_error(x, w, ~(flags(5, gone)[unit] & (unit >= 0)))
        + least_error(x[:, :2], w[:, :2], ~flags(5, gone)[[0, 3]])
        for gone in itertools.combinations(range(5), 2)
    ]
    found = [exchange(parts, gone) for gone in sets(5, 2)]
    assert [each.before for each in found] == pytest.approx(scores, rel=1e-5)
    assert min(each.after for each in found) == pytest.approx(min(scores), rel=1e-5)
    assert any(each.swapped for each in found)


@pytest.mark.parametrize("broken", ["dead", "one sample", "copies", "no weights"])
def test_singular_covariances_give_finite_errors(broken, monkeypatch):
    monkeypatch.setattr(elimination, "DAMPING", 1e-3)
    rng = np.random.default_rng(3)
    x, w = correlated(rng, 50, 8), rng.standard_normal((3, 8))
    if broken == "dead":
        x[:] = 0
    if broken == "one sample":
        x = x[:1]
    if broken == "copies":
        x[:, 4:] = x[:, :4]
    if broken == "no weights":
        w[:] = 0
    parts = [part_of(x, w, np.repeat(np.arange(4), 2))]
    for count in range(5):
        found = exchange(parts, flags(4, range(count)))
        assert found.gone.sum() == count
        assert np.isfinite([found.before, found.after]).all() and 0 <= found.after <= found.before


def test_the_same_again_and_nothing_mutated():
    rng = np.random.default_rng(7)
    parts = [part_of(correlated(rng, 100, 12), rng.standard_normal((4, 12)), np.arange(12))]
    start = flags(12, range(6))
    copies = [[array.copy() for array in part] for part in parts]
    first, second = exchange(parts, start), exchange(parts, start)
    assert first.swapped and first.gone.tolist() == second.gone.tolist() and first.after == second.after
    assert start.tolist() == flags(12, range(6)).tolist()
    assert all(
        (a == b).all()
        for part, copy in zip(parts, copies, strict=True)
        for a, b in zip(part, copy, strict=True)
    )
