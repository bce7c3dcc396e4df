"""Criteria on activations, against sums over raw samples; and what is said where there is no data."""

from __future__ import annotations

import numpy as np
import pytest
from small_nets import convnet, residual, save

from onnxprune import prune
from onnxprune.analysis import analyze
from onnxprune.choosing.choices import Choices
from onnxprune.choosing.scoring import score_groups
from onnxprune.criteria import ActivationCriterion, UnitActivations, default_criteria
from onnxprune.criteria.activation import CRITERIA, standardized
from onnxprune.criteria.gradient import CRITERIA as GRADIENTS
from onnxprune.errors import UsageError

SHAPES = [(1, 1, 1, 1), (40, 6, 1, 3), (17, 5, 4, 2), (64, 12, 9, 7)]
"""Positions, units, features, outputs."""


def rng(seed=0):
    return np.random.default_rng(seed)


def draw(shape, seed=0):
    """Activations (positions, units, features), half of them rectified, and a weight (outputs, units, features)."""
    positions, units, features, outputs = shape
    x = rng(seed).standard_normal((positions, units, features)) + rng(seed + 1).standard_normal((units, 1))
    x[:, ::2] = np.maximum(x[:, ::2], 0)
    return x, rng(seed + 2).standard_normal((outputs, units, features))


def observe(x, weight):
    return UnitActivations(
        x.mean(0), x.var(0), (x**2).mean(0), (x > 0).mean(0), (weight**2).sum(0), abs(weight).sum(0)
    )


def slow_mean(x, weight):
    return [sum(abs(sum(column) / len(column)) for column in unit.T) for unit in x.transpose(1, 0, 2)]


def slow_apoz(x, weight):
    """One minus the percentage of values that are not positive, counted one by one."""
    return [1 - sum(value <= 0 for value in unit.ravel()) / unit.size for unit in x.transpose(1, 0, 2)]


def slow_variance(x, weight):
    return [
        sum(sum((value - column.mean()) ** 2 for value in column) / len(column) for column in unit.T)
        for unit in x.transpose(1, 0, 2)
    ]


def slow_flap(x, weight):
    """What every output loses, squared and averaged over positions, when one feature becomes its mean."""
    found = np.zeros(x.shape[1])
    for u in range(x.shape[1]):
        for f in range(x.shape[2]):
            lost = np.outer(x[:, u, f] - x[:, u, f].mean(), weight[:, u, f])
            found[u] += (lost**2).sum() / len(x)
    return found


def slow_wanda(x, weight):
    """|W_ij| ||X_j||_2 of every weight that belongs to the unit, with the norm per position."""
    found = np.zeros(x.shape[1])
    for u in range(x.shape[1]):
        for f in range(x.shape[2]):
            found[u] += sum(abs(w) * np.linalg.norm(x[:, u, f]) / len(x) ** 0.5 for w in weight[:, u, f])
    return found


SLOW = {
    "activation-mean": slow_mean,
    "apoz": slow_apoz,
    "variance": slow_variance,
    "flap": slow_flap,
    "wanda": slow_wanda,
}


def score(name, *seen, normalize=False):
    return default_criteria()[name].score([], normalize=normalize, rng=rng(), activations=seen)


def test_every_criterion_has_a_reference():
    assert SLOW.keys() == CRITERIA.keys()
    assert all(criterion.needs_data for criterion in CRITERIA.values())
    others = default_criteria().keys() - SLOW.keys() - GRADIENTS.keys()
    assert not any(default_criteria()[name].needs_data for name in others)


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("shape", SHAPES)
def test_formulas(name, shape):
    x, weight = draw(shape)
    np.testing.assert_allclose(score(name, observe(x, weight)), SLOW[name](x, weight), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", SLOW)
def test_several_consumers(name):
    """Damage at several consumers adds up; a share of positions is averaged."""
    parts = [draw((30, 6, features, 4), seed) for seed, features in enumerate((1, 3, 5))]
    each = np.array([SLOW[name](x, weight) for x, weight in parts])
    expected = each.mean(0) if name == "apoz" else each.sum(0)
    np.testing.assert_allclose(score(name, *(observe(*part) for part in parts)), expected, rtol=1e-10)


@pytest.mark.parametrize("name", SLOW)
def test_rankings_over_all_groups(name):
    """The scale of activations does not matter then, only with shares it never does."""
    x, weight = draw((30, 6, 3, 4))
    found = score(name, observe(x, weight), normalize=True)
    np.testing.assert_allclose(found, score(name, observe(x * 8, weight), normalize=True), rtol=1e-12)
    plain = np.asarray(SLOW[name](x, weight))
    if name == "apoz":
        expected = plain
    elif name == "flap":
        expected = (plain - plain.mean()) / plain.std()
    else:
        expected = plain / np.linalg.norm(plain)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e-300, 1e200])
def test_standardising_equal_scores_gives_zeros(value):
    assert standardized(np.full(7, value)).tolist() == [0.0] * 7
    assert standardized(np.array([value])).tolist() == [0.0]
    assert standardized(value * np.array([0.1 + 0.2, 0.3, 0.6 / 2])).tolist() == [0.0] * 3


def test_a_dead_unit_goes_first_and_negative_values_count_as_off():
    x, weight = draw((50, 5, 2, 3))
    x[:, 3] = 0
    for name in SLOW:
        found = score(name, observe(x, weight))
        assert found[3] == 0 and np.argmin(found) == 3
    x[:, 3] = -1
    assert score("apoz", observe(x, weight))[3] == 0
    assert score("variance", observe(x, weight))[3] == 0
    assert score("activation-mean", observe(x, weight))[3] == 2


@pytest.mark.parametrize("name", SLOW)
def test_no_statistics_and_no_consumer(name):
    criterion = default_criteria()[name]
    with pytest.raises(UsageError, match=f"the criterion {name} needs --data"):
        criterion.score([], normalize=False, rng=rng())
    assert criterion.score([], normalize=False, rng=rng(), activations=[]) is None


def test_statistics_are_held_as_float64():
    seen = observe(*draw((16, 4, 2, 3)))
    half = UnitActivations(*(np.asarray(a, np.float16) for a in vars(seen).values()))
    assert half.units == 4
    assert {array.dtype for array in vars(half).values()} == {np.dtype(np.float64)}


@pytest.mark.parametrize("bad", [np.zeros((3, 2)), np.zeros(4), np.zeros((4, 1))])
def test_statistics_of_different_shapes(bad):
    with pytest.raises(ValueError, match="not all of one shape"):
        UnitActivations(*[np.zeros((4, 2))] * 5, bad)
    with pytest.raises(ValueError, match="not all of one shape"):
        UnitActivations(*[np.zeros(4)] * 6)


def test_scores_of_another_shape():
    wrong = ActivationCriterion("wrong", lambda seen, _: seen.mean)
    with pytest.raises(UsageError, match=r"wrong gives scores of shape \(4, 2\) for 4 units"):
        wrong.score([], normalize=False, rng=rng(), activations=[observe(*draw((5, 4, 2, 3)))])
    with pytest.raises(UsageError, match=r"apoz gives scores of shape \(3,\) for 4 units"):
        score("apoz", observe(*draw((5, 4, 2, 3))), observe(*draw((5, 3, 2, 3))))


@pytest.mark.parametrize("name", ["apoz", "l2+flap"])
@pytest.mark.parametrize("scope", ["global", "local"])
def test_pruning_without_data(tmp_path, name, scope):
    path = save(convnet(), tmp_path / "net.onnx")
    with pytest.raises(UsageError, match="needs --data"):
        score_groups(analyze(path), Choices(criterion=name, scope=scope))
    with pytest.raises(UsageError, match="needs --data"):
        prune(save(residual(), tmp_path / "other.onnx"), criterion=name, scope=scope)
