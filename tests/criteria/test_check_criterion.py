"""`check_criterion`: every built-in criterion passes it, and each thing that it asks for can fail."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import onnxprune
from onnxprune.choosing.scoring import find_criterion
from onnxprune.criteria import (
    ActivationCriterion,
    CombinedCriterion,
    Criterion,
    activation,
    default_criteria,
    gradient,
    magnitude,
)
from onnxprune.testing import check_criterion

SUMS = ["l2+apoz", "lamp+flap", "l1+geometric-median", "bn-scale+wanda+variance", "activation-mean+random"]


@pytest.mark.parametrize("name", [*sorted(default_criteria()), *SUMS])
def test_conformance(name):
    check_criterion(find_criterion(name, None), equivariant="random" not in name)


@dataclass(frozen=True)
class Narrow(Criterion):
    """Computes in the type that the model has."""

    def score(self, members, *, normalize, rng, activations=None):
        return np.square(members[0].values.astype(np.float32)).sum(axis=1)


@dataclass(frozen=True)
class Silent(ActivationCriterion):
    """Takes a guess where there is no data."""

    def score(self, members, *, normalize, rng, activations=None):
        if activations is None:
            return np.zeros(3)
        return super().score(members, normalize=normalize, rng=rng, activations=activations)


@dataclass(frozen=True)
class Wide(Criterion):
    """Takes care of itself, and forgets the shape."""

    def score(self, members, *, normalize, rng, activations=None):
        return members[0].values


def spoiled(seen, _):
    seen.mean[:] = 1
    return seen.mean.sum(axis=1)


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (Criterion("My Criterion", lambda v, r: v.sum(1)), "no name for a command line"),
        (Criterion("a+b", lambda v, r: v.sum(1)), "no name for a command line"),
        (CombinedCriterion("l2+", (default_criteria()["l2"],)), "no name for a command line"),
        (Criterion("mine", lambda v, r: v.sum(1), kinds=frozenset()), "reads no kind"),
        (Criterion("mine", lambda v, r: v.sum(0)), "shape"),
        (Wide("mine", lambda v, r: v), "scores of shape"),
        (Criterion("mine", lambda v, r: v.sum(1) / 0 if v.any() else v.sum(1)), "finite"),
        (Narrow("mine", lambda v, r: v), "finite"),
        (
            Criterion("mine", lambda v, r: np.random.default_rng().random(len(v))),
            "same seed gives other scores",
        ),
        (Criterion("mine", lambda v, r: np.arange(len(v)) * 1.0), "in another order"),
        (Criterion("mine", lambda v, r: np.sin(1e9 * v).sum(1)), "in float32"),
        (ActivationCriterion("mine", lambda s, r: s.mean), "shape"),
        (ActivationCriterion("mine", lambda s, r: np.arange(s.units) * 1.0), "in another order"),
        (ActivationCriterion("mine", lambda s, r: np.log(s.variance).sum(1)), "finite"),
        (ActivationCriterion("mine", lambda s, r: s.mean.sum(1), across=lambda x: x / x.sum()), "normalised"),
        (ActivationCriterion("mine", spoiled), "not what it was"),
        (Silent("mine", lambda s, r: s.mean.sum(1)), "does not say so"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else type(value).__name__,
)
def test_it_finds_what_is_wrong(criterion, message):
    with np.errstate(all="ignore"), pytest.raises(AssertionError, match=message):
        check_criterion(criterion)


def test_ties_may_go_by_index():
    """Units that weigh the same may be told apart by their order, others may not."""

    def first_of_equals(values, _):
        squares = np.square(values).sum(axis=1)
        return squares + 1e-3 * np.array([(squares[:i] == s).sum() for i, s in enumerate(squares)])

    check_criterion(Criterion("mine", first_of_equals))


PAGE = Path(onnxprune.__file__).parents[1] / "docs/criteria.md"


@pytest.mark.skipif(not PAGE.exists(), reason="needs the documentation")
def test_the_page_lists_every_criterion():
    rows = re.findall(
        r"^\| `([a-z0-9_-]+)` \|.*?\| (.*) \| (yes|no) \|$", PAGE.read_text("utf-8"), re.MULTILINE
    )
    listed = {name: needs == "yes" for name, _, needs in rows}
    builtin = magnitude.CRITERIA | activation.CRITERIA | gradient.CRITERIA
    assert listed == {name: criterion.needs_data for name, criterion in builtin.items()}
    for name, source, _ in rows:
        assert builtin[name].source in source or "the same" in source
