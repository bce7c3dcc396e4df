"""Criteria on gradients, against sums written out one by one; what is said where there are none."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.criteria import (
    GradientCriterion,
    MaskCriterion,
    MaskGradients,
    UnitGradients,
    WeightGradients,
    default_criteria,
)
from onnxprune.criteria.gradient import CRITERIA, snip_momentum
from onnxprune.errors import UsageError

UNITS, FEATURES, SAMPLES = 7, 5, 12
BATCH = np.arange(SAMPLES) // 5


def rng(seed=0):
    return np.random.default_rng(seed)


def draw(seed=0):
    """Gradients of masks (units, samples); weights (units, features) and their gradients per batch."""
    masks = rng(seed).standard_normal((UNITS, SAMPLES))
    values = rng(seed + 1).standard_normal((UNITS, FEATURES))
    return masks, values, rng(seed + 2).standard_normal((BATCH.max() + 1, UNITS, FEATURES))


def seen(masks, values, gradients):
    sums = np.stack([masks[:, b == BATCH].sum(axis=1) for b in range(BATCH.max() + 1)], axis=1)
    saliency = np.abs(values * gradients).sum(axis=2).T
    change = (values * gradients).sum(axis=2).T
    weights = WeightGradients(values, gradients.sum(axis=0), saliency, float(np.linalg.norm(values)), change)
    return UnitGradients(MaskGradients(masks, sums), [weights], masks[:, 0])


def slow_taylor(masks, values, gradients):
    return [sum(abs(g) for g in unit) for unit in masks]


def slow_fisher(masks, values, gradients):
    return [sum(g * g for g in unit) / 2 for unit in masks]


def slow_retrain_free(masks, values, gradients):
    """S <- S + (dL/dm)^2 per batch."""
    found = np.zeros(UNITS)
    for b in range(BATCH.max() + 1):
        found += masks[:, b == BATCH].sum(axis=1) ** 2
    return found


def slow_gradient(masks, values, gradients):
    return [sum(abs(gradients[:, u, f].sum()) for f in range(FEATURES)) for u in range(UNITS)]


def slow_snip(masks, values, gradients):
    return [sum(abs(values[u, f] * gradients[:, u, f].sum()) for f in range(FEATURES)) for u in range(UNITS)]


def slow_snip_momentum(masks, values, gradients):
    """S <- 0.9 S + 1.0 |W G| for every weight, then the sum over the unit's weights."""
    scores = np.zeros_like(values)
    for batch in gradients:
        scores = 0.9 * scores + 1.0 * abs(values * batch)
    return scores.sum(axis=1)


def slow_snip_momentum_block(masks, values, gradients):
    """S <- 0.9 S + 1.0 |dL/dm|, one factor m for all weights of the unit."""
    scores = np.zeros(UNITS)
    for batch in gradients:
        scores = 0.9 * scores + abs(np.array([values[u] @ batch[u] for u in range(UNITS)]))
    return scores


def slow_movement(masks, values, gradients):
    scores = np.zeros(UNITS)
    for batch in gradients:
        for u in range(UNITS):
            scores[u] -= sum(values[u, f] * batch[u, f] for f in range(FEATURES))
    return scores


def slow_rb(masks, values, gradients):
    """The logits themselves, whatever they are."""
    return masks[:, 0]


SLOW = {
    "taylor": slow_taylor,
    "fisher": slow_fisher,
    "retrain_free": slow_retrain_free,
    "gradient": slow_gradient,
    "snip": slow_snip,
    "snip_momentum": slow_snip_momentum,
    "snip_momentum_block": slow_snip_momentum_block,
    "movement": slow_movement,
    "rb": slow_rb,
}


def score(name, gradients, normalize=False):
    return default_criteria()[name].score([], normalize=normalize, rng=rng(), gradients=gradients)


def test_every_criterion_has_a_reference():
    assert SLOW.keys() == CRITERIA.keys()
    assert all(criterion.needs_data for criterion in CRITERIA.values())


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("seed", range(3))
def test_formulas(name, seed):
    arrays = draw(seed)
    np.testing.assert_allclose(score(name, seen(*arrays)), SLOW[name](*arrays), rtol=1e-12)


@pytest.mark.parametrize("name", ["gradient", "snip", "snip_momentum"])
def test_parameters_add_up(name):
    one, other = seen(*draw(0)), seen(*draw(9))
    both = UnitGradients(None, [*one.weights, *other.weights])
    np.testing.assert_allclose(score(name, both), score(name, one) + score(name, other), rtol=1e-12)


@pytest.mark.parametrize("name", SLOW)
def test_rankings_over_all_groups_do_not_depend_on_the_scale_of_weights(name):
    """A weight is halved and what follows doubles: the loss is the same, and the weight's gradient doubles."""
    masks, values, gradients = draw()
    before = score(name, seen(masks, values, gradients), normalize=True)
    after = score(name, seen(masks, values / 2, gradients * 2), normalize=True)
    np.testing.assert_allclose(after, before, rtol=1e-12)
    if name != "gradient":
        np.testing.assert_allclose(before, score(name, seen(masks, values, gradients)), rtol=1e-12)


def test_blocks_of_several_parameters_are_one_block():
    """What one parameter's weights say may be taken back by another's: the magnitude is that of the sum."""
    one, other = (values * gradients for _, values, gradients in (draw(0), draw(9)))
    both = UnitGradients(None, [*seen(*draw(0)).weights, *seen(*draw(9)).weights])
    expected = np.zeros(UNITS)
    for a, b in zip(one, other, strict=True):
        expected = 0.9 * expected + abs(a.sum(axis=1) + b.sum(axis=1))
    np.testing.assert_allclose(score("snip_momentum_block", both), expected, rtol=1e-12)
    summed = sum(slow_movement(None, *draw(seed)[1:]) for seed in (0, 9))
    np.testing.assert_allclose(score("movement", both), summed, rtol=1e-12)


def test_signed_sums_that_nobody_collected():
    weights = WeightGradients(np.ones((3, 4)), np.ones((3, 4)), np.ones((3, 2)), 1.0)
    with pytest.raises(UsageError, match="signed sums per batch"):
        score("snip_momentum_block", UnitGradients(None, [weights]))
    with pytest.raises(ValueError, match="changes of shape"):
        WeightGradients(np.ones((3, 4)), np.ones((3, 4)), np.ones((3, 2)), 1.0, np.ones((3, 1)))


def test_other_factors_of_momentum():
    gradients = seen(*draw()).weights[0]
    total = gradients.saliency.sum(axis=1)
    np.testing.assert_allclose(snip_momentum(gradients, rng(), alpha=1.0), total, rtol=1e-12)
    np.testing.assert_allclose(snip_momentum(gradients, rng(), alpha=1.0, beta=0.5), total / 2, rtol=1e-12)
    last = gradients.saliency[:, -1]
    np.testing.assert_allclose(snip_momentum(gradients, rng(), alpha=0.0), last, rtol=1e-12)


@pytest.mark.parametrize("name", SLOW)
def test_no_gradients(name):
    criterion = default_criteria()[name]
    with pytest.raises(UsageError, match=rf"{name} needs --data\nIt looks at gradients"):
        criterion.score([], normalize=False, rng=rng())
    assert criterion.score([], normalize=False, rng=rng(), gradients=UnitGradients()) is None


def test_sums_of_ranks_take_gradients():
    from onnxprune.choosing.scoring import find_criterion
    from onnxprune.criteria.combined import ranks

    found = find_criterion("fisher+snip", None)
    assert found.kinds == {"mask-gradient", "weight-gradient"}
    arrays = draw()
    total = found.score([], normalize=False, rng=rng(), gradients=seen(*arrays))
    expected = ranks(np.asarray(slow_fisher(*arrays))) + ranks(np.asarray(slow_snip(*arrays)))
    np.testing.assert_allclose(total, expected)


def test_gradients_are_held_as_float64():
    half = MaskGradients(np.ones((3, 4), np.float16), np.ones((3, 1), np.float16))
    assert {array.dtype for array in vars(half).values()} == {np.dtype(np.float64)}


def test_arrays_that_do_not_fit():
    with pytest.raises(ValueError, match="no matrices of one number of units"):
        MaskGradients(np.zeros((3, 4)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="not equally many units"):
        WeightGradients(np.zeros((3, 4)), np.zeros((3, 4)), np.zeros((2, 1)), 1.0)
    with pytest.raises(ValueError, match="of shapes"):
        WeightGradients(np.zeros((3, 4)), np.zeros((3, 5)), np.zeros((3, 1)), 1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        MaskCriterion("wrong", lambda seen, _: seen.samples),
        GradientCriterion("wrong", lambda seen, _: seen.values),
    ],
)
def test_scores_of_another_shape(wrong):
    with pytest.raises(UsageError, match=r"wrong gives scores of shape .* for 7 units"):
        wrong.score([], normalize=False, rng=rng(), gradients=seen(*draw()))
