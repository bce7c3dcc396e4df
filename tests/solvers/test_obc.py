"""Optimal brain compression against surgery with explicit inverses, and against all masks there are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import slow_solvers as slow
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.solvers import Blocks, Elements, NOfM, PerRow, eliminate, layer_error, obc, refit, sparsegpt
from onnxprune.solvers.obc import rising

seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(params=[False, True], ids=["lazy", "renewed"])
def renewed(request, monkeypatch):
    """Small rows would never bring G up to date."""
    if request.param:
        monkeypatch.setattr(eliminate, "FEW", 1)


def masks_of(orders, rows, columns, width=1):
    mask = np.zeros((rows, columns // width), bool)
    for row, order in enumerate(orders):
        mask[row, order] = True
    return mask.repeat(width, axis=1)


@pytest.mark.usefixtures("renewed")
@pytest.mark.parametrize("zeros", [1, 8, 17, 23, 24])
@pytest.mark.parametrize("memory", [1, 2**28])
def test_equally_many_in_each_row(zeros, memory):
    weight, hessian = slow.layer(zeros, 5, 24)
    found = obc(weight, hessian, PerRow(zeros), memory=memory)
    runs = [slow.eliminate(row, hessian, zeros) for row in weight]
    np.testing.assert_array_equal(found.mask, masks_of([order for order, _, _ in runs], 5, 24))
    expected = np.where(found.mask, 0, [left for _, _, left in runs])
    np.testing.assert_allclose(found.weight, expected, rtol=1e-7, atol=1e-8)
    damped = layer_error(weight, found.weight, slow.damped(hessian))
    assert damped == pytest.approx(sum(sum(costs) for _, costs, _ in runs), rel=1e-8)
    assert found.error == pytest.approx(layer_error(weight, found.weight, hessian), rel=1e-9)


@pytest.mark.usefixtures("renewed")
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 2), (5, 8), (4, 4), (0, 4)])
def test_groups(n, m):
    weight, hessian = slow.layer(n, 5, 24)

    def allowed(gone):
        return ~gone & ~(gone.reshape(-1, m).sum(axis=1) >= n).repeat(m)

    found = obc(weight, hessian, NOfM(n, m))
    orders = [slow.eliminate(row, hessian, 24 // m * n, allowed=allowed)[0] for row in weight]
    np.testing.assert_array_equal(found.mask, masks_of(orders, 5, 24))
    assert (found.mask.reshape(5, -1, m).sum(axis=2) == n).all()


def cheapest_beginnings(costs, zeros):
    """The least sum of the beginnings of rows with so many steps in all: every way of sharing them out."""
    sums = [np.concatenate([[0.0], np.cumsum(row)]) for row in costs]
    best = {0: 0.0}
    for row in sums:
        longer: dict[int, float] = {}
        for taken, cost in best.items():
            for steps, more in enumerate(row):
                total = taken + steps
                longer[total] = min(longer.get(total, np.inf), cost + more)
        best = longer
    return best[zeros]


@pytest.mark.usefixtures("renewed")
@pytest.mark.parametrize("width", [1, 3, 4])
def test_rows_are_compared(width):
    weight, hessian = slow.layer(width, 6, 24)
    weight *= np.array([1, 1, 2, 3, 0.5, 0.1])[:, None]
    runs = [slow.eliminate(row, hessian, 24 // width, width) for row in weight]
    costs = [run[1] for run in runs]
    units = 6 * 24 // width
    for zeros in (0, 1, units // 3, units // 2, units - 2, units):
        what = Blocks(zeros, (1, width)) if width > 1 else Elements(zeros)
        found = obc(weight, hessian, what)
        counts = found.mask.sum(axis=1) // width
        assert counts.sum() == zeros
        expected = masks_of([run[0][:count] for run, count in zip(runs, counts, strict=True)], 6, 24, width)
        np.testing.assert_array_equal(found.mask, expected)
        paid = sum(sum(row[:count]) for row, count in zip(costs, counts, strict=True))
        rough = max(max(row) for row in costs)
        assert paid <= cheapest_beginnings(costs, zeros) + rough * 0.05


@given(st.lists(st.floats(0, 10), max_size=12))
def test_rising_is_the_hull(costs):
    found = rising(np.array(costs))
    assert (np.diff(found) >= -1e-12).all()
    below, sums = np.cumsum(found), np.cumsum(costs)
    assert (below <= sums + 1e-9).all()
    if costs:
        assert below[-1] == pytest.approx(sums[-1])
    for start, stop in itertools.combinations(range(len(costs) + 1), 2):  # no chord of the sums runs below
        ends = [0.0, *sums]
        for i in range(start, stop + 1):
            chord = ends[start] + (ends[stop] - ends[start]) * (i - start) / (stop - start)
            assert [0.0, *below][i] <= chord + 1e-9


@pytest.mark.parametrize("zeros", [1, 2, 3, 4])
def test_nearly_the_best_of_all_masks(zeros):
    """Greedy is not exact, but the first step is, and later ones stay near."""
    ratios = []
    for seed in range(12):
        weight, hessian = slow.layer(seed, 1, 6)
        found = obc(weight, hessian, PerRow(zeros))
        best = slow.best_of_all(weight[0], hessian, zeros)
        ratios.append(layer_error(weight, found.weight, slow.damped(hessian)) / best)
    assert min(ratios) >= 1 - 1e-9
    assert np.median(ratios) == pytest.approx(1.0, abs=1e-9)
    if zeros == 1:
        assert max(ratios) == pytest.approx(1.0, abs=1e-9)


def test_mostly_better_than_sparsegpt():
    patterns = (Elements(192), PerRow(24), NOfM(2, 4), Blocks(48, (1, 4)), Elements(300))
    better = []
    for seed in range(8):
        weight, hessian = slow.layer(seed, 8, 48)
        for what in patterns:
            ours = obc(weight, hessian, what)
            fast = sparsegpt(weight, hessian, what)
            assert ours.mask.sum() == fast.mask.sum()
            better.append(ours.error <= fast.error)
    assert np.mean(better) > 0.95


@pytest.mark.usefixtures("renewed")
@given(st.data())
@settings(max_examples=60)
def test_counts_locked_and_dead(data):
    rows, columns = data.draw(st.integers(1, 5)), 4 * data.draw(st.integers(1, 6))
    seed = data.draw(seeds)
    weight, hessian = slow.layer(seed, rows, columns)
    rng = np.random.default_rng(seed)
    locked = rng.random(weight.shape) < data.draw(st.sampled_from([0.0, 0.2, 0.8]))
    weight[locked] = 0.0
    dead = rng.random(columns) < 0.2
    hessian[dead] = hessian[:, dead] = 0.0
    level = data.draw(st.floats(0, 1))
    n = data.draw(st.integers(0, 4))
    elements = obc(weight, hessian, Elements(int(level * weight.size)), locked=locked)
    assert elements.mask.sum() == max(int(level * weight.size), locked.sum())
    each = obc(weight, hessian, PerRow(int(level * columns)), locked=locked)
    np.testing.assert_array_equal(each.mask.sum(axis=1), np.maximum(int(level * columns), locked.sum(axis=1)))
    groups = obc(weight, hessian, NOfM(n, 4), locked=locked)
    wanted = np.maximum(locked.reshape(rows, -1, 4).sum(axis=2), n)
    np.testing.assert_array_equal(groups.mask.reshape(rows, -1, 4).sum(axis=2), wanted)
    zeros = int(level * weight.size / 4)
    blocks = obc(weight, hessian, Blocks(zeros, (1, 4)), locked=locked)
    whole = locked.reshape(rows, -1, 4).all(axis=2)
    gone = (blocks.mask & ~locked).reshape(rows, -1, 4).any(axis=2) | whole
    assert gone.sum() == max(zeros, whole.sum())
    for found in (elements, each, groups, blocks):
        assert found.mask[locked].all()
        assert not found.weight[found.mask].any()
        np.testing.assert_allclose(
            found.weight, refit(weight, found.mask, hessian).weight, rtol=1e-6, atol=1e-7
        )
        if (found.mask & ~locked & ~dead).any() and found is elements:
            assert found.mask[:, dead].all()


def test_locked_weights_are_gone_from_the_start():
    """The row goes on as if its locked columns had never been there."""
    weight, hessian = slow.layer(9, 3, 20)
    locked = np.zeros(weight.shape, bool)
    locked[:, [2, 3, 11]] = True
    weight[locked] = 0.0
    left = np.flatnonzero(~locked[0])
    share = 0.01 * np.diag(hessian).mean() / np.diag(hessian)[left].mean()
    small = hessian[np.ix_(left, left)]
    found = obc(weight, hessian, PerRow(10), locked=locked)
    for row in range(3):
        order, _, _ = slow.eliminate(weight[row, left], small, 7, share=share)
        np.testing.assert_array_equal(np.flatnonzero(found.mask[row, left]), np.sort(order))


def test_hostile_hessians():
    weight = np.random.default_rng(0).standard_normal((4, 12))
    found = obc(weight, np.zeros((12, 12)), Elements(20))
    np.testing.assert_array_equal(found.weight, np.where(found.mask, 0, weight))
    assert (found.mask.sum(), found.error) == (20, 0.0)
    _, hessian = slow.layer(1, 4, 12, samples=3, rectified=False)
    for what in (Elements(30), NOfM(2, 4), Blocks(6, (1, 4))):
        for dampening in (0.0, 0.01):
            found = obc(weight, hessian, what, dampening=dampening)
            assert np.isfinite(found.weight).all()
            assert found.error <= layer_error(weight, np.where(found.mask, 0, weight), hessian)
    for bad in (weight * np.nan, weight[0]):
        with pytest.raises(ValueError, match=r"NaN|shape"):
            obc(bad, hessian, Elements(3))
    with pytest.raises(ValueError, match="blocks of 2 rows"):
        obc(weight, hessian, Blocks(2, (2, 3)))
    with pytest.raises(ValueError, match="49 zeros"):
        obc(weight, hessian, Elements(49))


def test_repeated_runs_and_batches_agree():
    weight, hessian = slow.layer(2, 12, 40)
    before = weight.copy(), hessian.copy()
    one = obc(weight, hessian, Elements(200))
    for memory in (2**28, 1, 50_000):
        other = obc(weight, hessian, Elements(200), memory=memory)
        np.testing.assert_array_equal(one.mask, other.mask)
        np.testing.assert_array_equal(one.weight, other.weight)
    np.testing.assert_array_equal(weight, before[0])
    np.testing.assert_array_equal(hessian, before[1])
