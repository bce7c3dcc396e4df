from __future__ import annotations

import functools
import math
import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.evaluate.fidelity import Fidelity, OutputTally, tally_output


def fidelity(a, b, *, rows=True):
    return tally_output(np.asarray(a), np.asarray(b), rows=rows).fidelity("y")


def noisy(seed=0, shape=(40, 6), noise=0.1):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(shape).astype(np.float32)
    return a, (a + noise * rng.standard_normal(shape)).astype(np.float32)


def test_equal_outputs():
    a, _ = noisy()
    found = fidelity(a, a.copy())
    assert (found.top1_agreement, found.kl, found.max_abs_diff, found.equal) == (1.0, 0.0, 0.0, 1.0)
    assert found.cosine == pytest.approx(1, abs=1e-12)
    assert found.sqnr_db == math.inf
    assert found.max_abs == pytest.approx(np.abs(a).max())
    assert (found.rows, found.mismatched) == (40, 0)


def test_the_definitions():
    a, b = noisy(noise=0.5)
    found = fidelity(a, b)
    a, b = a.astype(float), b.astype(float)
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (a, b))
    assert found.kl == pytest.approx((p * np.log(p / q)).sum(1).mean())
    assert found.top1_agreement == (a.argmax(1) == b.argmax(1)).mean() < 1
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    assert found.cosine == pytest.approx(((a * b).sum(1) / norms).mean())
    assert found.sqnr_db == pytest.approx(10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()))
    assert found.max_abs_diff == pytest.approx(np.abs(a - b).max())
    assert found.equal == 0


def test_known_values():
    found = fidelity([[0.0, 10.0]], [[0.0, 11.0]])
    assert found.sqnr_db == pytest.approx(20)
    assert fidelity([[1.0, 0.0]], [[0.0, 1.0]]).cosine == 0
    assert fidelity([[1.0, 2.0]], [[-1.0, -2.0]]).cosine == pytest.approx(-1)


def test_cosine_of_single_numbers_is_that_of_all_of_them():
    """One probability per sample: each alone would have a cosine of 1 with anything positive."""
    a, b = np.array([[0.9], [0.1], [0.4]], np.float32), np.array([[0.2], [0.8], [0.4]], np.float32)
    expected = float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))
    assert fidelity(a, b).cosine == pytest.approx(expected)
    assert fidelity(a, a).cosine == pytest.approx(1)
    assert fidelity(a, -a).cosine == pytest.approx(-1)
    assert fidelity(a[:, 0], b[:, 0]).cosine == pytest.approx(expected)
    zero = np.zeros_like(a)
    assert (fidelity(zero, zero).cosine, fidelity(zero, a).cosine, fidelity(a, zero).cosine) == (1, 0, 0)
    broken = np.array([[np.nan], [0.1], [0.4]], np.float32)
    assert fidelity(a, broken).cosine == 0


def test_probabilities_are_not_put_through_a_softmax():
    p, q = np.array([[0.9, 0.1], [0.5, 0.5]]), np.array([[0.5, 0.5], [0.25, 0.75]])
    expected = np.sum(p * np.log(p / q), axis=1).mean()
    assert fidelity(p, q).kl == pytest.approx(expected)
    assert fidelity(np.log(p), np.log(q)).kl == pytest.approx(expected)


def test_the_direction_of_kl():
    p, q = np.array([[0.99, 0.01]]), np.array([[0.5, 0.5]])
    assert fidelity(p, q).kl == pytest.approx(0.99 * np.log(1.98) + 0.01 * np.log(0.02))
    assert fidelity(p, q).kl != pytest.approx(fidelity(q, p).kl)


def test_large_logits_do_not_overflow():
    found = fidelity([[1e4, 0.0], [0.0, -1e4]], [[0.0, 1e4], [0.0, -1e4]])
    assert math.isfinite(found.kl) and found.kl > 1
    assert found.top1_agreement == 0.5


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_tallies_merge(seed, size):
    a, b = noisy(seed, (12, 4))
    parts = [tally_output(a[i : i + size], b[i : i + size], rows=True) for i in range(0, 12, size)]
    merged = functools.reduce(operator.add, parts).fidelity("y")
    whole = fidelity(a, b)
    for name in ("rows", "top1_agreement", "kl", "cosine", "sqnr_db", "max_abs_diff", "max_abs", "equal"):
        assert getattr(merged, name) == pytest.approx(getattr(whole, name), rel=1e-9), name


def test_the_empty_tally_is_neutral():
    a, b = noisy()
    tally = tally_output(a, b, rows=True)
    assert OutputTally() + tally == tally + OutputTally() == tally
    empty = OutputTally().fidelity("y")
    assert (empty.rows, empty.kl, empty.sqnr_db, empty.equal) == (0, None, None, None)


def test_logits_are_float_of_rank_two_with_several_classes():
    for shape in [(4,), (4, 1), (2, 3, 4), ()]:
        found = fidelity(np.ones(shape), np.ones(shape))
        assert (found.top1_agreement, found.kl) == (None, None), shape
        assert found.cosine == 1.0
    assert fidelity(np.ones((4, 2)), np.ones((4, 2)), rows=False).top1_agreement == 1


def test_rows_or_the_whole_tensor():
    a = np.array([[1.0, 0.0], [0.0, 100.0]])
    b = np.array([[0.0, 1.0], [0.0, 100.0]])
    assert fidelity(a, b).cosine == pytest.approx(0.5)
    assert (fidelity(a, b).rows, fidelity(a, b, rows=False).rows) == (2, 1)
    assert fidelity(a, b, rows=False).cosine == pytest.approx(1, abs=1e-3)


def test_outputs_that_are_no_floats_are_compared_for_equality():
    found = fidelity(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]))
    assert (found.equal, found.rows) == (0.75, 4)
    assert (found.cosine, found.sqnr_db, found.max_abs_diff, found.kl) == (None, None, None, None)
    assert fidelity(np.array(["a", "b"]), np.array(["a", "c"])).equal == 0.5
    assert fidelity(np.array([True]), np.array([True])).equal == 1


def test_zero_rows():
    found = fidelity(np.zeros((3, 2)), np.array([[0.0, 0], [1, 0], [0, 0]]))
    assert found.cosine == pytest.approx(2 / 3)
    assert found.sqnr_db == -math.inf


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_model_that_broke(bad):
    a, _ = noisy(shape=(4, 3))
    b = a.copy()
    b[1, 2] = bad
    found = fidelity(a, b)
    assert found.max_abs_diff == math.inf
    assert found.sqnr_db == -math.inf
    assert found.cosine == pytest.approx(0.75)
    assert found.equal == pytest.approx(11 / 12)
    assert found.kl > 0
    if np.isnan(bad):
        assert (found.kl, found.top1_agreement) == (math.inf, 0.75)


def test_infinities_and_nan_in_both_are_equal():
    a = np.array([[-np.inf, 1.0, 2.0], [np.nan, 1.0, 2.0]])
    found = fidelity(a, a.copy())
    assert (found.max_abs_diff, found.sqnr_db, found.kl, found.equal) == (0, math.inf, 0, 1)
    assert found.top1_agreement == 1
    assert found.cosine == pytest.approx(1)
    assert found.max_abs == 2


def test_shapes_that_differ_are_counted_apart():
    a, b = noisy(shape=(4, 3))
    tally = tally_output(a, b, rows=True) + tally_output(a, b[:2], rows=True)
    found = tally.fidelity("y")
    assert (found.mismatched, found.rows) == (1, 4)
    assert "1 pairs of different shape" in str(found)


def test_empty_outputs_and_other_float_types():
    found = fidelity(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32))
    assert (found.rows, found.equal, found.cosine) == (0, None, None)
    ml_dtypes = pytest.importorskip("ml_dtypes")
    a, _ = noisy()
    found = fidelity(a, a.astype(ml_dtypes.bfloat16))
    assert 30 < found.sqnr_db < 80


def test_text():
    a, b = noisy()
    text = str(Fidelity((fidelity(a, b), fidelity(np.array([1]), np.array([1]))), 40))
    first, second = text.splitlines()
    for word in ("y: top-1 agreement", "KL", "cosine", "SQNR", "max |diff|"):
        assert word in first
    assert second == "y: equal 100.00%"
