"""Neural Compressor's bounds per layer: one ranking over all groups, within a least and a largest share of each.

Every group first loses its least share. The rest of the budget goes by score. A group that would lose more than
its largest share is set to that and frozen, and what it could not lose is spread over the others, until nothing
changes. A group that exceeds its bound at one threshold exceeds it at every higher one, so the end of that is
known: in order of score, what its group may still lose goes, until the budget is spent.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from onnxprune.errors import UsageError

Scores = np.ndarray[Any, np.dtype[np.floating[Any]]]
Ratio = float | Mapping[str, float]
"""One share for all groups, or one for each; a group that is not named has no bound."""


def spread(
    totals: Mapping[str, int],
    scores: Mapping[str, Scores],
    target: float,
    *,
    max_ratio: Ratio = 0.98,
    min_ratio: Ratio = 0.0,
) -> dict[str, int]:
    """Choose how many of each group's weights or units go, by one ranking within bounds.

    Shares are taken as the decimals that they print as, so that 0.9 of a billion is exact. The target and the
    largest shares are rounded down, the least shares up. Of equal scores those of earlier groups go first.

    Parameters
    ----------
    totals
        Per group: how many weights or units it has. All shares are shares of these.
    scores
        Per group, ascending: one score for each of those that can go, at most as many as the group has. A group
        that is missing loses nothing, and one bound for all groups does not speak of it.
    target
        Share of the sum of all totals that goes, in [0, 1).
    max_ratio, min_ratio
        At most and at least this share of a group goes, in [0, 1]; Neural Compressor's `max_sparsity_ratio_per_op`
        and `min_sparsity_ratio_per_op`, and their defaults.

    Returns
    -------
    dict
        Per group of `totals`: the first so many of its scores go. The numbers add up to the target exactly.

    Raises
    ------
    UsageError
        A share is out of range, a bound names an unknown group, the least share of a group is more than it may or
        can lose, or the target is out of reach within the bounds.
    ValueError
        Scores are not ascending, are more than the group's total, or belong to an unknown group.

    Examples
    --------
    >>> import numpy as np
    >>> spread({"a": 4, "b": 4}, {"a": np.array([1, 2, 3, 4]), "b": np.array([5, 6, 7, 8])}, 0.5, max_ratio=0.75)
    {'a': 3, 'b': 1}
    """
    _check_scores(totals, scores)
    if not 0 <= target < 1:
        raise UsageError(f"the target {target:g} is not in [0, 1)", "0.6 means that 60 % go.")
    most, least = _bounds(totals, scores, max_ratio, min_ratio)
    everything = sum(totals.values())
    budget = math.floor(_exact(target) * everything)
    if budget > sum(most.values()):
        raise UsageError(
            f"the target {target:g} is out of reach: {budget:,} of {everything:,} are to go, and the largest "
            f"share per group leaves {sum(most.values()):,}",
            f"Take a target of at most {_down(sum(most.values()), everything):g}, or a larger max_ratio.",
        )
    if budget < sum(least.values()):
        raise UsageError(
            f"the target {target:g} is too low: {budget:,} of {everything:,} are to go, but the least share "
            f"per group takes {sum(least.values()):,}",
            f"Take a target of at least {_up(sum(least.values()), everything):g}, or a smaller min_ratio.",
        )
    names = [name for name in totals if name in scores]
    free = [np.asarray(scores[name])[least[name] : most[name]] for name in names]
    more = dict(zip(names, _lowest(free, budget - sum(least.values())), strict=True))
    return {name: least[name] + more.get(name, 0) for name in totals}


def _lowest(lists: Sequence[Scores], count: int) -> list[int]:
    """How many of each ascending list are among the `count` lowest of all; of equal ones, the earlier lists'."""
    if not count:
        return [0] * len(lists)
    threshold = np.partition(np.concatenate(lists), count - 1)[count - 1]
    below = [int(np.searchsorted(part, threshold, "left")) for part in lists]
    spare = count - sum(below)
    found = []
    for part, lower in zip(lists, below, strict=True):
        equal = min(int(np.searchsorted(part, threshold, "right")) - lower, spare)
        spare -= equal
        found.append(lower + equal)
    return found


def _bounds(
    totals: Mapping[str, int], scores: Mapping[str, Scores], max_ratio: Ratio, min_ratio: Ratio
) -> tuple[dict[str, int], dict[str, int]]:
    """How many of each group may go at most, and must go at least."""
    largest = _per_group("max_ratio", max_ratio, totals, scores, 1.0)
    smallest = _per_group("min_ratio", min_ratio, totals, scores, 0.0)
    most, least = {}, {}
    for name, total in totals.items():
        able = len(scores.get(name, ()))
        most[name] = min(math.floor(_exact(largest[name]) * total), able)
        least[name] = math.ceil(_exact(smallest[name]) * total)
        if least[name] > most[name]:
            raise UsageError(
                f"group {name!r} cannot lose its min_ratio of {smallest[name]:g}, {least[name]:,} of {total:,}: "
                f"{able:,} of them can go, {most[name]:,} with its max_ratio of {largest[name]:g}",
                "Take a smaller min_ratio or a larger max_ratio for it.",
            )
    return most, least


def _per_group(
    what: str, ratio: Ratio, groups: Iterable[str], scored: Iterable[str], unbound: float
) -> dict[str, float]:
    known = list(groups)
    given = ratio if isinstance(ratio, Mapping) else dict.fromkeys(scored, ratio)
    for name, share in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise UsageError(f"{what} names an unknown group {name!r}{hint}", f"Known: {', '.join(known)}.")
        if not 0 <= share <= 1:
            raise UsageError(
                f"the {what} {share:g} of group {name!r} is not in [0, 1]", "0.9 means 90 % of it."
            )
    return {name: given.get(name, unbound) for name in known}


def _check_scores(totals: Mapping[str, int], scores: Mapping[str, Scores]) -> None:
    for name, ascending in scores.items():
        if len(ascending) > totals.get(name, -1):
            raise ValueError(f"{len(ascending)} scores for a total of {totals.get(name)} in group {name!r}")
        if not (np.diff(ascending) >= 0).all():
            raise ValueError(f"the scores of group {name!r} are not ascending")


def _exact(share: float) -> Fraction:
    """The decimal that a share prints as."""
    return Fraction(repr(float(share)))


def _down(part: int, whole: int) -> float:
    return math.floor(Fraction(1000 * part, max(whole, 1))) / 1000


def _up(part: int, whole: int) -> float:
    return math.ceil(Fraction(1000 * part, max(whole, 1))) / 1000
