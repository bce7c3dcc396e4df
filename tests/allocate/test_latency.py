"""Run time as an amount: invented tables, so that every figure is known."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_nets import convnet, residual

from onnxprune.allocate.cost import Terms
from onnxprune.allocate.curves import spend
from onnxprune.allocate.ladder import Ladder
from onnxprune.allocate.latency import LatencyModel, Table, monotone, nonnegative
from onnxprune.allocate.solve import solve
from onnxprune.allocate.target import Target
from onnxprune.analysis import analyze
from onnxprune.choosing.choices import Choices
from onnxprune.choosing.scoring import score_groups

NOTHING = Terms(np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64))
GRID = Table((1, 2), ((4.0, 8.0, 16.0), (2.0, 6.0)), np.array([[1.0, 3.0], [2.0, 5.0], [6.0, 9.0]]))


@pytest.mark.parametrize(
    ("widths", "seconds"),
    [
        ((4, 2), 1.0),
        ((16, 6), 9.0),
        ((8, 2), 2.0),
        ((6, 2), 1.5),
        ((12, 2), 4.0),
        ((4, 3), 1.5),
        ((12, 4), (2 + 6 + 5 + 9) / 4),
        ((10, 3), 0.75 * (0.75 * 2 + 0.25 * 6) + 0.25 * (0.75 * 5 + 0.25 * 9)),
        ((1, 1), 1.0),
        ((99, 99), 9.0),
        ((1, 6), 3.0),
    ],
)
def test_a_table_is_linear_between_its_points_and_flat_outside(widths, seconds):
    assert GRID.at(widths) == pytest.approx(seconds)


def test_tables_of_one_and_three_axes():
    assert Table((5,), ((8.0, 16.0),), np.array([1.0, 2.0])).at((12.0,)) == pytest.approx(1.5)
    cube = np.add.outer(np.add.outer([0.0, 1.0], [0.0, 10.0]), [0.0, 100.0])
    table = Table((1, 2, 3), ((1.0, 2.0),) * 3, cube)
    assert table.at((1.5, 1.25, 1.75)) == pytest.approx(0.5 + 2.5 + 75)


@given(st.lists(st.floats(0.1, 10), min_size=12, max_size=12))
def test_monotone_tables_stay_and_others_become_so(values):
    table = np.array(values).reshape(3, 4)
    found = monotone(table)
    for axis in range(2):
        assert (np.diff(found, axis=axis) >= 0).all()
    assert found.min() >= table.min() and found.max() <= table.max()
    ordered = np.sort(np.sort(table, axis=0), axis=1)
    np.testing.assert_allclose(monotone(ordered), ordered)


def test_nonnegative_least_squares_against_a_fine_grid():
    rng = np.random.default_rng(0)
    for _ in range(5):
        parts, wanted = rng.uniform(-0.2, 1, (6, 2)), rng.uniform(0.5, 1.5, 6)
        found = nonnegative(parts, wanted)
        assert (found >= 0).all()
        grid = np.array(list(itertools.product(np.linspace(0, 4, 401), repeat=2)))
        errors = np.square(grid @ (parts / wanted[:, None]).T - 1).sum(axis=1)
        error = float(np.square(parts @ found / wanted - 1).sum())
        assert error <= errors.min() + 1e-9


def test_nonnegative_finds_what_is_there():
    parts = np.array([[1, 1e-3, 1e6], [1, 2e-3, 1e6], [1, 1e-3, 3e6], [1, 5e-4, 0]])
    true = np.array([1e-4, 0.7, 2e-10])
    np.testing.assert_allclose(nonnegative(parts, parts @ true), true, rtol=1e-6)
    assert not nonnegative(np.array([[-1.0], [-2.0]]), np.ones(2)).any()


def model(constant=0.5, scale=2.0, per_element=0.1):
    elements = Terms(np.array([3.0]), np.array([0, 2]), np.array([0]))
    return LatencyModel(
        (GRID, Table((3,), ((1.0, 9.0),), np.array([1.0, 5.0]))), elements, constant, scale, per_element
    )


def test_a_model_adds_up_its_parts():
    extent = np.array([1.0, 12, 4, 5])
    assert model().layers(extent) == pytest.approx(5.5 + 3)
    assert model().total(extent) == pytest.approx(0.5 + 2 * 8.5 + 0.1 * 12)
    assert model().total(extent) == model().total(extent)


def test_who_has_a_say_in_what():
    places = np.array([[False, True, False, False], [False, False, True, False], [False, False, False, True]])
    assert model().reads(places).tolist() == [[True, False, False], [True, False, True], [False, True, False]]
    empty = LatencyModel((), NOTHING)
    assert empty.reads(places).shape == (3, 0)


def test_coefficients_are_those_of_measured_models():
    true = model(0.25, 1.5, 0.05)
    extents = [np.array(e, float) for e in ([1, 16, 6, 9], [1, 4, 6, 1], [1, 8, 2, 5], [1, 4, 2, 1])]
    found = model().calibrated(extents, np.array([true.total(e) for e in extents]))
    assert (found.constant, found.scale, found.per_element) == pytest.approx((0.25, 1.5, 0.05))


def test_one_measured_model_scales_the_layers():
    extent = np.array([1.0, 16, 6, 9])
    found = model().calibrated([extent], np.array([28.0]))
    assert (found.constant, found.scale, found.per_element) == pytest.approx((0, 2, 0))
    assert LatencyModel((), NOTHING).calibrated([extent], np.array([3.0])).constant == pytest.approx(3)


def test_a_correction_goes_through_both_measurements():
    whole, cut, third = np.array([1.0, 16, 6, 9]), np.array([1.0, 8, 2, 5]), np.array([1.0, 4, 2, 1])
    found = model().corrected(whole, cut, (10.0, 7.0))
    assert found.total(whole) == pytest.approx(10)
    assert found.total(cut) == pytest.approx(7)
    old = [model().total(e) for e in (whole, cut, third)]
    assert found.total(third) == pytest.approx(7 - 3 * (old[1] - old[2]) / (old[0] - old[1]))


def test_where_a_cut_gains_nothing_no_cut_does():
    whole, cut = np.array([1.0, 16, 6, 9]), np.array([1.0, 8, 2, 5])
    found = model().corrected(whole, cut, (10.0, 11.0))
    assert found.total(cut) == found.total(whole) == pytest.approx(10)


def ladder(losses, name="g"):
    height = len(losses) - 1
    rungs = np.arange(height)[:, None]
    group = SimpleNamespace(id=name, units=height)
    return Ladder(group, rungs, np.diff(losses), 1, 1, np.asarray(losses))


def test_budgets_are_spent_across_steps_that_save_nothing():
    """Rungs of one ladder only save in pairs; the other's always do, but lose more."""
    ladders = [ladder([0, 1, 2, 3, 4.0]), ladder([0, 5, 10, 15, 20.0])]

    def size(drops):
        return 100 - 10 * (drops[0] // 2 * 2) - 10 * drops[1]

    assert spend(ladders, size, 80, steps=True) == [2, 0]
    assert spend(ladders, size, 70, steps=True) == [2, 1]
    assert spend(ladders, size, 80) == [0, 2]


@given(
    st.lists(
        st.lists(st.tuples(st.floats(0.01, 1), st.sampled_from([0, 0, 1, 3])), min_size=2, max_size=6),
        min_size=1,
        max_size=3,
    ),
    st.floats(0, 1),
)
def test_whatever_the_steps_a_goal_within_reach_is_met_and_nothing_is_lost_for_nothing(rungs, share):
    ladders = [ladder(np.concatenate([[0.0], np.cumsum([loss for loss, _ in each])])) for each in rungs]
    gains = [np.concatenate([[0], np.cumsum([gain for _, gain in each])]) for each in rungs]

    def size(drops):
        return 100.0 - sum(gain[n] for gain, n in zip(gains, drops, strict=True))

    goal = 100 - share * (100 - size([lad.most for lad in ladders]))
    drops = spend(ladders, size, goal, steps=True)
    assert size(drops) <= goal
    for number, dropped in enumerate(drops):
        if dropped:
            fewer = [n - 1 if i == number else n for i, n in enumerate(drops)]
            assert size(fewer) > goal


@pytest.fixture(params=["convnet", "residual"])
def timed(request, tmp_path):
    """An analysis whose groups take 2 s for every 8 channels begun, and 10 ms per channel."""
    net = {"convnet": lambda: convnet((16, 32, 24)), "residual": lambda: residual(32, 2, 16)}[request.param]()
    ir.save(net, tmp_path / "net.onnx")
    analysis = analyze(tmp_path / "net.onnx")
    costs, tables = analysis.costs, []
    for group in analysis.groups.values():
        place = int(costs.places(group)[0])
        widths = tuple(float(w) for w in range(1, group.units + 1))
        seconds = np.array([2.0 * np.ceil(w / 8) + 0.01 * w for w in widths])
        tables.append(Table((place,), (widths,), seconds))
    return analysis, costs.timed(LatencyModel(tuple(tables), NOTHING, constant=1.0, scale=1.0))


def expected(analysis, keep):
    total = 1.0
    for name, group in analysis.groups.items():
        kept = int(keep[name].sum()) if name in keep else group.units
        total += 2.0 * np.ceil(kept / 8) + 0.01 * kept
    return total


def test_costs_with_times(timed):
    analysis, costs = timed
    assert analysis.costs.full.latency == 0
    assert costs.full.latency == pytest.approx(expected(analysis, {}))
    assert costs.full.macs == analysis.costs.full.macs
    name, group = next(iter(analysis.groups.items()))
    keep = {name: np.arange(group.units) < 5}
    assert costs.cost(keep).latency == pytest.approx(expected(analysis, keep))
    assert (costs.full - costs.cost(keep)).latency == pytest.approx(
        expected(analysis, {}) - expected(analysis, keep)
    )
    removed = costs.removals(group, np.arange(group.units)[::-1, None])
    assert costs.after([removed[group.units - 5]], costs.latency) == pytest.approx(expected(analysis, keep))
    assert np.array_equal(
        costs.coupled(tuple(analysis.groups.values()), costs.latency), np.eye(len(analysis.groups))
    )


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("value", [0.9, 0.7, 0.6])
def test_targets_are_met_by_the_tables(timed, scope, value):
    analysis, costs = timed
    scored = score_groups(analysis, Choices(criterion="l2", scope=scope, round_to=4))
    found = solve(scored.ladders, costs, Target("latency", value), scope)
    share = expected(analysis, found.keep) / expected(analysis, {})
    assert found.met and share <= value
    assert found.achieved == pytest.approx(share)
    ladders = {ladder.group.id: ladder for ladder in scored.ladders}
    fewer = {
        name: {**found.keep, name: ladders[name].keep(ladders[name].settle(int((~flags).sum()) - 1))}
        for name, flags in found.keep.items()
    }
    limit = value * expected(analysis, {})
    assert any(expected(analysis, keep) > limit for keep in fewer.values())  # the last rung was needed


def test_a_target_out_of_reach_is_said(timed):
    analysis, costs = timed
    scored = score_groups(analysis, Choices(criterion="l2"))
    found = solve(scored.ladders, costs, Target("latency", 0.05), "global")
    assert not found.met
    assert found.reachable == pytest.approx(expected(analysis, found.keep) / expected(analysis, {}))
