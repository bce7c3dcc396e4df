"""The repair of one layer against plain least squares, and what it must never do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.repair import fit as module
from onnxprune.repair.fit import fit
from onnxprune.statistics.moments import Moments


def data(rng, rows, features=5, outputs=3, noise=0.1):
    mix = np.linalg.qr(rng.standard_normal((features, features)))[0] * rng.uniform(0.5, 2, features)
    x = rng.standard_normal((rows, features)) @ mix + rng.standard_normal(features)
    w, b = rng.standard_normal((outputs, features)), rng.standard_normal(outputs)
    t = x @ w.T + b + noise * rng.standard_normal((rows, outputs))
    return x, t


def moments(x, t):
    return Moments.of(np.concatenate([x, t], axis=1)[None])


def error(x, t, w, b):
    return float(np.square(t - x @ w.T - b).sum(axis=1).mean())


@given(st.integers(0, 2**32 - 1))
def test_without_a_ridge_it_is_least_squares_with_an_intercept(seed):
    rng = np.random.default_rng(seed)
    x, t = data(rng, 200)
    old = np.zeros((1, 3, 5))
    both = moments(x, t)
    original = module.RIDGES
    module.RIDGES = (1e-12,)
    try:
        found = fit(both, both, old, np.zeros((1, 3)), ["affine"])
    finally:
        module.RIDGES = original
    columns = np.column_stack([x, np.ones(len(x))])
    best = np.linalg.lstsq(columns, t, rcond=None)[0]
    np.testing.assert_allclose(found.weight[0], best[:-1].T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.bias[0], best[-1], rtol=1e-5, atol=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.sampled_from(["affine", "rescale", "bias"]))
def test_errors_are_those_of_the_rows_and_never_above_the_old_ones(seed, rows, kind):
    """Also with fewer rows than features."""
    rng = np.random.default_rng(seed)
    x, t = data(rng, rows)
    other = data(rng, 40)
    w, b = rng.standard_normal((1, 3, 5)), rng.standard_normal((1, 3))
    found = fit(moments(x, t), moments(*other), w, b, [kind])
    assert found.before == pytest.approx(error(*other, w[0], b[0]), rel=1e-6)
    assert found.error == pytest.approx(error(*other, found.weight[0], found.bias[0]), rel=1e-6, abs=1e-9)
    assert found.error <= found.before
    assert found.kind in (kind, "none")
    on_itself = fit(moments(x, t), moments(x, t), w, b, [kind])
    assert error(x, t, on_itself.weight[0], on_itself.bias[0]) <= error(x, t, w[0], b[0]) * (1 + 1e-9) + 1e-9


def test_more_kinds_are_no_worse():
    rng = np.random.default_rng(0)
    x, t = data(rng, 100)
    w, b = rng.standard_normal((1, 3, 5)), np.zeros((1, 3))
    errors = [
        fit(moments(x, t), moments(x, t), w, b, kinds).error for kinds in ([], ["bias"], ["bias", "rescale"])
    ]
    assert errors == sorted(errors, reverse=True) and errors[2] < errors[1] < errors[0]


def test_rescale_and_bias_match_mean_and_correlation():
    rng = np.random.default_rng(1)
    x, _ = data(rng, 500)
    w = rng.standard_normal((1, 3, 5))
    scale, shift = np.array([0.5, 2.0, 1.5]), np.array([1.0, -2.0, 0.0])
    t = (x @ w[0].T) * scale + shift
    found = fit(moments(x, t), moments(x, t), w, np.zeros((1, 3)), ["rescale"])
    np.testing.assert_allclose(found.weight[0], w[0] * scale[:, None], rtol=1e-6)
    np.testing.assert_allclose(found.bias[0], shift, atol=1e-6)


def test_the_ridge_draws_to_the_old_weights():
    """With hardly any data the repair changes hardly anything."""
    rng = np.random.default_rng(2)
    x, t = data(rng, 2, noise=0.0)
    w = rng.standard_normal((1, 3, 5))
    module_ridges = module.RIDGES
    module.RIDGES = (1e6,)
    try:
        found = fit(moments(x, t), moments(x, t), w, np.zeros((1, 3)), ["affine"])
    finally:
        module.RIDGES = module_ridges
    np.testing.assert_allclose(found.weight, w, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("broken", ["zeros", "constant", "one row", "nan", "copies"])
def test_degenerate_data_gives_finite_weights(broken):
    rng = np.random.default_rng(3)
    x, t = data(rng, 30)
    if broken == "zeros":
        x[:] = 0
    if broken == "constant":
        x[:] = x[0]
    if broken == "one row":
        x, t = x[:1], t[:1]
    if broken == "nan":
        x[0, 0] = np.nan
    if broken == "copies":
        x[:] = x[:, :1]
    w, b = rng.standard_normal((1, 3, 5)), rng.standard_normal((1, 3))
    found = fit(moments(x, t), moments(x, t), w, b, ["affine", "rescale", "bias"])
    assert np.isfinite(found.weight).all() and np.isfinite(found.bias).all()
    if broken == "nan":
        assert found.kind == "none" and found.weight is w


def test_groups_are_fitted_apart():
    rng = np.random.default_rng(4)
    parts = [data(rng, 100) for _ in range(2)]
    rows = np.stack([np.concatenate(part, axis=1) for part in parts])
    w = rng.standard_normal((2, 3, 5))
    both = Moments.of(rows)
    found = fit(both, both, w, np.zeros((2, 3)), ["bias"])
    for g, (x, t) in enumerate(parts):
        alone = fit(moments(x, t), moments(x, t), w[g : g + 1], np.zeros((1, 3)), ["bias"])
        np.testing.assert_allclose(found.bias[g], alone.bias[0])


def test_weights_are_compared_as_they_will_be_stored():
    """The best weights, rounded, are among the candidates; for nearly collinear inputs others are better."""
    gains = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((400, 1)) + 0.1 * rng.standard_normal((400, 5))
        old = np.rint(rng.standard_normal((1, 3, 5)) * 4) / 4
        t = x @ old[0].T + 0.3 * rng.standard_normal((400, 3)) + x[:, :3]
        seen, held = moments(x[:200], t[:200]), moments(x[200:], t[200:])

        def stored(matrix):
            return np.rint(matrix * 4) / 4

        found = fit(seen, held, old, np.zeros((1, 3)), ["affine", "bias"], stored)
        assert np.array_equal(found.weight, stored(found.weight))
        assert found.error == pytest.approx(error(x[200:], t[200:], found.weight[0], found.bias[0]), rel=1e-6)
        blind = fit(seen, held, old, np.zeros((1, 3)), ["affine", "bias"])
        rounded = stored(blind.weight)[0]
        bias = t[:200].mean(axis=0) - rounded @ x[:200].mean(axis=0)
        gains.append(error(x[200:], t[200:], rounded, bias) / found.error)
        assert found.error <= found.before
    assert min(gains) > 1 - 1e-9 and np.median(gains) > 1.01
