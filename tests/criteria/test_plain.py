"""What a layer loses when nothing makes up for it, against the rows themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.criteria.elimination import eliminate
from onnxprune.criteria.plain import Plain
from onnxprune.statistics.moments import Moments

UNITS = 6


def layer(rng, blocks, features=9, outputs=4, rows=80):
    """Weights, rows (blocks, rows, features) far from zero, and units of which two features have none."""
    weight = rng.standard_normal((blocks, outputs, features))
    mix = rng.standard_normal((features, features))
    x = rng.standard_normal((blocks, rows, features)) @ mix + 2 * rng.standard_normal(features)
    unit = np.stack([rng.permutation([-1, -1, *range(UNITS), 0][:features]) for _ in range(blocks)])
    return weight, x, unit


def error(weight, x, unit, gone, shifted):
    """Mean square of what the outputs lose, summed over them, as a share of their variance."""
    flags = (unit >= 0) & gone[np.maximum(unit, 0)]
    lost = np.einsum("gof,grf->gro", weight, np.where(flags[:, None], x, 0.0))
    if shifted:
        lost = lost - lost.mean(axis=1, keepdims=True)
    whole = np.einsum("gof,grf->gro", weight, x)
    return np.square(lost).mean(axis=1).sum() / whole.var(axis=1).sum()


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2]), st.booleans())
def test_costs_are_changes_of_the_error(seed, blocks, shifted):
    rng = np.random.default_rng(seed)
    weight, x, unit = layer(rng, blocks)
    part = Plain.of(weight, Moments.of(x), unit, UNITS, shifted=shifted)
    gone = np.zeros(UNITS, bool)
    for member in rng.permutation(UNITS).tolist():
        before = error(weight, x, unit, gone, shifted)
        trials = np.array(
            [error(weight, x, unit, gone | (np.arange(UNITS) == u), shifted) for u in range(UNITS)]
        )
        np.testing.assert_allclose(part.costs(UNITS)[~gone], (trials - before)[~gone], rtol=1e-6, atol=1e-8)
        assert part.drop(member) == pytest.approx(trials[member] - before, rel=1e-6, abs=1e-8)
        gone[member] = True


def test_a_unit_that_undoes_another_goes_with_it():
    """Two inputs that cancel: alone each costs much, together nothing; the third is cheap, but not free."""
    rng = np.random.default_rng(0)
    a, c = rng.standard_normal((2, 500))
    x = np.stack([a, -a, 0.3 * c], axis=1)[None]
    part = Plain.of(np.ones((1, 1, 3)), Moments.of(x), np.arange(3)[None], 3, shifted=False)
    first = part.drop(0)
    assert first > 5 and part.costs(3)[1] == pytest.approx(-first, rel=0.1)
    fresh = Plain.of(np.ones((1, 1, 3)), Moments.of(x), np.arange(3)[None], 3, shifted=False)
    assert eliminate([fresh], 3).rungs[0, 0] == 2
    again = Plain.of(np.ones((1, 1, 3)), Moments.of(x), np.arange(3)[None], 3, shifted=False)
    given_order = eliminate([again], 3, order=np.array([[0], [1], [2]]))
    assert given_order.rungs.ravel().tolist() == [0, 1, 2]
    assert given_order.errors[1] > 3.0
