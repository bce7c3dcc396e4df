"""Elimination of query and key dims against an independent reference: the best matrix between, by least squares."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.criteria import elimination
from onnxprune.criteria.elimination import Layer, eliminate
from onnxprune.criteria.logits import Logits


def correlated(rng, heads, rows, dims, mean=0.5):
    mix = np.linalg.qr(rng.standard_normal((heads, dims, dims)))[0] * rng.uniform(0.3, 2, (heads, 1, dims))
    return rng.standard_normal((heads, rows, dims)) @ mix + mean * rng.standard_normal((heads, 1, dims))


def second(x):
    return x.transpose(0, 2, 1) @ x / x.shape[1]


def covariance(x):
    return second(x - x.mean(axis=1, keepdims=True))


def plain(x):
    return second(x), second(x)


def least_error(q, k, kept, *, bias=False):
    """Least squares of all logits (every query with every key) on the products that are left, head by head."""
    lost = whole = 0.0
    for mine, other in zip(q, k, strict=True):
        logits = (mine @ other.T).ravel()
        left = np.column_stack([mine[:, kept], np.ones(len(mine))]) if bias else mine[:, kept]
        products = np.einsum("ia,jb->ijab", left, other[:, kept]).reshape(len(logits), -1)
        rest = logits - products @ np.linalg.lstsq(products, logits, rcond=None)[0]
        lost, whole = lost + np.square(rest).sum(), whole + np.square(logits).sum()
    return lost / whole


@pytest.fixture(autouse=True)
def undamped(monkeypatch):
    monkeypatch.setattr(elimination, "DAMPING", 1e-10)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2]), st.booleans())
def test_errors_are_those_of_the_best_matrix_between(seed, width, bias):
    rng = np.random.default_rng(seed)
    units = 4
    q, k = correlated(rng, 2, 40, units * width), correlated(rng, 2, 30, units * width)
    unit = np.repeat(np.arange(units), width)
    queries = (second(q), covariance(q)) if bias else plain(q)
    found = eliminate([Logits.of(queries, plain(k), unit)], units)
    assert sorted(found.rungs.ravel()) == list(range(units))
    assert (np.diff(found.errors) >= -1e-12).all()
    for n in range(units):
        kept = ~np.isin(unit, found.rungs[:n].ravel())
        assert found.errors[n] == pytest.approx(least_error(q, k, kept, bias=bias), rel=1e-4, abs=1e-7)
    if not bias:
        assert found.errors[units] == pytest.approx(1.0, rel=1e-6)


@given(st.integers(0, 2**32 - 1))
def test_the_first_unit_is_the_cheapest_of_all(seed):
    rng = np.random.default_rng(seed)
    q, k = correlated(rng, 3, 30, 5), correlated(rng, 3, 30, 5)
    found = eliminate([Logits.of(plain(q), plain(k), np.arange(5))], 5)
    errors = [least_error(q, k, np.arange(5) != u) for u in range(5)]
    assert found.errors[1] == pytest.approx(min(errors), rel=1e-5, abs=1e-9)
    assert errors[found.rungs[0, 0]] == pytest.approx(min(errors), rel=1e-5, abs=1e-9)


def test_any_order_leads_to_the_same_error():
    rng = np.random.default_rng(1)
    q, k = correlated(rng, 2, 50, 6), correlated(rng, 2, 50, 6)
    last = [
        eliminate(
            [Logits.of(plain(q), plain(k), np.arange(6))],
            6,
            order=np.array([*first, *{*range(6)} - {*first}])[:, None],
        ).errors[3]
        for first in itertools.permutations((0, 2, 5))
    ]
    assert last == pytest.approx([last[0]] * 6, rel=1e-6)


def test_dims_that_others_can_replace_cost_nothing():
    """Of queries and of keys: with the rest of the one only, the other's part would be lost."""
    rng = np.random.default_rng(2)
    q, k = correlated(rng, 1, 60, 4), correlated(rng, 1, 60, 4)
    q[..., 3] = q[..., :3] @ [0.5, -1, 2]
    assert eliminate([Logits.of(plain(q), plain(k), np.arange(4))], 4).errors[1] > 1e-3
    k[..., 3] = k[..., :3] @ [1, 1, -0.5]
    found = eliminate([Logits.of(plain(q), plain(k), np.arange(4))], 4)
    assert found.errors[1] < 1e-6


def test_blocks_take_turns_and_layers_count_too():
    rng = np.random.default_rng(3)
    q, k, x = (correlated(rng, 1, 60, 6) for _ in range(3))
    layer = Layer.of(rng.standard_normal((1, 3, 6)), covariance(x), np.arange(6)[None])
    blocks = np.array([0, 1, 0, 1, 0, 1])
    product = Logits.of(plain(q), plain(k), np.arange(6))
    found = eliminate([product, layer], 6, blocks)
    assert found.rungs.shape == (3, 2)
    assert [blocks[rung].tolist() for rung in found.rungs] == [[0, 1]] * 3
    assert found.errors[-1] == pytest.approx(2.0, rel=1e-6)


def test_dead_dims_are_free():
    rng = np.random.default_rng(4)
    q, k = correlated(rng, 2, 60, 4), correlated(rng, 2, 60, 4)
    q[..., 1] = 0
    found = eliminate([Logits.of(plain(q), plain(k), np.arange(4))], 4)
    assert found.rungs[0, 0] == 1 and found.errors[1] < 1e-9
    nothing = eliminate([Logits.of(plain(0 * q), plain(k), np.arange(4))], 4)
    assert np.isfinite(nothing.errors).all()
