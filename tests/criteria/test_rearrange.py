"""Rearrangement against the procedure of the paper, step by step, and against all sets of units."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from onnxprune.criteria.rearrange import rearrange


def loss(gradients, units):
    return float((gradients[list(units)].sum(axis=0) ** 2).sum())


def published(gradients, gone):
    """Kwon et al.: every other unit joins in ascending order, and the one whose leaving helps most leaves."""
    own = (gradients**2).sum(axis=1)
    masked = list(np.flatnonzero(gone))
    for unit in sorted(np.flatnonzero(~gone), key=lambda u: (own[u], u)):
        masked.append(unit)
        left = [loss(gradients, [m for m in masked if m != other]) for other in masked]
        del masked[int(np.argmin(left))]
    flags = np.zeros(len(gone), bool)
    flags[masked] = True
    return flags


def lowest(gradients, count):
    gone = np.zeros(len(gradients), bool)
    gone[np.argsort((gradients**2).sum(axis=1))[:count]] = True
    return gone


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [1, 4, 9])
def test_the_published_procedure(seed, count):
    gradients = np.random.default_rng(seed).standard_normal((12, 5))
    gone = lowest(gradients, count)
    found = rearrange(gradients, gone)
    np.testing.assert_array_equal(found.gone, published(gradients, gone))
    assert found.gone.sum() == count
    assert found.before == pytest.approx(loss(gradients, np.flatnonzero(gone)))
    assert found.after == pytest.approx(loss(gradients, np.flatnonzero(found.gone)))
    best = min(loss(gradients, units) for units in combinations(range(12), count))
    assert best * (1 - 1e-9) <= found.after <= found.before


def test_units_that_cancel_go_together():
    gradients = np.array([[1.0, 0.0], [0.0, 1.1], [0.0, -1.1], [3.0, 3.0]])
    found = rearrange(gradients, np.array([True, True, False, False]))
    assert found.gone.tolist() == [False, True, True, False]
    assert (found.before, found.after) == (pytest.approx(2.21), 0.0)


@pytest.mark.parametrize("seed", range(4))
def test_every_block_keeps_its_number(seed):
    rng = np.random.default_rng(seed)
    gradients, blocks = rng.standard_normal((12, 4)), np.arange(12) % 3
    gone = np.zeros(12, bool)
    gone[:6] = True
    found = rearrange(gradients, gone, blocks)
    assert np.bincount(blocks[found.gone], minlength=3).tolist() == [2, 2, 2]
    assert found.after < found.before


@pytest.mark.parametrize("gone", [np.zeros(5, bool), np.ones(5, bool)])
def test_nothing_to_swap(gone):
    found = rearrange(np.random.default_rng(0).standard_normal((5, 3)), gone)
    np.testing.assert_array_equal(found.gone, gone)


def test_the_flags_are_not_mutated():
    gone = np.array([True, True, False, False])
    rearrange(np.array([[1.0], [1.1], [-1.2], [5.0]]), gone)
    assert gone.tolist() == [True, True, False, False]
