"""`check_criterion`: what every criterion has to fulfil, whoever wrote it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxprune.criteria import Criterion, UnitWeights
from onnxprune.errors import UsageError

Array = np.ndarray[Any, Any]


def check_criterion(
    criterion: Criterion, *, seeds: Sequence[int] = (0, 1, 2), equivariant: bool = True
) -> None:
    """Check a criterion on random weights.

    It must give one finite number per unit, the same numbers for the same seed, and know units by their
    weights alone: in another order they get the same scores.

    Parameters
    ----------
    criterion
        To be checked.
    seeds
        Of the weights that are drawn.
    equivariant
        False for a criterion that draws random numbers: the order of units is not varied then.

    Raises
    ------
    AssertionError
        The criterion is wrong; the message says in which respect.

    Examples
    --------
    >>> import numpy as np
    >>> from onnxprune.criteria import Criterion
    >>> from onnxprune.testing import check_criterion
    >>> check_criterion(Criterion("largest", lambda values, rng: np.abs(values).max(axis=1)))
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", criterion.name):
        raise AssertionError(f"{criterion.name!r} is no name for a command line: use a-z, 0-9 and dashes")
    if not criterion.kinds:
        raise AssertionError(f"{criterion.name} reads no kind of parameter")
    for seed in seeds:
        rng = np.random.default_rng(seed)
        for units, features in ((1, 1), (2, 9), (7, 1), (24, 27), (65, 130)):
            _check(criterion, rng.standard_normal((units, features)), seed, equivariant)
        for special in (np.zeros((5, 3)), np.ones((5, 3)), np.full((4, 2), 1e30), np.eye(6)):
            _check(criterion, special, seed, equivariant)


def _check(criterion: Criterion, values: Array, seed: int, equivariant: bool) -> None:
    where = f"{criterion.name} on {len(values)} units of {values.shape[1]} weights"
    try:
        first = _score(criterion, values, seed)
    except UsageError as error:
        raise AssertionError(f"{where}: {error.what}") from error
    if first.dtype.kind != "f" or not np.isfinite(first).all():
        raise AssertionError(f"{where}: scores are not all finite floats: {first}")
    if not np.array_equal(first, _score(criterion, values, seed)):
        raise AssertionError(f"{where}: the same seed gives other scores")
    if not equivariant:
        return
    order = np.random.default_rng(seed).permutation(len(values))
    again = _score(criterion, values[order], seed)
    if not np.allclose(again, first[order], rtol=1e-6, atol=1e-9 * np.abs(first).max()):
        raise AssertionError(f"{where}: in another order the same units get other scores")


def _score(criterion: Criterion, values: Array, seed: int) -> Array:
    kind = sorted(criterion.kinds)[0]
    member = UnitWeights(kind, values, float(np.linalg.norm(values)))
    scores = criterion.score([member], normalize=False, rng=np.random.default_rng(seed))
    if scores is None:
        raise AssertionError(f"{criterion.name} gives no scores for parameters of kind {kind!r}")
    return np.asarray(scores)
