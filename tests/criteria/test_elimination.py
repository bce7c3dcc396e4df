"""Elimination against an independent reference: refit by least squares, and measure the error on the data."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.criteria import elimination
from onnxprune.criteria.elimination import Layer, eliminate, refit


def correlated(rng, rows, features):
    mix = np.linalg.qr(rng.standard_normal((features, features)))[0] * rng.uniform(0.5, 2, features)
    return np.maximum(rng.standard_normal((rows, features)) @ mix + rng.uniform(-0.5, 1, features), 0)


def covariance_of(x):
    around = x - x.mean(axis=0)
    return (around.T @ around / len(x))[None]


def layer_of(x, w, unit):
    return Layer.of(w[None], covariance_of(x), np.asarray(unit)[None])


def least_error(x, w, kept):
    """Variance of `W x` that the kept columns and a bias cannot explain, as a share of all of it."""
    y = x @ w.T
    columns = np.column_stack([x[:, kept], np.ones(len(x))])
    rest = y - columns @ np.linalg.lstsq(columns, y, rcond=None)[0]
    return np.square(rest).sum() / np.square(y - y.mean(axis=0)).sum()


@pytest.fixture(autouse=True)
def undamped(monkeypatch):
    monkeypatch.setattr(elimination, "DAMPING", 1e-10)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 3]))
def test_errors_are_those_of_the_best_refit(seed, taps):
    rng = np.random.default_rng(seed)
    units, outputs = 5, 4
    x, w = correlated(rng, 300, units * taps), rng.standard_normal((outputs, units * taps))
    unit = np.repeat(np.arange(units), taps)
    found = eliminate([layer_of(x, w, unit)], units)
    assert sorted(found.rungs.ravel()) == list(range(units))
    for n in range(units + 1):
        kept = ~np.isin(unit, found.rungs[:n].ravel())
        expected = least_error(x, w, kept)
        assert found.errors[n] == pytest.approx(expected, rel=1e-4, abs=1e-6)
        refitted = refit(w[None], covariance_of(x), ~kept[None])[0]
        assert not refitted[:, ~kept].any()
        y = (x - x.mean(axis=0)) @ w.T
        left = y - (x - x.mean(axis=0)) @ refitted.T
        assert np.square(left).sum() / np.square(y).sum() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@given(st.integers(0, 2**32 - 1))
def test_the_first_unit_is_the_cheapest_of_all(seed):
    rng = np.random.default_rng(seed)
    x, w = correlated(rng, 300, 6), rng.standard_normal((3, 6))
    found = eliminate([layer_of(x, w, np.arange(6))], 6)
    alone = [least_error(x, w, np.delete(np.arange(6), u)) for u in range(6)]
    assert alone[found.rungs[0, 0]] == pytest.approx(min(alone), rel=1e-4, abs=1e-9)


def test_copies_and_constants_cost_nothing_and_the_last_copy_does():
    rng = np.random.default_rng(0)
    x = correlated(rng, 500, 4)
    x = np.column_stack([x, x[:, 1], np.full(500, 3.0)])  # a copy of unit 1, and a constant
    w = rng.standard_normal((3, 6))
    found = eliminate([layer_of(x, w, np.arange(6))], 6)
    gone = found.rungs[:2].ravel().tolist()
    assert set(gone) < {1, 4, 5} and 5 in gone
    assert found.errors[2] < 1e-6 < found.errors[3]


def test_several_layers_add_up():
    rng = np.random.default_rng(1)
    x, z = correlated(rng, 400, 5), correlated(rng, 400, 10)
    v, w = rng.standard_normal((3, 5)), rng.standard_normal((6, 10))
    pairs = [(x, v, np.arange(5)), (z, w, np.repeat(np.arange(5), 2))]
    found = eliminate([layer_of(*pair) for pair in pairs], 5)
    for n in range(6):
        gone = found.rungs[:n].ravel()
        total = sum(least_error(a, b, ~np.isin(unit, gone)) for a, b, unit in pairs)
        assert found.errors[n] == pytest.approx(total, rel=1e-4, abs=1e-6)


def test_blocks_take_turns():
    """Every rung has one unit of every block, and blocks of a grouped convolution have weights of their own."""
    rng = np.random.default_rng(2)
    x = correlated(rng, 400, 8)
    around = x - x.mean(axis=0)
    covariance = np.stack([around[:, :4].T @ around[:, :4], around[:, 4:].T @ around[:, 4:]]) / 400
    w = rng.standard_normal((2, 3, 4))
    unit = np.arange(8).reshape(2, 4)
    found = eliminate([Layer.of(w, covariance, unit)], 8, np.repeat([0, 1], 4))
    assert found.rungs.shape == (4, 2)
    assert (found.rungs[:, 0] < 4).all() and (found.rungs[:, 1] >= 4).all()
    whole = np.block([[w[0], np.zeros((3, 4))], [np.zeros((3, 4)), w[1]]])
    for n in range(5):
        y = around @ whole.T
        rest = 0.0
        for block in range(2):
            kept = np.setdiff1d(np.arange(4), found.rungs[:n, block] - 4 * block)
            mine = y[:, 3 * block : 3 * block + 3]
            columns = around[:, 4 * block + kept]
            rest += np.square(mine - columns @ np.linalg.lstsq(columns, mine, rcond=None)[0]).sum()
        assert found.errors[n] == pytest.approx(rest / np.square(y).sum(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("broken", ["dead", "one sample", "no weights"])
def test_degenerate_data_gives_finite_errors(broken, monkeypatch):
    monkeypatch.setattr(elimination, "DAMPING", 1e-3)
    rng = np.random.default_rng(3)
    x, w = correlated(rng, 50, 6), rng.standard_normal((3, 6))
    if broken == "dead":
        x[:] = 0
    if broken == "one sample":
        x = x[:1]
    if broken == "no weights":
        w[:] = 0
    found = eliminate([layer_of(x, w, np.arange(6))], 6)
    assert np.isfinite(found.errors).all() and (np.diff(found.errors) >= 0).all()
    assert np.isfinite(refit(w[None], covariance_of(x), np.arange(6)[None] < 3)).all()


def test_errors_of_another_order():
    rng = np.random.default_rng(6)
    x, w = correlated(rng, 300, 5), rng.standard_normal((3, 5))
    order = np.array([[3], [0], [4], [1], [2]])
    found = eliminate([layer_of(x, w, np.arange(5))], 5, order=order)
    assert found.rungs.tolist() == order.tolist()
    for n in range(6):
        kept = ~np.isin(np.arange(5), order[:n])
        assert found.errors[n] == pytest.approx(least_error(x, w, kept), rel=1e-4, abs=1e-6)


def test_ties_go_by_index():
    layer = Layer.of(np.ones((1, 2, 4)), np.eye(4)[None], np.arange(4)[None])
    assert eliminate([layer], 4).rungs.ravel().tolist() == [0, 1, 2, 3]


def test_greedy_is_close_to_the_best_pair():
    rng = np.random.default_rng(5)
    x, w = correlated(rng, 500, 7), rng.standard_normal((4, 7))
    found = eliminate([layer_of(x, w, np.arange(7))], 7)
    pairs = [least_error(x, w, np.delete(np.arange(7), p)) for p in itertools.combinations(range(7), 2)]
    assert min(pairs) - 1e-9 <= found.errors[2] <= sorted(pairs)[4]
