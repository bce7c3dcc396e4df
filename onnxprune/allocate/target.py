"""Targets that users mean, and whether a choice of units meets them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from onnxprune.allocate.cost import Cost
from onnxprune.errors import UsageError

Kind = Literal["macs", "params", "latency", "ratio"]


@dataclass(frozen=True)
class Target:
    """What to reach.

    Parameters
    ----------
    kind
        "macs", "params" or "latency": keep at most this share of them. "ratio": drop this share of the units.
    value
        In (0, 1].
    """

    kind: Kind
    value: float

    def __post_init__(self) -> None:
        """Reject values outside (0, 1]."""
        if not 0 < self.value <= 1:
            raise UsageError(
                f"the target --{self.kind} {self.value:g} is not in (0, 1]",
                f"--{self.kind} takes a share: 0.6 means {_MEANING[self.kind]}.",
            )

    @property
    def dropped(self) -> float:
        """About which share of the units goes: the ratio, or what is not kept of the MACs or parameters."""
        return self.value if self.kind == "ratio" else 1.0 - self.value

    def achieved(self, full: Cost, now: Cost, units: int, dropped: int) -> float:
        """The share that was reached: kept MACs, parameters or run time, or dropped units."""
        if self.kind == "ratio":
            return dropped / units if units else 0.0
        before = getattr(full, self.kind)
        return getattr(now, self.kind) / before if before else 1.0

    def met_by(self, achieved: float) -> bool:
        """Whether that share is enough."""
        return achieved >= self.value - 1e-12 if self.kind == "ratio" else achieved <= self.value + 1e-12

    @property
    def unit(self) -> str:
        """What the share is one of."""
        return _UNIT[self.kind]

    @property
    def sentence(self) -> str:
        """The target in words."""
        share = f"{self.value:.1%}"
        if self.kind == "ratio":
            return f"drop {share} of the {self.unit}"
        return f"keep at most {share} of the {self.unit}"


def target_of(
    macs: float | None, params: float | None, ratio: float | None, latency: float | None = None
) -> Target:
    """The one target that was given; by default keep at most 70 % of the MACs.

    Raises
    ------
    UsageError
        More than one was given, or its value is outside (0, 1].
    """
    named = (("macs", macs), ("params", params), ("latency", latency), ("ratio", ratio))
    given = [(k, v) for k, v in named if v is not None]
    if len(given) > 1:
        names = " and ".join(f"--{kind}" for kind, _ in given)
        raise UsageError(f"{names} contradict each other", "Give one target.")
    if not given:
        return Target("macs", 0.7)
    kind, value = given[0]
    return Target(kind, value)  # type: ignore[arg-type]


_UNIT = {"macs": "MACs", "params": "parameters", "latency": "run time", "ratio": "units"}
_MEANING = {
    "macs": "keep at most 60 % of the MACs",
    "params": "keep at most 60 % of the parameters",
    "latency": "keep at most 60 % of the run time",
    "ratio": "drop 60 % of the units",
}
