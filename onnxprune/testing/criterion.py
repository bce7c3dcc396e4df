"""`check_criterion`: what every criterion has to fulfil, whoever wrote it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from onnxprune.criteria import (
    AnyCriterion,
    CombinedCriterion,
    MaskGradients,
    UnitActivations,
    UnitGradients,
    UnitWeights,
    WeightGradients,
)
from onnxprune.criteria.criterion import extra
from onnxprune.criteria.unit_gradients import KINDS
from onnxprune.errors import UsageError

Array = np.ndarray[Any, Any]


def check_criterion(
    criterion: AnyCriterion, *, seeds: Sequence[int] = (0, 1, 2), equivariant: bool = True
) -> None:
    """Check a criterion on random weights, activations and gradients.

    It must give one finite number per unit, the same numbers for the same seed, leave its input as it is, and know
    units by their arrays alone: in another order they get the same scores. Only units that weigh the same may be
    told apart by their order. In float32 the same arrays get nearly the same scores. All this holds with and
    without `normalize`. Without statistics, a criterion that needs data says so.

    Parameters
    ----------
    criterion
        To be checked.
    seeds
        Of the arrays that are drawn.
    equivariant
        False for a criterion that draws random numbers: the order of units is not varied then.

    Raises
    ------
    AssertionError
        The criterion is wrong; the message says in which respect.

    Examples
    --------
    >>> import numpy as np
    >>> from onnxprune.criteria import ActivationCriterion, Criterion
    >>> from onnxprune.testing import check_criterion
    >>> check_criterion(Criterion("largest", lambda values, rng: np.abs(values).max(axis=1)))
    >>> check_criterion(ActivationCriterion("second", lambda seen, rng: seen.second_moment.sum(axis=1)))
    """
    for name in criterion.name.split("+") if isinstance(criterion, CombinedCriterion) else [criterion.name]:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
            raise AssertionError(
                f"{name!r} is no name for a command line: use a-z, 0-9, dashes and underscores"
            )
    if not criterion.kinds:
        raise AssertionError(f"{criterion.name} reads no kind of parameter")
    for seed in seeds:
        for number, case in enumerate(_cases(np.random.default_rng(seed))):
            for normalize in (False, True):
                _check(criterion, case, seed, normalize, equivariant)
            if number == 0 and criterion.needs_data:
                _check_says_so(criterion, case, seed)


@dataclass(frozen=True)
class _Case:
    """Weights of units, shape (units, features), what a consumer sees of them, and gradients."""

    values: Array
    seen: UnitActivations
    masks: MaskGradients
    weights: WeightGradients

    @classmethod
    def of(cls, values: Array, x: Array, weight: Array) -> _Case:
        """From weights, activations (positions, units, features) and a consumer (outputs, units, features)."""
        seen = UnitActivations(
            mean=x.mean(axis=0),
            variance=x.var(axis=0),
            second_moment=np.square(x).mean(axis=0),
            nonzero=(x > 0).mean(axis=0),
            weight_energy=np.square(weight).sum(axis=0),
            weight_l1=np.abs(weight).sum(axis=0),
        )
        rows = np.einsum("puf,ouf->up", x, weight)
        units, half = len(rows), rows.shape[1] // 2
        sums = np.stack([rows[:, :half].sum(axis=1), rows[:, half:].sum(axis=1)], axis=1)
        own, gradient = np.clip(values, -1e15, 1e15), x.sum(axis=0)
        by_batch = own[:, None] * x.reshape(2, -1, units, values.shape[1]).sum(axis=1).swapaxes(0, 1)
        saliency, change = np.abs(by_batch).sum(axis=2), by_batch.sum(axis=2)
        weights = WeightGradients(own, gradient, saliency, float(np.linalg.norm(own)), change)
        return cls(values, seen, MaskGradients(rows, sums), weights)

    @property
    def arrays(self) -> list[Array]:
        """All arrays, one row per unit."""
        masks, weights = self.masks, self.weights
        seen = (getattr(self.seen, field.name) for field in fields(self.seen))
        gradients = (masks.samples, masks.batches, weights.values, weights.gradient, weights.saliency)
        change = () if weights.change is None else (weights.change,)
        return [self.values, *seen, *gradients, *change]

    def each(self, change: Callable[[Array], Array]) -> _Case:
        """The same with every array changed."""
        values, *seen = map(change, self.arrays[:7])
        samples, batches, *weights = map(change, self.arrays[7:])
        own, gradient, saliency, *rest = weights
        return _Case(
            values,
            UnitActivations(*seen),
            MaskGradients(samples, batches),
            WeightGradients(own, gradient, saliency, self.weights.norm, *rest),
        )

    def weigh(self) -> Array:
        """One number per unit that does not depend on the others."""
        return np.asarray(sum(np.square(array).sum(axis=1) for array in self.arrays))


def _cases(rng: np.random.Generator) -> Iterator[_Case]:
    for units, features in ((1, 1), (2, 9), (7, 1), (24, 27), (65, 130)):
        x = rng.standard_normal((16, units, features)) + rng.standard_normal((units, features))
        x[:, ::2] = np.maximum(x[:, ::2], 0)
        yield _Case.of(rng.standard_normal((units, features)), x, rng.standard_normal((5, units, features)))
    for values in (np.zeros((5, 3)), np.ones((5, 3)), np.full((4, 2), 1e30), np.eye(6)):
        constant = np.repeat(np.minimum(values, 1e15)[None], 16, axis=0)
        yield _Case.of(values, constant, constant[:3])
        yield _Case.of(values, constant * np.resize([1.0, -1.0], (16, 1, 1)), constant[:3])


def _check(criterion: AnyCriterion, case: _Case, seed: int, normalize: bool, equivariant: bool) -> None:
    units, features = case.values.shape
    where = f"{criterion.name} on {units} units of {features} features{', normalised' if normalize else ''}"
    before = [array.copy() for array in case.arrays]
    try:
        first = _score(criterion, case, seed, normalize)
    except UsageError as error:
        raise AssertionError(f"{where}: {error.what}") from error
    if first.shape != (units,):
        raise AssertionError(f"{where}: scores of shape {first.shape}")
    if first.dtype.kind != "f" or not np.isfinite(first).all():
        raise AssertionError(f"{where}: scores are not all finite floats: {first}")
    if not all(map(np.array_equal, before, case.arrays)):
        raise AssertionError(f"{where}: its input is not what it was")
    if not np.array_equal(first, _score(criterion, case, seed, normalize)):
        raise AssertionError(f"{where}: the same seed gives other scores")
    largest = np.abs(first).max()
    single = _score(criterion, case.each(lambda array: array.astype(np.float32)), seed, normalize)
    if not np.allclose(single, first, rtol=1e-4, atol=1e-5 * largest):
        raise AssertionError(f"{where}: the same arrays in float32 get other scores")
    if not equivariant:
        return
    order = np.random.default_rng(seed).permutation(units)
    again = _score(criterion, case.each(lambda array: array[order]), seed, normalize)
    weights = case.weigh()
    expected = first[np.lexsort((first, weights))]
    found = again[np.lexsort((again, weights[order]))]
    if not np.allclose(found, expected, rtol=1e-6, atol=1e-9 * largest):
        raise AssertionError(f"{where}: in another order the same units get other scores")


def _check_says_so(criterion: AnyCriterion, case: _Case, seed: int) -> None:
    try:
        criterion.score(_members(criterion, case), normalize=False, rng=np.random.default_rng(seed))
    except UsageError as error:
        if "--data" in error.what:
            return
    raise AssertionError(f"{criterion.name} needs data, and does not say so where there is none")


def _members(criterion: AnyCriterion, case: _Case) -> list[UnitWeights]:
    norm = float(np.linalg.norm(case.values.astype(np.float64)))
    return [UnitWeights(kind, case.values, norm) for kind in sorted(criterion.kinds - KINDS - {"activation"})]


def _score(criterion: AnyCriterion, case: _Case, seed: int, normalize: bool) -> Array:
    scores = criterion.score(
        _members(criterion, case),
        normalize=normalize,
        rng=np.random.default_rng(seed),
        activations=[case.seen] if criterion.needs_data else None,
        **extra(criterion, UnitGradients(case.masks, [case.weights], case.masks.samples.mean(axis=1))),
    )
    if scores is None:
        raise AssertionError(f"{criterion.name} gives no scores for {', '.join(sorted(criterion.kinds))}")
    return np.asarray(scores)
