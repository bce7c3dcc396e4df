"""How much goes in each of several rounds: the schedules of Neural Compressor and NNCF.

With `p` = round / rounds, `s` the share that is gone before the first round and `t` the target:

=====================  ======================================================================  ===================
oneshot                `t` in the first round                                                  both
linear                 `s + (t - s) p`                                                         Neural Compressor
cos                    `s + (t - s) (1 - cos(pi/2 p))`                                         Neural Compressor
exp                    `1 - (1 - s) ((1 - t) / (1 - s))^p`: the same share of what is left     Neural Compressor
cube                   `s + (t - s) p^3`                                                       Neural Compressor
exponential            the same as exp                                                         NNCF
exponential_with_bias  `a exp(-k p) + b`: s at 0, 3/4 t at 1/8, t at 1                         NNCF
polynomial             `t - (t - s) (1 - p)^0.9`                                               NNCF
=====================  ======================================================================  ===================

NNCF counts steps from 0, at which the share is `s`: its `pruning_steps` are one more than the rounds here.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from onnxprune.errors import UsageError


@dataclass(frozen=True)
class Schedule:
    """How the share that is gone grows from round to round.

    Parameters
    ----------
    name
        As users name it.
    function
        `(progress, start, target) -> share`, for progress in (0, 1] and 0 <= start < target < 1.
    """

    name: str
    function: Callable[[float, float, float], float]


def oneshot(progress: float, start: float, target: float) -> float:
    """Everything at once."""
    return target


def linear(progress: float, start: float, target: float) -> float:
    """The same number each time."""
    return start + (target - start) * progress


def cos(progress: float, start: float, target: float) -> float:
    """A quarter of a cosine: slow, then faster."""
    return start + (target - start) * (1 - math.cos(math.pi / 2 * progress))


def exponential(progress: float, start: float, target: float) -> float:
    """The same share of what is left each time: fast, then slower."""
    return float(1 - (1 - start) * ((1 - target) / (1 - start)) ** progress)


def cube(progress: float, start: float, target: float) -> float:
    """Slow, then much faster."""
    return start + (target - start) * progress**3


def exponential_with_bias(progress: float, start: float, target: float) -> float:
    """Three quarters of the target after an eighth of the rounds.

    Raises
    ------
    UsageError
        The start is not below three quarters of the target: no such curve exists.
    """
    early = 0.75 * target
    if start >= early:
        raise UsageError(
            f"exponential_with_bias cannot start from {start:g}: it is to pass three quarters of the target, "
            f"{early:g}, after an eighth of the rounds",
            "Take another schedule, such as exponential.",
        )
    # Through (0, start), (1/8, early) and (1, target), with q = exp(-k / 8): 1 + q + ... + q^7 is this ratio.
    ratio = (target - start) / (early - start)
    low, high = 0.0, ratio ** (1 / 7)
    for _ in range(100):
        middle = (low + high) / 2
        if sum(middle**power for power in range(8)) < ratio:
            low = middle
        else:
            high = middle
    k = -8 * math.log(high)
    share = math.expm1(-k * progress) / math.expm1(-k) if k else progress
    return start + (target - start) * share


def polynomial(
    progress: float, start: float, target: float, *, power: float = 0.9, concave: bool = True
) -> float:
    """NNCF's polynomial decay; convex: `s + (t - s) p^power`."""
    if concave:
        return float(target - (target - start) * (1 - progress) ** power)
    return float(start + (target - start) * progress**power)


SCHEDULES: dict[str, Schedule] = {
    schedule.name: schedule
    for schedule in (
        Schedule("oneshot", oneshot),
        Schedule("linear", linear),
        Schedule("cos", cos),
        Schedule("exp", exponential),
        Schedule("cube", cube),
        Schedule("exponential", exponential),
        Schedule("exponential_with_bias", exponential_with_bias),
        Schedule("polynomial", polynomial),
    )
}


def find_schedule(name: str, schedules: Mapping[str, Schedule] | None = None) -> Schedule:
    """Look a schedule up, in `SCHEDULES` where no table is given; UsageError where there is none."""
    table = SCHEDULES if schedules is None else schedules
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UsageError(f"there is no schedule {name!r}{hint}", f"Known: {', '.join(table)}.")
    return table[name]


def levels(
    name: str,
    rounds: int,
    start: float,
    target: float,
    *,
    schedules: Mapping[str, Schedule] | None = None,
) -> tuple[float, ...]:
    """The share that is gone after each round.

    Parameters
    ----------
    name
        Of a schedule.
    rounds
        How many, at least 1.
    start
        Share in [0, 1) that is gone before the first round.
    target
        Share in [start, 1) that is gone after the last.
    schedules
        By name; `SCHEDULES` by default.

    Returns
    -------
    tuple of `rounds` floats
        Never decreasing, in [start, target]; the last is `target` exactly.

    Raises
    ------
    UsageError
        There is no such schedule, no round, or the shares are out of range.

    Examples
    --------
    >>> [round(level, 3) for level in levels("exp", 4, 0.0, 0.9)]
    [0.438, 0.684, 0.822, 0.9]
    """
    schedule = find_schedule(name, schedules)
    if rounds < 1:
        raise UsageError(f"{rounds} rounds are none", "Use 1 to do everything at once.")
    for what, share in (("start", start), ("target", target)):
        if not 0 <= share < 1:
            raise UsageError(
                f"the {what} of the schedule, {share:g}, is not in [0, 1)", "0.6 means that 60 % are gone."
            )
    if start > target:
        raise UsageError(
            f"the schedule starts from {start:g}, beyond its target {target:g}",
            "What is gone does not come back: take a target that is not below the start.",
        )
    reached = float(start)
    found = []
    for number in range(1, rounds):
        if start < target:
            reached = min(max(reached, schedule.function(number / rounds, start, target)), target)
        found.append(float(reached))
    return (*found, float(target))
