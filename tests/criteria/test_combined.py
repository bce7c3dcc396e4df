"""Sums of ranks: "l2+apoz"."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_nets import convnet, save

from onnxprune.analysis import analyze
from onnxprune.choosing.choices import Choices
from onnxprune.choosing.scoring import find_criterion, score_groups
from onnxprune.criteria import (
    AnyCriterion,
    CombinedCriterion,
    Criterion,
    CriterionTable,
    UnitActivations,
    UnitWeights,
    default_criteria,
)
from onnxprune.criteria.combined import ranks
from onnxprune.errors import UsageError


def rng():
    return np.random.default_rng(0)


def weights(values, kind="weight"):
    return UnitWeights(kind, np.asarray(values, np.float64), 1.0)


def slow_ranks(scores):
    """Per score: how many are lower, and half of those that are equal."""
    n = len(scores)
    return [
        (sum(other < mine for other in scores) + (sum(other == mine for other in scores) - 1) / 2)
        / max(n - 1, 1)
        for mine in scores
    ]


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=30))
def test_ranks(scores):
    np.testing.assert_allclose(ranks(np.array(scores, float)), slow_ranks(scores), rtol=1e-12)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=30), st.randoms())
def test_ranks_know_scores_not_places(scores, random):
    order = random.sample(range(len(scores)), len(scores))
    found = ranks(np.array(scores))
    np.testing.assert_array_equal(found[order], ranks(np.array(scores)[order]))
    assert 0 <= found.min() <= found.max() <= 1
    np.testing.assert_array_equal(found, ranks(np.array(scores) * 1024))


def test_rounding_makes_no_ranks():
    scores = np.array([0.1 + 0.2, 0.3, 0.6 / 2, 1.0])
    assert len(set(scores)) > 2
    np.testing.assert_allclose(ranks(scores), [1 / 3] * 3 + [1])


def test_the_sum_of_two(tmp_path):
    criterion = find_criterion("l1+bn-scale", None)
    members = [weights([[3.0], [-1.0], [2.0], [0.5]]), weights([[0.1], [0.9], [0.4], [0.2]], "bn-scale")]
    found = criterion.score(members, normalize=False, rng=rng())
    np.testing.assert_allclose(found, [3 / 3 + 0, 1 / 3 + 3 / 3, 2 / 3 + 2 / 3, 0 + 1 / 3])
    assert criterion.kinds == {"weight", "bn-scale"}
    assert criterion.source == "arXiv:1608.08710, arXiv:1708.06519"
    assert criterion.score(members[:1], normalize=False, rng=rng()) is None


def test_weights_and_activations():
    criterion = find_criterion("l2+apoz", None)
    members = [weights([[3.0], [1.0], [2.0]])]
    ones = np.ones((3, 1))
    seen = UnitActivations(ones, ones, ones, np.array([[0.2], [0.9], [0.2]]), ones, ones)
    found = criterion.score(members, normalize=True, rng=rng(), activations=[seen])
    np.testing.assert_allclose(found, [1 + 0.25, 0 + 1, 0.5 + 0.25])
    assert criterion.needs_data
    assert criterion.score(members, normalize=True, rng=rng(), activations=[]) is None
    with pytest.raises(UsageError, match="the criterion apoz needs --data"):
        criterion.score(members, normalize=True, rng=rng())


def test_three_parts_and_one_alone():
    names = ["l1", "geometric-median", "lamp"]
    values = [weights(rng().standard_normal((9, 4)))]
    parts = [ranks(default_criteria()[name].score(values, normalize=False, rng=rng())) for name in names]
    found = find_criterion("+".join(names), None).score(values, normalize=False, rng=rng())
    np.testing.assert_allclose(found, sum(parts), rtol=1e-12)
    assert find_criterion("l1", None) is default_criteria()["l1"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wandas", r"there is no criterion 'wandas' \(did you mean 'wanda'\?\)"),
        ("l2+apos", r"there is no criterion 'apos' in 'l2\+apos' \(did you mean 'apoz'\?\)"),
        ("l2+", r"there is no criterion '' in 'l2\+'"),
        ("+", r"there is no criterion '' in '\+'"),
        ("l2 + apoz", r"there is no criterion 'l2 ' in"),
    ],
)
def test_unknown_parts(name, message):
    with pytest.raises(UsageError, match=message) as error:
        find_criterion(name, None)
    assert "geometric-median" in error.value.hint


def test_a_table_of_ones_own():
    """Its names come first, and parts are looked up in it."""
    mine = Criterion("mine", lambda values, _: values.max(axis=1))
    both = CombinedCriterion("mine+l2", (mine,))
    table = default_criteria() | {"mine": mine}
    assert isinstance(find_criterion("mine+l2", table), CombinedCriterion)
    assert find_criterion("mine+l2", table | {"mine+l2": both}) is both
    with pytest.raises(UsageError, match="'l2' in 'mine\\+l2'"):
        find_criterion("mine+l2", CriterionTable({"mine": mine}))


def test_all_kinds_are_criteria():
    for criterion in (*default_criteria().values(), find_criterion("l2+apoz", None)):
        assert isinstance(criterion, AnyCriterion)
    assert not isinstance({"l2": default_criteria()["l2"]}, AnyCriterion)
    assert not isinstance(default_criteria, AnyCriterion)


def test_units_of_a_model(tmp_path):
    analysis = analyze(save(convnet(), tmp_path / "net.onnx"))
    scored = score_groups(analysis, Choices(criterion="l1+l2", round_to=1))
    for ladder in scored.ladders:
        assert (np.diff(ladder.scores) >= 0).all()
        assert ladder.scores[0] < 0.5 and ladder.scores[-1] > 1.5
