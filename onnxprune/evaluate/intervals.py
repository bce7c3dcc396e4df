"""95 % confidence intervals from sums that can be streamed.

Shares have Wilson's interval. Everything else is a ratio of totals, or a smooth function of totals, over
independent units (samples, sequences, images, batches): its variance comes from the delta method (linearise,
then take the empirical variance of the units' contributions), and the interval reaches as many standard errors to
both sides as Student's t with one degree of freedom less than there are units. That is an approximation: where
few units carry most of an error (heavy tails), or units are few, it is narrower than it should be.

W. G. Cochran, *Sampling Techniques*, 3rd ed. 1977, section 6.3 (ratio estimator); E. B. Wilson, *Probable
Inference*, JASA 22, 1927.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Interval: TypeAlias = tuple[float, float]

Z95 = 1.959963984540054
ROUNDING = 1e-13
"""A sum of squares below this share of its largest terms is rounding: no spread."""


def wilson(correct: int, total: int) -> Interval:
    """Return the 95 % Wilson score interval of a share.

    Examples
    --------
    >>> low, high = wilson(776, 846)
    >>> round(low, 4), round(high, 4)
    (0.8968, 0.934)
    """
    if total == 0:
        return 0.0, 1.0
    share, z2 = correct / total, Z95**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z95 * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    low = 0.0 if correct == 0 else centre - half
    high = 1.0 if correct == total else centre + half
    return low, high


def student95(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t.

    Exact for 1 and 2 degrees of freedom, else Abramowitz and Stegun 26.7.5, which is off by less than 0.2 %.

    Examples
    --------
    >>> [round(student95(freedom), 2) for freedom in (1, 2, 3, 10, 1000)]
    [12.71, 4.3, 3.18, 2.23, 1.96]
    """
    if freedom == 1:
        return math.tan(0.475 * math.pi)
    if freedom == 2:
        return 0.95 * math.sqrt(2 / (1 - 0.95**2))
    z = Z95
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / freedom**power for power, term in enumerate(terms, start=1))


def student_interval(
    value: float, error: float, units: int, *, unit: str = "sample"
) -> tuple[Interval | None, str]:
    """Return value plus and minus Student's t times the standard error, or why that cannot be had.

    Parameters
    ----------
    value, error
        An estimate and its standard error.
    units
        How many independent units they rest on.
    unit
        What one of them is called.

    Returns
    -------
    tuple
        The interval or None, and a reason in the second case: one unit, or units without any spread, say nothing
        about how far the value would move on others; nor does what is not finite.
    """
    if not math.isfinite(value):
        return None, "the value is not finite"
    if units < 2:
        return None, f"a single {unit} has no spread"
    if error == 0 or not math.isfinite(error):
        return None, "there is no spread to take it from"
    half = student95(units - 1) * error
    return (value - half, value + half), ""


@dataclass(frozen=True)
class Ratio:
    """Sums from which a ratio of two totals and its standard error follow; ``+`` merges disjoint units.

    With bottoms of 1 the ratio is the mean of the tops, and the error is that of a mean.

    Parameters
    ----------
    units
        How many.
    top, bottom
        Totals.
    top_squared, cross, bottom_squared
        Sums of squares and of products.
    """

    units: int
    top: float
    bottom: float
    top_squared: float
    cross: float
    bottom_squared: float

    @classmethod
    def of(cls, tops: npt.ArrayLike, bottoms: npt.ArrayLike | None = None) -> Ratio:
        """Sum up units given as arrays of shape ``(units,)``; bottoms are 1 by default."""
        x = np.asarray(tops, np.float64)
        y = np.ones_like(x) if bottoms is None else np.asarray(bottoms, np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            sums = [float(np.sum(part)) for part in (x, y, x * x, x * y, y * y)]
        return cls(len(x), *sums)

    def __add__(self, other: Ratio, /) -> Ratio:
        pairs = [(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)]
        return Ratio(*(mine + theirs for mine, theirs in pairs))

    @property
    def value(self) -> float:
        """The ratio of the totals; NaN where the lower one is 0."""
        return self.top / self.bottom if self.bottom else math.nan

    @property
    def error(self) -> float:
        """Standard error of the ratio (0 where there is no spread, or one unit)."""
        ratio = self.value
        if self.units < 2 or not math.isfinite(ratio):
            return 0.0
        spread = self.top_squared - 2 * ratio * self.cross + ratio**2 * self.bottom_squared
        if spread <= ROUNDING * (self.top_squared + ratio**2 * self.bottom_squared):
            return 0.0
        return math.sqrt(spread * self.units / (self.units - 1)) / self.bottom
