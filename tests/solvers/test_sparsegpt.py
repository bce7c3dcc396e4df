"""SparseGPT against the paper's algorithm taken literally, and what must hold for every layer."""

from __future__ import annotations

import numpy as np
import pytest
import slow_solvers as slow
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.solvers import Blocks, Elements, NOfM, PerRow, layer_error, refit, sparsegpt

sizes = st.tuples(st.integers(1, 12), st.integers(1, 60))
seeds = st.integers(0, 2**32 - 1)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    ("rows", "columns", "block"), [(8, 40, 128), (16, 256, 128), (6, 96, 32), (5, 35, 7)]
)
def test_elements_are_those_of_the_paper(rows, columns, block):
    weight, hessian = slow.layer(rows, rows, columns)
    level = 0.5 if rows * block % 2 == 0 else 0.4
    expected, mask = slow.sparsegpt(weight, hessian, slow.by_threshold(level), block)
    found = sparsegpt(weight, hessian, Elements(int(mask.sum())), block=block)
    np.testing.assert_array_equal(found.mask, mask)
    expected = slow.no_worse(weight, expected, mask, hessian)
    close(found.weight, expected)
    assert found.error == pytest.approx(slow.error(weight, expected, hessian), rel=1e-9)


@pytest.mark.parametrize(
    ("n", "m", "columns"), [(2, 4, 256), (4, 8, 160), (1, 3, 33), (3, 4, 20), (5, 10, 40)]
)
def test_groups_are_those_of_the_paper(n, m, columns):
    weight, hessian = slow.layer(n, 9, columns)
    expected, mask = slow.sparsegpt(weight, hessian, slow.by_groups(n, m), block=columns)
    found = sparsegpt(weight, hessian, NOfM(n, m))
    np.testing.assert_array_equal(found.mask, mask)
    assert (found.mask.reshape(9, -1, m).sum(axis=2) == n).all()
    close(found.weight, slow.no_worse(weight, expected, mask, hessian))


@given(seeds, sizes, st.floats(0, 1), st.sampled_from([0.0, 0.01, 1.0]))
def test_a_given_mask(seed, size, level, dampening):
    weight, hessian = slow.layer(seed, *size, rectified=False)  # the paper inverts it, undamped, too
    mask = np.random.default_rng(seed).random(size) < level
    expected, _ = slow.sparsegpt(weight, hessian, slow.by_mask(mask), share=dampening)
    expected = slow.no_worse(weight, expected, mask, hessian, dampening)
    found = sparsegpt(weight, hessian, mask, dampening=dampening)
    np.testing.assert_array_equal(found.mask, mask)
    np.testing.assert_allclose(found.weight, expected, rtol=1e-5, atol=1e-6)
    assert not found.weight[mask].any()
    assert found.error == pytest.approx(layer_error(weight, found.weight, hessian), rel=1e-6, abs=1e-9)


def test_the_error_by_hand():
    """Two inputs with covariance r: what is left makes up for r times what goes."""
    hessian = np.array([[1.0, 0.6], [0.6, 1.0]])
    found = sparsegpt(np.array([[1.0, 2.0]]), hessian, np.array([[True, False]]), dampening=0.0)
    close(found.weight, [[0.0, 2.6]])
    assert found.error == pytest.approx(1 - 0.6**2)
    found = sparsegpt(np.array([[1.0, 2.0]]), hessian, np.array([[False, True]]), dampening=0.0)
    close(
        found.weight, [[1.0, 0.0]]
    )  # columns go from left to right: nothing is left to make up for the last
    assert found.error == pytest.approx(4.0)


@given(seeds, sizes, st.floats(0, 1), st.booleans(), st.integers(1, 70))
def test_exact_counts(seed, size, level, per_row, block):
    weight, hessian = slow.layer(seed, *size)
    weight = np.round(weight)  # ties
    rng = np.random.default_rng(seed)
    locked = (weight == 0) & (rng.random(size) < 0.5)
    dead = rng.random(size[1]) < 0.2
    hessian[dead] = hessian[:, dead] = 0.0
    if per_row:
        zeros = int(level * size[1])
        found = sparsegpt(weight, hessian, PerRow(zeros), locked=locked, block=block)
        np.testing.assert_array_equal(found.mask.sum(axis=1), np.maximum(locked.sum(axis=1), zeros))
    else:
        zeros = int(level * weight.size)
        found = sparsegpt(weight, hessian, Elements(zeros), locked=locked, block=block)
        assert found.mask.sum() == max(zeros, locked.sum())
    assert found.mask[locked].all()
    assert not found.weight[found.mask].any()
    assert np.isfinite(found.weight).all()


@given(seeds, sizes, st.floats(0, 1), st.integers(1, 70))
def test_exact_counts_where_the_cheapest_are(seed, size, level, block):
    weight, hessian = slow.layer(seed, *size)
    locked = np.random.default_rng(seed).random(size) < 0.3
    weight[locked] = 0.0
    zeros = int(level * weight.size)
    found = sparsegpt(weight, hessian, Elements(zeros, even=False), locked=locked, block=block)
    assert found.mask.sum() == max(zeros, locked.sum())
    assert found.mask[locked].all()
    zeros = int(level * size[1])
    found = sparsegpt(weight, hessian, PerRow(zeros, even=False), locked=locked, block=block)
    np.testing.assert_array_equal(found.mask.sum(axis=1), np.maximum(locked.sum(axis=1), zeros))


def test_stretches_give_what_is_cheap():
    """Uncorrelated inputs: nothing makes up for anything, and the cheapest of the whole matrix go."""
    rng = np.random.default_rng(0)
    weight, variance = rng.standard_normal((6, 40)), rng.uniform(0.1, 2, 40)
    cost = np.square(weight) * (variance + 0.01 * variance.mean())
    chosen = cost <= np.sort(cost, axis=None)[95]
    found = sparsegpt(weight, np.diag(variance), Elements(96, even=False), block=8)
    np.testing.assert_array_equal(found.mask, chosen)
    even = sparsegpt(weight, np.diag(variance), Elements(96), block=8)
    assert [even.mask[:, start : start + 8].sum() for start in range(0, 40, 8)] == [19, 19, 19, 19, 20]
    blocks = sparsegpt(weight, np.diag(variance), Blocks(12, (2, 4), even=False), block=8)
    sums = cost.reshape(3, 2, 10, 4).sum(axis=(1, 3))
    np.testing.assert_array_equal(blocks.mask[::2, ::4], sums <= np.sort(sums, axis=None)[11])


def test_the_cheapest_lose_less_than_even_shares():
    wins = []
    for seed in range(6):
        weight, hessian = slow.layer(seed, 16, 96)
        even = sparsegpt(weight, hessian, Elements(900))
        cheap = sparsegpt(weight, hessian, Elements(900, even=False), block=32)
        wins.append(cheap.error < even.error)
    assert np.mean(wins) > 0.8


def test_what_costs_nothing_goes_first():
    weight, hessian = slow.layer(0, 6, 40)
    hessian[:, 30:] = hessian[30:] = 0.0
    weight[:, 5] = 0.0
    locked = weight == 0
    found = sparsegpt(weight, hessian, Elements(66), locked=locked, block=8)
    assert found.mask[:, 5].all()
    assert found.mask[:, 30:].all()
    assert found.error == 0.0
    close(found.weight, np.where(found.mask, 0, weight))
    found = sparsegpt(weight, hessian, Elements(30), locked=locked, block=8)
    assert found.mask[:, 30:].sum() == 24
    close(found.weight, np.where(found.mask, 0, weight))  # what is not asked for stays
    more = sparsegpt(weight, hessian, Elements(126), locked=locked, block=8)
    live = ~(locked | (np.arange(40) >= 30))
    assert more.mask[live].sum() == 60
    assert more.mask[:, :8].sum() - 6 == 60 * 42 // 174  # the first stretch has 42 of 174 live ones


def test_locked_weights_stay_zero():
    weight, hessian = slow.layer(3, 8, 48)
    locked = np.random.default_rng(1).random(weight.shape) < 0.4
    weight[locked] = 0.0
    for what in (Elements(230), NOfM(2, 4), Blocks(40, (1, 4)), PerRow(24), np.zeros(weight.shape, bool)):
        found = sparsegpt(weight, hessian, what, locked=locked)
        assert found.mask[locked].all()
        assert not found.weight[locked].any()
    groups = sparsegpt(weight, hessian, NOfM(2, 4), locked=locked).mask.reshape(8, -1, 4).sum(axis=2)
    np.testing.assert_array_equal(groups, np.maximum(locked.reshape(8, -1, 4).sum(axis=2), 2))


@pytest.mark.parametrize("shape", [(2, 4), (4, 1), (1, 8), (8, 1), (8, 3), (1, 48)])
def test_blocks_go_whole(shape):
    weight, hessian = slow.layer(4, 8, 48)
    count = weight.size // (shape[0] * shape[1])
    for zeros in (0, 1, count // 2, count):
        found = sparsegpt(weight, hessian, Blocks(zeros, shape), block=10)
        whole = found.mask.reshape(8 // shape[0], shape[0], 48 // shape[1], shape[1])
        assert (whole.all(axis=(1, 3)) == whole.any(axis=(1, 3))).all()
        assert whole.all(axis=(1, 3)).sum() == zeros
        expected, _ = slow.sparsegpt(weight, hessian, slow.by_mask(found.mask))
        close(found.weight, slow.no_worse(weight, expected, found.mask, hessian))


def test_the_first_blocks_are_the_cheapest():
    """All columns in one stretch: the costs are those of the paper's first score, summed."""
    weight, hessian = slow.layer(5, 6, 24)
    inverse = np.linalg.cholesky(np.linalg.inv(slow.damped(hessian))).T
    scores = np.square(weight / np.diag(inverse)).reshape(3, 2, 8, 3).sum(axis=(1, 3))
    found = sparsegpt(weight, hessian, Blocks(9, (2, 3)))
    chosen = found.mask.reshape(3, 2, 8, 3)[:, 0, :, 0]
    assert scores[chosen].max() < scores[~chosen].min()


def test_the_caller_chooses():
    weight, hessian = slow.layer(6, 4, 20)
    seen = []

    def choose(costs, start):
        seen.append((costs.shape, start))
        return costs <= np.median(costs)

    found = sparsegpt(weight, hessian, choose, block=8)
    assert seen == [((4, 8), 0), ((4, 8), 8), ((4, 4), 16)]
    assert found.mask.sum() == 40
    expected, _ = slow.sparsegpt(weight, hessian, slow.by_mask(found.mask))
    close(found.weight, slow.no_worse(weight, expected, found.mask, hessian))
    with pytest.raises(ValueError, match="booleans of shape"):
        sparsegpt(weight, hessian, lambda costs, start: costs)
    with pytest.raises(ValueError, match="booleans of shape"):
        sparsegpt(weight, hessian, lambda costs, start: costs.T > 0)


def test_updates_that_only_harm_are_undone():
    """Chance finds rows whose updates would have to be zeroed again when nearly everything goes."""
    undone = 0
    for seed in range(20):
        weight, hessian = slow.layer(seed, 4, 19)
        found = sparsegpt(weight, hessian, PerRow(16))
        expected, _ = slow.sparsegpt(weight, hessian, slow.by_mask(found.mask))
        safe = slow.no_worse(weight, expected, found.mask, hessian)
        close(found.weight, safe)
        undone += (safe != expected).any(axis=1).sum()
        assert found.error == pytest.approx(slow.error(weight, safe, hessian), rel=1e-9)
    assert undone > 3


@given(seeds, sizes, st.floats(0, 1))
def test_better_than_the_mask_alone_and_no_better_than_the_refit(seed, size, level):
    weight, hessian = slow.layer(seed, *size)
    found = sparsegpt(weight, hessian, Elements(int(level * weight.size)))
    whole = slow.damped(hessian)
    error = layer_error(weight, found.weight, whole)
    masked = np.where(found.mask, 0, weight)
    for metric in (whole, hessian):
        for old, new, zeroed in zip(weight, found.weight, masked, strict=True):
            plain = slow.error([old], [zeroed], metric)
            assert slow.error([old], [new], metric) <= plain * (1 + 1e-9) + 1e-12
    assert layer_error(weight, refit(weight, found.mask, hessian).weight, whole) <= error * (1 + 1e-9)


@given(seeds, st.sampled_from([1e-20, 1e-3, 1e6, 1e20]))
def test_the_scale_of_the_hessian_does_not_matter(seed, scale):
    weight, hessian = slow.layer(seed, 6, 30)
    hessian[:, 4] = hessian[4] = 0.0
    one, other = (sparsegpt(weight, h, Elements(90)) for h in (hessian, hessian * scale))
    np.testing.assert_array_equal(one.mask, other.mask)
    close(one.weight, other.weight)
    assert other.error == pytest.approx(one.error * scale, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-40, 1e-25, 1e25, 1e40])
def test_the_scale_of_the_weight_does_not_matter(scale):
    """Not even where float32, in which rows are checked first, has no such numbers."""
    for seed in range(10):
        weight, hessian = slow.layer(seed, 6, 19)
        one, other = (sparsegpt(w, hessian, PerRow(16)) for w in (weight, weight * scale))
        np.testing.assert_array_equal(one.mask, other.mask)
        close(one.weight, other.weight / scale)
        assert other.error == pytest.approx(one.error * scale**2, rel=1e-9, abs=0)


@given(seeds, st.integers(1, 20), st.sampled_from([0.0, 1e-9, 0.01]))
@settings(max_examples=50)
def test_fewer_samples_than_columns(seed, samples, dampening):
    weight, hessian = slow.layer(seed, 5, 24, samples=samples, rectified=False)
    found = sparsegpt(weight, hessian, Elements(60), dampening=dampening)
    assert found.mask.sum() == 60
    assert np.isfinite(found.weight).all()
    assert found.dampening >= dampening
    assert found.dampening <= max(dampening, 1e-9)
    whole = slow.damped(hessian, found.dampening)
    masked = layer_error(weight, np.where(found.mask, 0, weight), whole)
    assert layer_error(weight, found.weight, whole) <= masked * (1 + 1e-6)


def test_a_layer_that_sees_nothing():
    weight = np.arange(1.0, 13.0).reshape(3, 4)
    found = sparsegpt(weight, np.zeros((4, 4)), Elements(5))
    assert found.mask.sum() == 5
    close(found.weight, np.where(found.mask, 0, weight))
    assert found.error == 0.0


def test_constant_inputs():
    """As second moments they are of rank one, as a covariance they are nothing."""
    weight = np.random.default_rng(0).standard_normal((4, 6))
    moments = sparsegpt(weight, np.ones((6, 6)), PerRow(3), dampening=1e-6)
    np.testing.assert_allclose(moments.weight[:, -1:].sum(axis=1), moments.weight[:, -1])
    assert np.isfinite(moments.weight).all()
    assert moments.error <= layer_error(weight, np.where(moments.mask, 0, weight), np.ones((6, 6)))
    rounding = np.diag([1.0, 1.0, 1.0, 1.0, -1e-9, 0.0])
    covariance = sparsegpt(weight, rounding, PerRow(2))
    assert covariance.mask[:, 4:].all()


def test_repeated_runs_agree_and_nothing_is_mutated():
    weight, hessian = slow.layer(7, 16, 64)
    before = weight.copy(), hessian.copy()
    one, other = (sparsegpt(weight, hessian, Elements(500)) for _ in range(2))
    np.testing.assert_array_equal(one.weight, other.weight)
    np.testing.assert_array_equal(weight, before[0])
    np.testing.assert_array_equal(hessian, before[1])


def test_float32_in_float64_inside():
    weight, hessian = slow.layer(8, 16, 64)
    single = weight.astype(np.float32), hessian.astype(np.float32)
    found = sparsegpt(*single, Elements(512))
    expected = sparsegpt(single[0].astype(np.float64), single[1].astype(np.float64), Elements(512))
    np.testing.assert_array_equal(found.weight, expected.weight)
    assert found.weight.dtype == np.float64


WEIGHT, HESSIAN = slow.layer(0, 4, 6)
REFUSED = {
    "NaN in the weight": (np.full((4, 6), np.nan), HESSIAN, {}, "the weight holds NaN"),
    "NaN in the Hessian": (WEIGHT, HESSIAN * np.nan, {}, "the Hessian holds NaN"),
    "infinity": (WEIGHT, HESSIAN + np.inf, {}, "the Hessian holds NaN or infinity"),
    "a vector": (WEIGHT[0], HESSIAN, {}, r"shape \(rows, columns\)"),
    "nothing": (WEIGHT[:0], HESSIAN, {}, r"shape \(rows, columns\)"),
    "another Hessian": (WEIGHT, HESSIAN[:5, :5], {}, r"shape \(6, 6\)"),
    "a negative variance": (WEIGHT, HESSIAN - 9 * np.eye(6), {}, "negative in column"),
    "no second moments": (WEIGHT, HESSIAN * (1 - 9 * (1 - np.eye(6))), {}, "positive semidefinite"),
    "locked but not zero": (WEIGHT, HESSIAN, {"locked": np.ones((4, 6), bool)}, "locked weight is not zero"),
    "locked of another shape": (WEIGHT, HESSIAN, {"locked": np.ones((6, 4), bool)}, "locked needs booleans"),
    "locked of numbers": (WEIGHT, HESSIAN, {"locked": np.zeros((4, 6))}, "locked needs booleans"),
    "dampening": (WEIGHT, HESSIAN, {"dampening": -1.0}, "dampening"),
    "dampening is NaN": (WEIGHT, HESSIAN, {"dampening": np.nan}, "dampening"),
    "no columns at a time": (WEIGHT, HESSIAN, {"block": 0}, "0 columns at a time"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    weight, hessian, options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        sparsegpt(weight, hessian, Elements(3), **options)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (Elements(25), "25 zeros are asked for, of 24"),
        (Elements(-1), "-1 zeros"),
        (PerRow(7), "7 zeros are asked for, of 6"),
        (NOfM(2, 4), "groups of 4 do not divide 6 columns"),
        (NOfM(4, 3), "4 zeros in 3"),
        (NOfM(0, 0), "0 zeros in 0"),
        (Blocks(1, (3, 2)), "blocks of 3 x 2 do not divide a matrix of 4 x 6"),
        (Blocks(1, (2, 4)), "blocks of 2 x 4 do not divide a matrix of 4 x 6"),
        (Blocks(1, (0, 1)), "blocks of 0 x 1"),
        (Blocks(7, (2, 2)), "7 zeros are asked for, of 6"),
        (np.zeros((6, 4), bool), "the mask needs booleans"),
        (np.zeros((4, 6)), "the mask needs booleans"),
    ],
)
def test_refused_patterns(what, message):
    with pytest.raises(ValueError, match=message):
        sparsegpt(WEIGHT, HESSIAN, what)
