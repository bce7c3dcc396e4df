"""Bounds per group, against the loop that Neural Compressor describes: freeze, spread the rest, until stable."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from onnxprune.allocate.limits import spread
from onnxprune.errors import UsageError

RATIOS = st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.75, 0.9, 0.98, 1.0])


@st.composite
def problems(draw):
    """Groups with scores that are often equal, some larger than what can go; bounds for all or for each."""
    scores, totals = {}, {}
    for number in range(draw(st.integers(1, 5))):
        values = draw(st.lists(st.integers(0, 9), max_size=15))
        scores[f"g{number}"] = np.sort(np.array(values, float))
        totals[f"g{number}"] = len(values) + draw(st.integers(0, 3))
    bounds = []
    for _ in range(2):
        each = {name: draw(RATIOS) for name in scores if draw(st.booleans())}
        bounds.append(draw(RATIOS) if draw(st.booleans()) else each)
    return totals, scores, *bounds


@st.composite
def solvable(draw):
    """Problems with bounds that fit each other, and a target between them."""
    totals, scores, *_ = draw(problems())
    largest, smallest = {}, {}
    for name, total in totals.items():
        most = draw(st.integers(0, len(scores[name])))
        largest[name] = (most + 0.5) / total if most < total else 1.0
        smallest[name] = max(draw(st.integers(0, most)) - 0.5, 0) / max(total, 1)
    most, least = limits(totals, scores, largest, smallest)
    budget = draw(st.integers(sum(least.values()), sum(most.values())))
    everything = sum(totals.values())
    assume(budget < everything)
    return totals, scores, (budget + 0.5) / everything, largest, smallest, budget


def exact(ratio):
    return Fraction(str(ratio))


def limits(totals, scores, max_ratio, min_ratio):
    def of(ratio, name, unbound):
        return exact(ratio.get(name, unbound) if isinstance(ratio, dict) else ratio)

    most = {n: min(math.floor(of(max_ratio, n, 1.0) * t), len(scores[n])) for n, t in totals.items()}
    least = {n: math.ceil(of(min_ratio, n, 0.0) * t) for n, t in totals.items()}
    return most, least


def reserve_freeze_and_spread(totals, scores, budget, most, least):
    """The minimum of every group, then the lowest scores of all that are not frozen, again and again."""
    gone, frozen = dict(least), set()
    while True:
        rest = budget - sum(most[name] if name in frozen else least[name] for name in totals)
        ranking = sorted(
            (score, number, i)
            for number, name in enumerate(totals)
            if name not in frozen
            for i, score in enumerate(scores[name])
            if i >= least[name]
        )
        gone = {name: most[name] if name in frozen else least[name] for name in totals}
        for _, number, _ in ranking[:rest]:
            gone[list(totals)[number]] += 1
        beyond = {name for name in totals if name not in frozen and gone[name] > most[name]}
        if not beyond:
            return gone
        frozen |= beyond


@given(solvable())
def test_bounded_shares(problem):
    totals, scores, target, max_ratio, min_ratio, budget = problem
    most, least = limits(totals, scores, max_ratio, min_ratio)
    found = spread(totals, scores, target, max_ratio=max_ratio, min_ratio=min_ratio)
    assert list(found) == list(totals)
    assert sum(found.values()) == budget
    assert all(least[name] <= found[name] <= most[name] for name in totals)
    for one in totals:  # no group loses a unit while another that could lose one has a lower score
        for other in totals:
            if found[one] > least[one] and found[other] < most[other]:
                assert scores[one][found[one] - 1] <= scores[other][found[other]]
    assert found == reserve_freeze_and_spread(totals, scores, budget, most, least)


@given(problems(), st.integers(0, 19))
def test_it_fails_where_the_bounds_leave_no_way(problem, twentieths):
    totals, scores, max_ratio, min_ratio = problem
    target = twentieths / 20
    budget = math.floor(exact(target) * sum(totals.values()))
    most, least = limits(totals, scores, max_ratio, min_ratio)
    if any(least[n] > most[n] for n in totals) or not sum(least.values()) <= budget <= sum(most.values()):
        with pytest.raises(UsageError):
            spread(totals, scores, target, max_ratio=max_ratio, min_ratio=min_ratio)
    else:
        found = spread(totals, scores, target, max_ratio=max_ratio, min_ratio=min_ratio)
        assert sum(found.values()) == budget


@given(solvable(), st.floats(0, 1))
def test_a_larger_target_takes_no_less_from_any_group(problem, part):
    totals, scores, target, max_ratio, _, budget = problem
    less = spread(totals, scores, part * target, max_ratio=max_ratio)
    more = spread(totals, scores, target, max_ratio=max_ratio)
    assert sum(less.values()) <= sum(more.values()) == budget
    assert all(less[name] <= more[name] for name in totals)


def test_one_ranking_without_bounds():
    scores = {"a": np.array([1.0, 4.0, 5.0]), "b": np.array([2.0, 3.0, 9.0, 9.5])}
    found = [spread({"a": 3, "b": 4}, scores, k / 7 + 1e-9, max_ratio=1.0) for k in range(7)]
    assert [(one["a"], one["b"]) for one in found] == [(0, 0), (1, 0), (1, 1), (1, 2), (2, 2), (3, 2), (3, 3)]


def test_a_group_that_would_be_emptied_is_frozen_and_the_rest_spread():
    scores = {"tiny": np.arange(10) * 1e-9, "b": np.arange(10) + 1.0, "c": np.arange(10) + 1.5}
    totals = dict.fromkeys(scores, 10)
    assert spread(totals, scores, 0.5, max_ratio=1.0) == {"tiny": 10, "b": 3, "c": 2}
    assert spread(totals, scores, 0.5, max_ratio=0.6) == {"tiny": 6, "b": 5, "c": 4}
    assert spread(totals, scores, 0.5, max_ratio={"tiny": 0.2}) == {"tiny": 2, "b": 7, "c": 6}


def test_one_group_after_the_other_is_frozen():
    """What the first cannot lose drives the second beyond its bound, too."""
    scores = {"a": np.zeros(10), "b": np.ones(10), "c": np.full(20, 2.0)}
    found = spread({"a": 10, "b": 10, "c": 20}, scores, 0.5, max_ratio=0.6)
    assert found == {"a": 6, "b": 6, "c": 8}


def test_minima_are_reserved_first():
    scores = {"a": np.arange(10.0), "b": np.arange(10.0) + 100}
    totals = dict.fromkeys(scores, 10)
    assert spread(totals, scores, 0.4, min_ratio=0.0) == {"a": 8, "b": 0}
    assert spread(totals, scores, 0.4, min_ratio=0.3) == {"a": 5, "b": 3}
    assert spread(totals, scores, 0.4, min_ratio={"b": 0.25}) == {"a": 5, "b": 3}
    assert spread(totals, scores, 0.4, min_ratio=0.4, max_ratio=0.4) == {"a": 4, "b": 4}


def test_default_of_neural_compressor():
    scores = {"a": np.zeros(100), "b": np.ones(100)}
    assert spread({"a": 100, "b": 100}, scores, 0.5) == {"a": 98, "b": 2}


def test_equal_scores_go_by_group():
    scores = {"b": np.ones(4), "a": np.ones(4)}
    assert spread({"b": 4, "a": 4}, scores, 0.25, max_ratio=1.0) == {"b": 2, "a": 0}
    assert spread({"a": 4, "b": 4}, scores, 0.25, max_ratio=1.0) == {"a": 2, "b": 0}
    assert spread({"b": 4, "a": 4}, scores, 0.0) == {"b": 0, "a": 0}


def test_groups_without_scores_lose_nothing_and_count():
    found = spread({"head": 90, "a": 10}, {"a": np.arange(10.0)}, 0.05, min_ratio=0.1)
    assert found == {"head": 0, "a": 5}
    assert spread({}, {}, 0.5) == {}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_types(dtype):
    values = np.sort(np.random.default_rng(0).standard_normal(1000)).astype(dtype)
    scores = {"a": values[::2], "b": values[1::2].astype(np.float64)}
    assert spread({"a": 500, "b": 500}, scores, 0.3) == {"a": 150, "b": 150}


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.7, 0.9])
def test_shares_are_exact_decimals(ratio):
    """0.7 of 10 is 7, though 0.7 * 10 may be a little less; the same for a billion."""
    scores = {"a": np.zeros(10)}
    assert spread({"a": 10}, scores, ratio) == {"a": round(10 * ratio)}
    assert spread({"a": 10}, scores, ratio, max_ratio=ratio, min_ratio=ratio) == {"a": round(10 * ratio)}
    with pytest.raises(UsageError, match=f"{round(ratio * 1e9):,} of 1,000,000,000 are to go"):
        spread({"a": 10**9}, {"a": np.zeros(1)}, ratio)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 1.0}, "the target 1 is not in"),
        ({"target": -0.1}, "the target -0.1 is not in"),
        ({"target": math.nan}, "the target nan is not in"),
        ({"target": 0.95, "max_ratio": 0.9}, "target 0.95 is out of reach: 19 of 20 are to go, .* leaves 18"),
        ({"target": 0.2, "min_ratio": 0.3}, "target 0.2 is too low: 4 of 20 are to go, .* takes 6"),
        ({"max_ratio": 1.1}, "max_ratio 1.1 of group 'one' is not in"),
        ({"min_ratio": {"two": -1.0}}, "min_ratio -1 of group 'two' is not in"),
        ({"max_ratio": {"tow": 0.5}}, r"max_ratio names an unknown group 'tow' \(did you mean 'two'\?\)"),
        (
            {"max_ratio": 0.3, "min_ratio": {"two": 0.5}},
            "group 'two' cannot lose its min_ratio of 0.5, 5 of 10",
        ),
    ],
)
def test_what_cannot_be(options, message):
    scores = {"one": np.arange(10.0), "two": np.arange(10.0)}
    with pytest.raises(UsageError, match=message) as error:
        spread({"one": 10, "two": 10}, scores, **{"target": 0.5, **options})
    assert error.value.hint


@pytest.mark.parametrize(("target", "bound"), [(0.95, {"max_ratio": 0.875}), (0.1, {"min_ratio": 0.3})])
def test_what_is_said_to_be_reachable_is(target, bound):
    scores = {"one": np.arange(997.0), "two": np.arange(1499.0)}
    totals = {"one": 997, "two": 1499}
    with pytest.raises(UsageError) as error:
        spread(totals, scores, target, **bound)
    other = float(error.value.hint.split("Take a target of at ")[1].split()[1].rstrip(","))
    assert spread(totals, scores, other, **bound)


@pytest.mark.parametrize(
    ("totals", "scores", "message"),
    [
        ({"a": 2}, {"a": np.array([1.0, 0.0])}, "not ascending"),
        ({"a": 2}, {"a": np.array([1.0, math.nan])}, "not ascending"),
        ({"a": 2}, {"a": np.zeros(3)}, "3 scores for a total of 2"),
        ({"a": 2}, {"b": np.zeros(0)}, "0 scores for a total of None"),
    ],
)
def test_arrays_that_are_wrong(totals, scores, message):
    with pytest.raises(ValueError, match=message):
        spread(totals, scores, 0.0)
